"""TPC-H as a flow: eight tables read in and 22 queries as SQL tasks, beside the same copies by hand in one DuckDB process.

The queries (`tpch/q01.sql` ...) ask what the TPC-H specification, revision 3, asks in its chapter 2.4, with its validation parameters.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import sqlalchemy as sa
from timing import Row, Stopwatch, Unavailable, in_turns, row

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, Table, materialize
from pipedag_core.stores.duckdb_engine import COPY_OPTIONS

LIMIT_TIMES = 1.15

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")

#: Number -> text with {table} where a table stands.
QUERIES = {int(path.stem[1:]): path.read_text(encoding="utf-8") for path in sorted(Path(__file__).with_name("tpch").glob("q*.sql"))}


def tables_of(query: str) -> list[str]:
    """Return the tables that a query reads, each once."""
    return sorted(set(re.findall(r"\{(\w+)\}", query)))


@materialize(lazy=True)
def read_in(path: str, name: str) -> Any:
    """One of the eight tables."""
    return Table(sa.text(f"SELECT * FROM read_parquet('{path}')"), name)


@materialize(lazy=True, input_type=sa.Table)
def ask(number: int, tables: dict[str, sa.Alias]) -> Any:
    """One of the 22 queries."""
    places = {name: f"{table.original.schema}.{table.original.name}" for name, table in tables.items()}
    return Table(sa.text(QUERIES[number].format(**places)), f"q{number:02}")


def tpch(source: Path) -> Flow:
    """Wire the 30 tasks."""
    with Flow("tpch") as flow:
        with Stage("raw"):
            raw = {name: read_in(str(source / f"{name}.parquet"), name) for name in TABLES}
        with Stage("answers"):
            for number, query in QUERIES.items():
                ask(number, {name: raw[name] for name in tables_of(query)})
    return flow


def by_flow(source: Path, watch: Stopwatch) -> None:
    """Run the flow on an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
        config = PipedagConfig({"instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")
        with watch:
            result = tpch(source).run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
        outcomes = [report.outcome.value for report in result.reports if report.step.startswith("task:")]
        if outcomes != ["ran"] * 30:
            raise RuntimeError(f"Expected all 30 tasks to run: {outcomes}")


def by_hand(source: Path, watch: Stopwatch) -> None:
    """Copy the tables and the answers to files, with the options that the store writes with."""
    with tempfile.TemporaryDirectory() as folder, watch, duckdb.connect() as database:
        places = {name: f"read_parquet('{folder}/{name}.parquet')" for name in TABLES}
        for name in TABLES:
            database.execute(f"COPY (FROM read_parquet('{source}/{name}.parquet')) TO '{folder}/{name}.parquet' ({COPY_OPTIONS})")
        for number, query in QUERIES.items():
            database.execute(f"COPY ({query.format(**places)}) TO '{folder}/q{number:02}.parquet' ({COPY_OPTIONS})")


def generate(folder: Path, scale: float) -> None:
    """Make the eight tables."""
    tool = Path(sysconfig.get_path("scripts"), "tpchgen-cli")
    if not tool.exists():
        raise Unavailable("tpchgen-cli is not installed; `pip install -e '.[bench]'` installs it")
    subprocess.run([str(tool), "parquet", "-s", str(scale), f"--output-dir={folder}"], check=True, capture_output=True)


def measure(quick: bool) -> list[Row]:
    """Time the flow and its equal by hand, in turns, on tables of scale 1 (quick: 0.01)."""
    scale = 0.01 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        generate(source, scale)
        timings = in_turns(
            {"flow": lambda watch: by_flow(source, watch), "by hand": lambda watch: by_hand(source, watch)},
            3,
        )
    return [
        row(
            f"TPC-H at scale {scale}, 8 tables and 22 queries",
            timings["flow"],
            raw=timings["by hand"],
            raw_what="30 COPY in one DuckDB process",
            compared="times",
            # At the small scale, what 30 tasks cost by themselves is all that is seen.
            limit=None if quick else LIMIT_TIMES,
        )
    ]
