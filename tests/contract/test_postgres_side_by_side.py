"""What several tasks, threads and processes do in PostgreSQL at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pyarrow as pa
import pytest

from pipedag_core.ports.data import BatchData, Form, QueryData
from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_samples import keep, rows

PATIENCE_S = 30.0


@pytest.fixture
def opener(postgres_url, schema_prefix):
    """Opens the same store, as different processes would."""
    with ExitStack() as stack:

        def open_store(**options):
            store = SqlStore(postgres_url, schema_prefix=schema_prefix, **options)
            stack.callback(store.close)
            return store

        yield open_store


def frame(value):
    return BatchData(lambda: pa.table({"i": [value]}), in_memory=True)


def await_lock(connection):
    """Wait until somebody waits for a lock that a connection has."""
    deadline = time.monotonic() + PATIENCE_S
    query = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    with psycopg.connect(connection.info.dsn, autocommit=True) as other:
        while not other.execute(query, (connection.info.backend_pid,)).fetchall():
            assert time.monotonic() < deadline


@pytest.mark.parametrize("data", [frame(2), QueryData("SELECT 2 AS i")], ids=["rows", "query"])
def test_a_schema_that_clean_up_of_another_process_has_removed_is_made_again(opener, data):
    one, other = opener(), opener()
    with one.session("f.t") as session:
        gone = keep(session, frame(1), "gone")
        other.drop([gone.location])
        assert rows(session, keep(session, data, "kept")) == [{"i": 2}]


def test_a_table_that_is_made_while_clean_up_finds_its_schema_empty_stays(opener, postgres_url):
    store = opener()
    with store.session("f.t") as session:
        gone = keep(session, frame(1), "gone")
    schema = gone.location.partition(".")[0]
    with psycopg.connect(postgres_url) as writer, ThreadPoolExecutor(1) as pool:
        writer.execute(f"CREATE TABLE {schema}.kept AS SELECT 1 AS i")
        dropping = pool.submit(store.drop, [gone.location])
        await_lock(writer)
        writer.commit()
        dropping.result(PATIENCE_S)
        assert writer.execute(f"SELECT i FROM {schema}.kept").fetchall() == [(1,)]


def test_tasks_that_read_and_write_do_not_wait_for_each_others_connections(opener):
    source = opener()
    with source.session("f.t") as session:
        table = keep(session, frame(1), "input")
    store = opener(max_connections=2)
    everybody_has_read = threading.Barrier(4)

    def task(number):
        with store.session(f"f.t{number}") as session:
            assert rows(session, table) == [{"i": 1}]
            # Users' code may take long; meanwhile others read and write.
            everybody_has_read.wait(PATIENCE_S)
            return rows(session, keep(session, frame(number), "output", stage=f"s{number}"), Form.BATCHES)

    with ThreadPoolExecutor(4) as pool:
        assert [done.result(PATIENCE_S) for done in [pool.submit(task, number) for number in range(4)]] == [[{"i": n}] for n in range(4)]
