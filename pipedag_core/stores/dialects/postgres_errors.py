"""What PostgreSQL's errors mean for whoever runs the flow."""

from __future__ import annotations

import re
from typing import Any, Final

from pipedag_core.databases.postgres import advice, is_lost, text_of
from pipedag_core.errors import MaterializationError, PipedagError, QueryFailed, StoreError

#: Classes of codes whose fault lies with the server, the connection or the rights, and not with the query.
_OUTSIDE: Final = frozenset({"08", "28", "53", "57", "58", "F0", "XX"})

_COPY_PLACE: Final = re.compile(r"COPY .*, line (\d+)(?:, column (.+?))?(?::|$)")


def translate(error: Any, where: str, readable: str, connection: Any = None) -> PipedagError:
    """Return what an error of psycopg means.

    Args:
        error: What the driver raised.
        where: Task and table, for the message.
        readable: The query with readable names.
        connection: On which it happened.
    """
    state = error.sqlstate or ""
    if connection is not None and is_lost(error, connection):
        state = state if state[:2] in _OUTSIDE else "08006"
    return _translated(state, text_of(error), where, readable)


def _translated(state: str, text: str, where: str, readable: str) -> PipedagError:
    told = f"\nThe query was:\n{readable}" if readable else ""
    hint = advice(state, "the table store")
    if state == "42501" or state[:2] in _OUTSIDE or state == "55P03":
        return StoreError(f"{where}: PostgreSQL could not do it.\n{text}\n{hint}{told}", query=readable, sqlstate=state)
    if state == "23502":
        return MaterializationError(
            f"{where}: a column may not hold nulls, but does.\n{text}\nFill them, or declare it nullable.{told}", sqlstate=state
        )
    if state == "23505":
        return MaterializationError(f"{where}: the primary key, or a unique index, has a value twice.\n{text}{told}", sqlstate=state)
    return QueryFailed(f"{where}: PostgreSQL refused the query.\n{text}{told}", query=readable, sqlstate=state)


def translate_arrow(error: Any, where: str, columns: list[str]) -> PipedagError:
    """Return what an error of the Arrow driver means, while rows are written or read.

    Args:
        error: What the driver raised.
        where: Task and table, for the message.
        columns: Names of the columns.
    """
    state = error.sqlstate or ""
    details = {key: value.decode(errors="replace") if isinstance(value, bytes) else str(value) for key, value in _details(error)}
    text = details.get("PG_DIAG_MESSAGE_PRIMARY") or str(error)
    found = _COPY_PLACE.search(details.get("PG_DIAG_CONTEXT", "") or str(error))
    place = "" if found is None else f" in row {found[1]}" + (f" of column {found[2]!r}" if found[2] else "")
    if state == "22021":
        return MaterializationError(
            f"{where}: text{place} holds a character that PostgreSQL cannot keep ({text}). Remove null characters before, for one with "
            "str.replace_all('\\x00', '') in polars.",
            column=found[2] if found else None,
            row=int(found[1]) if found else None,
        )
    if state == "":
        lost = any(word in str(error) for word in ("server closed the connection", "no connection to the server", "terminating connection"))
        return _translated("08006" if lost else "", str(error), f"{where}{place}", "")
    return _translated(state, "\n".join(filter(None, (text, details.get("PG_DIAG_MESSAGE_DETAIL")))), f"{where}{place}", "")


def _details(error: Any) -> list[tuple[str, Any]]:
    return [(key.decode() if isinstance(key, bytes) else str(key), value) for key, value in getattr(error, "details", None) or ()]
