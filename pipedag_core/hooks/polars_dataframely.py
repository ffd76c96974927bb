"""Row contracts of dataframely."""

from __future__ import annotations

from typing import Any, final

import polars as pl
from dataframely.exc import SchemaError

from pipedag_core.hooks.contracts import broken, comment_of, text, token, unfit
from pipedag_core.hooks.polars_dtypes import to_cast

#: Columns of these classes take several types.
_ABSTRACT = ("Integer", "Float", "Any")


@final
class DataframelyContract:
    """See `RowContract`."""

    frame_type: type = pl.DataFrame

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        columns = cls.columns()
        self.name: str = cls.__name__
        self.columns = tuple(columns)
        self.token = token(cls, repr(cls))
        self.primary_key = tuple(cls.primary_key())
        self.non_nullable = tuple(name for name, column in columns.items() if not column.nullable)
        self.types = to_cast({name: column.dtype for name, column in columns.items() if type(column).__name__ not in _ABSTRACT})
        self.comment = comment_of(cls)
        self.comments = {name: text(column.description) for name, column in columns.items() if text(column.description)}

    def check(self, frame: Any, where: str) -> Any:
        """See `RowContract.check`."""
        frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        try:
            found = self._cls.filter(frame, cast=True)
        except SchemaError as error:
            raise unfit(self._cls, where, error) from error
        counts = found.failure.counts()
        if counts:
            raise broken(self._cls, where, counts, frame.height)
        return found.result

    def same_shape(self, before: Any, after: Any) -> bool:
        """See `RowContract.same_shape`."""
        return before.height == after.height and [*before.schema.items()] == [*after.schema.items()]
