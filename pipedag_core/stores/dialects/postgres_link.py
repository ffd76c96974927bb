"""One task's way to a PostgreSQL database."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, final

import psycopg
from psycopg.pq import TransactionStatus

from pipedag_core.databases.postgres import Held, tell_name
from pipedag_core.errors import MaterializationError
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import RowDifference, TableOptions, TableSchema
from pipedag_core.stores import viewsql
from pipedag_core.stores.dialects import postgres_tables as tables
from pipedag_core.stores.dialects.port import Made, Order, ScriptOrder, TableIsGone
from pipedag_core.stores.dialects.postgres_errors import translate, translate_arrow
from pipedag_core.stores.sql_names import Place
from pipedag_core.stores.table_options import check_columns, check_names, filled_columns, with_nullability

if TYPE_CHECKING:
    from pipedag_core.stores.dialects.postgres import PostgresDialect
    from pipedag_core.stores.dialects.postgres_types import SqlColumn

T = TypeVar("T")

#: Times that a transaction is carried out when others are in its way.
_TRIES = 5

#: The database gave up one of several transactions that were in each other's way.
_AGAIN = frozenset({"40001", "40P01"})

_NO_SCHEMA = "3F000"

#: Options that ask for nothing.
_PLAIN = TableOptions()

#: What tells the columns of a query, for a moment.
_VIEW = Place("pg_temp", "pipedag_columns")


@final
class PostgresLink:
    """See `Link`. Holds one connection while it asks or writes, and one of the Arrow driver per table that is read or written.

    Args:
        dialect: The database.
        label: Flow and task.
    """

    def __init__(self, dialect: PostgresDialect, label: str) -> None:
        self._dialect = dialect
        self.label = label
        self._held: Held | None = None
        self._streams: list[Any] = []

    # --- reading ------------------------------------------------------------------------------------------------------------------

    def source(self, places: Sequence[Place]) -> Any:
        """Return the task's connection, in autocommit mode."""
        connection = self._connection()
        for place in dict.fromkeys(places):
            if not self._columns(place):
                raise TableIsGone(self._dialect.named(place))
        self.mark_untidy()
        return connection

    def columns(self, place: Place) -> TableSchema:
        """Return the columns as the server's catalogue has them; values are looked at where a type does not tell."""

        def look(run: tables.Run) -> TableSchema:
            columns = tables.columns_of(run, place)
            if not columns:
                raise TableIsGone(self._dialect.named(place))
            return tables.schema_of(run, place, columns)

        return self._guarded(look, f"{self.label}: table {place.sql}")

    def stream(self, place: Place, schema: TableSchema) -> Any:
        """Return the rows as a reader, on a connection that is free again when all are read."""
        return self._stream(place.sql, self._columns(place), schema, f"{self.label}: table {place.sql}")

    def stream_query(self, query: str, places: Sequence[Place], schema: TableSchema) -> Any:
        """Return the rows as a reader; what the query's columns are is asked of a view that nobody else sees."""
        for place in dict.fromkeys(places):
            if not self._columns(place):
                raise TableIsGone(self._dialect.named(place))

        def look(run: tables.Run) -> list[SqlColumn]:
            run(f"CREATE OR REPLACE TEMPORARY VIEW {_VIEW.table} AS {query}")
            try:
                return tables.columns_of(run, _VIEW)
            finally:
                run(f"DROP VIEW {_VIEW.sql}")

        where = f"{self.label}: a view of {', '.join(place.sql for place in dict.fromkeys(places))}"
        return self._stream(f"({query}) AS {viewsql.ALIAS}", self._guarded(look, where), schema, where)

    def compare_rows(self, before: Place, after: Place, columns: Sequence[str], key: Sequence[str]) -> RowDifference:
        """Count by one query of the server's."""
        from pipedag_core.stores import row_difference
        from pipedag_core.stores.dialects import postgres_types

        found = [{column.name: column for column in self._columns(place)} for place in (before, after)]
        for place, there in zip((before, after), found, strict=True):
            if not there:
                raise TableIsGone(self._dialect.named(place))
        as_text = {name for name in columns if not postgres_types.compares(found[0][name], found[1][name])}
        text = row_difference.query(
            self._dialect.named(before),
            self._dialect.named(after),
            columns,
            key,
            lambda name: f"CAST({quote_identifier(name)} AS text)" if name in as_text else quote_identifier(name),
        )
        [row] = self._guarded(lambda run: run(text), f"{self.label}: rows of {before.sql} and {after.sql}")
        return row_difference.read(row, columns, key)

    def _columns(self, place: Place) -> list[SqlColumn]:
        return self._guarded(lambda run: tables.columns_of(run, place), f"{self.label}: table {place.sql}")

    def _stream(self, source: str, columns: Sequence[SqlColumn], schema: TableSchema, where: str) -> Any:
        from pipedag_core.arrow_schema import to_arrow
        from pipedag_core.stores.dialects import postgres_arrow, postgres_types

        by_name = {column.name: column for column in columns}
        arrow = to_arrow(schema)
        if not set(arrow.names) <= by_name.keys():
            raise TableIsGone
        chosen = ", ".join(postgres_types.expression(by_name[field.name], field.type) for field in arrow)
        connection = self._dialect.arrow.take()
        self._streams.append(connection)

        def done() -> None:
            if connection in self._streams:
                self._streams.remove(connection)
                self._dialect.arrow.give_back(connection)

        self._rest()
        try:
            return postgres_arrow.stream(connection, f"SELECT {chosen} FROM {source}", arrow, where, done)
        except postgres_arrow.Error as error:
            done()
            if error.sqlstate in ("42P01", _NO_SCHEMA):
                raise TableIsGone from error
            raise translate_arrow(error, where, arrow.names) from error

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def from_query(self, order: Order, query: str, readable: str) -> Made:
        """Make a table with CREATE TABLE AS."""
        details = tables.details_of(self._dialect.labels, order.options.materialization_details, order.where)
        # What asks for nothing more can be committed at once: nobody reads it before it is recorded.
        is_plain = order.options == _PLAIN
        places = iter(order.places)
        first = next(places)

        def statements(place: Place, text: str) -> str:
            # The line end keeps a comment at the query's end from swallowing what follows. All at once is one way to the server and back.
            parts = [
                f"{tables.create(place, details)}{tables.tablespace(details)} AS {text}\n",
                tables.looking_at(place),
                tables.table_comment(place, order),
                "COMMIT" if is_plain else "",
            ]
            return ";".join(filter(None, parts))

        def make(connection: Any, answer: Any, is_made: bool) -> Made:
            run = _rows_of(connection)
            if is_made:
                place, made = first, answer
            else:
                place = first if answer.fetchone()[0] else tables.claim(run, places, order.where)
                text = self._cast(run, order, query) if order.options.type_map else query
                made = connection.execute(statements(place, text), prepare=False)
            rows = made.rowcount
            made.nextset()
            try:
                return finished(run, place, tables.columns_of_answer(run, place, made), rows)
            except BaseException:
                if is_plain:
                    with suppress(psycopg.Error):
                        connection.execute(f"DROP TABLE {place.sql}")
                raise

        def finished(run: tables.Run, place: Place, columns: Sequence[SqlColumn], rows: int) -> Made:
            names = [column.name for column in columns]
            if not names:
                raise MaterializationError(f"{order.where} has no columns. Return a query with at least one.\n{readable}", query=readable)
            check_names(names, order.where)
            check_columns(order.options, names, order.where)
            tables.finish(run, place, order, names, rows)
            return Made(place, with_nullability(tables.schema_of(run, place, columns), order.options), rows)

        at_once = "" if order.options.type_map else f"{tables.claiming_or_failing(first)};{statements(first, query)}"
        return self._transact(make, order.where, readable, order.schema, tables.claiming(first), at_once)

    def _cast(self, run: tables.Run, order: Order, query: str) -> str:
        run(f"CREATE TEMPORARY VIEW pipedag_columns AS {query}\n")
        names = [
            name
            for (name,) in run(
                "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = 'pg_temp.pipedag_columns'::regclass AND attnum > 0 ORDER BY attnum"
            )
        ]
        run("DROP VIEW pg_temp.pipedag_columns")
        check_columns(order.options, names, order.where)
        parts: list[str] = []
        for name in names:
            kind = order.options.type_map.get(name)
            if kind is not None:
                tables.check_type(run, kind, name, order.where)
            parts.append(
                quote_identifier(name) if kind is None else f"CAST({quote_identifier(name)} AS {kind}) AS {quote_identifier(name)}"
            )
        return f"SELECT {', '.join(parts)} FROM ({query}\n) AS uncast"

    def from_batches(self, order: Order, batches: Any) -> Made:
        """Make a table and stream the batches into it, in one transaction of the Arrow driver."""
        import pyarrow as pa

        from pipedag_core.arrow_schema import from_arrow
        from pipedag_core.stores.dialects import postgres_arrow, postgres_types

        names = batches.schema.names
        options = order.options
        details = tables.details_of(self._dialect.labels, options.materialization_details, order.where)
        check_columns(options, names, order.where)
        kept = [postgres_types.kept(field, order.where) for field in batches.schema]
        for name, kind in options.type_map.items():
            self._guarded(lambda run, kind=kind, name=name: tables.check_type(run, kind, name, order.where), order.where)
        self._ensure_schema(order.schema)
        counted = postgres_arrow.Counted(batches, kept, order.where)
        connection = self._dialect.arrow.take()
        cursor = connection.cursor()
        try:
            run = postgres_arrow.statement(cursor)
            filled = set() if options.type_map else set(filled_columns(options, names))
            columns = ", ".join(
                f"{quote_identifier(name)} {how.sql}{' NOT NULL' if name in filled else ''}" for name, how in zip(names, kept, strict=True)
            )
            place = self._empty(connection, run, order, f" ({columns}){tables.tablespace(details)}", details)
            postgres_arrow.ingest(cursor, place, counted)
            changes = [
                f"ALTER COLUMN {quote_identifier(name)} TYPE {kind} USING CAST({quote_identifier(name)} AS {kind})"
                for name, kind in options.type_map.items()
            ]
            if changes:
                run(f"ALTER TABLE {place.sql} {', '.join(changes)}")
            if order.comment:
                run(tables.table_comment(place, order))
            tables.finish(run, place, order, names, counted.rows)
            schema = from_arrow(pa.schema([pa.field(name, how.back, name not in filled) for name, how in zip(names, kept, strict=True)]))
            if changes:
                schema = tables.schema_of(run, place, tables.columns_of(run, place))
            connection.commit()
        except postgres_arrow.Error as error:
            raise translate_arrow(error, order.where, names) from error
        finally:
            cursor.close()
            self._dialect.arrow.give_back(connection)
        return Made(place, schema, counted.rows)

    def _empty(self, connection: Any, run: tables.Run, order: Order, columns: str, details: tables.Details) -> Place:
        """Make a table without rows, in a transaction of the Arrow driver that stays open."""
        from pipedag_core.stores.dialects import postgres_arrow

        places = iter(order.places)
        number = 0
        while (number := number + 1) <= _TRIES:
            place = tables.claim(run, places, order.where)
            try:
                run(f"{tables.create(place, details)}{columns}")
            except postgres_arrow.Error as error:
                if number == _TRIES or error.sqlstate != _NO_SCHEMA:
                    raise
                # Clean-up has removed it, since it was empty.
                connection.rollback()
                self._ensure_schema(order.schema, again=True)
                places = chain([place], places)
            else:
                return place
        raise AssertionError

    def run_script(self, order: ScriptOrder) -> Mapping[str, Made]:
        """Run a script; see `postgres_script`."""
        from pipedag_core.stores.dialects import postgres_script

        return postgres_script.run(self, self._dialect, order)

    def content_hash(self, made: Made) -> str | None:
        """Return None: a hash would cost another pass over the rows, inside the server."""
        return None

    def close(self) -> None:
        """Give back all connections."""
        for connection in self._streams:
            self._dialect.arrow.give_back(connection)
        self._streams.clear()
        if self._held is not None:
            held, self._held = self._held, None
            self._dialect.database.give_back(held)

    def mark_untidy(self) -> None:
        """Note that the user's own statements ran on the connection, so that it is made as new before others get it."""
        if self._held is not None:
            self._held.untidy = True

    # --- connections --------------------------------------------------------------------------------------------------------------

    def transact(self, action: Callable[[Any], T], where: str, readable: str, schema: str, begin: str = "") -> T:
        """Carry out one transaction on the task's connection, again if others were in its way.

        Args:
            action: Works on the connection; may be called several times.
            where, readable: For messages.
            schema: Made before, if it is not there.
            begin: A statement that is run first in the transaction.
        """
        return self._transact(lambda connection, *_: action(connection), where, readable, schema, begin, named_before=True)

    def _transact(
        self,
        action: Callable[[Any, Any, bool], T],
        where: str,
        readable: str,
        schema: str,
        first: str,
        at_once: str = "",
        *,
        named_before: bool = False,
    ) -> T:
        """Carry out one transaction, as `transact` does.

        Args:
            action: Gets the connection, the answer to the first statement, and False; or the answers to `at_once` after its first one, and True.
                It may have committed.
            where, readable, schema: As for `transact`.
            first: The first statement, usually `claiming`.
            at_once: All statements in place of the first one, which is `claiming_or_failing`: sent where the connection is known to be there, since
                after a loss nobody could say how far they came.
            named_before: Nothing may come before the first statement, such as one that sets the transaction's isolation.
        """
        self._ensure_schema(schema)
        number = 0
        while (number := number + 1) <= _TRIES:
            if named_before:
                self._connection()
            held = self._take()
            connection = held.connection
            begun = False
            hurries = bool(at_once) and held.is_warm
            try:
                naming = held.naming(self.label)
                answer = connection.execute(f"{naming}BEGIN;{at_once if hurries else first}", prepare=False)
                begun, held.label = True, self.label
                for _ in range(bool(naming) + 1 + hurries):
                    answer.nextset()
                result = action(connection, answer, hurries)
                if connection.info.transaction_status is not TransactionStatus.IDLE:
                    connection.execute("COMMIT")
            except BaseException as error:
                if not connection.closed and connection.info.transaction_status is not TransactionStatus.IDLE:
                    held.label = ""
                    with suppress(psycopg.Error):
                        connection.rollback()
                if not isinstance(error, psycopg.Error):
                    raise
                if hurries and tables.is_taken(error):
                    at_once, number = "", number - 1
                    continue
                if connection.closed and not begun and not hurries and number < _TRIES:
                    # It was lost while nobody used it, and others with it.
                    self._dialect.database.close()
                    continue
                if number < _TRIES and error.sqlstate == _NO_SCHEMA and not self._has_schema(schema):
                    # Clean-up has removed it, since it was empty.
                    self._ensure_schema(schema, again=True)
                elif number == _TRIES or error.sqlstate not in _AGAIN:
                    raise translate(error, f"{where} ({self.label})", readable, connection) from error
                else:
                    time.sleep(0.02 * number)
            else:
                return result
        raise AssertionError

    def _ensure_schema(self, schema: str, *, again: bool = False) -> None:
        self._rest()
        self._dialect.ensure_schema(schema, again=again)

    def _has_schema(self, schema: str) -> bool:
        self._rest()
        return self._dialect.has_schema(schema)

    def _rest(self) -> None:
        """Let others have the task's connection until it is needed again: while the user's code runs, and while another one is asked for.

        Tasks that hold one and wait for one more would wait for each other.
        """
        if self._held is not None and not self._held.untidy:
            held, self._held = self._held, None
            self._dialect.database.give_back(held)

    def _guarded(self, action: Callable[[tables.Run], T], where: str) -> T:
        connection = self._connection()
        try:
            return action(_rows_of(connection))
        except psycopg.Error as error:
            raise translate(error, where, "", connection) from error

    def _connection(self) -> Any:
        held = self._take(self.label)
        tell_name(held, self.label)
        return held.connection

    def _take(self, label: str | None = None) -> Held:
        if self._held is not None and self._held.connection.closed:
            held, self._held = self._held, None
            self._dialect.database.give_back(held)
        if self._held is None:
            self._held = self._dialect.database.take(label)
        return self._held


def _rows_of(connection: Any) -> tables.Run:
    def run(sql: str) -> list[tuple[Any, ...]]:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description is not None else []

    return run
