"""Canonical text of a DuckDB relation's query, and what in a query cannot be seen into."""

from __future__ import annotations

import json
from typing import Any, Final

from pipedag_core.duckdb_tree import PURE, nodes, numbered, own_names
from pipedag_core.errors import TracingRefused
from pipedag_core.ports.data import PLACEHOLDER_SCHEMA

#: What a relation over a Python object is called in the query of a relation that uses it.
_SOURCE: Final = "__duckdb_source_"


def canonical(text: str, tree: str) -> str:
    """Return the query with generated names numbered in the order in which they occur.

    Args:
        text: The query as `relation.sql_query()` gives it.
        tree: The same, parsed by DuckDB's `json_serialize_sql`.

    Raises:
        TracingRefused: The query reads anything but inputs of the task and its own common table expressions.
    """
    document = json.loads(tree)
    if document.get("error") or len(document.get("statements", ())) != 1:
        raise _refusal(f"a statement that is not one SELECT ({document.get('error_message', 'several statements')})")
    own = own_names(document)
    for node in nodes(document):
        kind = node.get("type")
        if kind == "TABLE_FUNCTION":
            function = str(node["function"].get("function_name", "")).casefold()
            if function not in PURE:
                raise _refusal(f"the table function {function}, which may read outside files")
        elif kind == "VALUE_PARAMETER":
            raise _refusal("parameters, whose values are not in its text")
        elif kind == "SHOW_REF":
            raise _refusal("a description of tables (DESCRIBE, SHOW, SUMMARIZE)")
        elif kind == "BASE_TABLE":
            _check_table(node, own)
    return numbered(text).strip()


def _check_table(node: dict[str, Any], own: set[str]) -> None:
    schema, name = node.get("schema_name", ""), str(node.get("table_name", ""))
    if name.startswith(_SOURCE):
        raise _refusal("rows of a Python object (a data frame, an Arrow table, values, map)")
    if schema != PLACEHOLDER_SCHEMA and (schema or name.casefold() not in own):
        raise _refusal(f"the table or file {name!r}, which is not an input of the task")


def _refusal(what: str) -> TracingRefused:
    return TracingRefused(
        f"AUTO_VERSION cannot see everything that the task does: its query holds {what}. "
        f"Pass it as an input of the task, or give the task a version='...'.",
        reason=what,
    )
