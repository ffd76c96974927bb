"""How a table is made in PostgreSQL: its place, its columns, its keys, and what its columns come back as."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final

import psycopg
import pyarrow as pa

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.errors import ConfigError, MaterializationError
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.ports.data import TableSchema
from pipedag_core.stores.dialects import postgres_types as types
from pipedag_core.stores.dialects.port import Order
from pipedag_core.stores.sql_names import Place
from pipedag_core.stores.table_options import filled_columns

log = logging.getLogger(__name__)

#: Runs one statement and returns its rows.
Run = Callable[[str], list[tuple[Any, ...]]]

#: Tables from this many rows on are looked at for the planner at once; smaller ones it guesses well enough.
ANALYZE_ROWS: Final = 10_000

#: What is no number, so that reading it as one fails.
_TAKEN: Final = "pipedag: name is taken"


@final
@dataclass(frozen=True, slots=True)
class Details:
    """Options of PostgreSQL that a label stands for (`materialization_details` in the configuration)."""

    unlogged: bool = False
    tablespace: str | None = None


def details_of(labels: Mapping[str, Mapping[str, Any]], label: str | None, where: str) -> Details:
    """Return what a label stands for; labels inherit from `__any__`.

    Raises:
        ConfigError: The label is not known, or has keys that are not.
    """
    if label is not None and label not in labels:
        raise ConfigError(
            f"{where}: materialization_details {label!r} is not configured. Add it to table_store.args.materialization_details; there are: "
            f"{', '.join(name for name in labels if name != '__any__') or 'none'}.",
            label=label,
        )
    merged = {**labels.get("__any__", {}), **(labels.get(label, {}) if label else {})}
    unknown = sorted(set(merged) - {"unlogged", "tablespace"})
    if unknown:
        raise ConfigError(f"materialization_details {label or '__any__'!r} has unknown keys {unknown}. Known here: unlogged, tablespace.")
    return Details(bool(merged.get("unlogged", False)), merged.get("tablespace"))


def claim(run: Run, places: Iterable[Place], where: str) -> Place:
    """Take the first of some places that nobody has, until the end of the transaction; `where` is for messages."""
    for place in places:
        [(free,)] = run(claiming(place))
        if free:
            return place
    raise MaterializationError(f"{where}: all names for further attempts are taken. Let clean-up run.")


def claiming(place: Place) -> str:
    """Return the statement that takes a place until the end of the transaction, and tells whether it was free."""
    # Without the lock, whoever comes second would wait for the end of the first one's query, and fail then.
    name = quote_literal(place.sql)
    return f"SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended({name}, 0)) AND pg_catalog.to_regclass({name}) IS NULL"


def claiming_or_failing(place: Place) -> str:
    """Return the statement that takes a place until the end of the transaction, and fails if it was not free; see `is_taken`."""
    free = claiming(place).removeprefix("SELECT ")
    return f"SELECT CAST(CASE WHEN {free} THEN '1' ELSE {quote_literal(_TAKEN)} END AS pg_catalog.int4)"


def is_taken(error: Exception) -> bool:
    """Return whether this is how `claiming_or_failing` fails."""
    return isinstance(error, psycopg.errors.InvalidTextRepresentation) and _TAKEN in str(error)


def create(place: Place, details: Details) -> str:
    """Return the beginning of a statement that makes a table, up to its columns."""
    return f"CREATE {'UNLOGGED ' if details.unlogged else ''}TABLE {place.sql}"


def tablespace(details: Details) -> str:
    """Return the clause that names the tablespace."""
    return f" TABLESPACE {quote_identifier(details.tablespace)}" if details.tablespace else ""


def check_type(run: Run, kind: str, column: str, where: str) -> None:
    """Refuse a type of `type_map` that the server does not know, so that nothing else can stand there.

    Raises:
        MaterializationError: It is no type.
    """
    try:
        [(known,)] = run(f"SELECT pg_catalog.to_regtype({quote_literal(kind)}) IS NOT NULL")
    except Exception as error:
        if not hasattr(error, "sqlstate"):
            raise
        known = False
    if not known:
        raise MaterializationError(
            f"{where}: type_map names {kind!r} for column {column!r}, which is no type of PostgreSQL.", column=column
        )


def table_comment(place: Place, order: Order) -> str:
    """Return the statement that tells people of a table; "" if there is nothing to tell."""
    return f"COMMENT ON TABLE {place.sql} IS {quote_literal(order.comment)}" if order.comment else ""


def finish(run: Run, place: Place, order: Order, names: Sequence[str], rows: int | None) -> None:
    """Give a filled table its keys and the comments of its columns, and the planner what it wants to know."""
    options = order.options
    for name in names:
        if name in order.comments:
            run(f"COMMENT ON COLUMN {place.sql}.{quote_identifier(name)} IS {quote_literal(order.comments[name])}")
    changes = [f"ALTER COLUMN {quote_identifier(name)} SET NOT NULL" for name in filled_columns(options, names)]
    if options.primary_key:
        changes.append(f"ADD PRIMARY KEY ({_columns(options.primary_key)})")
    if changes:
        run(f"ALTER TABLE {place.sql} {', '.join(changes)}")
    for index in options.indexes:
        run(f"CREATE INDEX ON {place.sql} ({_columns(index)})")
    if rows is None or rows >= ANALYZE_ROWS:
        run(f"ANALYZE {place.sql}")


def _columns(names: Sequence[str]) -> str:
    return ", ".join(map(quote_identifier, names))


def columns_of(run: Run, place: Place) -> list[types.SqlColumn]:
    """Return the columns of a table; none if there is no such table."""
    return [types.SqlColumn(*row) for row in run(types.COLUMNS.replace("%s", quote_literal(place.sql)))]


def looking_at(place: Place) -> str:
    """Return the query whose answer is described as a table's columns are: it costs the server less than a look into its catalogue."""
    return f"SELECT * FROM {place.sql} LIMIT 0"


