"""Which columns of which tables the columns of a query come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage

from pipedag_core.naming import quote_identifier

#: Queries of more characters, or columns, are not looked into: it would take seconds.
_LONGEST: Final = 20_000
_WIDEST: Final = 300

#: Schema, table and column.
Source = tuple[str, str, str]

#: Schema -> table -> its columns.
Columns = Mapping[str, Mapping[str, Sequence[str]]]


def column_sources(sql: str, dialect: str, columns: Sequence[str], known: Columns) -> dict[str, tuple[Source, ...]]:
    """Return what the columns of a query are computed from.

    Args:
        sql: One query, whose tables have a schema.
        dialect: What sqlglot calls the SQL.
        columns: Names of its columns, as the database gives them.
        known: Columns of the tables that it may read, for `*` and for columns without the name of their table.

    Returns:
        Column -> the columns that stand in its expression, followed through sub-queries, sorted. Columns without any,
        such as constants, and those of which it cannot be told, are left out; of a query that is not understood, all are.
    """
    if len(sql) > _LONGEST or len(columns) > _WIDEST:
        return {}
    schema: dict[str, Any] = {
        quote_identifier(place): {
            quote_identifier(table): {quote_identifier(name): "unknown" for name in names} for table, names in tables.items()
        }
        for place, tables in known.items()
    }
    try:
        nodes: Mapping[str, Any] = lineage(None, sql, schema, dialect=dialect)
    except (SqlglotError, RecursionError, ValueError, KeyError, AttributeError, TypeError):
        # Whatever the parser stumbles over: lineage is a help, and never in the way.
        return {}
    written = {(place.casefold(), table.casefold()): (place, table, of) for place, tables in known.items() for table, of in tables.items()}
    by_name = {name.casefold(): node for name, node in nodes.items()}
    found = {
        column: _sources(node, written) for column in columns if (node := nodes.get(column) or by_name.get(column.casefold())) is not None
    }
    return {column: sources for column, sources in found.items() if sources}


def _sources(node: Any, written: Mapping[tuple[str, str], tuple[str, str, Sequence[str]]]) -> tuple[Source, ...]:
    """Return the columns of tables at which a node's lineage ends, as they are written there."""
    found: set[Source] = set()
    for leaf in node.walk():
        table = leaf.expression
        if leaf.downstream or not isinstance(table, exp.Table) or not table.db:
            continue
        column = exp.to_column(leaf.name).name
        schema, name, columns = written.get((table.db.casefold(), table.name.casefold()), (table.db, table.name, ()))
        # DuckDB's names are the same in any case, and the parser gives them in lower case.
        alike = [item for item in columns if item.casefold() == column.casefold()]
        found.add((schema, name, column if column in alike or not alike else alike[0]))
    return tuple(sorted(found))
