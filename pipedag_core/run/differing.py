"""What differs between two generations of stages: tasks by what they were made from, tables by their columns, options and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final

from pipedag_core.cache.fingerprint import explain
from pipedag_core.errors import PipedagError
from pipedag_core.ports.catalogs import Catalog, TaskResult
from pipedag_core.ports.data import Column, ExternalTable, RowDifference, StoredBlob, StoredObject, StoredTable, TableOptions

T = TypeVar("T")

#: Counts how rows differ: earlier table, later table, columns, key.
CountRows = Callable[[StoredTable, StoredTable, Sequence[str], Sequence[str]], RowDifference]

NEW: Final = "new"
GONE: Final = "gone"
CHANGED: Final = "changed"


@final
@dataclass(frozen=True, slots=True)
class Side:
    """One of the two states.

    Attributes:
        catalog: Knows it.
        generations: Stage -> generation; stages that are not there are left out.
    """

    catalog: Catalog
    generations: Mapping[str, int]


@final
@dataclass(frozen=True, slots=True)
class TaskDifference:
    """A task that is in one state only, or was made from something else.

    Attributes:
        stage, task: Which one.
        change: `NEW`, `GONE` or `CHANGED`.
        why: What differs in what it was made from.
        before, after: Its fingerprints; "" where it has none.
    """

    stage: str
    task: str
    change: str
    why: str = ""
    before: str = ""
    after: str = ""


@final
@dataclass(frozen=True, slots=True)
class ColumnDifference:
    """A column that is in one table only, or that has another type; the types as pyarrow writes them, "" where it is not."""

    name: str
    before: str
    after: str


@final
@dataclass(frozen=True, slots=True)
class TableDifference:
    """A table, or blob, that is in one state only, or that is not the same in both.

    Attributes:
        stage, name: Its readable name.
        change: `NEW`, `GONE` or `CHANGED`.
        count: Rows of both; None where they are not known.
        columns: Columns that were added, removed, or have another type.
        options: Declared options that differ, in words.
        key: By which columns rows were told apart; empty if they were compared as wholes.
        rows: How rows differ, in the columns that both have; None if they were not compared.
        note: Why they were not.
    """

    stage: str
    name: str
    change: str
    count: tuple[int | None, int | None] = (None, None)
    columns: tuple[ColumnDifference, ...] = ()
    options: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    rows: RowDifference | None = None
    note: str = ""


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two states.

    Attributes:
        generations: Stage -> its generations in both; None where it has none.
        tasks, tables: Those that differ.
        same: How many tables and blobs do not.
    """

    generations: Mapping[str, tuple[int | None, int | None]]
    tasks: tuple[TaskDifference, ...] = ()
    tables: tuple[TableDifference, ...] = ()
    same: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not self.tasks and not self.tables


def differences(before: Side, after: Side, wanted: Mapping[str, frozenset[str]], count_rows: CountRows | None) -> Difference:
    """Compare two states of stages.

    Args:
        before, after: The states.
        wanted: Which stages -> which of their tables; none for all of a stage.
        count_rows: Counts how the rows of two tables differ, where all that is known of them does not tell; None to leave rows alone.
    """
    tasks: list[TaskDifference] = []
    tables: list[TableDifference] = []
    same = 0
    for stage, names in wanted.items():
        numbers = before.generations.get(stage), after.generations.get(stage)
        old, new = (_entries(side, stage, number, names) for side, number in zip((before, after), numbers, strict=True))
        results = [_results(side, stage, number, names) for side, number in zip((before, after), numbers, strict=True)]
        tasks += _tasks(stage, *results)
        for name in _union(new, old):
            found = _entry(stage, name, old.get(name), new.get(name), count_rows)
            if found is None:
                same += 1
            else:
                tables.append(found)
    generations = {stage: (before.generations.get(stage), after.generations.get(stage)) for stage in wanted}
    return Difference(generations, tuple(tasks), tuple(tables), same)


# --- tasks ----------------------------------------------------------------------------------------------------------------------------


def _results(side: Side, stage: str, number: int | None, names: frozenset[str]) -> dict[str, TaskResult]:
    results = () if number is None else side.catalog.results(stage, number)
    return {result.task: result for result in results if not names or names & result.entries.keys()}


