"""The catalog in a schema of a PostgreSQL database: beside the tables of the SQL store, or for stores that have no place of their own for it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, final

import psycopg

from pipedag_core.catalogs import statements
from pipedag_core.catalogs.postgres_recording import RECORD, parameters
from pipedag_core.catalogs.sql import SqlCatalog
from pipedag_core.catalogs.transaction import Row
from pipedag_core.databases.postgres import Connection, Database, advice, is_lost, text_of
from pipedag_core.errors import CatalogError
from pipedag_core.naming import quote_identifier
from pipedag_core.ports import catalogs as port

#: Seconds that a writer waits for others, each of whom takes milliseconds; commits wait for readers before they keep others from writing.
_PATIENCE_S: Final = 60

_PARAMETER: Final = re.compile(r"(?<![:\w]):([a-z]\w*)")

#: Names and ids are ordered by their bytes, whatever the database's own order is.
_WORDS: Final = {"serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "bytes": "BYTEA"}
_TEXT: Final = re.compile(r"\bTEXT\b")

_TABLES: Final = "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"


@lru_cache(maxsize=2048)
def _driver_text(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


@final
class _Transaction:
    """One transaction on a connection of its own: committed at the end of its `with` block, undone if the block raises.

    Statements that return nothing wait for the next one that returns something, so that all of them need one way to the server and back.
    """

    def __init__(self, catalog: PostgresCatalog, begin: str) -> None:
        self._catalog = catalog
        self._begin = begin
        self._waiting: list[tuple[str, Mapping[str, object]]] = []

    def __enter__(self) -> _Transaction:
        self._lease = self._catalog.database.connection()
        self._connection = self._lease.__enter__()
        try:
            try:
                self._connection.execute(self._begin)
            except psycopg.Error:
                if not self._connection.closed:
                    raise
                # It was lost while nobody used it, so nothing has begun.
                self._lease.__exit__(None, None, None)
                self._catalog.database.close()
                self._lease = self._catalog.database.connection()
                self._connection = self._lease.__enter__()
                self._connection.execute(self._begin)
        except BaseException as error:
            self._lease.__exit__(None, None, None)
            if isinstance(error, psycopg.Error):
                raise self._catalog.error(error, self._connection) from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._waiting.append(("COMMIT", {}))
                self._flush()
            elif isinstance(error, psycopg.Error):
                raise self._catalog.error(error, self._connection) from error
        except psycopg.Error as failure:
            raise self._catalog.error(failure, self._connection) from failure
        finally:
            # Whatever is not committed by now is undone when the connection is given back.
            self._lease.__exit__(None, None, None)

    @property
    def native(self) -> Any:
        """The connection, for those who change other things of the database in the same transaction."""
        self._flush()
        return self._connection

    def exclude(self) -> None:
        """Wait for other writers, and keep them from writing until the end."""
        self._waiting.append((self._catalog.exclude, {}))

    def rows(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        if not self._waiting:
            return self._connection.execute(_driver_text(sql), _clean(values)).fetchall()
        with self._connection.pipeline():
            self._send()
            cursor = self._connection.execute(_driver_text(sql), _clean(values))
        return cursor.fetchall()

    def run(self, sql: str, values: Mapping[str, object]) -> None:
        self._waiting.append((sql, values))

    def run_many(self, sql: str, values: Sequence[Mapping[str, object]]) -> None:
        self._waiting.extend((sql, item) for item in values)

    def _flush(self) -> None:
        if len(self._waiting) == 1:
            self._send()
        elif self._waiting:
            with self._connection.pipeline():
                self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sql, values in waiting:
            self._connection.execute(_driver_text(sql), _clean(values))


def _clean(values: Mapping[str, object]) -> Mapping[str, object]:
    # PostgreSQL keeps all characters but this one, which only what users write for people can hold.
    if any(isinstance(value, str) and "\x00" in value for value in values.values()):
        return {key: value.replace("\x00", "\N{SYMBOL FOR NULL}") if isinstance(value, str) else value for key, value in values.items()}
    return values


@final
class PostgresCatalog(SqlCatalog):
    """A `Catalog` in one schema of a PostgreSQL database, which any number of machines may use at once.

    Writers exclude each other by one advisory lock, so they never deadlock; readers see one state and wait for nobody. What is recorded for a run
    at work may be lost with the server's last moments, in which case it is as if the run had not got that far; commits are waited for.

    Args:
        database: Made by `open_database`; or its URL.
        schema: The schema, made if it is not there.
        clock: Returns Unix seconds.
        read_only: Only look: nothing is made, and writing is refused.

    Raises:
        CatalogError: The schema holds something else, was written by a newer version of pipedag, or cannot be made.
    """

    def __init__(self, database: Database | str, schema: str, clock: Callable[[], float] = time.time, *, read_only: bool = False) -> None:
        super().__init__(clock)
        self._schema = schema
        self._read_only = read_only
        if isinstance(database, str):
            database = open_database(database, schema)
        self.database = database
        key = int.from_bytes(hashlib.sha256(f"pipedag catalog {schema}".encode()).digest()[:8], "big", signed=True)
        self.exclude = f"SELECT pg_advisory_xact_lock({key})"
        try:
            with self.database.connection() as connection:
                self._set_up(connection)
        except BaseException as error:
            self.database.close()
            if isinstance(error, psycopg.Error):
                raise self.error(error, None) from error
            raise

    def __repr__(self) -> str:
        return f"PostgresCatalog({self.database.address!r}, {self._schema!r})"

    def _reading(self) -> _Transaction:
        return _Transaction(self, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def _writing(self, *, durable: bool = False) -> _Transaction:
        return _Transaction(self, f"{self._begin(durable)}; {self.exclude}")

    def _writing_later(self) -> _Transaction:
        return _Transaction(self, self._begin(durable=True))

    def _begin(self, durable: bool) -> str:
        # What is not durable goes to the disk with the next commit that is, in the order in which it was written.
        access = "READ ONLY" if self._read_only else "READ WRITE"
        return f"BEGIN ISOLATION LEVEL READ COMMITTED {access}" + ("; SET LOCAL synchronous_commit TO DEFAULT" if durable else "")

    def record_all(self, run_id: str, records: Sequence[port.Record]) -> None:
        """See `Catalog.record_all`. One way to the server and back, where nothing stands against it."""
        values = parameters(run_id, records, self._clock()) if records else None
        if values is None or not self._recorded(values):
            super().record_all(run_id, records)

    def _recorded(self, values: Mapping[str, Any]) -> bool:
        with self.database.connection() as connection:
            try:
                # Without a transaction of its own, a pipeline is one.
                with connection.pipeline():
                    connection.execute(self.exclude)
                    answer = connection.execute(RECORD, values, prepare=True)
                return answer.fetchone()[0]
            except psycopg.Error as error:
                # It may have been lost while nobody used it. To record a second time does no harm.
                if connection.closed:
                    return False
                raise self.error(error, connection) from error

    def close(self) -> None:
        """Close the connections. Closing twice is no error."""
        self.database.close()

    def error(self, error: psycopg.Error, connection: Any) -> CatalogError:
        """Return an error of the driver as one that says what to do."""
        state = error.sqlstate or ("08000" if connection is not None and is_lost(error, connection) else "")
        return CatalogError(
            f"The catalog in schema {self._schema} of {self.database.address} could not be used: {text_of(error)}\n{advice(state, 'the catalog')}".strip(),
            schema=self._schema,
            sqlstate=state,
        )

    def _set_up(self, connection: Connection) -> None:
        found = self._version(connection)
        if found == statements.SCHEMA_VERSION:
            return
        if self._read_only:
            self._refuse_to_look(found)
        with connection.transaction():
            connection.execute(self.exclude)
            # Another process may have been first.
            found = self._version(connection)
            if found is None:
                self._make_schema(connection)
                self._apply(connection, statements.SCHEMA)
                connection.execute(_driver_text(statements.WRITE_VERSION), {"version": str(statements.SCHEMA_VERSION)})
            elif found < statements.SCHEMA_VERSION:
                for version in range(found, statements.SCHEMA_VERSION):
                    self._apply(connection, statements.MIGRATIONS[version])
                connection.execute(_driver_text(statements.RAISE_VERSION), {"version": str(statements.SCHEMA_VERSION)})

    def _refuse_to_look(self, found: int | None) -> None:
        told = (
            "is empty: nothing has run there yet"
            if found is None
            else "was written by an older version of pipedag; the next run brings it up to date"
        )
        raise CatalogError(f"The catalog in schema {self._schema} of {self.database.address} {told}.", schema=self._schema)

    def _make_schema(self, connection: Connection) -> None:
        try:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(self._schema)}")
            connection.execute(f"COMMENT ON SCHEMA {quote_identifier(self._schema)} IS 'What pipedag knows of its runs; not for editing'")
        except psycopg.errors.InsufficientPrivilege as error:
            raise CatalogError(
                f"The schema {self._schema} for the catalog cannot be made in {self.database.address}: {text_of(error)}\n"
                f"Let somebody with the right do it:\n    CREATE SCHEMA {quote_identifier(self._schema)} AUTHORIZATION <user of the catalog>;",
                schema=self._schema,
            ) from error

    def _apply(self, connection: Connection, texts: Sequence[str]) -> None:
        # All at once is one way to the server and back.
        connection.execute(";\n".join(_TEXT.sub('TEXT COLLATE "C"', statement).format_map(_WORDS) for statement in texts))

    def _version(self, connection: Connection) -> int | None:
        """Return the version of the tables that are there; None for an empty schema, or none.

        Raises:
            CatalogError: The schema holds other tables, or a version of ours that is not known here.
        """
        tables = {row[0] for row in connection.execute(_TABLES, (quote_identifier(self._schema),)).fetchall()}
        if not tables:
            return None
        row = connection.execute(statements.READ_VERSION).fetchone() if {"meta", "generations"} <= tables else None
        if row is None:
            raise CatalogError(
                f"The schema {self._schema} of {self.database.address} is not a catalog: it holds other tables ({', '.join(sorted(tables)[:5])}). "
                "Choose another schema_prefix or database.",
                schema=self._schema,
            )
        found = str(row[0])
        if not found.isdecimal() or not 1 <= int(found) <= statements.SCHEMA_VERSION:
            raise CatalogError(
                f"The catalog in schema {self._schema} of {self.database.address} has schema version {found}; this version of pipedag knows version "
                f"{statements.SCHEMA_VERSION}. Install the newer version of pipedag that has written it, or choose another place.",
                schema=self._schema,
                found=found,
                known=str(statements.SCHEMA_VERSION),
            )
        return int(found)


def open_database(url: str, schema: str, **options: Any) -> Database:
    """Return the database as a catalog in this schema needs it; `options` are those of `Database`."""
    settings = (
        f"search_path = {quote_identifier(schema)}",
        "synchronous_commit = off",
        "default_transaction_isolation = 'read committed'",
        f"lock_timeout = '{_PATIENCE_S}s'",
    )
    return Database(url, settings=settings, **options)


def is_there(database: Database, schema: str) -> bool:
    """Return whether a schema holds tables, without making it.

    Raises:
        CatalogError, ConfigError, StoreError: The database cannot be asked.
    """
    try:
        with database.connection() as connection:
            return bool(connection.execute(_TABLES, (quote_identifier(schema),)).fetchall())
    except psycopg.Error as error:
        raise CatalogError(f"The database {database.address} could not be asked for a catalog: {text_of(error)}", schema=schema) from error
    finally:
        database.close()
