"""How fast 10 million rows go out to the store and come back, through polars, pandas and pyarrow, and what hashing their content costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from timing import Row, Stopwatch, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize
from pipedag_core.stores import parquet_files

HASH_LIMIT = 0.5

YEAR_S = 365 * 24 * 3600


@dataclass(frozen=True)
class Library:
    """How a library makes its table of a polars frame, writes it and reads it by itself, and how much longer it may take through a flow."""

    name: str
    kind: Any
    make: Callable[[pl.DataFrame], Any]
    write: Callable[[Any, Path], object]
    read: Callable[[Path], Any]
    limit: float


LIBRARIES = (
    Library("polars", pl.DataFrame, lambda frame: frame, lambda table, path: table.write_parquet(path), pl.read_parquet, 1.1),
    Library("pandas", pd.DataFrame, lambda frame: frame.to_pandas(), lambda table, path: table.to_parquet(path), pd.read_parquet, 1.3),
    Library("pyarrow", pa.Table, lambda frame: frame.to_arrow(), pq.write_table, lambda path: pq.ParquetFile(path).read(), 1.1),
)


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
    """Holds the table where the task finds it: making it is not what is measured."""

    table: Any = None


@materialize(version="1.0")
def large() -> Any:
    """Return the table; only a first run writes it."""
    return Source.table


def flow_of(kind: Any, *, read: bool) -> tuple[Flow, Any]:
    """Declare the flow, with or without the task that reads the table as `kind`."""

    @materialize(input_type=kind)
    def count(table: Any) -> int:
        """Read the table; without a version this runs always."""
        return len(table)

    rows: Any = None
    with Flow("large") as flow:
        with Stage("out"):
            table: Any = large()
        if read:
            with Stage("back"):
                rows = count(table)
    return flow, rows


def run(folder: Path, library: Library, table: Any, watch: Stopwatch, *, read: bool) -> None:
    """Run the flow on the store in `folder`."""
    Source.table = table
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
    with watch:
        flow, rows = flow_of(library.kind, read=read)
        result = flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    if read and result.get(rows) != len(table):
        raise RuntimeError("Rows are missing.")


def measure_library(library: Library, frame: pl.DataFrame, repeats: int) -> list[Row]:
    """Write and read the table by a flow and by the library alone, in turns."""
    table = library.make(frame)
    with tempfile.TemporaryDirectory() as kept:
        stored, raw_file = Path(kept, "flow"), Path(kept, "raw.parquet")
        run(stored, library, table, Stopwatch(), read=True)
        library.write(table, raw_file)
        size = max(file.stat().st_size for file in stored.rglob("*.parquet"))

        def out(watch: Stopwatch) -> None:
            with tempfile.TemporaryDirectory() as folder:
                run(Path(folder), library, table, watch, read=False)

        def raw_out(watch: Stopwatch) -> None:
            with tempfile.TemporaryDirectory() as folder, watch:
                library.write(table, Path(folder) / "raw.parquet")

        def raw_back(watch: Stopwatch) -> None:
            with watch:
                library.read(raw_file)

        outward = in_turns({"flow": out, "raw": raw_out}, repeats)
        # Not among the writes: whoever reads first after one finds a busy disk and no memory at hand.
        back = in_turns({"flow": lambda watch: run(stored, library, table, watch, read=True), "raw": raw_back}, repeats)
        sizes = f"{size / 1e6:.0f} MB stored, {raw_file.stat().st_size / 1e6:.0f} MB raw"
    what = f"{frame.height / 1e6:g} M rows x {frame.width} columns through {library.name}"
    options: dict[str, Any] = {"compared": "times", "limit": library.limit, "note": sizes}
    return [
        row(f"{what}, out", outward["flow"], raw=outward["raw"], raw_what="its own writer", **options),
        row(f"{what}, back", back["flow"], raw=back["raw"], raw_what="its own reader", **options),
    ]


def measure_hash(frame: pl.DataFrame, repeats: int) -> Row:
    """Hash the content and write the file, in turns."""

    def hashed(watch: Stopwatch) -> None:
        with watch:
            parquet_files.hash_batches(parquet_files.batches(frame, "bench"))

    def written(watch: Stopwatch) -> None:
        with tempfile.TemporaryDirectory() as folder, watch:
            frame.write_parquet(Path(folder) / "raw.parquet")

    timings = in_turns({"hash": hashed, "write": written}, repeats)
    what = f"content hash of {frame.height / 1e6:g} M rows x {frame.width} columns"
    return row(what, timings["hash"], raw=timings["write"], raw_what="write_parquet", compared="times", limit=HASH_LIMIT)


def measure(quick: bool) -> list[Row]:
    """Measure one library after another, and the hash."""
    frame = make_frame(1_500_000 if quick else 10_000_000)
    repeats = 4 if quick else 8
    rows = [item for library in LIBRARIES for item in measure_library(library, frame, repeats)]
    return [*rows, measure_hash(frame, repeats)]
