"""Whether large tables that are valid cost anything: one changed task beside five of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from timing import Row, Stopwatch, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize

LIMIT_TIMES = 1.1
TABLES = 5

#: Bytes that a run may read or write more than one without the large tables: rows of the catalog, never of the tables.
LIMIT_BYTES = 1_000_000


def bytes_moved() -> int:
    """Return how many bytes this process has read and written so far.

    Source:
        Linux manual, proc_pid_io(5): `rchar` and `wchar` count what passed through read and write calls, from the disk or not.
    """
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


class Change:
    """What the changed task returns: other rows each time."""

    number = 0


@materialize(version="1.0")
def large(seed: int, rows: int) -> pl.DataFrame:
    """A table that stays as it is."""
    number = pl.int_range(rows, eager=True, dtype=pl.Int64)
    return pl.DataFrame({"id": number, "a": (number * 2_654_435_761 + seed) % 4_294_967_291, "b": number % 97 / 7})


@materialize(lazy=True)
def small() -> pl.DataFrame:
    """The table that changes."""
    return pl.DataFrame({"x": range(1000), "n": Change.number})


@materialize(version="1.0", input_type=pl.DataFrame)
def consumer(frame: pl.DataFrame) -> int:
    """Somebody who reads it."""
    return frame.height


def run(folder: Path, tables: int, rows: int, watch: Stopwatch) -> int:
    """Run the flow on the store in `folder` after a change; return how many bytes moved."""
    Change.number += 1
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
    before = bytes_moved()
    with watch:
        with Flow("beside") as flow:
            with Stage("s"):
                for seed in range(tables):
                    large(seed, rows)
                changed: Any = small()
            with Stage("t"):
                consumer(changed)
        flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    return bytes_moved() - before


def measure(quick: bool) -> list[Row]:
    """Run the changed flow beside large tables and without them, in turns."""
    rows = 200_000 if quick else 5_000_000
    moved: dict[str, list[int]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "with"), Path(folder, "without")
        run(first, TABLES, rows, Stopwatch())
        run(second, 0, rows, Stopwatch())

        def noting(name: str, path: Path, tables: int) -> Callable[[Stopwatch], None]:
            return lambda watch: moved[name].append(run(path, tables, rows, watch))

        timings = in_turns({"with": noting("with", first, TABLES), "without": noting("without", second, 0)}, 5 if quick else 21)
    more = min(moved["with"]) - min(moved["without"])
    return [
        row(
            f"one changed task beside {TABLES} valid tables of {rows / 1e6:g} M rows",
            timings["with"],
            raw=timings["without"],
            raw_what="the same run without them",
            compared="times",
            limit=LIMIT_TIMES,
            holds=more < LIMIT_BYTES,
            note=f"{more / 1000:.0f} kB more read and written",
        )
    ]
