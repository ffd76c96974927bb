"""Statements that run beside the main thread, so that Ctrl-C ends them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

#: Seconds between two tries to end a statement: the first may come before it has begun.
_AGAIN_S: Final = 0.05


def execute(connection: Any, statement: str) -> Any:
    """Execute a statement with DuckDB; an exception that a signal handler raises meanwhile ends it.

    DuckDB looks for signals between pieces of its work only, and one piece of a large join may last for hours. Python's handlers run in the main
    thread, so the statement runs in another one there while the main thread waits.

    Args:
        connection: DuckDB's, not in use by another thread.
        statement: One statement.

    Raises:
        duckdb.Error: DuckDB refused it.
        BaseException: What the signal handler raised (KeyboardInterrupt), after the statement has ended.
    """
    if not is_main_thread():
        return connection.execute(statement)
    with begun(connection, statement) as result:
        return result()


def is_main_thread() -> bool:
    """Return whether this is the thread that `begun` is for."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def begun(connection: Any, statement: str) -> Generator[Callable[[], Any]]:
    """Begin a statement, for the main thread to do something else meanwhile; it is ended when the block is left before it is done.

    Args:
        connection: DuckDB's, not in use by another thread until the block is left.
        statement: One statement.

    Yields:
        A function that waits for the statement and returns, or raises, what it gave.
    """
    answer = _worker().submit(connection.execute, statement)
    try:
        yield answer.result
    finally:
        while not answer.done():
            connection.interrupt()
            wait([answer], _AGAIN_S)


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pipedag-query")


if hasattr(os, "register_at_fork"):
    # A forked process has no threads but the one that forked.
    os.register_at_fork(after_in_child=_worker.cache_clear)
