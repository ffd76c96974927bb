"""How two tables differ row by row, as one query in what all dialects share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import RowDifference


def query(before: str, after: str, columns: Sequence[str], key: Sequence[str], compared: Callable[[str], str] = quote_identifier) -> str:
    """Return the query whose one row `read` understands. Each table is read once.

    Args:
        before, after: What stands behind FROM to read them.
        columns: Which columns are compared; both tables have them.
        key: Those of them that name a row; empty to compare rows as a whole.
        compared: Returns the expression by which a column is compared; for types without equality.
    """
    return _by_key(before, after, columns, key, compared) if key else _as_wholes(before, after, columns, compared)


def read(row: Sequence[Any], columns: Sequence[str], key: Sequence[str]) -> RowDifference:
    """Return what the row of `query` says."""
    added, removed = int(row[0] or 0), int(row[1] or 0)
    if not key:
        return RowDifference(added, removed)
    counts = zip(_others(columns, key), map(int, row[3:]), strict=True)
    return RowDifference(added, removed, int(row[2]), {name: count for name, count in counts if count})


def _others(columns: Sequence[str], key: Sequence[str]) -> list[str]:
    return [name for name in columns if name not in key]


def _by_key(before: str, after: str, columns: Sequence[str], key: Sequence[str], compared: Callable[[str], str]) -> str:
    names = {**{name: f"k{at}" for at, name in enumerate(key)}, **{name: f"c{at}" for at, name in enumerate(_others(columns, key))}}
    chosen = ", ".join(f"{compared(name)} AS {short}" for name, short in names.items())
    differs = [f"b.{names[name]} IS DISTINCT FROM a.{names[name]}" for name in _others(columns, key)]
    in_both = "b.there = 1 AND a.there = 1"
    counts = [
        "count(*) FILTER (WHERE b.there IS NULL)",
        "count(*) FILTER (WHERE a.there IS NULL)",
        f"count(*) FILTER (WHERE {in_both} AND ({' OR '.join(differs) or '1 = 0'}))",
        *(f"count(*) FILTER (WHERE {in_both} AND {item})" for item in differs),
    ]
    # Columns of a primary key hold no nulls, so that = finds all that belong together.
    on = " AND ".join(f"b.{names[name]} = a.{names[name]}" for name in key)
    sides = [f"(SELECT 1 AS there, {chosen} FROM {place}) AS {alias}" for place, alias in ((before, "b"), (after, "a"))]
    return f"SELECT {', '.join(counts)} FROM {sides[0]} FULL JOIN {sides[1]} ON {on}"


def _as_wholes(before: str, after: str, columns: Sequence[str], compared: Callable[[str], str]) -> str:
    chosen = ", ".join(f"{compared(name)} AS c{at}" for at, name in enumerate(columns))
    grouped = ", ".join(f"c{at}" for at in range(len(columns)))
    both = f"SELECT 1 AS n, {chosen} FROM {after} UNION ALL SELECT -1 AS n, {chosen} FROM {before}"
    surplus = f"SELECT sum(n) AS n FROM ({both}) AS rows_of_both GROUP BY {grouped}"
    return f"SELECT sum(CASE WHEN n > 0 THEN n END), sum(CASE WHEN n < 0 THEN -n END) FROM ({surplus}) AS surplus"
