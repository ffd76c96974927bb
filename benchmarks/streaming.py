"""How much memory a table needs that is larger than the memory which is allowed: LazyFrame in and out, and an SQL task with a limit.

Each measurement is a process of its own, `python benchmarks/streaming.py WHAT FOLDER ROWS`, so that its peak is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa
from timing import Row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize

LIMIT_GIB = 2.5

#: What DuckDB may use; the rows that it sorts need several times as much.
MEMORY_LIMIT = "1GB"

ROWS = 50_000_000


@materialize(lazy=True)
def source(rows: int) -> Any:
    """A table of five columns that streams out of DuckDB."""
    return sa.text(
        "SELECT i AS id, (i * 2654435761) % 4294967291 / 1000 AS amount, 'customer ' || (i * 2654435761) % 1000003 AS customer, "
        f"TIMESTAMP '2020-01-01' + to_seconds(i % 31536000) AS at, (i % 1000)::INTEGER AS kind FROM range({rows}) AS t(i)"
    )


@materialize(version="1.0", input_type=pl.LazyFrame)
def by_frame(table: pl.LazyFrame) -> pl.LazyFrame:
    """Nearly all rows with one more column."""
    return table.filter(pl.col("kind") != 0).with_columns(double=pl.col("amount") * 2, short=pl.col("customer").str.slice(9))


@materialize(lazy=True, input_type=sa.Table)
def by_query(table: Any) -> Any:
    """All rows in another order, which DuckDB can only find with all of them at hand."""
    return sa.select(table, (table.c.amount * 2).label("double")).order_by(table.c.amount)


TASKS = {"source": None, "frame": by_frame, "query": by_query}


def peak() -> float:
    """Return the most memory that this process has had, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage it does not begin with what the parent had.
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def child(what: str, folder: Path, rows: int) -> None:
    """Run the flow with one of the tasks, and print what it took."""
    args = {"base_path": f"{folder}/store/{{instance_id}}", "memory_limit": MEMORY_LIMIT, "temp_directory": f"{folder}/spill"}
    config = PipedagConfig({"instances": {"bench": {"instance_id": "bench", "table_store": {"class": "parquet", "args": args}}}}).get(
        "bench"
    )
    task = TASKS[what]
    started = time.perf_counter()
    with Flow("streaming") as flow:
        with Stage("raw"):
            table = source(rows)
        if task is not None:
            with Stage("out"):
                task(table)
    result = flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    seconds = time.perf_counter() - started
    counted = [report.rows for report in result.reports if report.task is not None][-1]
    print(json.dumps({"peak": peak(), "seconds": seconds, "rows": counted}))


def measure(quick: bool) -> list[Row]:
    """Make the table, then stream it through polars and through DuckDB, each in a process of its own."""
    rows = ROWS // 10 if quick else ROWS
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for what, title in (
            ("source", "an SQL task"),
            ("frame", "LazyFrame in, LazyFrame out"),
            ("query", "an SQL task that sorts"),
        ):
            command = [sys.executable, __file__, what, folder, str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            expected = rows - -(-rows // 1000) if what == "frame" else rows
            size = max(file.stat().st_size for file in Path(folder, "store").rglob("*.parquet"))
            limited = "" if what == "frame" else f", DuckDB's memory_limit {MEMORY_LIMIT}"
            found.append(
                Row(
                    f"peak memory, {title}, {rows / 1e6:g} M rows",
                    told["peak"],
                    "GiB",
                    limit=LIMIT_GIB,
                    holds=told["rows"] == expected,
                    samples=(told["peak"],),
                    note=f"{told['seconds']:.0f} s, {size / 1e9:.2f} GB stored{limited}",
                )
            )
    return found


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
