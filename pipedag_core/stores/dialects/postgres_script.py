"""Runs the statements of a script inside PostgreSQL and finds out what they made, and what they changed besides."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pipedag_core.errors import DuplicateName, MaterializationError, QueryFailed
from pipedag_core.naming import normalize, quote_identifier
from pipedag_core.stores import sqltext
from pipedag_core.stores.dialects import postgres_tables as tables
from pipedag_core.stores.dialects.port import Made, ScriptOrder
from pipedag_core.stores.dialects.postgres_errors import translate
from pipedag_core.stores.dialects.postgres_names import marking_generation
from pipedag_core.stores.sql_names import Place
from pipedag_core.stores.sqlrefs import stage_references
from pipedag_core.stores.sqlsyntax import POSTGRES
from pipedag_core.stores.table_options import check_names

if TYPE_CHECKING:
    from pipedag_core.stores.dialects.postgres import PostgresDialect
    from pipedag_core.stores.dialects.postgres_link import PostgresLink

#: First words of statements that would end the transaction in which a script runs, or reach out of it.
_REFUSED: Final = frozenset(
    {"abort", "begin", "commit", "discard", "end", "load", "prepare", "release", "reset", "rollback", "savepoint", "start", "vacuum"}
)

#: What is in the database, apart from a schema and what is temporary. In REPEATABLE READ, what other sessions change does not show.
_STATE: Final = """
    SELECT 'schema', n.nspname, '', n.oid::bigint, n.xmin::text FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_(temp|toast)' AND n.nspname <> %(own)s
    UNION ALL
    SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, n.nspname, c.relname, c.oid::bigint, c.xmin::text || ' ' || c.relfilenode::text
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^(pg_|information_schema$)' AND n.nspname <> %(own)s AND c.relkind IN ('r', 'v', 'm', 'f', 'p', 'S')
    UNION ALL
    SELECT 'function', n.nspname, p.proname, p.oid::bigint, p.xmin::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname !~ '^(pg_|information_schema$)' AND n.nspname <> %(own)s"""

#: How many rows this session has written to each table. Despite its name, the view also counts those of earlier transactions of the session, until
#: the server adds them to its statistics (about once in a second, never within a transaction), so that only the change since a begin tells something.
_WRITTEN: Final = """
    SELECT schemaname, relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_catalog.pg_stat_xact_user_tables
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> %(own)s AND schemaname !~ '^pg_' ORDER BY 1, 2"""

_CREATED: Final = """
    SELECT c.relname, c.relkind::text FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p', 'v', 'm')
    ORDER BY c.oid"""


def run(link: PostgresLink, dialect: PostgresDialect, order: ScriptOrder) -> Mapping[str, Made]:
    """Run a script in one transaction, in a schema of its own within the generation; see `Link.run_script`.

    Tables stay where the script made them, so that functions and types that they use stay beside them. Views become tables: what they read may be
    removed, or changed by others, while the result is still used.
    """
    own = f"{order.schema}__s{uuid.uuid4().int % 90_000 + 10_000}"
    statements = sqltext.split(_redirected(order.prepared.text, order.stage, own), POSTGRES)
    readable = sqltext.split(order.prepared.readable, POSTGRES)
    for number, (statement, told) in enumerate(zip(statements, readable, strict=True), start=1):
        _refuse(statement, told, f"{order.where}, statement {number} of {len(statements)}")

    def action(connection: Any) -> Mapping[str, Made]:
        # Scripts of one stage run one after another.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"pipedag scripts {order.schema}",))
        connection.execute(f"CREATE SCHEMA {quote_identifier(own)};{marking_generation(dialect.names, own)}")
        before = _state(connection, own)
        # What is unqualified is made in the script's schema; what it does not make itself may be anywhere where the user's own path leads.
        [(path,)] = connection.execute("SELECT current_setting('search_path')").fetchall()
        connection.execute("SELECT set_config('search_path', %s, true)", (f"{quote_identifier(own)}, {path}",))
        for number, (statement, told) in enumerate(zip(statements, readable, strict=True), start=1):
            _execute(link, connection, statement, told, f"{order.where}, statement {number} of {len(statements)}", number)
        connection.execute("SELECT set_config('search_path', %s, true)", (path,))
        _refuse_changes(connection, before, own, order)
        made = _made(connection, own, order)
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        return made

    try:
        return link.transact(action, order.where, order.prepared.readable, order.schema, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    finally:
        # The user's statements may have left settings behind.
        link.mark_untidy()


def _redirected(text: str, stage: str, own: str) -> str:
    """Return the script with the stage's schema, where it names the script's own tables, replaced by the schema in which it runs."""
    found = sqltext.tokens(text, POSTGRES)
    references = stage_references(text, found, POSTGRES.name)
    parts: list[str] = []
    done = 0
    for at, token in enumerate(found):
        reference = references.get(token.start)
        named = token.name if token.quoted or token.name is None else POSTGRES.fold(token.name)
        if reference is None or named is None or named.casefold() != stage.casefold():
            continue
        if at + 1 < len(found) and found[at + 1].text == ".":
            parts += [text[done : token.start], quote_identifier(own)]
            done = token.end
    return "".join([*parts, text[done:]])


def _refuse(statement: str, told: str, where: str) -> None:
    words = [token.word for token in sqltext.tokens(statement, POSTGRES)[:2]]
    concurrently = "concurrently" in words
    if words and (words[0] in _REFUSED or concurrently or (words[0] == "copy" and sqltext.writes_a_file(statement, POSTGRES))):
        raise MaterializationError(
            f"{where}, cannot be part of a script: a script runs in one transaction, and what leaves it could be neither cached nor undone.\n{told}",
            query=told,
        )


def _execute(link: PostgresLink, connection: Any, statement: str, told: str, where: str, number: int) -> None:
    try:
        connection.execute(statement)
    except psycopg.errors.SerializationFailure:
        raise
    except psycopg.errors.DeadlockDetected:
        raise
    except psycopg.Error as error:
        translated = translate(error, f"{where} ({link.label})", told, connection)
        if isinstance(translated, QueryFailed):
            translated.__dict__["statement"] = number
        raise translated from error


def _state(connection: Any, own: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    there = {(row[0], row[3]): tuple(row) for row in connection.execute(_STATE, {"own": own}).fetchall()}
    written = {("rows", *row[:2]): ("table", *row) for row in connection.execute(_WRITTEN, {"own": own}).fetchall()}
    return {**there, **written}


def _refuse_changes(connection: Any, before: Mapping[tuple[Any, ...], tuple[Any, ...]], own: str, order: ScriptOrder) -> None:
    after = _state(connection, own)
    touched = [row for key, row in {**before, **after}.items() if before.get(key) != after.get(key)]
    if touched:
        kind, schema, name = touched[0][:3]
        what = f"{kind} {schema}.{name}" if name else f"{kind} {schema}"
        raise MaterializationError(
            f"{order.where} made, changed or dropped {what}, which is outside of its stage. A script may change only what it creates itself: "
            f"create tables in {order.stage}, or without a schema.",
            table=name,
        )


def _made(connection: Any, own: str, order: ScriptOrder) -> dict[str, Made]:
    found = connection.execute(_CREATED, (quote_identifier(own),)).fetchall()
    result: dict[str, Made] = {}
    views: list[Place] = []
    run_ = _rows_of(connection)
    for name, kind in found:
        readable = normalize(name, "table name")
        if readable in result:
            raise DuplicateName(f"{order.where} created two tables named {readable!r}. Rename one.", table=readable)
        place = Place(own, name)
        if kind in ("v", "m"):
            views.append(place)
            place = _frozen(connection, run_, place, readable, order)
        rows = connection.execute(f"SELECT count(*) FROM {place.sql}").fetchone()[0]
        columns = tables.columns_of(run_, place)
        check_names([column.name for column in columns], f"Table {readable!r} of {order.where}")
        if rows >= tables.ANALYZE_ROWS:
            connection.execute(f"ANALYZE {place.sql}")
        result[readable] = Made(place, tables.schema_of(run_, place, columns), rows)
    for kind, word in (("v", "VIEW"), ("m", "MATERIALIZED VIEW")):
        listed = [Place(own, name).sql for name, found_kind in found if found_kind == kind]
        if listed:
            connection.execute(f"DROP {word} {', '.join(listed)} CASCADE")
    return result


def _frozen(connection: Any, run_: tables.Run, view: Place, readable: str, order: ScriptOrder) -> Place:
    place = tables.claim(run_, order.attempts(readable), order.where)
    connection.execute(f"CREATE TABLE {place.sql} AS SELECT * FROM {view.sql}")
    return place


def _rows_of(connection: Any) -> tables.Run:
    def rows(sql: str) -> Sequence[Any]:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description is not None else []

    return rows  # pyright: ignore[reportReturnType]
