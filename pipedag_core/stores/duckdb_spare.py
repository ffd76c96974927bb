"""One empty DuckDB database of this process, for what needs one for a moment only: to open one takes longer than to write a file of views.

It is opened when it is first needed and kept until the process ends. A fork would take its threads away from the copy, so it is closed before.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, final

import duckdb

_SETTINGS: Final[dict[str, Any]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}


@final
class Spare:
    """A database that is opened when it is first lent. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database: Any = None
        self._lent = 0

    @contextmanager
    def lend(self) -> Generator[Any]:
        """Lend a connection, which must be left as it was.

        Raises:
            duckdb.Error: DuckDB cannot be opened.
        """
        with self._lock:
            if self._database is None:
                self._database = duckdb.connect(":memory:", config=_SETTINGS)
            connection = self._database.cursor()
            self._lent += 1
        try:
            yield connection
        finally:
            with self._lock:
                connection.close()
                self._lent -= 1

    def close(self) -> None:
        """Close it, unless it is lent; the next one who needs it opens another."""
        with self._lock:
            if self._database is not None and not self._lent:
                self._database.close()
                self._database = None

    def begin_anew(self) -> None:
        """Leave alone what was lent: in a child process, where the thread that uses it is not."""
        self._lock, self._database, self._lent = threading.Lock(), None, 0


SPARE: Final = Spare()
atexit.register(SPARE.close)
os.register_at_fork(before=SPARE.close, after_in_child=SPARE.begin_anew)
