"""Row contracts whose library looks at frames of polars."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from pipedag_core.hooks.contracts import broken, comment_of, token, unfit
from pipedag_core.hooks.polars_dtypes import to_cast

#: Columns of these classes take several types.
_ABSTRACT: Final = ("Integer", "Float", "Any")


class PolarsContract(ABC):
    """See `RowContract`.

    Args:
        cls: The class of the schema library.
        primary_key: Its columns.
        dtypes: Column -> type of polars.
        misfit: What the library raises if columns are missing or of other types.
    """

    frame_type: type = pl.DataFrame

    def __init__(self, cls: Any, primary_key: Any, dtypes: Mapping[str, Any], misfit: type[Exception]) -> None:
        self._cls = cls
        self._misfit = misfit
        columns = cls.columns()
        self.name: str = cls.__name__
        self.columns = tuple(columns)
        self.token = token(cls, repr(cls))
        self.primary_key: tuple[str, ...] = tuple(primary_key)
        self.non_nullable = tuple(name for name, column in columns.items() if not column.nullable)
        self.types = to_cast({name: dtypes[name] for name, column in columns.items() if type(column).__name__ not in _ABSTRACT})
        self.comment = comment_of(cls)
        self.comments: dict[str, str] = {}

    def check(self, frame: Any, where: str) -> Any:
        """See `RowContract.check`."""
        frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        try:
            found, counts = self._filter(frame)
        except self._misfit as error:
            raise unfit(self._cls, where, error) from error
        if counts:
            raise broken(self._cls, where, counts, frame.height)
        return found

    def same_shape(self, before: Any, after: Any) -> bool:
        """See `RowContract.same_shape`."""
        return before.height == after.height and [*before.schema.items()] == [*after.schema.items()]

    @abstractmethod
    def _filter(self, frame: pl.DataFrame) -> tuple[Any, Mapping[str, int]]:
        """Return the rows that keep the contract, with its types, and rule -> how many rows break it."""
