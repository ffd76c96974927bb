"""Which two-part names in SQL are tables, and which are only columns of an alias that happens to be called like a stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, final

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

# What the parser does not understand is dealt with here, so nobody needs to read about it on a bare console.
logging.getLogger("sqlglot").addHandler(logging.NullHandler())


class Use(Enum):
    """What a statement does with a table that it names."""

    READ = "read"
    CREATED = "created"
    WRITTEN = "written"


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """A table `schema.name`, as a table or as the prefix of a column, and what is done with it."""

    schema: str
    name: str
    use: Use


class _Token(Protocol):
    @property
    def word(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def start(self) -> int: ...


def stage_references(sql: str, tokens: Sequence[_Token]) -> Mapping[int, Reference]:
    """Return where in the text a table with a schema is named: offset of the schema's name -> reference.

    Tables that the script creates itself count as created wherever they are named; so do tables that it only drops.

    Args:
        sql: A query or script in DuckDB's dialect.
        tokens: Its tokens, for text that the parser does not understand: there a name behind FROM, JOIN or INTO is a table.
    """
    try:
        statements = [statement for statement in sqlglot.parse(sql, dialect="duckdb") if statement is not None]
    except (SqlglotError, RecursionError):
        return _by_keywords(tokens)
    found: dict[int, Reference] = {}
    for statement in statements:
        if isinstance(statement, exp.Command):
            return _by_keywords(tokens)
        for node in statement.find_all(exp.Table, exp.Column):
            is_table = isinstance(node, exp.Table)
            schema, name = node.args.get("db"), node.args.get("this" if is_table else "table")
            if isinstance(schema, exp.Identifier) and isinstance(name, exp.Identifier) and "start" in schema.meta:
                use = _use(node) if is_table else Use.READ
                found[int(schema.meta["start"])] = Reference(schema.name, name.name, use)
    return _with_own_tables(found)


def _use(table: Any) -> Use:
    holder = table.parent
    if isinstance(holder, exp.Schema):
        table, holder = holder, holder.parent
    if holder is None or holder.args.get("this") is not table:
        return Use.READ
    if isinstance(holder, (exp.Create, exp.Drop)):
        return Use.CREATED
    if isinstance(holder, (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Alter)):
        return Use.WRITTEN
    return Use.READ


def _by_keywords(tokens: Sequence[_Token]) -> Mapping[int, Reference]:
    found: dict[int, Reference] = {}
    for at in range(1, len(tokens) - 2):
        schema, name = tokens[at], tokens[at + 2]
        use = {
            "from": Use.READ,
            "join": Use.READ,
            "into": Use.WRITTEN,
            "update": Use.WRITTEN,
            "table": Use.CREATED,
            "view": Use.CREATED,
        }.get(tokens[at - 1].word)
        if use is not None and tokens[at + 1].word == "." and schema.name is not None and name.name is not None:
            found[schema.start] = Reference(schema.name, name.name, use)
    return _with_own_tables(found)


def _with_own_tables(found: Mapping[int, Reference]) -> Mapping[int, Reference]:
    own = {(item.schema.casefold(), item.name.casefold()) for item in found.values() if item.use is Use.CREATED}
    return {
        at: Reference(item.schema, item.name, Use.CREATED) if (item.schema.casefold(), item.name.casefold()) in own else item
        for at, item in found.items()
    }
