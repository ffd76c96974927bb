"""Row contracts of pydiverse.colspec."""

from __future__ import annotations

from typing import Any, final

import polars as pl
from pydiverse.colspec.exc import SchemaError

from pipedag_core.hooks.contracts import broken, comment_of, token, unfit
from pipedag_core.hooks.polars_dtypes import to_cast

#: Columns of these classes take several types.
_ABSTRACT = ("Integer", "Float", "Any")


@final
class ColSpecContract:
    """See `RowContract`."""

    frame_type: type = pl.DataFrame

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        columns = cls.columns()
        dtypes = cls.polars_schema()
        self.name: str = cls.__name__
        self.columns = tuple(columns)
        self.token = token(cls, repr(cls))
        self.primary_key = tuple(cls.primary_keys())
        self.non_nullable = tuple(name for name, column in columns.items() if not column.nullable)
        self.types = to_cast({name: dtypes[name] for name, column in columns.items() if type(column).__name__ not in _ABSTRACT})
        self.comment = comment_of(cls)
        self.comments: dict[str, str] = {}

    def check(self, frame: Any, where: str) -> Any:
        """See `RowContract.check`."""
        frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        try:
            found, failure = self._cls.filter_polars(frame, cast=True)
        except SchemaError as error:
            raise unfit(self._cls, where, error) from error
        counts = failure.counts()
        if counts:
            raise broken(self._cls, where, counts, frame.height)
        return found

    def same_shape(self, before: Any, after: Any) -> bool:
        """See `RowContract.same_shape`."""
        return before.height == after.height and [*before.schema.items()] == [*after.schema.items()]
