"""Which two-part names in SQL are tables, and which are only columns of an alias that happens to be called like a stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol, final

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
    """A table `schema.name`, as a table or as the prefix of a column, and what is done with it.

    Attributes:
        schema, name: As written, without quotes.
        use: What the statement does with it.
        maybe_own: The script creates a table of this name without saying in which schema.
    """

    schema: str
    name: str
    use: Use
    maybe_own: bool = False


class _Token(Protocol):
    @property
    def word(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def start(self) -> int: ...


def stage_references(sql: str, tokens: Sequence[_Token], dialect: str = "duckdb") -> Mapping[int, Reference]:
    """Return where in the text a table with a schema is named: offset of the schema's name -> reference.

    Tables that the script creates itself count as created wherever they are named; so do tables that it only drops.

    Args:
        sql: A query or script.
        tokens: Its tokens, for text that the parser does not understand: there a name behind FROM, JOIN or INTO is a table.
        dialect: What sqlglot calls the SQL.
    """
    try:
        statements = [statement for statement in sqlglot.parse(sql, dialect=dialect) if statement is not None]
    except (SqlglotError, RecursionError):
        return _by_keywords(tokens)
    found: dict[int, Reference] = {}
    bare: set[str] = set()
    for statement in statements:
        if isinstance(statement, exp.Command):
            return _by_keywords(tokens)
        for node in statement.find_all(exp.Table, exp.Column):
            is_table = isinstance(node, exp.Table)
            schema, name = node.args.get("db"), node.args.get("this" if is_table else "table")
            if isinstance(schema, exp.Identifier) and isinstance(name, exp.Identifier) and "start" in schema.meta:
                use = _use(node) if is_table else Use.READ
                found[int(schema.meta["start"])] = Reference(schema.name, name.name, use)
            elif is_table and schema is None and _use(node) is Use.CREATED:
                bare.add(node.name.casefold())
    return _with_own_tables(found, bare)


def _use(table: Any) -> Use:
    holder = table.parent
    if isinstance(holder, exp.Schema):
        table, holder = holder, holder.parent
    if isinstance(holder, exp.Drop):
        return Use.CREATED
    if holder is None or holder.args.get("this") is not table:
        return Use.READ
    if isinstance(holder, exp.Create):
        return Use.CREATED
    if isinstance(holder, (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Alter)):
        return Use.WRITTEN
    return Use.READ


#: What the word before a name says about it, where there is no parser to ask.
_BY_KEYWORD: Final = {
    "from": Use.READ,
    "join": Use.READ,
    "into": Use.WRITTEN,
    "update": Use.WRITTEN,
    "table": Use.CREATED,
    "view": Use.CREATED,
    "exists": Use.CREATED,
}


def _by_keywords(tokens: Sequence[_Token]) -> Mapping[int, Reference]:
    found: dict[int, Reference] = {}
    bare: set[str] = set()
    for at in range(1, len(tokens)):
        use = _BY_KEYWORD.get(tokens[at - 1].word)
        table = tokens[at].name
        if use is None or table is None:
            continue
        if at + 2 < len(tokens) and tokens[at + 1].word == ".":
            name = tokens[at + 2].name
            if name is not None:
                found[tokens[at].start] = Reference(table, name, use)
        elif use is Use.CREATED:
            bare.add(table.casefold())
    return _with_own_tables(found, bare)


def _with_own_tables(found: Mapping[int, Reference], bare: AbstractSet[str]) -> Mapping[int, Reference]:
    own = {(item.schema.casefold(), item.name.casefold()) for item in found.values() if item.use is Use.CREATED}
    result: dict[int, Reference] = {}
    for at, item in found.items():
        is_own = (item.schema.casefold(), item.name.casefold()) in own
        result[at] = replace(item, use=Use.CREATED if is_own else item.use, maybe_own=item.name.casefold() in bare)
    return result
