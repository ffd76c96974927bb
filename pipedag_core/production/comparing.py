"""How two tables differ, whatever the order of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

#: Rows that are shown of a difference.
_SHOWN = 5

#: Columns of row numbers beside a key; no key has these names.
_LEFT, _RIGHT = "row in training\0", "row here\0"


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        problem: How the tables differ; "" if they do not.
        rows: Rows that are in both, and equal.
        extra: Rows that training has not; none of them if that is a problem.
    """

    problem: str
    rows: int = 0
    extra: int = 0


def compare_tables(
    before: Any, after: Any, tolerance: float, tolerances: Mapping[str, float], key: Sequence[str] = (), *, may_have_more: bool = False
) -> Comparison:
    """Compare two Arrow tables: row by row by a key if there is one, else after both were sorted by all of their columns.

    Args:
        before, after: What is expected, and what there is.
        tolerance: Relative and absolute difference that numbers with a fraction may have.
        tolerances: The same by column.
        key: Columns that identify a row of `before`.
        may_have_more: Rows whose key `before` has not are no problem.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = [name for name in before.schema.names if name not in after.schema.names]
    extra = [name for name in after.schema.names if name not in before.schema.names]
    if missing or extra:
        return Comparison(f"columns differ; missing: {', '.join(missing) or 'none'}; not in training: {', '.join(extra) or 'none'}")
    columns: list[Any] = []
    for item in before.schema:
        column = after.column(item.name)
        if column.type != item.type:
            try:
                column = column.cast(item.type)
            except pa.ArrowException:
                return Comparison(f"column {item.name!r}: expected {item.type}, got {column.type}")
        columns.append(column)
    after = pa.Table.from_arrays(columns, schema=pa.schema([pa.field(item.name, item.type) for item in before.schema]))
    before, after = _without_views(pa, before), _without_views(pa, after)
    inexact = [item.name for item in before.schema if pa.types.is_floating(item.type)]
    left_over = 0
    matched = None if not key or set(key) & set(inexact) else _matched(pa, pc, before, after, key)
    if matched is not None:
        rows, absent, left_over = matched
        if absent:
            shown = before.select(list(key)).take(absent[:_SHOWN]).to_pylist()
            return Comparison(f"{len(absent):,} of {before.num_rows:,} rows are missing; the first: {', '.join(map(str, shown))}")
        if rows is None:
            return Comparison(f"rows with the same {', '.join(key)} occur more than once")
        if left_over and not may_have_more:
            return Comparison(f"expected {before.num_rows:,} rows, got {after.num_rows:,}")
        sides = (before.take(rows.column(_LEFT)), after.take(rows.column(_RIGHT)))
    elif before.num_rows != after.num_rows:
        return Comparison(f"expected {before.num_rows:,} rows, got {after.num_rows:,}")
    else:
        sides = _sorted(pa, pc, before, after, inexact)
    problem = _different_rows(pa, pc, sides, inexact, tolerance, tolerances)
    return Comparison(problem, 0 if problem else before.num_rows, left_over)


def _without_views(pa: Any, table: Any) -> Any:
    """Return a table whose text and bytes are kept in the plain way: what selects rows does not know Arrow's views."""
    from pipedag_core.stores.arrow_views import without_views

    plain = pa.schema([item.with_type(without_views(item.type)) for item in table.schema])
    return table if plain == table.schema else table.cast(plain)


def _matched(pa: Any, pc: Any, before: Any, after: Any, key: Sequence[str]) -> tuple[Any, list[int], int] | None:
    """Return (row numbers side by side, or None if a key occurs twice; rows that are missing; number of rows too many); None if keys cannot be joined."""
    names = list(key)
    left = before.select(names).append_column(_LEFT, pa.array(range(before.num_rows), pa.int64()))
    right = after.select(names).append_column(_RIGHT, pa.array(range(after.num_rows), pa.int64()))
    try:
        joined = left.join(right, keys=names, join_type="full outer")
    except (pa.ArrowException, TypeError):
        return None
    missing = joined.filter(pc.is_null(joined.column(_RIGHT))).column(_LEFT).to_pylist()
    both = joined.filter(pc.and_(pc.is_valid(joined.column(_LEFT)), pc.is_valid(joined.column(_RIGHT)))).sort_by(_LEFT)
    unique = pc.count_distinct(both.column(_LEFT)).as_py() == both.num_rows == pc.count_distinct(both.column(_RIGHT)).as_py()
    return both if unique else None, sorted(missing), after.num_rows - both.num_rows


def _sorted(pa: Any, pc: Any, before: Any, after: Any, inexact: Sequence[str]) -> tuple[Any, Any]:
    """Sort both by all columns that are compared exactly, then by the others."""
    keys = [(name, "ascending") for name in [*(name for name in before.schema.names if name not in inexact), *inexact]]
    if not keys:
        return before, after
    try:
        first, second = (table.take(pc.sort_indices(_sortable(pa, pc, table), sort_keys=keys)) for table in (before, after))
    except (pa.ArrowException, TypeError):
        # Lists and the like have no order; then that of the rows has to be the same.
        return before, after
    return first, second


def _different_rows(
    pa: Any, pc: Any, sides: tuple[Any, Any], inexact: Sequence[str], tolerance: float, tolerances: Mapping[str, float]
) -> str:
    before, after = sides
    wrong: list[tuple[str, Any]] = []
    for name in before.schema.names:
        first, second = (_plain(pa, side.column(name).combine_chunks()) for side in sides)
        same = _same(pa, pc, first, second, tolerances.get(name, tolerance) if name in inexact else None)
        if not all(same):
            wrong.append((name, [number for number, equal in enumerate(same) if not equal]))
    if not wrong:
        return ""
    rows = sorted({number for _, numbers in wrong for number in numbers})
    shown = [
        f"  expected {before.slice(number, 1).to_pylist()[0]}\n  got      {after.slice(number, 1).to_pylist()[0]}"
        for number in rows[:_SHOWN]
    ]
    names = ", ".join(f"{name!r} ({len(numbers):,} rows)" for name, numbers in wrong)
    return f"{len(rows):,} of {before.num_rows:,} rows differ, in {names}; the first:\n" + "\n".join(shown)


def _plain(pa: Any, column: Any) -> Any:
    # Equal values may stand at different places of two dictionaries.
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _sortable(pa: Any, pc: Any, table: Any) -> Any:
    """Return a table whose numbers are rounded, so that noise does not change the order of rows."""
    columns: list[Any] = []
    for item, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_floating(item.type):
            # Single precision keeps seven digits.
            columns.append(pc.cast(column, pa.float32(), safe=False))
        elif pa.types.is_dictionary(item.type):
            columns.append(column.cast(item.type.value_type))
        else:
            columns.append(column)
    return pa.table(columns, names=table.schema.names)


def _same(pa: Any, pc: Any, first: Any, second: Any, tolerance: float | None) -> list[bool]:
    if tolerance is None or not pa.types.is_floating(first.type):
        if first.equals(second):
            return []
        return [one == two for one, two in zip(first.to_pylist(), second.to_pylist(), strict=True)]
    both_null = pc.and_(pc.is_null(first, nan_is_null=True), pc.is_null(second, nan_is_null=True))
    # Equal infinities have no difference.
    near = pc.less_equal(
        pc.abs(pc.subtract(first, second)), pc.add(pc.multiply(pc.abs(first), tolerance), pa.scalar(tolerance, first.type))
    )
    equal = pc.or_kleene(pc.equal(first, second), near)
    return pc.or_(both_null, pc.fill_null(equal, False)).to_pylist()
