"""SQL as tokens: what is hashed, what is run, and where one statement ends and the next begins. Nothing here searches in text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

from sqlglot.errors import TokenError
from sqlglot.tokenizer_core import TokenType

from pipedag_core.errors import MaterializationError
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import PLACEHOLDER_SCHEMA, Placeholder, Prepared, StoredTable, StoredView, TableSource
from pipedag_core.stores import viewsql
from pipedag_core.stores.sqlrefs import Reference, Use, stage_references
from pipedag_core.stores.sqlsyntax import DUCKDB, Syntax

_OPERATOR: Final = frozenset("+-*/<>=~!@#%^&|?:\\`")

#: What may stand before a table in FROM.
_BEFORE_TABLE: Final = frozenset({"from", "join", ",", "("})


@final
class Token(NamedTuple):
    """One token: its text as written, its name if it is a word or a quoted identifier, and where it stands (`end` is exclusive)."""

    text: str
    name: str | None
    quoted: bool
    start: int
    end: int

    @property
    def word(self) -> str:
        """The token in lower case if it is not quoted, for comparing with keywords and signs."""
        return self.text.lower()


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """Three tokens `schema . name` that are written differently in each shape of the query."""

    at: int
    canonical: str
    text: str
    readable: str


def tokens(sql: str, syntax: Syntax = DUCKDB) -> list[Token]:
    """Return the tokens of a text, comments left out.

    Raises:
        MaterializationError: A string, comment or quoted name has no end.
    """
    try:
        found: Sequence[Any] = syntax.tokens(sql)
    except TokenError as error:
        raise MaterializationError(
            f"This is not SQL: {error}. A quote or a comment may lack its end. The text is:\n{sql}", query=sql
        ) from error
    result: list[Token] = []
    for item in found:
        start, end = item.start, item.end + 1
        text = sql[start:end]
        if item.token_type is TokenType.IDENTIFIER:
            result.append(Token(text, item.text, True, start, end))
        elif not (text[0].isalpha() or text[0] == "_" or text[0] > "\x7f") or text[-1] == "'":
            result.append(Token(text, None, False, start, end))
        elif len(text.split(maxsplit=1)) == 1:
            result.append(Token(text, text, False, start, end))
        else:
            # The tokenizer makes one token of GROUP BY and the like, with the white space between.
            words = re.finditer(r"\S+", text)
            result += [Token(word.group(), word.group(), False, start + word.start(), start + word.end()) for word in words]
    return result


def split(sql: str, syntax: Syntax = DUCKDB) -> list[str]:
    """Return the statements of a script, without the semicolons between them.

    Raises:
        MaterializationError: The text cannot be tokenized.
    """
    statements: list[str] = []
    first: Token | None = None
    last: Token | None = None
    depth = 0
    for token in tokens(sql, syntax):
        depth = _depth(depth, last, token)
        if token.text != ";" or depth:
            first, last = first or token, token
        elif first is not None and last is not None:
            statements.append(sql[first.start : last.end])
            first = None
    if first is not None and last is not None:
        statements.append(sql[first.start : last.end])
    return statements


def _depth(depth: int, before: Token | None, token: Token) -> int:
    """Return how deep we are in the body of an SQL function (BEGIN ATOMIC ... END), in which semicolons separate nothing of ours."""
    if token.quoted:
        return depth
    if token.word == "atomic" and before is not None and before.word == "begin":
        return depth + 1
    return depth + (token.word == "case") - (token.word == "end") if depth else 0


def writes_a_file(statement: str, syntax: Syntax = DUCKDB) -> bool:
    """Return whether a COPY statement goes out of the database (`COPY ... TO`) and not into it (`COPY ... FROM`)."""
    depth = 0
    for token in tokens(statement, syntax):
        depth += (token.text == "(") - (token.text == ")")
        if depth == 0 and not token.quoted and token.word in ("to", "from"):
            return token.word == "to"
    return False


def prepare(
    sql: str,
    placeholders: Mapping[str, Placeholder],
    stages: frozenset[str],
    place: Callable[[TableSource], str],
    syntax: Syntax = DUCKDB,
    schemas: Mapping[str, str] | None = None,
) -> Prepared:
    """Turn a query or script into what is hashed, what is run and what is shown.

    Args:
        sql: With inputs as `"pipedag__in"."<label>"`.
        placeholders: Label -> input.
        stages: Names of all stages of the flow.
        place: Returns what stands behind FROM to read a table or view.
        syntax: The database's SQL.
        schemas: Schema in which people read a stage, without regard to case -> stage; beside the stages' own names.

    Raises:
        MaterializationError: Not SQL; an unknown label; or a table of a stage that is not an input.
    """
    # Files of some editors begin with it; nobody sees it in a message.
    sql = sql.removeprefix("\ufeff")
    found = tokens(sql, syntax)
    while found and found[-1].text == ";":
        found.pop()
    if not found:
        raise MaterializationError("The SQL text is empty. Return a query.", query=sql)
    _check_lengths(found, syntax, sql)
    places, inputs = _places(sql, found, placeholders, {**{stage.casefold(): stage for stage in stages}, **(schemas or {})}, place, syntax)
    _refuse_with_database(sql, found, schemas or {}, syntax)
    return Prepared(
        canonical=_canonical(sql, found, places, syntax),
        text=_rewritten(sql, found, places, lambda item: item.text),
        readable=_rewritten(sql, found, places, lambda item: item.readable),
        inputs=tuple(inputs),
        statements=_count(found),
    )


def _count(found: Sequence[Token]) -> int:
    signs = [token.text == ";" for token in found]
    return sum(not sign and (at == 0 or signs[at - 1]) for at, sign in enumerate(signs))


def _check_lengths(found: Sequence[Token], syntax: Syntax, sql: str) -> None:
    limit = syntax.max_name_bytes
    if limit is None:
        return
    for token in found:
        # A quick look first: most names are far from the limit.
        if token.name is not None and len(token.name) * 4 > limit and len(token.name.encode()) > limit:
            raise MaterializationError(
                f"The name {token.name!r} in the query is {len(token.name.encode())} bytes long; the database would cut it off after {limit}. Shorten it.\n{sql}",
                query=sql,
            )


def _places(
    sql: str,
    found: Sequence[Token],
    placeholders: Mapping[str, Placeholder],
    stages: Mapping[str, str],
    place: Callable[[TableSource], str],
    syntax: Syntax,
) -> tuple[dict[int, _Place], list[str]]:
    places: dict[int, _Place] = {}
    inputs: dict[str, None] = {}
    references: Mapping[int, Reference] | None = None
    for at, schema, name in _dotted(found):
        if schema.casefold() == PLACEHOLDER_SCHEMA:
            placeholder = placeholders.get(name) or placeholders.get(name.casefold())
            if placeholder is None:
                raise MaterializationError(
                    f"The query reads {schema}.{name}, but no input has this label. Inputs of the task: {', '.join(placeholders) or 'none'}.\n{sql}",
                    query=sql,
                )
            alias = name if found[at + 2].quoted else syntax.fold(name)
        elif (stage := stages.get(schema.casefold())) is not None:
            references = stage_references(sql, found, syntax.name) if references is None else references
            reference = references.get(found[at].start)
            if reference is None or reference.use is Use.CREATED:
                continue
            placeholder = _input_named(placeholders, stage, name)
            if placeholder is None and reference.maybe_own:
                continue
            if placeholder is None or reference.use is Use.WRITTEN:
                raise MaterializationError(_not_an_input(schema, name, reference.use, sql), query=sql)
            alias = name if found[at + 2].quoted else syntax.fold(name)
        else:
            continue
        inputs[placeholder.label] = None
        places[at] = _bound(found, at, alias, placeholder.table, place, syntax)
    return places, list(inputs)


def _refuse_with_database(sql: str, found: Sequence[Token], schemas: Mapping[str, str], syntax: Syntax) -> None:
    """Refuse tables of stages that are named with the database: they would be read past all that pipedag knows of them."""
    for at in range(2, len(found) - 2):
        schema, name = found[at], found[at + 2]
        if (
            found[at - 1].text == "."
            and found[at + 1].text == "."
            and schema.name is not None
            and name.name is not None
            and schema.name.casefold() in schemas
            and schema.start in stage_references(sql, found, syntax.name)
        ):
            raise MaterializationError(
                f"The SQL names the table {schema.name}.{name.name} of a stage of this flow together with its database. Pass the table as an argument to the "
                f"task, and leave {found[at - 2].text} out.\n{sql}",
                query=sql,
            )


def _not_an_input(schema: str, name: str, use: Use, sql: str) -> str:
    if use is Use.WRITTEN:
        return f"The SQL changes {schema}.{name}, which it did not create itself. Stored tables never change: create a table of another name.\n{sql}"
    return (
        f"The SQL names the table {schema}.{name} of a stage of this flow, which is not an input of the task. "
        f"Pass the table as an argument to the task, so that pipedag knows of the dependency.\n{sql}"
    )


def _dotted(found: Sequence[Token]) -> list[tuple[int, str, str]]:
    result: list[tuple[int, str, str]] = []
    for at in range(len(found) - 2):
        schema, dot, name = found[at], found[at + 1], found[at + 2]
        if dot.text == "." and schema.name is not None and name.name is not None and (at == 0 or found[at - 1].text != "."):
            result.append((at, schema.name, name.name))
    return result


def _input_named(placeholders: Mapping[str, Placeholder], schema: str, name: str) -> Placeholder | None:
    wanted = (schema.casefold(), name.casefold())
    for item in placeholders.values():
        if isinstance(item.table, StoredTable) and (item.table.stage.casefold(), item.table.name.casefold()) == wanted:
            return item
    return None


def _bound(found: Sequence[Token], at: int, alias: str, table: TableSource, place: Callable[[TableSource], str], syntax: Syntax) -> _Place:
    named = quote_identifier(alias)
    after = found[at + 3] if at + 3 < len(found) else None
    if after is not None and after.text == ".":
        # A column's prefix: the table stands in FROM without an alias and gets this one there.
        return _Place(at, named, named, named)
    # A name that the rest of the query can use belongs to its meaning, the place of the table does not.
    before = found[at - 1].word if at else ""
    suffix = f" AS {named}" if before in _BEFORE_TABLE and not _is_alias(after, syntax) else ""
    return _Place(
        at,
        f"{quote_identifier(PLACEHOLDER_SCHEMA)}.{quote_identifier(table.identity)}{suffix}",
        f"{place(table)}{suffix}",
        f"{viewsql.readable(table)}{'' if not isinstance(table, StoredView) and alias == table.name else suffix}",
    )


def _is_alias(token: Token | None, syntax: Syntax) -> bool:
    if token is None:
        return False
    if token.quoted or token.text.endswith("'"):
        return True
    return token.name is not None and (token.word == "as" or token.word not in syntax.reserved)


def _rewritten(sql: str, found: Sequence[Token], places: Mapping[int, _Place], shape: Callable[[_Place], str]) -> str:
    parts: list[str] = []
    done = 0
    for at in sorted(places):
        parts += [sql[done : found[at].start], shape(places[at])]
        done = found[at + 2].end
    # What follows the last token are comments and semicolons.
    return "".join([*parts, sql[done : found[-1].end]])


def _canonical(sql: str, found: Sequence[Token], places: Mapping[int, _Place], syntax: Syntax) -> str:
    parts: list[str] = []
    at = 0
    while at < len(found):
        if at in places:
            parts += [" " if parts else "", places[at].canonical]
            at += 3
            continue
        if parts:
            # Behind a rewritten name no token can be glued to it.
            parts.append(" " if at - 3 in places else _between(sql, found[at - 1], found[at]))
        parts.append(_folded(found, at, syntax))
        at += 1
    return "".join(parts)


def _between(sql: str, left: Token, right: Token) -> str:
    gap = sql[left.end : right.start]
    if not gap:
        return "" if _belong_together(left.text[-1], right.text[0]) else " "
    bare = gap.strip()
    if bare and (not bare.startswith(("--", "/*")) or "\r" in gap.replace("\r\n", "\n")):
        # Not sure that DuckDB, too, takes this for a comment, so it counts.
        return f" {gap} "
    if left.text.endswith("'") and right.text.startswith("'") and "\n" in gap:
        # Strings on two lines are one string.
        return "\n"
    return " "


def _belong_together(left: str, right: str) -> bool:
    if left in _OPERATOR or right in _OPERATOR:
        return left in _OPERATOR and right in _OPERATOR
    return all(char.isalnum() or char in "_$'\"" or char > "\x7f" for char in (left, right))


def _folded(found: Sequence[Token], at: int, syntax: Syntax) -> str:
    token = found[at]
    if syntax.folds:
        return token.text if token.quoted or token.name is None else syntax.fold(token.text)
    if token.quoted or token.name is None or token.word not in syntax.reserved:
        # DuckDB keeps the case of names: `AS A` and `AS a` make different columns.
        return token.text
    before = found[at - 1].word if at else ""
    after = found[at + 1] if at + 1 < len(found) else None
    if before == ".":
        return token.text
    if before == "as" and (after is None or after.text in {",", ")", ";"} or after.word in syntax.reserved):
        return token.text
    return token.word
