"""What the tokenizer has to know of a database's SQL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, final

from sqlglot.dialects.duckdb import DuckDB
from sqlglot.dialects.postgres import Postgres

#: Words that DuckDB never takes as a name without quotes, except behind AS or a dot (its keyword categories reserved and type_function).
_DUCKDB_WORDS: Final = """
all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create default deferrable desc describe
distinct do else end except false fetch for foreign from group having in initially intersect into lambda lateral leading limit not null
offset on only or order pivot pivot_longer pivot_wider placing primary qualify references returning select show some summarize symmetric
table then to trailing true union unique unpivot using variadic when where window with
anti asof at authorization binary by collation concurrently cross freeze full glob ilike inner is isnull join left like natural notnull
outer overlaps positional right semi similar tablesample unpack verbose
"""

#: The same for PostgreSQL.
_POSTGRES_WORDS: Final = """
all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create current_catalog current_date
current_role current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign from
grant group having in initially intersect into lateral leading limit localtime localtimestamp not null offset on only or order placing
primary references returning select session_user some symmetric system_user table then to trailing true union unique user using variadic
when where window with
authorization binary by collation concurrently cross current_schema freeze full ilike inner is isnull join left like natural notnull outer
overlaps right similar tablesample verbose
"""

_LOWER: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


@final
@dataclass(frozen=True, slots=True)
class Syntax:
    """A database's SQL.

    Attributes:
        name: What sqlglot and SQLAlchemy call it.
        reserved: Words that are never names without quotes.
        folds: Names without quotes are taken in lower case, so that their case means nothing.
        max_name_bytes: Longer names are cut off by the database, hence refused; None if it keeps them.
        dialect: The parser's dialect, whose tokenizer takes nothing for an opaque command.
    """

    name: str
    reserved: frozenset[str]
    folds: bool
    max_name_bytes: int | None
    dialect: Any = field(repr=False)

    def fold(self, word: str) -> str:
        """Return a name that stands without quotes as the database takes it."""
        # PostgreSQL folds letters of ASCII only.
        return word.translate(_LOWER) if self.folds else word

    def tokens(self, sql: str) -> Sequence[Any]:
        """Return sqlglot's tokens.

        Raises:
            sqlglot.errors.TokenError: A string, comment or quoted name has no end.
        """
        # A tokenizer is used again, but never by two threads at once.
        kept: dict[str, Any] = _mine.__dict__
        if self.name not in kept:
            kept[self.name] = _tokenizer(type(self.dialect))
        return kept[self.name].tokenize(sql)


_mine: Final = threading.local()


@cache
def _tokenizer_class(dialect: type) -> type:
    # Otherwise the rest of CALL, EXPLAIN and the like is one opaque token.
    return type("Tokenizer", (dialect.Tokenizer,), {"COMMANDS": set[Any]()})


def _tokenizer(dialect: type) -> Any:
    return _tokenizer_class(dialect)(dialect=dialect())


DUCKDB: Final = Syntax("duckdb", frozenset(_DUCKDB_WORDS.split()), False, None, DuckDB())
POSTGRES: Final = Syntax("postgres", frozenset(_POSTGRES_WORDS.split()), True, 63, Postgres())
