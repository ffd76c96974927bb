"""The DuckDB file store beside DuckDB alone: a large frame out and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import polars as pl
from postgres import frame, out_and_back
from timing import Row, Stopwatch

from pipedag_core import PipedagConfig
from pipedag_core.config.wire import open_table_store
from pipedag_core.ports.data import BatchData, BatchSource, Form, StoredTable, Target


def measure(quick: bool) -> list[Row]:
    """Write and read a frame through a store's session, and with DuckDB alone, which opens and closes its file, too."""
    data = frame(100_000 if quick else 1_000_000)
    arrow = data.to_arrow()
    with tempfile.TemporaryDirectory() as folder:
        args = {"url": f"duckdb:///{folder}/{{instance_id}}.duckdb"}
        blobs = {"class": "file", "args": {"base_path": f"{folder}/{{instance_id}}"}}
        instance = {"table_store": {"class": "sql", "args": args}, "blob_store": blobs}
        store = open_table_store(PipedagConfig({"name": "bench", "instances": {"bench": instance}}).get("bench"))
        numbers = iter(range(10_000))
        raw_file = Path(folder, "raw.duckdb")

        def raw(watch_write: Stopwatch, watch_read: Stopwatch) -> None:
            name = f"t{next(numbers)}"
            with watch_write, duckdb.connect(raw_file) as connection:
                connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")
            with watch_read, duckdb.connect(raw_file) as connection:
                back = connection.sql(f"SELECT * FROM {name}").to_arrow_table()
            with duckdb.connect(raw_file) as connection:
                connection.execute(f"DROP TABLE {name}")
            assert back.num_rows == arrow.num_rows

        def ours(watch_write: Stopwatch, watch_read: Stopwatch) -> None:
            target = Target("s", 1, f"t{next(numbers)}", "task")
            with watch_write, store.session("bench") as session:
                made = session.write(BatchData(lambda: data, in_memory=True, rows=data.height), target)
            table = StoredTable("x", "s", 1, target.name, made.location, made.schema, "x")
            with watch_read, store.session("bench") as session:
                source = session.read(table, Form.BATCHES)
                assert isinstance(source, BatchSource)
                back = pl.DataFrame(source.stream)
            store.drop([made.location])
            assert back.equals(data)

        found = out_and_back("DuckDB file", data, ours, raw, ("CREATE TABLE AS SELECT * FROM arrow", "to_arrow_table"), 3 if quick else 7)
        store.close()
    return found
