"""People who read with plain SQL while stages are committed, one commit after the other: nobody ever sees half a stage.

`pytest` lets them read for 5 seconds each, `make stress` for 90.
"""

from __future__ import annotations

import os
import threading
import time

import psycopg
import pyarrow as pa
import pytest

from pipedag_core import Flow, PipedagConfig, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.ports.data import BatchSource, Form
from pipedag_core.ports.events import NamesSwitchedEarly

SECONDS = 90 if "PIPEDAG_LONG_TESTS" in os.environ else 5
TABLES = [f"t{number}" for number in range(20)]
PAUSE_S = 0.02

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 240)]


@materialize(version="1")
def kept():
    # Cache-valid in all commits but the first: later generations show a view of it.
    return pa.table({"x": [0]})


def make_flow(number):
    """Return a flow in which every table of the stage holds one number, but for the one that never changes."""
    with Flow("f") as flow, Stage("s"):
        kept()
        for name in TABLES:
            materialize(lambda number: pa.table({"x": [number]}), name=name, version="1")(number)
    return flow


class Writer:
    """Commits the stage again and again, and counts commits that did not wait for all readers."""

    def __init__(self, url, prefix, commit_wait):
        args = {"url": url, "schema_prefix": prefix + "{instance_id}_", "commit_wait": commit_wait}
        store = {"table_store": {"class": "sql", "args": args}, "retention": {"committed": 3, "minimum_age": "60s"}}
        self.config = PipedagConfig({"instances": {"i": store}}).get("i")
        self.schema = f"{prefix}i_s"
        self.url = url
        self.commits = self.early = 0
        self.commit()

    def on_event(self, event):
        self.early += isinstance(event, NamesSwitchedEarly)

    def commit(self):
        result = make_flow(self.commits).run(config=self.config, observers=[self])
        assert result.successful, result.exception
        self.commits += 1

    def commit_beside(self, read, readers):
        """Commit until the time is over, while several threads call `read` with a connection, in turns with a pause; return all that it returned."""
        seen, done = [], threading.Event()

        def keep_reading():
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not done.wait(PAUSE_S):
                    try:
                        seen.append(read(connection))
                    except BaseException as error:  # noqa: BLE001 -- whatever it is, the test is told
                        seen.append(error)
                        return

        threads = [threading.Thread(target=keep_reading) for _ in range(readers)]
        for thread in threads:
            thread.start()
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                self.commit()
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert [one for one in seen if isinstance(one, BaseException)] == []
        assert self.commits > 2
        assert len(seen) > readers
        return seen


@pytest.fixture
def make_writer(postgres_url, schema_prefix):
    return lambda commit_wait: Writer(postgres_url, schema_prefix, commit_wait)


def test_single_statements_over_many_tables_never_see_two_states_while_commits_wait_for_them(make_writer):
    writer = make_writer("60s")
    query = " UNION ALL ".join(f"SELECT x FROM {writer.schema}.{name}" for name in TABLES)

    def read(connection):
        return {x for (x,) in connection.execute(query).fetchall()}

    seen = writer.commit_beside(read, readers=3)
    assert [states for states in seen if len(states) != 1] == []
    assert writer.early == 0


def test_readers_of_a_generation_never_see_another_however_little_commits_wait(make_writer):
    writer = make_writer("0s")

    def read(connection):
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            [(number,)] = connection.execute(f"SELECT max(current_number) FROM {writer.schema[:-1]}pipedag__catalog.stages").fetchall()
            generation = f"{writer.schema}__g{number}"
            states = set()
            for name in TABLES:
                states |= {x for (x,) in connection.execute(f"SELECT x FROM {generation}.{name}").fetchall()}
            assert connection.execute(f"SELECT x FROM {generation}.kept").fetchall() == [(0,)]
            return states

    seen = writer.commit_beside(read, readers=2)
    assert [states for states in seen if len(states) != 1] == []
    # They really saw the stage change.
    assert len(set().union(*seen)) > 1


def test_readers_through_the_package_never_see_half_a_stage_however_little_commits_wait(make_writer):
    writer = make_writer("0s")

    def read(connection):
        states = set()
        with open_session(writer.config) as session, session.tables.session("reader") as access:
            for name, table in session.catalog.shown()["s"].items():
                if name in TABLES:
                    source = access.read(table, Form.BATCHES)
                    assert isinstance(source, BatchSource)
                    states |= set(pa.RecordBatchReader.from_stream(source.stream).read_all()["x"].to_pylist())
        return states

    seen = writer.commit_beside(read, readers=2)
    assert [states for states in seen if len(states) != 1] == []
    assert len(set().union(*seen)) > 1