def columns_of_answer(run: Run, place: Place, answer: Any) -> list[types.SqlColumn]:
    """Return the columns of a table that a query has made, from the answer to `looking_at`, or from the catalogue if there are types of others."""
    described = answer.description or ()
    fields = answer.pgresult
    kinds = [types.BY_OID.get(fields.ftype(at)) for at in range(len(described))]
    if None in kinds:
        return columns_of(run, place)
    # What a query makes has no column that refuses nulls.
    return [
        types.SqlColumn(item.name, kind, "b", fields.fmod(at), False)
        for at, (item, kind) in enumerate(zip(described, kinds, strict=True))
        if kind is not None
    ]


def schema_of(run: Run, place: Place, columns: Sequence[types.SqlColumn]) -> TableSchema:
    """Return a table's columns with the Arrow types in which they come back; looks at values where a type does not tell."""
    backs: list[Any] = [types.from_sql(column) for column in columns]
    open_ = [(at, types.measures(column)) for at, (column, back) in enumerate(zip(columns, backs, strict=True)) if back is None]
    if not open_:
        return _schema_of(tuple(columns))
    [found] = run(f"SELECT {', '.join(part for _, parts in open_ for part in parts)} FROM {place.sql}")
    values = list(found)
    for at, parts in open_:
        backs[at] = types.measured(columns[at], values[: len(parts)])
        values = values[len(parts) :]
    return _described(columns, backs)


@lru_cache(maxsize=1024)
def _schema_of(columns: tuple[types.SqlColumn, ...]) -> TableSchema:
    return _described(columns, [types.from_sql(column) for column in columns])


def _described(columns: Sequence[types.SqlColumn], backs: Sequence[Any]) -> TableSchema:
    return from_arrow(pa.schema([pa.field(column.name, back, not column.not_null) for column, back in zip(columns, backs, strict=True)]))
