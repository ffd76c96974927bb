"""Row contracts of pandera, for frames of polars and of pandas."""

from __future__ import annotations

from importlib import import_module
from typing import Any, final

import pyarrow as pa
from pandera.errors import SchemaErrors

from pipedag_core.hooks.contracts import broken, canonical, comment_of, text, token, unfit

#: What pandera calls it that columns are missing, too many, or of another type: it is the table then, and not its rows.
_COLUMNS = ("column_in_dataframe", "column_in_schema", "column_ordered", "dtype(")


def _check_text(check: Any) -> str:
    """Return what a check says: its name, its limits, and its function."""
    return f"{check.name} {canonical(check.statistics)} {canonical(getattr(check, '_check_fn', None))}"


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
            name: [*map(_check_text, column.checks), column.nullable, column.unique, column.required, column.coerce]
            for name, column in schema.columns.items()
        }
        self.token = token(cls, f"{schema!r} {said!r} {[*map(_check_text, schema.checks)]!r}")
        # That values are unique is a rule of theirs, which nulls may keep; a key is another thing.
        self.primary_key: tuple[str, ...] = ()
        self.non_nullable = tuple(name for name, column in columns.items() if column.required and not column.nullable)
        # Which types a query gives depends on the store, so it is cast even where the contract does not say coerce.
        kinds = {name: column.dtype.type for name, column in columns.items() if column.dtype is not None and column.required}
        self.types: dict[str, Any] = (
            import_module("pipedag_core.hooks.polars_dtypes").to_cast(kinds)
            if is_polars
            else {name: kind for name, kind in kinds.items() if getattr(kind, "kind", "") in ("b", "i", "u", "f")}
        )
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

    def same_shape(self, before: Any, after: Any) -> bool:
        """See `RowContract.same_shape`."""
        kinds = [list(zip(frame.columns, map(str, frame.dtypes), strict=True)) for frame in (before, after)]
        return len(before) == len(after) and kinds[0] == kinds[1]
