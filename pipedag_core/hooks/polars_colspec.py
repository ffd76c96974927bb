"""Row contracts of pydiverse.colspec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from pydiverse.colspec.exc import SchemaError

from pipedag_core.hooks.polars_contract import PolarsContract


@final
class ColSpecContract(PolarsContract):
    """See `RowContract`."""

    def __init__(self, cls: Any) -> None:
        super().__init__(cls, cls.primary_keys(), cls.polars_schema(), SchemaError)

    def _filter(self, frame: Any) -> tuple[Any, Mapping[str, int]]:
        found, failure = self._cls.filter_polars(frame, cast=True)
        return found, failure.counts()
