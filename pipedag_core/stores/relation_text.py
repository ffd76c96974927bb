"""The query of a DuckDB relation as people read it: with the names of stored tables instead of the places where these are.

DuckDB itself parses the query and writes it down again, so nothing here searches in text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final, cast

import duckdb

from pipedag_core.duckdb_tree import PURE, numbered, own_names
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import StoredTable

#: Nodes that make a query one whose columns do not come from tables alone, or not from those that it names.
_OPAQUE: Final = frozenset({"SHOW_REF", "VALUE_PARAMETER"})

#: Queries of more characters are not looked into: nobody reads them.
_LONGEST: Final = 100_000

#: Where DuckDB reads a table: the path of a Parquet file, or schema and table.
Place = str | tuple[str, str]

_local = threading.local()


def readable(sql: str, tables: Mapping[Place, StoredTable]) -> str | None:
    """Return a relation's query with readable names.

    Args:
        sql: The query, as `relation.sql_query()` gives it.
        tables: The stored tables that it may read, by place.

    Returns:
        One line of SQL in which these tables are `"stage"."name"`; None if it reads anything else, such as a file or a Python object, or if DuckDB
        cannot say.
    """
    if len(sql) > _LONGEST:
        return None
    try:
        tree = _parsed(sql)
        found = numbered(json.dumps(_renamed(tree, tables, own_names(tree))))
        ((text,),) = _parser().execute("SELECT json_deserialize_sql($1)", [found]).fetchall()
    except (_NotTold, duckdb.Error, KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError):
        # How a tree looks is not promised, and a text to be read is no reason to fail.
        return None
    return str(text)


class _NotTold(Exception):
    """The query reads something that has no readable name."""


def _parser() -> Any:
    connection = getattr(_local, "connection", None)
    if connection is None:
        connection = _local.connection = duckdb.connect(config={"threads": 1})
    return connection


def _parsed(sql: str) -> Any:
    ((tree,),) = _parser().execute("SELECT json_serialize_sql($1)", [sql]).fetchall()
    document = json.loads(tree)
    if document["error"] or len(document["statements"]) != 1:
        raise _NotTold
    return document


def _renamed(value: Any, tables: Mapping[Place, StoredTable], own: set[str]) -> Any:
    """Return a tree in which stored tables have their readable names."""
    if isinstance(value, list):
        return [_renamed(item, tables, own) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    node = cast("dict[str, Any]", value)
    kind = node.get("type")
    if kind in _OPAQUE:
        raise _NotTold
    if kind == "TABLE_FUNCTION":
        function = str(node["function"]["function_name"]).casefold()
        if function == "read_parquet":
            table = tables[_path(node["function"])]
            # Nobody but the store has written this, so nobody calls it by the name of the function.
            return _named(node, table, table.name)
        if function not in PURE:
            raise _NotTold
    if kind == "BASE_TABLE":
        schema, name = str(node["schema_name"]), str(node["table_name"])
        if schema:
            return _named(node, tables[schema, name], name)
        if name.casefold() not in own:
            raise _NotTold
    return {key: _renamed(item, tables, own) for key, item in node.items()}


def _path(function: dict[str, Any]) -> str:
    """Return the first argument of a function, a text."""
    if "arguments" in function:
        return str(function["arguments"][0]["expression"]["literal"]["text"])
    return str(function["children"][0]["value"]["value"])


def _named(node: dict[str, Any], table: StoredTable, known_as: str) -> dict[str, Any]:
    """Return the node of a stored table, known to the rest of the query by the name that the given node has."""
    if node.get("with_ordinality", "WITHOUT_ORDINALITY") != "WITHOUT_ORDINALITY" or node.get("at_clause") is not None:
        raise _NotTold
    alias = str(node["alias"]) or known_as
    place = f"{quote_identifier(table.stage)}.{quote_identifier(table.name)}"
    # How such a node looks depends on DuckDB's release, so it makes one itself.
    made = _parsed(f"SELECT * FROM {place}{'' if alias == table.name else f' AS {quote_identifier(alias)}'}")
    return {**made["statements"][0]["node"]["from_table"], "column_name_alias": node["column_name_alias"], "sample": node["sample"]}
