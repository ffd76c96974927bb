"""Row contracts of pandera, for frames of polars and of pandas."""

from __future__ import annotations

from importlib import import_module
from typing import Any, final

import pyarrow as pa
from pandera.errors import SchemaErrors

from pipedag_core.hooks.contracts import broken, comment_of, text, token, unfit

#: What pandera calls it that columns are missing, too many, or of another type: it is the table then, and not its rows.
_COLUMNS = ("column_in_dataframe", "column_in_schema", "column_ordered", "dtype(")


@final
class PanderaContract:
    """See `RowContract`."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        self._schema = schema = cls.to_schema()
        is_polars = type(schema).__module__.startswith("pandera.api.polars")
        self._library = "polars" if is_polars else "pandas"
        self.frame_type: type = import_module(self._library).DataFrame
        columns = {name: column for name, column in schema.columns.items() if not column.regex}
        self.name: str = cls.__name__
        self.columns = tuple(columns)
        said = {
            name: (column.checks, column.nullable, column.unique, column.required, column.coerce) for name, column in schema.columns.items()
        }
        self.token = token(cls, f"{schema!r} {said!r}")
        # That values are unique is a rule of theirs, which nulls may keep; a key is another thing.
        self.primary_key: tuple[str, ...] = ()
        self.non_nullable = tuple(name for name, column in columns.items() if column.required and not column.nullable)
        # Which types a query gives depends on the store, so it is cast even where the contract does not say coerce.
        self.types: dict[str, Any] = {}
        if is_polars:
            kinds = {name: column.dtype.type for name, column in columns.items() if column.dtype is not None}
            self.types = import_module("pipedag_core.hooks.polars_dtypes").to_cast(kinds)
        self.comment = comment_of(cls)
        self.comments = {name: text(column.description) for name, column in columns.items() if text(column.description)}

    def check(self, frame: Any, where: str) -> Any:
        """See `RowContract.check`."""
        if not isinstance(frame, self.frame_type):
            frame = self.frame_type(frame) if self._library == "polars" else pa.table(frame).to_pandas()
        try:
            return self._schema.validate(frame, lazy=True)
        except SchemaErrors as error:
            cases = error.failure_cases
            rows = cases.to_dicts() if self._library == "polars" else cases.to_dict("records")
            counts: dict[str, int] = {}
            for row in rows:
                if str(row["check"]).startswith(_COLUMNS):
                    raise unfit(self._cls, where, ValueError(f"{row['check']}: {row['failure_case']}")) from error
                rule = f"{row['column']}|{row['check']}" if row["column"] not in (None, self.name) else str(row["check"])
                counts[rule] = counts.get(rule, 0) + 1
            raise broken(self._cls, where, counts, len(frame)) from error
