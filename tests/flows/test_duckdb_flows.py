"""Flows on the DuckDB store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import duckdb
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, PipedagConfig, RawSql, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.housekeeping import clean_up
from pipedag_core.ports.catalogs import Retention
from pipedag_core.ports.data import BatchData
from pipedag_core.run.showing import refresh_names
from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_samples import keep


@pytest.fixture
def config(tmp_path):
    instance = {
        "table_store": {"class": "sql", "args": {"url": f"duckdb:///{tmp_path}/data/{{instance_id}}.duckdb"}},
        "blob_store": {"class": "file", "args": {"base_path": str(tmp_path / "blobs" / "{instance_id}")}},
    }
    return PipedagConfig({"instances": {"full": instance}}).get("full")


@pytest.fixture
def ask(tmp_path):
    """Asks the file as people do."""

    def ask(query):
        with duckdb.connect(tmp_path / "data" / "full.duckdb", read_only=True) as connection:
            return connection.execute(query).fetchall()

    return ask


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task}


def make_flow(version="1", limit=1):
    @materialize(version=version, nout=2)
    def load():
        return pl.DataFrame({"i": [1, 2, 3], "t": ["a", None, "c"]}), Table(pa.table({"i": [1]}), name="Other", primary_key=["i"])

    @materialize(lazy=True, input_type=sa.Table)
    def select(numbers):
        return Table(
            sa.select(numbers.c.i, (numbers.c.i * 2).label("double")).where(numbers.c.i > limit), name="selected", indexes=[["double"]]
        )

    @materialize(input_type=duckdb.DuckDBPyRelation, version="1")
    def relation(selected):
        return selected.project("i, double + 0.5 AS half")

    @materialize(input_type=pl.LazyFrame, version="1")
    def last(halves):
        return halves.with_columns(pl.col("half").cast(pl.Float64))

    @materialize(version="1")
    def model():
        return Table(pa.table({"x": [1]}), name="one"), {"a": [1]}

    with Flow("f") as flow:
        with Stage("raw"):
            numbers, _ = load()
        with Stage("features"):
            selected = select(numbers)
            frame = last(relation(selected))
            model()
    return flow, frame


def test_a_flow_runs_in_the_file_and_is_cached_then(config, ask):
    flow, frame = make_flow()
    result = flow.run(config=config)
    assert outcomes(result) == {"load": "ran", "select": "ran", "relation": "ran", "last": "ran", "model": "ran"}
    assert result.get(frame, as_type=pl.DataFrame).to_dict(as_series=False) == {"i": [2, 3], "half": [4.5, 6.5]}
    assert ask("SELECT i, double FROM features.selected ORDER BY i") == [(2, 4), (3, 6)]
    assert ask("SELECT * FROM raw.other") == [(1,)]
    assert set(outcomes(flow.run(config=config)).values()) == {"cached"}
    flow, _ = make_flow(limit=2)
    assert outcomes(flow.run(config=config)) == {"load": "cached", "select": "ran", "relation": "ran", "last": "ran", "model": "cached"}
    assert ask("SELECT i, double FROM features.selected ORDER BY i") == [(3, 6)]
    assert ask("SELECT * FROM features__g3.one") == [(1,)]


def test_a_script_reads_its_inputs_and_gives_tables(config, ask):
    @materialize(version="1")
    def numbers():
        return pa.table({"i": [1, 2, 3]})

    @materialize(lazy=True, input_type=sa.Table)
    def script(numbers):
        return RawSql("CREATE TABLE made AS SELECT count(*) AS n FROM raw.numbers; CREATE VIEW seen AS SELECT n + 1 AS m FROM made")

    with Flow("f") as flow:
        with Stage("raw"):
            source = numbers()
        with Stage("features"):
            script(source)
    assert set(outcomes(flow.run(config=config)).values()) == {"ran"}
    assert ask("SELECT n, m FROM features.made, features.seen") == [(3, 4)]
    assert set(outcomes(flow.run(config=config)).values()) == {"cached"}


def test_threads_share_the_file(config, ask):
    @materialize(lazy=True)
    def number(n):
        return Table(sa.select(sa.literal(n).label("n")), name=f"number_{n}")

    with Flow("f") as flow, Stage("s"):
        for n in range(20):
            number(n)
    assert flow.run(config=config, orchestration_engine="threads", max_workers=4).successful
    assert ask("SELECT count(*) FROM duckdb_views() WHERE schema_name = 's'") == [(20,)]


def test_many_threads_may_change_the_readable_names_at_once(tmp_path):
    store = SqlStore(f"duckdb:///{tmp_path}/names.duckdb")
    with store.session("f.t") as session:
        tables = [keep(session, BatchData(lambda n=n: pa.table({"i": [n]}), in_memory=True), f"t{n}", stage="s") for n in range(8)]

    def change(number):
        for other in range(10):
            store.show({"s": {f"x{n}": tables[(n + number + other) % 8] for n in range(8)}})

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(change, number) for number in range(8)]:
            done.result(120)
    store.close()


def test_names_are_shown_anew_if_clean_up_takes_what_was_to_be_shown(config, ask):
    config = config.evolve(retention=Retention(committed=1, failed=0, minimum_age_s=0.0))
    assert make_flow("1")[0].run(config=config).successful

    class Overtaken:
        """The table store, in which another run commits and cleans up just before the first showing."""

        def __init__(self, store):
            self._store = store
            self.shown = 0

        def __getattr__(self, name):
            return getattr(self._store, name)

        def shows(self, stages):
            return self.shown > 1 and self._store.shows(stages)

        def show(self, stages):
            self.shown += 1
            if self.shown == 1:
                assert make_flow("2", limit=2)[0].run(config=config).successful
                clean_up(config)
            self._store.show(stages)

    with open_session(config) as session:
        late = replace(session, tables=Overtaken(session.tables))
        refresh_names(late)
    assert late.tables.shown == 2
    assert ask("SELECT i FROM features.selected") == [(3,)]
