"""DuckDB as the SQL engine over Parquet files: connections, the way queries become files, and what DuckDB's errors mean."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

import duckdb

from pipedag_core import duckdb_types
from pipedag_core.errors import MaterializationError, PipedagError, QueryFailed, StoreError, UnsupportedByStore
from pipedag_core.hashing import digest
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.stores import long_query

log = logging.getLogger(__name__)

#: Seconds for which closing waits for queries that were told to end.
_PATIENCE_S: Final = 3.0

#: Rows per row group of the files that are written: DuckDB's own unit, so that reading spreads over threads.
ROW_GROUP: Final = 122_880

#: No file of another name on the way: DuckDB would call it `tmp_<name>`, which may be the file of another table.
COPY_OPTIONS: Final = f"FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE {ROW_GROUP}, USE_TMP_FILE false"

#: Types that Parquet would turn into doubles, and what the house writes instead: exact, or an error where a value is too large.
_NARROWED: Final = {"hugeint": "BIGINT", "uhugeint": "UBIGINT"}

_QUERY: Final = re.compile(r"\s*(select|from|values)\b", re.IGNORECASE)


@final
class Engine:
    """One in-memory DuckDB database, opened when it is first needed. Safe to use from several threads.

    Args:
        memory_limit: As DuckDB takes it (`"4GB"`), None for its default of 80 % of the memory.
        temp_directory: Where queries that need more memory put their rows.
        threads: How many threads one query may use, None for all cores.
    """

    def __init__(self, *, memory_limit: str | None, temp_directory: str, threads: int | None) -> None:
        self._settings: dict[str, str | int | bool] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # A name that DuckDB does not know must be an error, never a variable of some Python frame.
            "python_enable_replacements": False,
            "temp_directory": temp_directory,
        }
        if memory_limit is not None:
            self._settings["memory_limit"] = memory_limit
        if threads is not None:
            self._settings["threads"] = threads
        self._lock = threading.Lock()
        self._database: Any = None
        self._in_use: list[Any] = []
        self._idle: list[Any] = []

    def cursor(self) -> Any:
        """Return a connection to the shared database."""
        with self._lock:
            if self._database is None:
                self._database = self._connect()
            connection = self._idle.pop() if self._idle else self._database.cursor()
            self._in_use.append(connection)
            return connection

    def release(self, connection: Any, *, as_it_was: bool = False) -> None:
        """Take a connection back that `cursor` or `database` gave out.

        Args:
            connection: Is closed, unless `as_it_was` and the database is still open.
            as_it_was: It came from `cursor` and has no temporary tables, settings or open results, so that the next task may have it.
        """
        with self._lock:
            left = [item for item in self._in_use if item is not connection]
            is_ours, self._in_use = len(left) < len(self._in_use), left
            if is_ours and as_it_was and self._database is not None:
                self._idle.append(connection)
                return
        connection.close()

    def database(self) -> Any:
        """Return a connection to a new, empty database of its own.

        Raises:
            StoreError: DuckDB refuses the settings.
        """
        connection = self._connect()
        with self._lock:
            self._in_use.append(connection)
        return connection

    def _connect(self) -> Any:
        try:
            connection: Any = duckdb.connect(":memory:", config=dict(self._settings))
            # Without it, the same query has other results on a machine with another clock.
            connection.execute("SET GLOBAL TimeZone = 'UTC'")
        except duckdb.Error as error:
            raise StoreError(
                f"DuckDB could not be opened: {error}\nCheck memory_limit, temp_directory and threads of the table store in the configuration."
            ) from error
        return connection

    def close(self) -> None:
        """Give the database back.

        A run that was interrupted may have left threads behind: their queries are ended first, since a database that is closed under a query, or
        a program that ends during one, takes the whole process down.
        """
        with self._lock:
            left, database, self._database = self._in_use, self._database, None
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in left:
            # One that its user has closed is not at work.
            with suppress(duckdb.ConnectionException):
                connection.interrupt()
        deadline = time.monotonic() + _PATIENCE_S
        while database is not None:
            try:
                database.close()
                database = None
            except duckdb.Error:
                if time.monotonic() > deadline:
                    log.warning("DuckDB was left open, since a query does not end")
                    return
                time.sleep(0.02)


def is_surely_query(text: str) -> bool:
    """Return whether the text begins as nothing but a query can; all else must not be executed by being looked at."""
    return _QUERY.match(text) is not None


def columns_of(connection: Any, query: str, where: str) -> list[tuple[str, Any]]:
    """Return names and DuckDB types of the columns of one query, without running it.

    Raises:
        MaterializationError: The text is not a query.
        duckdb.Error: DuckDB cannot make sense of it.
    """
    if not is_surely_query(query):
        kinds = {statement.type for statement in connection.extract_statements(query)}
        if not kinds <= {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI} or not kinds:
            raise MaterializationError(
                f"{where} is made from one query (SELECT, WITH, VALUES, FROM), not from this statement:\n{query}\nReturn RawSql(...) for statements."
            )
    try:
        relation = connection.sql(query)
    except duckdb.Error:
        # A relation's errors do not say where in the query they are; an explanation, which does not run it either, fails with the place.
        connection.execute(f"EXPLAIN {query}")
        raise
    return list(zip(relation.columns, relation.types, strict=True))


def projection(columns: Sequence[tuple[str, Any]], type_map: Mapping[str, str], where: str) -> list[tuple[str, str]]:
    """Return the casts (column, SQL type) that a query needs so that Parquet keeps its columns as they are.

    Args:
        columns: Names and DuckDB types.
        type_map: Casts that were asked for: column -> SQL type.
        where: Task and table, for the message.

    Raises:
        MaterializationError: A column's type would come back as another type.
    """
    casts: list[tuple[str, str]] = []
    for name, kind in columns:
        if name in type_map:
            casts.append((name, type_map[name]))
        elif kind.id in _NARROWED:
            casts.append((name, _NARROWED[kind.id]))
        elif (problem := duckdb_types.refused(kind)) is not None:
            raise MaterializationError(
                f"{where}: column {name!r} has type {kind}, which Parquet would bring back as another type. "
                f"Cast {problem[0].upper()} to {problem[1]} in the query.",
                column=name,
            )
    return casts


def copy_statement(query: str, path: Path, casts: Sequence[tuple[str, str]]) -> str:
    """Return the statement that runs a query and writes its rows, in its order, as one Parquet file."""
    if casts:
        replaced = ", ".join(f"CAST({quote_identifier(name)} AS {kind}) AS {quote_identifier(name)}" for name, kind in casts)
        query = f"SELECT * REPLACE ({replaced}) FROM ({query}\n)"
    # The line end keeps a comment at the query's end from swallowing the bracket.
    return f"COPY ({query}\n) TO {quote_literal(path.as_posix())} ({COPY_OPTIONS})"


def copy_query(connection: Any, query: str, path: Path, casts: Sequence[tuple[str, str]]) -> None:
    """Run a query and write its rows; see `copy_statement`.

    Raises:
        duckdb.Error: The query failed, or the file could not be written.
    """
    long_query.execute(connection, copy_statement(query, path, casts))


def content_hash(connection: Any, source: str, schema_digest: str) -> str:
    """Return a hash of the rows of a table in which their order does not count, but how often each occurs does; and behind `#` one of their order.

    Each row is hashed twice, over its columns forwards and backwards; the hashes are mixed once more, so that rows which swap
    single values do not cancel out, and summed without overflow.

    Args:
        connection: Any connection.
        source: What stands behind FROM to read it.
        schema_digest: Hash of its columns' names and types.
    """
    relation = connection.sql(f"FROM {source}")
    terms = [term for name, kind in zip(relation.columns, relation.types, strict=True) for term in _hash_terms(name, kind)]
    forwards, backwards = ", ".join(terms), ", ".join(reversed(terms))
    [row] = long_query.execute(
        connection,
        f"SELECT count(*), sum(hash(a)), sum(hash(b)), sum(hash(a, n)) FROM (SELECT hash({forwards}) AS a, hash('pipedag', {backwards}) AS b, "
        f"row_number() OVER () AS n FROM {source})",
    ).fetchall()
    # DuckDB may change its hash function with any release.
    return f"duckdb3:{duckdb.__version__}:{digest(schema_digest, *(str(part) for part in row[:3]))}#{digest(str(row[3]))}"


def count_nulls(connection: Any, source: str, columns: Sequence[str]) -> dict[str, int]:
    """Return how many nulls these columns hold; `source` stands behind FROM to read the table."""
    counts = ", ".join(f"count(*) - count({quote_identifier(name)})" for name in columns)
    [row] = long_query.execute(connection, f"SELECT {counts} FROM {source}").fetchall()
    return dict(zip(columns, row, strict=True))


def duplicate_key(connection: Any, source: str, key: Sequence[str]) -> tuple[tuple[object, ...], int, int] | None:
    """Return the key that occurs most often, if any does more than once: its values, how often, and how many such keys there are."""
    columns = ", ".join(map(quote_identifier, key))
    found = long_query.execute(
        connection,
        f"SELECT {columns}, count(*), count(*) OVER () FROM {source} GROUP BY {columns} HAVING count(*) > 1 "
        f"ORDER BY count(*) DESC, {columns} LIMIT 1",
    ).fetchall()
    return None if not found else (tuple(found[0][:-2]), found[0][-2], found[0][-1])


def _hash_terms(name: str, kind: Any) -> list[str]:
    column = quote_identifier(name)
    if kind.id in duckdb_types.NESTED:
        # `hash` takes [], [NULL] and NULL for the same; their text is exact.
        return [f"CAST({column} AS VARCHAR)"]
    if kind.id in ("float", "double"):
        return [column, f"({column} = 0 AND signbit({column}))"]
    return [column]


def arrow_type(connection: Any, sql_type: str, where: str) -> Any:
    """Return the Arrow type that a column of this SQL type is written as.

    Raises:
        MaterializationError: It is no type of DuckDB, or Parquet does not keep it.
    """
    try:
        kind = connection.type(sql_type)
    except duckdb.Error as error:
        raise MaterializationError(f"{where}: type_map names {sql_type!r}, which is no type of DuckDB.") from error
    projection([("type_map", kind)], {}, where)
    return connection.sql(f"SELECT CAST(NULL AS {kind}) AS x LIMIT 0").to_arrow_reader().schema.field(0).type


def translate(error: duckdb.Error, where: str, query: str, casts: Sequence[tuple[str, str]] = ()) -> PipedagError:
    """Return what DuckDB's error means for whoever runs the flow.

    Args:
        error: What DuckDB raised.
        where: Task and table, for the message.
        query: The query with readable names.
        casts: Casts that were added to the query.
    """
    text = str(error).strip()
    if isinstance(error, duckdb.OutOfMemoryException):
        return StoreError(
            f"{where}: DuckDB ran out of memory or of room for temporary files.\n{text}\nRaise memory_limit, or point temp_directory "
            f"of the table store at a disk with more room.\nThe query was:\n{query}",
            query=query,
        )
    if isinstance(error, duckdb.NotSupportedError) and not isinstance(error, duckdb.NotImplementedException):
        return UnsupportedByStore(f"{where}: DuckDB cannot do this.\n{text}\nThe query was:\n{query}", query=query)
    if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
        return StoreError(
            f"{where}: DuckDB failed in itself and has to be opened again; run once more.\n{text}\nThe query was:\n{query}", query=query
        )
    if isinstance(error, duckdb.IOException) and not text.startswith("IO Error: No files found"):
        return StoreError(
            f"{where}: DuckDB could not read or write a file. Check room and rights there.\n{text}\nThe query was:\n{query}", query=query
        )
    if casts and isinstance(error, duckdb.ConversionException):
        names = ", ".join(f"{name} (to {kind})" for name, kind in casts)
        return QueryFailed(
            f"{where}: a value does not fit. Sums of integers are kept as 64-bit integers, here: {names}. If one of these is larger, cast it in the "
            f"query to DECIMAL(38,0) or DOUBLE.\n{text}\nThe query was:\n{query}",
            query=query,
        )
    return QueryFailed(f"{where}: DuckDB refused the query.\n{text}\nThe query was:\n{query}", query=query)
