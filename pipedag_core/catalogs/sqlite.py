"""The catalog in an SQLite file on a local disk, with nothing but the standard library."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from pipedag_core.catalogs import statements
from pipedag_core.catalogs.sql import SqlCatalog
from pipedag_core.catalogs.transaction import Row
from pipedag_core.errors import CatalogError

#: Seconds that a statement waits for other processes to finish their transactions, each of which takes milliseconds.
BUSY_TIMEOUT_S = 60.0

_WORDS = {"serial": "INTEGER PRIMARY KEY", "bytes": "BLOB"}

#: What to do about errors, by SQLite's primary result code.
_ADVICE: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: f"Another program has kept it locked for {BUSY_TIMEOUT_S:.0f} seconds. Find it and let it end its transaction.",
    sqlite3.SQLITE_LOCKED: "Another transaction of this process holds it. Call the catalog outside of a publication.",
    sqlite3.SQLITE_READONLY: "The file or its folder cannot be written. Check their permissions.",
    sqlite3.SQLITE_CANTOPEN: "It cannot be opened. Check that its folder exists and can be written.",
    sqlite3.SQLITE_FULL: "The disk is full. Make room, then run again.",
    sqlite3.SQLITE_IOERR: "The disk is full or failed. Make room; the file must lie on a local disk; for shared storage configure a metadata_store.",
    sqlite3.SQLITE_NOTADB: "It is not an SQLite database. Choose another path, or move the file away.",
    sqlite3.SQLITE_CORRUPT: "It is damaged. Restore it from a copy, or move it away: everything is then computed again.",
}


@final
class _Transaction:
    """One transaction on the one connection: committed at the end of its `with` block, undone if the block raises."""

    def __init__(self, catalog: SqliteCatalog, begin: str) -> None:
        self._catalog = catalog
        self._begin = begin

    def __enter__(self) -> _Transaction:
        self._catalog.lock.acquire()
        begun = False
        try:
            self._connection = self._catalog.connection()
            begun = not self._connection.in_transaction
            self._connection.execute(self._begin)
        except BaseException as error:
            # Ctrl-C may come when the transaction has just begun; left open, it would be in the way of all that follow.
            if begun and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._catalog.lock.release()
            if isinstance(error, sqlite3.Error):
                raise self._catalog.error(error) from error
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._connection.execute("COMMIT")
        except sqlite3.Error as failure:
            raise self._catalog.error(failure) from failure
        finally:
            # A failing COMMIT, or a full disk, may or may not have ended the transaction already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._catalog.lock.release()
        if isinstance(error, sqlite3.Error):
            raise self._catalog.error(error) from error

    @property
    def native(self) -> sqlite3.Connection:
        """The connection."""
        return self._connection

    def exclude(self) -> None:
        """Nothing to do: writers exclude each other from the beginning."""

    def rows(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, values: Mapping[str, object]) -> None:
        self._connection.execute(sql, values)

    def run_many(self, sql: str, values: Sequence[Mapping[str, object]]) -> None:
        if values:
            self._connection.executemany(sql, values)


@final
class SqliteCatalog(SqlCatalog):
    """A `Catalog` in one SQLite file, which any number of threads and processes of one machine may use at once.

    One connection serves all threads, one after another: a transaction takes a fraction of a millisecond, and threads that wait for a lock of
    this process are woken at once, where SQLite itself would let them sleep.

    Args:
        path: The file; made with its folder if it is not there. Write-ahead logging needs a local disk.
        clock: Returns Unix seconds.
        read_only: Only look, also where neither the file nor its folder can be written. Nothing is made, and writing is refused.

    Raises:
        CatalogError: The file is no catalog, is damaged, or was written by a newer version of pipedag.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time, *, read_only: bool = False) -> None:
        super().__init__(clock)
        self._path = Path(path).absolute()
        self._read_only = read_only
        self.lock = threading.RLock()
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = self._connect()

    def __repr__(self) -> str:
        return f"SqliteCatalog({str(self._path)!r})"

    def _reading(self) -> _Transaction:
        return _Transaction(self, "BEGIN")

    def _writing(self) -> _Transaction:
        # A transaction that begins by reading could not become a writing one while others write.
        return _Transaction(self, "BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the connection. Closing twice is no error; using a closed catalog is one."""
        with self.lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def connection(self) -> sqlite3.Connection:
        """Return the connection of this process, to be used while `lock` is held.

        Raises:
            CatalogError: The catalog is closed.
        """
        if self._connection is None:
            raise CatalogError(f"The catalog {self._path} is closed. Open it again.", path=str(self._path))
        if self._pid != os.getpid():
            # SQLite connections do not survive a fork, and closing the inherited one would let go of the parent's locks.
            self._inherited = self._connection
            self._connection = self._connect()
            self._pid = os.getpid()
        return self._connection

    def error(self, error: sqlite3.Error) -> CatalogError:
        """Return an error of the driver as one that says what to do."""
        code = getattr(error, "sqlite_errorcode", None)
        advice = _ADVICE.get(code & 0xFF) if code is not None else None
        return CatalogError(
            f"The catalog {self._path} could not be used: {error}. {advice or 'If this happens again, look at the file with the sqlite3 program.'}",
            path=str(self._path),
        )

    def _connect_to_look(self) -> sqlite3.Connection:
        # Without a writer's log beside it the file is whole. SQLite would have to make one, which a folder that cannot be written refuses.
        alone = not self._path.with_name(f"{self._path.name}-wal").exists() and not os.access(self._path.parent, os.W_OK)
        address = f"{self._path.as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        return self._opened(address, self._require_ready)

    def _require_ready(self, connection: sqlite3.Connection) -> None:
        found = self._version(connection)
        if found is None:
            raise CatalogError(f"The catalog {self._path} is empty: nothing has run there yet.", path=str(self._path))
        if found < statements.SCHEMA_VERSION:
            raise CatalogError(
                f"The catalog {self._path} was written by an older version of pipedag. The next run there brings it up to date; until then it "
                "cannot be looked at with this version.",
                path=str(self._path),
            )

    def _connect(self) -> sqlite3.Connection:
        if self._read_only:
            return self._connect_to_look()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CatalogError(
                f"The folder of the catalog {self._path} cannot be made: {error}. Choose another path, or check its permissions.",
                path=str(self._path),
            ) from error
        return self._opened(str(self._path), self._set_up)

    def _opened(self, address: str, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                address,
                uri=address.startswith("file:"),
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=512,
            )
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self.error(error) from error
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Pages (of 4 KiB) after which the log is written back, which is when the disk is waited for.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        if self._version(connection) != statements.SCHEMA_VERSION:
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have been first.
            found = self._version(connection)
            if found is None:
                for statement in statements.SCHEMA:
                    connection.execute(statement.format_map(_WORDS))
                connection.execute(statements.WRITE_VERSION, {"version": str(statements.SCHEMA_VERSION)})
            elif found < statements.SCHEMA_VERSION:
                for version in range(found, statements.SCHEMA_VERSION):
                    for statement in statements.MIGRATIONS[version]:
                        connection.execute(statement.format_map(_WORDS))
                connection.execute(statements.RAISE_VERSION, {"version": str(statements.SCHEMA_VERSION)})
            connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int | None:
        """Return the version of the tables that are there; None for an empty file.

        Raises:
            CatalogError: The file holds other tables, or a version of ours that is not known here.
        """
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return None
        row = connection.execute(statements.READ_VERSION).fetchone() if "meta" in tables and "generations" in tables else None
        if row is None:
            raise CatalogError(
                f"The database {self._path} is not a catalog: it holds other tables ({', '.join(sorted(tables)[:5])}). Choose another path.",
                path=str(self._path),
            )
        found = str(row[0])
        if not found.isdecimal() or not 1 <= int(found) <= statements.SCHEMA_VERSION:
            raise CatalogError(
                f"The catalog {self._path} has schema version {found}; this version of pipedag knows version {statements.SCHEMA_VERSION}. "
                "Install the newer version of pipedag that has written it, or choose another path.",
                path=str(self._path),
                found=found,
                known=str(statements.SCHEMA_VERSION),
            )
        return int(found)


def _patiently(action: Callable[[], object]) -> None:
    """Repeat an action while the file is locked: a change of the journal's mode does not wait by itself."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            action()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
