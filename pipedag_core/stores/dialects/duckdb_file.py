"""A DuckDB file that many processes take turns with: held while an action needs it, and given free right after."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

import duckdb

from pipedag_core.errors import StoreError
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.stores.duckdb_engine import Engine

#: What the file is called on our connections, whatever its own name is.
STORE: Final = "pipedag__store"

#: Seconds between two tries to get the file: at first, and at most.
_FIRST_S: Final = 0.002
_LONGEST_S: Final = 0.1

_HOLDER: Final = re.compile(r"Conflicting lock is held in (.+?) \(PID (\d+)\)")


@final
class DuckdbFile:
    """One file with a database. DuckDB lets one process at a time hold it; threads of one process share it.

    Args:
        path: The file; made with its folder when it is first needed.
        wait_s: Seconds to wait for other processes.
        memory_limit, temp_directory, threads: As for `Engine`.
    """

    def __init__(
        self, path: Path, *, wait_s: float, memory_limit: str | None = None, temp_directory: str | None = None, threads: int | None = None
    ) -> None:
        self.path = path
        self._wait_s = wait_s
        self._settings: dict[str, Any] = {
            "memory_limit": memory_limit,
            "temp_directory": temp_directory or f"{path}.tmp",
            "threads": threads,
        }
        self._engine = Engine(**self._settings)
        self._lock = threading.Lock()
        self._users = 0
        self._scripts = 0
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"DuckdbFile({str(self.path)!r})"

    @contextmanager
    def use(self) -> Generator[Any]:
        """Hold the file, and give a connection on which its schemas are at hand; no other thread may use that one."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def take(self) -> Any:
        """As `use`, until `give_back`.

        Raises:
            StoreError: Another process has held the file for too long, or it cannot be opened.
        """
        if self._pid != os.getpid():
            # DuckDB does not survive a fork; what was inherited must not be touched.
            self._inherited, self._engine = self._engine, Engine(**self._settings)
            self._lock, self._users, self._pid = threading.Lock(), 0, os.getpid()
        with self._lock:
            connection = self._engine.cursor()
            try:
                if self._users == 0:
                    self._attach(connection)
                connection.execute(f"USE {quote_identifier(STORE)}")
            except BaseException:
                if self._users == 0:
                    self._detach(connection)
                self._engine.release(connection)
                raise
            self._users += 1
        return connection

    def give_back(self, connection: Any) -> None:
        """End a use; the last one lets the file go."""
        with self._lock:
            self._engine.release(connection)
            self._users -= 1
            if self._users == 0:
                spare = self._engine.cursor()
                self._detach(spare)
                self._engine.release(spare, as_it_was=True)

    @contextmanager
    def beside(self) -> Generator[str]:
        """Give the name of a new, empty database in memory, in which a script may do as it likes, while the file is held."""
        with self.use() as connection:
            with self._lock:
                self._scripts += 1
                name = f"pipedag__script_{self._scripts}"
            connection.execute(f"ATTACH ':memory:' AS {quote_identifier(name)}")
            try:
                yield name
            finally:
                connection.execute(f"DETACH {quote_identifier(name)}")

    def close(self) -> None:
        """Give all memory back; the file can be used again afterwards."""
        if self._pid == os.getpid():
            self._engine.close()

    def _attach(self, connection: Any) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder of the DuckDB file {self.path} cannot be made: {error}.", path=str(self.path)) from error
        started = time.monotonic()
        pause = _FIRST_S
        while True:
            try:
                connection.execute(f"ATTACH {quote_literal(str(self.path))} AS {quote_identifier(STORE)}")
            except duckdb.Error as error:
                held = _is_held(error)
                if not held or time.monotonic() - started > self._wait_s:
                    raise self._refused(error, held=held) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_S)
            else:
                return

    def _detach(self, connection: Any) -> None:
        # A failure to write back what is in the log loses nothing: the log is read when the file is opened again.
        with suppress(duckdb.Error):
            connection.execute(f"DETACH {quote_identifier(STORE)}")

    def _refused(self, error: duckdb.Error, *, held: bool) -> StoreError:
        text = str(error).strip()
        if not held:
            return StoreError(
                f"The DuckDB file {self.path} could not be opened: {text}\nCheck that it is a database of this or an older version of DuckDB, that there is room, "
                "and that it can be written.",
                path=str(self.path),
            )
        holder = _HOLDER.search(text)
        who = f"process {holder[2]} ({holder[1]})" if holder else "another connection of this process"
        return StoreError(
            f"The DuckDB file {self.path} has been held by {who} for {self._wait_s:g} s. Only one process at a time can have such a file open, and a "
            "connection that only reads keeps it as well. Close it there (or look at a copy of the file), or raise file_wait in table_store.args. Where several "
            "processes work at once, or people look on all the time, the parquet store or a PostgreSQL database does it better.",
            path=str(self.path),
        )


def _is_held(error: duckdb.Error) -> bool:
    return "Could not set lock on file" in str(error) or "Unique file handle conflict" in str(error)
