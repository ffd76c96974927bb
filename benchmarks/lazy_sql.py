"""What a lazy SQL task costs when its result is valid, and when it is not, and whether that grows with the flow."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import sqlalchemy as sa
from duckdb_sqlalchemy import Dialect
from timing import Row, Stopwatch, Timing, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize

STAGES = 5
CACHED_LIMIT_MS, FRESH_LIMIT_MS, FRESH_LIMIT_TIMES, GROWTH_LIMIT_TIMES = 2, 6, 2.5, 1.2

#: How many times longer the long flow is.
LONGER = 10

FIRST = "SELECT range AS id, range * 2 AS value FROM range(100)"


def tasks_per_stage(quick: bool) -> int:
    """Return how long the chain is: 100 tasks in all, or 20."""
    return 4 if quick else 20


@materialize(lazy=True)
def first() -> Any:
    """A small table."""
    return sa.text(FIRST)


def select_from(table: sa.FromClause, step: int) -> sa.Select:
    """Return the query of every further task."""
    return sa.select(table.c.id, (table.c.value + step).label("value")).where(table.c.id >= 0)


@materialize(lazy=True, input_type=sa.Table)
def following(table: sa.Alias, step: int) -> Any:
    """Another small table, made from it."""
    return select_from(table, step)


def chain(tasks: int) -> Flow:
    """Wire the tasks, each reading the one before."""
    with Flow("chain") as flow:
        table = None
        for stage in range(STAGES):
            with Stage(f"stage_{stage}"):
                for task in range(tasks):
                    table = first() if table is None else following(table, stage * tasks + task)
    return flow


def run(tasks: int, folder: Path, outcome: str, watch: Stopwatch) -> None:
    """Declare and run the flow on the store in `folder`; all tasks must have this outcome."""
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    settings = {"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}
    with watch:
        result = chain(tasks).run(config=PipedagConfig(settings).get("bench"), orchestration_engine=SequentialEngine(), fail_fast=True)
    outcomes = [report.outcome.value for report in result.reports if report.step.startswith("task:")]
    if outcomes != [outcome] * STAGES * tasks:
        raise RuntimeError(f"Expected all {STAGES * tasks} tasks to be {outcome}: {outcomes}")


@contextmanager
def sqlite(folder: Path) -> Iterator[sqlite3.Connection]:
    """A database that keeps what a catalog keeps of each task, committed as cheaply as is safe."""
    connection = sqlite3.connect(folder / "by_hand.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS result (task INTEGER, fingerprint TEXT PRIMARY KEY, place TEXT)")
    yield connection
    connection.close()


def queries(folder: Path, tasks: int) -> Iterator[tuple[int, str, Path]]:
    """Build and compile the query of every task, as text that DuckDB runs; yield number, text and file."""
    dialect = Dialect()
    for number in range(STAGES * tasks):
        file = folder / f"{number}.parquet"
        if number == 0:
            yield number, FIRST, file
            continue
        before = folder / f"{number - 1}.parquet"
        table = sa.Table("table", sa.MetaData(), sa.Column("id", sa.BigInteger), sa.Column("value", sa.BigInteger), schema="by_hand").alias(
            "table"
        )
        text = str(select_from(table, number).compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        yield number, text.replace('by_hand."table"', f"read_parquet('{before}')"), file


def fresh_by_hand(tasks: int, folder: Path, watch: Stopwatch) -> None:
    """Compile, COPY to a file, commit one row; for each task, with connections opened once."""
    with watch, sqlite(folder) as catalog, duckdb.connect() as database:
        for number, text, file in queries(folder, tasks):
            database.execute(f"COPY ({text}) TO '{file}' (FORMAT parquet)")
            with catalog:
                catalog.execute("INSERT INTO result VALUES (?, ?, ?)", (number, hashlib.sha256(text.encode()).hexdigest(), str(file)))


def cached_by_hand(tasks: int, folder: Path, watch: Stopwatch) -> None:
    """Compile, look its hash up, commit one row; for each task."""
    with watch, sqlite(folder) as catalog:
        for number, text, _ in queries(folder, tasks):
            key = hashlib.sha256(text.encode()).hexdigest()
            found = catalog.execute("SELECT place FROM result WHERE fingerprint = ?", (key,)).fetchone()
            with catalog:
                catalog.execute("UPDATE result SET task = ? WHERE fingerprint = ?", (number, key))
            if found is None:
                raise RuntimeError("The result by hand is not there.")


def anew(work: Callable[[int, Path, Stopwatch], None], tasks: int) -> Callable[[Stopwatch], None]:
    """Return a run that does the work in a folder of its own."""

    def start(watch: Stopwatch) -> None:
        with tempfile.TemporaryDirectory() as folder:
            work(tasks, Path(folder), watch)

    return start


def measure(quick: bool) -> list[Row]:
    """Run the flow and its equal by hand, on nothing and on a full store, in turns."""
    tasks, repeats = tasks_per_stage(quick), 3 if quick else 7
    with tempfile.TemporaryDirectory() as kept:
        by_flow, by_hand = Path(kept, "flow"), Path(kept, "by_hand")
        by_hand.mkdir()
        run(tasks, by_flow, "ran", Stopwatch())
        by_long_flow = Path(kept, "long")
        run(LONGER * tasks, by_long_flow, "ran", Stopwatch())
        fresh_by_hand(tasks, by_hand, Stopwatch())
        timings = in_turns(
            {
                "cached": lambda watch: run(tasks, by_flow, "cached", watch),
                "cached by hand": lambda watch: cached_by_hand(tasks, by_hand, watch),
                "fresh": anew(lambda tasks, folder, watch: run(tasks, folder, "ran", watch), tasks),
                "fresh by hand": anew(fresh_by_hand, tasks),
            },
            repeats,
        )
        # In turns with the short one once more: the two are compared.
        lengths = in_turns(
            {
                "short": lambda watch: run(tasks, by_flow, "cached", watch),
                "long": lambda watch: run(LONGER * tasks, by_long_flow, "cached", watch),
            },
            3 if quick else 5,
        )
    total = STAGES * tasks
    per_long_task = Timing(tuple(seconds / LONGER for seconds in lengths["long"].seconds))
    return [
        row(
            f"lazy SQL task, all {total} cached",
            timings["cached"],
            per=total,
            raw=timings["cached by hand"],
            raw_what="compile, look up, SQLite commit",
            limit=CACHED_LIMIT_MS,
        ),
        row(
            f"lazy SQL task, none of {total} cached",
            timings["fresh"],
            per=total,
            raw=timings["fresh by hand"],
            raw_what="compile, COPY, SQLite commit",
            limit=FRESH_LIMIT_MS,
        ),
        row(
            f"lazy SQL task, none of {total} cached",
            timings["fresh"],
            per=total,
            raw=timings["fresh by hand"],
            raw_what="compile, COPY, SQLite commit",
            compared="times",
            limit=FRESH_LIMIT_TIMES,
        ),
        row(
            f"lazy SQL task, all {LONGER * total} cached",
            per_long_task,
            per=total,
            raw=lengths["short"],
            raw_what=f"the same for {total} tasks",
            compared="times",
            limit=GROWTH_LIMIT_TIMES,
        ),
    ]
