"""Statements that Ctrl-C ends."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any


def execute(connection: Any, statement: str) -> Any:
    """Execute a statement with DuckDB; an exception that a signal handler raises meanwhile interrupts it.

    DuckDB looks for signals between pieces of its work only, and one piece of a large join may last for hours. Python's handlers run in the main
    thread, so the statement runs in another one there while the main thread waits.

    Args:
        connection: DuckDB's, not in use by another thread.
        statement: One statement.

    Raises:
        duckdb.Error: DuckDB refused it.
        BaseException: What the signal handler raised (KeyboardInterrupt), after the statement has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return connection.execute(statement)
    answer = _worker().submit(connection.execute, statement)
    try:
        return answer.result()
    except BaseException:
        if not answer.done():
            connection.interrupt()
            wait([answer])
        raise


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pipedag-query")


if hasattr(os, "register_at_fork"):
    # A forked process has no threads but the one that forked.
    os.register_at_fork(after_in_child=_worker.cache_clear)
