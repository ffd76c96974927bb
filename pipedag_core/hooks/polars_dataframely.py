"""Row contracts of dataframely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from dataframely.exc import SchemaError

from pipedag_core.hooks.contracts import text
from pipedag_core.hooks.polars_contract import PolarsContract


@final
class DataframelyContract(PolarsContract):
    """See `RowContract`."""

    def __init__(self, cls: Any) -> None:
        columns = cls.columns()
        super().__init__(cls, cls.primary_key(), {name: column.dtype for name, column in columns.items()}, SchemaError)
        self.comments = {name: text(column.description) for name, column in columns.items() if text(column.description)}

    def _filter(self, frame: Any) -> tuple[Any, Mapping[str, int]]:
        found = self._cls.filter(frame, cast=True)
        return found.result, found.failure.counts()
