"""Arrow in and out of PostgreSQL: the ADBC driver, whose connections are kept for the next table since opening one takes long."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, final

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from pipedag_core.databases.postgres import Database
from pipedag_core.errors import StoreError
from pipedag_core.stores.dialects import postgres_types as types
from pipedag_core.stores.dialects.postgres_errors import translate_arrow
from pipedag_core.stores.sql_names import Place

Error = adbc.Error


@final
class ArrowConnections:
    """Connections of the ADBC driver to one database; safe to use from several threads.

    Args:
        database: Whose address and settings they have.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def take(self) -> Any:
        """Return a connection on which a transaction begins with its first statement."""
        with self._guard:
            if self._pid != os.getpid():
                self._inherited, self._idle, self._pid = self._idle, [], os.getpid()
            while self._idle:
                connection = self._idle.pop()
                if _works(connection):
                    return connection
                _close(connection)
        try:
            connection = adbc.connect(self._database.conninfo)
        except Error as error:
            raise StoreError(
                f"A connection for rows to the PostgreSQL server at {self._database.address} could not be opened: {error}\n"
                "If it has no more connections to give, lower max_workers, or raise its max_connections.",
                address=self._database.address,
            ) from error
        try:
            with connection.cursor() as cursor:
                for statement in filter(None, self._database.settings.split(";")):
                    cursor.execute(statement)
            connection.commit()
        except BaseException:
            _close(connection)
            raise
        return connection

    def give_back(self, connection: Any) -> None:
        """Undo what was not committed and keep the connection for the next table."""
        try:
            connection.rollback()
        except Error:
            _close(connection)
        else:
            with self._guard:
                self._idle.append(connection)

    def close(self) -> None:
        """Close what is not in use."""
        with self._guard:
            idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            for connection in idle:
                _close(connection)


def _works(connection: Any) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
        connection.rollback()
    except Error:
        return False
    return True


def _close(connection: Any) -> None:
    with suppress(Error):
        connection.close()


def statement(cursor: Any) -> Callable[[str], list[tuple[Any, ...]]]:
    """Return a function that runs one statement on a cursor and returns its rows."""

    def run(sql: str) -> list[tuple[Any, ...]]:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []

    return run


@final
class Counted:
    """Batches on their way into the database: converted, counted, and with the error of whoever makes them, if that is what stops them.

    Args:
        reader: A `pyarrow.RecordBatchReader`.
        columns: How each column is kept.
        where: Task and table, for messages.
    """

    def __init__(self, reader: Any, columns: Sequence[types.Kept], where: str) -> None:
        self.rows = 0
        self.error: BaseException | None = None
        self._reader = reader
        self._columns = columns
        self._where = where
        self._schema = pa.schema([(field.name, how.sent) for field, how in zip(reader.schema, columns, strict=True)])

    def stream(self) -> Any:
        """Return the reader for the driver."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[Any]:
        try:
            for batch in self._reader:
                arrays = [
                    types.sent(array, how, name, self._where)
                    for array, how, name in zip(batch.columns, self._columns, self._schema.names, strict=True)
                ]
                self.rows += batch.num_rows
                yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        except BaseException as error:
            # Through the C interface it would only be text.
            self.error = error
            raise


def ingest(cursor: Any, place: Place, batches: Counted) -> None:
    """Append batches to a table of the cursor's transaction.

    Raises:
        Error: The server refused a row.
    """
    try:
        cursor.adbc_ingest(place.table, batches.stream(), mode="append", db_schema_name=place.schema)
    except Error:
        if batches.error is not None:
            raise batches.error from None
        raise


def stream(connection: Any, sql: str, schema: Any, where: str, done: Callable[[], None]) -> Any:
    """Return the rows of a query as a reader with this schema.

    Args:
        connection: Used by the reader until its end.
        sql: The query, with the columns of the schema in their order.
        schema: A `pyarrow.Schema`.
        where: For messages.
        done: Called once when all rows were read.

    Raises:
        Error: The server refused the query.
    """
    cursor = connection.cursor()
    cursor.execute(sql)
    reader = cursor.fetch_record_batch()

    def batches() -> Iterator[Any]:
        try:
            for batch in reader:
                arrays = [types.received(array, field.type) for array, field in zip(batch.columns, schema, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except Error as error:
            raise translate_arrow(error, where, schema.names) from error
        finally:
            # Also when a reader has seen enough and reads no further.
            cursor.close()
        done()

    return pa.RecordBatchReader.from_batches(schema, batches())
