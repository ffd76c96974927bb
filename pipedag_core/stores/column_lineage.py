"""Which columns of which tables the columns of a query come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage

from pipedag_core.naming import quote_identifier

#: Queries of more characters, or columns, are not looked into: it would take seconds.
_LONGEST: Final = 20_000
_WIDEST: Final = 300

#: What takes a part of a value: a field, an element.
_PARTS: Final = (exp.Dot, exp.Bracket, exp.StructExtract, exp.JSONExtract, exp.JSONExtractScalar)

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
        tree = parse_one(sql, dialect=dialect)
        if _misleads(tree):
            return {}
        nodes: Mapping[str, Any] = lineage(None, tree, schema, dialect=dialect)
    except (SqlglotError, RecursionError, ValueError, KeyError, AttributeError, TypeError):
        # Whatever the parser stumbles over: lineage is a help, and never in the way.
        return {}
    written = {(place.casefold(), table.casefold()): (place, table, of) for place, tables in known.items() for table, of in tables.items()}
    by_name = {name.casefold(): node for name, node in nodes.items()}
    found = {
        column: _sources(node, written) for column in columns if (node := nodes.get(column) or by_name.get(column.casefold())) is not None
    }
    return {column: sources for column, sources in found.items() if sources}


def _misleads(tree: exp.Expr) -> bool:
    """Return whether a query has something that is followed to the wrong columns; found by changing columns of tables, and seeing what changes."""
    for node in tree.walk():
        # Rows are turned into columns, or columns into rows; the second query only takes rows away; columns of two queries are matched by name.
        if isinstance(node, (exp.Pivot, exp.Except)) or (isinstance(node, exp.SetOperation) and node.args.get("by_name")):
            return True
        # `FROM t AS a(x, y)` gives all columns new names.
        if isinstance(node, exp.TableAlias) and node.columns and isinstance(node.parent, (exp.Table, exp.Subquery)):
            return True
    return False


def _sources(node: Any, written: Mapping[tuple[str, str], tuple[str, str, Sequence[str]]]) -> tuple[Source, ...]:
    """Return the columns of tables at which a node's lineage ends, as they are written there."""
    found: set[Source] = set()
    takes_a_part = False
    for leaf in node.walk():
        table = leaf.expression
        takes_a_part |= isinstance(table, exp.Expr) and table.find(*_PARTS) is not None
        if leaf.downstream or not isinstance(table, exp.Table) or not table.db:
            continue
        column = exp.to_column(leaf.name).name
        schema, name, columns = written.get((table.db.casefold(), table.name.casefold()), (table.db, table.name, ()))
        # DuckDB's names are the same in any case, and the parser gives them in lower case.
        alike = [item for item in columns if item.casefold() == column.casefold()]
        found.add((schema, name, column if column in alike or not alike else alike[0]))
    # What is put together of several columns, and taken apart again, need not come from all of them.
    return () if takes_a_part and len(found) > 1 else tuple(sorted(found))
