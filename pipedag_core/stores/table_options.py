"""What `Table(...)` may ask of a table, for every store: which columns it names, which of them may hold nulls, and how that is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipedag_core.arrow_schema import from_arrow, to_arrow
from pipedag_core.errors import MaterializationError
from pipedag_core.ports.data import TableOptions, TableSchema


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse columns that SQL and data frames could not tell apart or name.

    Raises:
        MaterializationError: No columns, an empty name, or names that are equal without regard to case.
    """
    if not names:
        raise MaterializationError(f"{where} has no columns. Return a table with at least one.")
    if any(not name for name in names):
        raise MaterializationError(f"{where} has a column without a name, at position {list(names).index('') + 1}. Name it.")
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise MaterializationError(
                f"{where} has two columns named {seen[name.lower()]!r} and {name!r}; names have to differ in more than upper and lower case. "
                "Rename one.",
                column=name,
            )
        seen[name.lower()] = name


def check_columns(options: TableOptions, names: Sequence[str], where: str) -> None:
    """Check the columns that a table's options name against those that it has; best before it is written.

    Args:
        options: What was declared.
        names: The table's columns.
        where: Task and table, for the message.

    Raises:
        MaterializationError: An option names a column that is not there, twice the same one in a key or an index, a key column as nullable; or
            `nullable` and `non_nullable`, where both are given, do not cover all columns, or overlap.
    """
    keys = {"primary_key": options.primary_key, **{f"indexes[{at}]": index for at, index in enumerate(options.indexes)}}
    lists = {**keys, "type_map": tuple(options.type_map), "nullable": options.nullable or (), "non_nullable": options.non_nullable or ()}
    for option, wanted in lists.items():
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise MaterializationError(
                f"{where}: {option} names {_listed(unknown)}, which the table does not have. Its columns are: {_listed(names)}.",
                column=unknown[0],
            )
    for option, wanted in keys.items():
        double = [name for at, name in enumerate(wanted) if name in wanted[:at]]
        if double:
            raise MaterializationError(f"{where}: {option} names the column {double[0]!r} twice. Name each once.", column=double[0])
    if options.nullable is None:
        return
    for option, others in (("primary_key", options.primary_key), ("non_nullable", options.non_nullable or ())):
        both = [name for name in others if name in options.nullable]
        if both:
            raise MaterializationError(
                f"{where}: {_listed(both)} cannot be in {option} and in nullable. Name it in one of them.", column=both[0]
            )
    if options.non_nullable is not None:
        left = [
            name for name in names if name not in options.nullable and name not in options.non_nullable and name not in options.primary_key
        ]
        if left:
            raise MaterializationError(
                f"{where}: nullable and non_nullable together have to name every column, and {_listed(left)} is in neither. "
                "Name it in one of them, or leave one of the two lists out: the other columns then follow.",
                column=left[0],
            )


def filled_columns(options: TableOptions, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that may not hold nulls, in the table's order: those of the primary key, and what the two lists say."""
    filled = {*options.primary_key, *(options.non_nullable or ())}
    if options.nullable is not None and options.non_nullable is None:
        filled |= set(names) - set(options.nullable)
    return tuple(name for name in names if name in filled)


def names_filled_columns(options: TableOptions) -> bool:
    """Return whether the options say of any column that it may not hold nulls."""
    return bool(options.primary_key or options.non_nullable) or (options.nullable is not None and options.non_nullable is None)


def refuse_nulls(nulls: Mapping[str, int], rows: int | None, where: str) -> None:
    """Raise if columns that may not hold nulls do.

    Args:
        nulls: Column that may not hold nulls -> how many it holds.
        rows: Rows of the table, if known.
        where: Task and table, for the message.

    Raises:
        MaterializationError: Naming every such column and its count.
    """
    found = {name: count for name, count in nulls.items() if count}
    if not found:
        return
    told = ", ".join(f"column {name!r} is null in {count:,}{'' if rows is None else f' of {rows:,}'} rows" for name, count in found.items())
    raise MaterializationError(
        f"{where}: {told}, but may not hold nulls (primary_key, nullable= or non_nullable= says so). Fill or drop them, or declare it nullable.",
        column=next(iter(found)),
        nulls=dict(found),
    )


def refuse_duplicates(key: Sequence[str], example: Sequence[object], times: int, keys: int, where: str) -> None:
    """Raise that a primary key is not unique.

    Args:
        key: Its columns.
        example: The values of one key that occurs more than once.
        times: How often that one occurs.
        keys: How many keys occur more than once.
        where: Task and table, for the message.

    Raises:
        MaterializationError: Always.
    """
    shown = ", ".join(f"{name} = {value!r:.60}" for name, value in zip(key, example, strict=True))
    raise MaterializationError(
        f"{where}: the primary key ({', '.join(key)}) is not unique: {keys:,} of its values occur more than once, for instance {shown} in {times:,} rows. "
        "Drop the duplicates, or declare another key.",
        key=tuple(key),
        keys=keys,
    )


def with_nullability(schema: TableSchema, options: TableOptions) -> TableSchema:
    """Return the schema with every column as nullable as the options say; columns of which they say nothing stay as they are."""
    filled = set(filled_columns(options, schema.names))
    wanted: dict[str, bool] = {}
    for column in schema.columns:
        said = column.name in filled or options.nullable is not None or options.non_nullable is not None
        if said and column.nullable == (column.name in filled):
            wanted[column.name] = column.name not in filled
    if not wanted:
        return schema
    fields = [field.with_nullable(wanted.get(field.name, field.nullable)) for field in to_arrow(schema)]
    return from_arrow(_schema_of(fields))


def _schema_of(fields: Sequence[object]) -> object:
    import pyarrow as pa

    return pa.schema(fields)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
