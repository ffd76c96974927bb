"""Queries as DuckDB's `json_serialize_sql` parses them; known to the store that writes queries for people and to the hook that traces relations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, cast

#: Table functions whose rows come from their arguments alone.
PURE: Final = frozenset({"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"})

#: Relations without an alias get a random one.
_GENERATED: Final = re.compile(r"\b(?:unnamed_relation|[A-Z_]+_RELATION)_[0-9a-f]{16}\b")


def numbered(text: str) -> str:
    """Return a text with DuckDB's generated names numbered in the order in which they occur."""
    names: dict[str, str] = {}
    return _GENERATED.sub(lambda match: names.setdefault(match.group(), f"relation_{len(names)}"), text)


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all nodes of a parsed query, in no order that means anything."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            node = cast("dict[str, Any]", item)
            yield node
            stack.extend(node.values())
        elif isinstance(item, list):
            stack.extend(cast("list[Any]", item))


def own_names(tree: Any) -> set[str]:
    """Return the names of common table expressions, in lower case."""
    tables = (node["cte_map"] for node in nodes(tree) if isinstance(node.get("cte_map"), dict))
    return {str(entry["key"]).casefold() for table in tables for entry in table.get("map", ())}
