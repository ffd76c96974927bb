"""What a task on small polars frames costs when nothing is cached."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
from lazy_sql import anew, sqlite
from timing import Row, Stopwatch, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize

STAGES = 5
LIMIT_MS, LIMIT_TIMES = 6, 3


def work(frame: pl.DataFrame) -> pl.DataFrame:
    """What each task does."""
    return frame.with_columns(value=pl.col("value") + 1)


def begin() -> pl.DataFrame:
    """Return the first frame: 100 rows x 2 columns."""
    return pl.DataFrame({"id": range(100), "value": range(100)})


@materialize(version="1.0")
def first() -> pl.DataFrame:
    """A small frame."""
    return begin()


@materialize(version="1.0", input_type=pl.DataFrame)
def following(frame: pl.DataFrame) -> pl.DataFrame:
    """Another small frame, made from it."""
    return work(frame)


def by_flow(tasks: int, folder: Path, watch: Stopwatch) -> None:
    """Declare and run a chain of tasks on a new store."""
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
    with watch:
        with Flow("chain") as flow:
            table = None
            for stage in range(STAGES):
                with Stage(f"stage_{stage}"):
                    for _ in range(tasks):
                        table = first() if table is None else following(table)
        result = flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    if [report.outcome.value for report in result.reports if report.task] != ["ran"] * STAGES * tasks:
        raise RuntimeError("Expected all tasks to run.")


def by_hand(tasks: int, folder: Path, watch: Stopwatch) -> None:
    """Read a file, compute, write a file, commit one row; for each task."""
    with watch, sqlite(folder) as catalog:
        for number in range(STAGES * tasks):
            file = folder / f"{number}.parquet"
            frame = begin() if number == 0 else work(pl.read_parquet(folder / f"{number - 1}.parquet"))
            frame.write_parquet(file)
            with catalog:
                key = hashlib.sha256(f"1.0 {number}".encode()).hexdigest()
                catalog.execute("INSERT INTO result VALUES (?, ?, ?)", (number, key, str(file)))


def measure(quick: bool) -> list[Row]:
    """Run the chain and its equal by hand, in turns."""
    tasks = 4 if quick else 20
    timings = in_turns({"flow": anew(by_flow, tasks), "hand": anew(by_hand, tasks)}, 3 if quick else 7)
    total = STAGES * tasks
    what = f"polars task on a small frame, none of {total} cached"
    options = {"raw": timings["hand"], "raw_what": "read, compute, write, SQLite commit"}
    return [
        row(what, timings["flow"], per=total, limit=LIMIT_MS, **options),
        row(what, timings["flow"], per=total, compared="times", limit=LIMIT_TIMES, **options),
    ]
