"""How fast 10 million rows go out to the store and come back, through polars."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from timing import Row, Stopwatch, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize

LIMIT = 1.2

YEAR_S = 365 * 24 * 3600


def make_frame(rows: int) -> pl.DataFrame:
    """Return rows x 6 columns: int64, float64, string, timestamp, bool, int32; the same each time."""
    number = pl.int_range(rows, eager=True, dtype=pl.Int64)
    # A multiplicative hash: values without order or pattern that a file format could make small.
    mixed = (number * 2_654_435_761) % 4_294_967_291
    start = datetime(2020, 1, 1)  # noqa: DTZ001 -- a timestamp without a zone is wanted
    return pl.DataFrame(
        {
            "id": number,
            "amount": mixed / 1000,
            "customer": "customer " + (mixed % 1_000_003).cast(pl.String),
            "at": start + (mixed % YEAR_S * 1_000_000).cast(pl.Duration("us")),
            "valid": mixed % 3 == 0,
            "kind": (mixed % 1000).cast(pl.Int32),
        }
    )


class Source:
    """Holds the frame where the task finds it: making it is not what is measured."""

    frame = pl.DataFrame()


@materialize(version="1.0")
def large() -> pl.DataFrame:
    """Return the frame; only a first run writes it."""
    return Source.frame


@materialize(input_type=pl.DataFrame)
def count(frame: pl.DataFrame) -> int:
    """Read the frame; without a version this runs always."""
    return frame.height


def out(frame: pl.DataFrame, watch: Stopwatch) -> None:
    """Write the frame by a flow into a new store."""
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), frame, watch, read=False)


def run(folder: Path, frame: pl.DataFrame, watch: Stopwatch, *, read: bool) -> None:
    """Run the flow on the store in `folder`, with or without the task that reads the table."""
    Source.frame = frame
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
    rows: Any = None
    with watch:
        with Flow("large") as flow:
            with Stage("out"):
                table: Any = large()
            if read:
                with Stage("back"):
                    rows = count(table)
        result = flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    if read and result.get(rows) != frame.height:
        raise RuntimeError("Rows are missing.")


def measure(quick: bool) -> list[Row]:
    """Write and read the frame by a flow and by polars alone, in turns."""
    rows = 1_500_000 if quick else 10_000_000
    frame = make_frame(rows)
    with tempfile.TemporaryDirectory() as kept:
        stored, raw_file = Path(kept, "flow"), Path(kept, "raw.parquet")
        run(stored, frame, Stopwatch(), read=True)
        frame.write_parquet(raw_file)
        size = max(file.stat().st_size for file in stored.rglob("*.parquet"))

        def raw_out(watch: Stopwatch) -> None:
            with tempfile.TemporaryDirectory() as folder, watch:
                frame.write_parquet(Path(folder) / "raw.parquet")

        def raw_back(watch: Stopwatch) -> None:
            with watch:
                pl.read_parquet(raw_file)

        timings = in_turns(
            {
                "out": lambda watch: out(frame, watch),
                "raw out": raw_out,
                "back": lambda watch: run(stored, frame, watch, read=True),
                "raw back": raw_back,
            },
            3 if quick else 5,
        )
        sizes = f"{size / 1e6:.0f} MB stored, {raw_file.stat().st_size / 1e6:.0f} MB raw"
    what = f"{rows / 1e6:g} M rows x {frame.width} columns"
    return [
        row(f"{what}, out", timings["out"], raw=timings["raw out"], raw_what="write_parquet", compared="times", limit=LIMIT, note=sizes),
        row(f"{what}, back", timings["back"], raw=timings["raw back"], raw_what="read_parquet", compared="times", limit=LIMIT, note=sizes),
    ]
