"""SQL as people like to read it."""

from __future__ import annotations

from collections.abc import Mapping

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError


def pretty(sql: str, dialect: str, schemas: Mapping[str, str] | None = None) -> str:
    """Return a query or script on several lines, statements ended by semicolons; what the parser does not understand is returned as it is.

    Args:
        sql: The text.
        dialect: As sqlglot names it.
        schemas: Stage -> schema in which people find it, where that is another name.
    """
    try:
        statements = [statement for statement in sqlglot.parse(sql, dialect=dialect) if statement is not None]
    except (SqlglotError, RecursionError):
        return sql.strip()
    if any(isinstance(statement, exp.Command) for statement in statements):
        return sql.strip()
    if schemas:
        for node in (node for statement in statements for node in statement.find_all(exp.Table, exp.Column)):
            schema = node.args.get("db")
            if isinstance(schema, exp.Identifier) and schema.name in schemas:
                node.set("db", exp.to_identifier(schemas[schema.name], quoted=True))
    return "\n\n".join(f"{statement.sql(dialect=dialect, pretty=True)};" for statement in statements)
