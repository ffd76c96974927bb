"""The DuckDB database that a process keeps at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from pipedag_core.stores import duckdb_spare
from tests.architecture.house import ROOT


def test_it_is_opened_once_and_lent_again():
    with duckdb_spare.SPARE.lend() as first, duckdb_spare.SPARE.lend() as second:
        first.execute("CREATE TABLE seen AS SELECT 7 AS x")
        assert second.execute("FROM seen").fetchall() == [(7,)]
        duckdb_spare.SPARE.close()
        assert first.execute("DROP TABLE seen").fetchall() == []
    duckdb_spare.SPARE.close()
    with duckdb_spare.SPARE.lend() as connection:
        assert connection.execute("SHOW TABLES").fetchall() == []


def test_processes_that_are_forked_have_their_own():
    code = textwrap.dedent(
        """
        import os, sys
        from pipedag_core.stores.duckdb_spare import SPARE

        def ask():
            with SPARE.lend() as connection:
                return connection.execute("SELECT sum(range) FROM range(1000000)").fetchone()

        ask()
        child = os.fork()
        found = ask()
        if child == 0:
            sys.exit(int(found != (499999500000,)))
        print(found, os.waitpid(child, 0)[1])

        with SPARE.lend():
            # Lent at this moment, so it cannot be closed before.
            child = os.fork()
            if child == 0:
                os._exit(int(ask() != found))
            print(os.waitpid(child, 0)[1])
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(499999500000,) 0\n0\n", "")