def _tasks(stage: str, before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> Iterable[TaskDifference]:
    for task in _union(after, before):
        old, new = before.get(task), after.get(task)
        if old is None or new is None:
            yield TaskDifference(
                stage, task, NEW if old is None else GONE, "", old.fingerprint if old else "", new.fingerprint if new else ""
            )
            continue
        why = explain(old.parts, new.parts)
        if not why and old.fingerprint != new.fingerprint:
            why = (
                "declared in another way"
                if old.fingerprint and new.fingerprint
                else "has a version now"
                if new.fingerprint
                else "has no version any more"
            )
        if why:
            yield TaskDifference(stage, task, CHANGED, why, old.fingerprint, new.fingerprint)


# --- tables ---------------------------------------------------------------------------------------------------------------------------


def _entries(side: Side, stage: str, number: int | None, names: frozenset[str]) -> dict[str, StoredObject]:
    entries: Mapping[str, StoredObject] = {} if number is None else side.catalog.entries(stage, number)
    return {name: item for name, item in entries.items() if not names or name in names}


def _entry(
    stage: str, name: str, before: StoredObject | None, after: StoredObject | None, count_rows: CountRows | None
) -> TableDifference | None:
    if before is None or after is None:
        return TableDifference(stage, name, NEW if before is None else GONE, (_rows(before), _rows(after)))
    if before.identity == after.identity:
        return None
    if isinstance(before, StoredTable) and isinstance(after, StoredTable):
        return _table(stage, name, before, after, count_rows)
    if isinstance(before, StoredBlob) and isinstance(after, StoredBlob):
        return TableDifference(stage, name, CHANGED, note=f"a blob of {before.size:,} bytes, now {after.size:,}")
    return TableDifference(stage, name, CHANGED, (_rows(before), _rows(after)), note=f"was {_kind(before)}, is {_kind(after)}")


def _table(stage: str, name: str, before: StoredTable, after: StoredTable, count_rows: CountRows | None) -> TableDifference | None:
    columns = tuple(_columns(before.schema.columns, after.schema.columns))
    options = tuple(_options(before.options, after.options))
    counts = (before.rows, after.rows)
    if not columns and _has_equal_content(before, after):
        return TableDifference(stage, name, CHANGED, counts, (), options, rows=RowDifference(0, 0)) if options else None
    compared, retyped = _compared(before, after)
    key = after.options.primary_key if after.options.primary_key == before.options.primary_key else ()
    if not set(key) <= set(compared):
        key = ()
    rows, note = None, ""
    if count_rows is None:
        note = "rows were not compared"
    elif not compared:
        note = "no column is in both"
    else:
        try:
            rows = count_rows(before, after, compared, key)
        except PipedagError as error:
            note = f"rows could not be compared: {error}"
    if retyped and not note:
        note = f"not compared: {', '.join(retyped)}"
    if rows is not None and rows.is_empty and not columns and not options:
        return None
    return TableDifference(stage, name, CHANGED, counts, columns, options, key if rows is not None else (), rows, note)


def _has_equal_content(before: StoredTable, after: StoredTable) -> bool:
    hashes = [table.content_hash.partition("#")[0] if table.content_hash else None for table in (before, after)]
    return hashes[0] is not None and hashes[0] == hashes[1]


def _columns(before: Sequence[Column], after: Sequence[Column]) -> Iterable[ColumnDifference]:
    old, new = ({column.name: _told(column) for column in side} for side in (before, after))
    for name in _union(new, old):
        if old.get(name) != new.get(name):
            yield ColumnDifference(name, old.get(name, ""), new.get(name, ""))


def _told(column: Column) -> str:
    return column.type if column.nullable else f"{column.type} not null"


def _compared(before: StoredTable, after: StoredTable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which columns of both can be compared, and which cannot for their types."""
    types = {column.name: column.type for column in before.schema.columns}
    both = [column for column in after.schema.columns if column.name in types]
    can = {column.name for column in both if comparable(types[column.name], column.type)}
    return tuple(column.name for column in both if column.name in can), tuple(column.name for column in both if column.name not in can)


#: How the names of Arrow types begin whose values can be compared with one another, though the types differ.
_ALIKE: Final = (("string", "large_string", "string_view"), ("int", "uint", "float", "double", "halffloat"))


def comparable(one: str, other: str) -> bool:
    """Return whether values of two Arrow types, by their names, can be compared by all stores."""
    return one == other or any(one.startswith(kinds) and other.startswith(kinds) for kinds in _ALIKE)


_OPTIONS: Final = {
    "primary_key": "primary key",
    "indexes": "indexes",
    "type_map": "type map",
    "nullable": "nullable",
    "non_nullable": "non-nullable",
    "materialization_details": "materialization details",
}


def _options(before: TableOptions, after: TableOptions) -> Iterable[str]:
    for attribute, told in _OPTIONS.items():
        old, new = getattr(before, attribute), getattr(after, attribute)
        if old != new:
            yield f"{told} {_listed(old)} -> {_listed(new)}"
    if before.contract != after.contract:
        yield "contract differs"


def _listed(option: Any) -> str:
    if isinstance(option, Mapping):
        return ", ".join(f"{name}: {kind}" for name, kind in cast("Mapping[str, str]", option).items()) or "none"
    if isinstance(option, tuple):
        parts = cast("tuple[str | tuple[str, ...], ...]", option)
        return ", ".join(part if isinstance(part, str) else f"({', '.join(part)})" for part in parts) or "none"
    return str(option) if option is not None else "none"


def _rows(item: StoredObject | None) -> int | None:
    return item.rows if isinstance(item, StoredTable) else None


def _kind(item: StoredObject) -> str:
    return "a blob" if isinstance(item, StoredBlob) else "a table of somebody else" if isinstance(item, ExternalTable) else "a table"


def _union(first: Iterable[T], then: Iterable[T]) -> list[T]:
    return list(dict.fromkeys([*first, *then]))
