"""SQL as people like to read it."""

from __future__ import annotations

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError


def pretty(sql: str, dialect: str) -> str:
    """Return a query or script on several lines, statements ended by semicolons; what the parser does not understand is returned as it is.

    Args:
        sql: The text.
        dialect: As sqlglot names it.
    """
    try:
        statements = [statement for statement in sqlglot.parse(sql, dialect=dialect) if statement is not None]
    except (SqlglotError, RecursionError):
        return sql.strip()
    if any(isinstance(statement, exp.Command) for statement in statements):
        return sql.strip()
    return "\n\n".join(f"{statement.sql(dialect=dialect, pretty=True)};" for statement in statements)
