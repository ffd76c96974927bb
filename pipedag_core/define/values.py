"""What tasks return: tables, views, blobs, raw SQL, and tables that somebody else owns.

These are wishes: a payload and how it should be kept. What the store gives back once they are written is another type,
`pipedag_core.ports.data.StoredTable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar, final

from pipedag_core import naming
from pipedag_core.define import doors
from pipedag_core.errors import FlowError, WrongType

T = TypeVar("T")


def _names(value: str | Sequence[str] | None, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not all(isinstance(item, str) for item in value):  # pyright: ignore[reportUnnecessaryIsInstance] -- comes from users
        raise WrongType(f"{what} takes a column name or a list of column names, not {value!r}.")
    return tuple(value)


def _indexes(value: Sequence[Sequence[str]] | None) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    if isinstance(value, str) or any(isinstance(index, str) for index in value):
        raise WrongType(f"indexes takes a list of lists of column names, one list per index, not {value!r}. Write [['a'], ['b', 'c']].")
    return tuple(tuple(index) for index in value)


def _optional_name(name: str | None, what: str) -> None:
    if name is not None:
        naming.normalize(name.removesuffix(naming.PLACEHOLDER) or "x", what)


@final
@dataclass(frozen=True, slots=True, init=False)
class Table(Generic[T]):
    """A table as a task returns it, and how it wishes to be kept.

    Args:
        obj: The rows: a data frame, an Arrow table, a query, or anything else that a hook understands.
        name: Its readable name in the stage, case-insensitive. `"x_%%"` is made unique by a hash of its place in the wiring.
            Without a name, the task's name is used (`<task>`, or `<task>_<path>` when the task returns several).
        primary_key: Column name, or list of them.
        indexes: One list of column names per index.
        type_map: Column name -> type to store it as: SQL text of the store, or a type of SQLAlchemy, polars, pyarrow, pandas or numpy.
        nullable: Columns that may hold nulls; all others may not.
        non_nullable: Columns that may not hold nulls; all others may. With `nullable` too, both must cover all columns.
        materialization_details: Label of a set of store-specific details from the configuration.
        annotation: A schema class that validates and types the rows.

    Raises:
        FlowError: A name is not legal, or a column is in both `nullable` and `non_nullable`.
        WrongType: An option has the wrong shape; a FlowError and a TypeError.
    """

    obj: T
    name: str | None
    primary_key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...]
    type_map: Mapping[str, Any]
    nullable: tuple[str, ...] | None
    non_nullable: tuple[str, ...] | None
    materialization_details: str | None
    annotation: Any

    def __init__(
        self,
        obj: T,
        name: str | None = None,
        *,
        primary_key: str | Sequence[str] | None = None,
        indexes: Sequence[Sequence[str]] | None = None,
        type_map: Mapping[str, Any] | None = None,
        nullable: str | Sequence[str] | None = None,
        non_nullable: str | Sequence[str] | None = None,
        materialization_details: str | None = None,
        annotation: Any = None,
    ) -> None:
        _optional_name(name, "table name")
        keep = object.__setattr__
        keep(self, "obj", obj)
        keep(self, "name", name)
        keep(self, "primary_key", _names(primary_key, "primary_key"))
        keep(self, "indexes", _indexes(indexes))
        keep(self, "type_map", dict(type_map or {}))
        keep(self, "nullable", None if nullable is None else _names(nullable, "nullable"))
        keep(self, "non_nullable", None if non_nullable is None else _names(non_nullable, "non_nullable"))
        keep(self, "materialization_details", materialization_details)
        keep(self, "annotation", annotation)
        overlap = set(self.nullable or ()) & set(self.non_nullable or ())
        if overlap:
            raise FlowError(f"Columns {sorted(overlap)} are named in both nullable and non_nullable. Name each in one of them.")

    def materialize(self, *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
        """Write this table now, in the middle of the running task, and return a reference to what is stored.

        The table is shown in the stage under its name (without one, as `<task>_materialized_<number>`), even if the task does not return it, and is
        found again where it is cache-valid. Queries that the task returns or writes later may read it. Returning this `Table`, or the reference, makes it an
        output. Outside of a run nothing is written, so that a task can be called by hand; a production flow writes nothing either.

        Args:
            return_as_type: The type of what is returned, or several for a tuple; by default the task's `input_type` if that refers to a table
                instead of holding its rows (`sa.Table`), or if the task has `version=AUTO_VERSION`; else `sa.Table`.
            config_context, schema: Not supported.

        Returns:
            The stored table in the wanted type or types; outside of a run, what was wrapped.

        Raises:
            DuplicateName: The task has written a table of this name already.
            MaterializationError: It is called in a thread that the task has started without handing its context on
                (`contextvars.copy_context().run`), or after the task has returned.
            UnsupportedByStore: `config_context` or `schema` is given, or `return_as_type` outside of a task.
        """
        return doors.materialize_table(self, return_as_type=return_as_type, config_context=config_context, schema=schema)


class SortOrder(Enum):
    """Direction of one column of a view's order."""

    ASC = "asc"
    DESC = "desc"


@final
@dataclass(frozen=True, slots=True)
class SortCol:
    """One column of a view's order."""

    col: str
    order: SortOrder = SortOrder.ASC
    nulls_first: bool | None = None


@final
@dataclass(frozen=True, slots=True)
class View:
    """A selection, renaming, ordering or union of tables that is inlined into its consumers instead of being written.

    Args:
        src: A table reference, or a list of them (union of all rows).
        columns: Names to keep, or a mapping new name -> old name; `None` keeps all.
        sort_by: Column name, `SortCol`, or a list of them.
        limit: Keep at most this many rows.
    """

    src: Any
    columns: Sequence[str] | Mapping[str, str] | None = None
    sort_by: str | SortCol | Sequence[str | SortCol] | None = None
    limit: int | None = None


@final
@dataclass(frozen=True, slots=True)
class RawSql:
    """Statements that are run in the store as they are; the tables that they create in the stage become its items.

    Args:
        sql: The statements.
        name: Names the script in messages.
        separator: Kept for compatibility; statements are found by a tokenizer of the store's dialect.
    """

    sql: str
    name: str | None = None
    separator: str = ";"


@final
@dataclass(frozen=True, slots=True)
class Blob(Generic[T]):
    """Any Python object, kept as a file beside the tables.

    Args:
        obj: The object; it must be picklable.
        name: Readable name in the stage; without one, as for `Table`.
    """

    obj: T
    name: str | None = None

    def __post_init__(self) -> None:
        _optional_name(self.name, "blob name")


@final
@dataclass(frozen=True, slots=True)
class ExternalTableReference:
    """A table that somebody else owns and that tasks may read."""

    name: str
    schema: str
    shared_lock_allowed: bool = False


@final
@dataclass(frozen=True, slots=True)
class Schema:
    """A schema of the table store with what stands before and after its name in this instance."""

    name: str
    prefix: str = ""
    suffix: str = ""
    readable: str = field(default="", compare=False)

    def get(self) -> str:
        """Return the name of the schema as the database knows it."""
        return f"{self.prefix}{self.name}{self.suffix}"
