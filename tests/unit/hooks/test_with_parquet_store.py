"""Hooks and the default store meet: what each library returns, every library can load."""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core.hooks.registry import Hooks
from pipedag_core.ports.data import Placeholder, QueryData, StoredTable, Target
from pipedag_core.ports.hooks import ReadContext, WriteContext
from pipedag_core.stores.parquet import ParquetStore

hooks = Hooks()
FLIGHTS = pa.table(
    {"carrier": ["UA", "b'6", None], "delay": pa.array([1, None, 2**60 + 1], pa.int64()), "took": pa.array([1, 2, 3], pa.duration("us"))}
)
MAKERS = {
    "pandas": lambda: FLIGHTS.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.from_arrow(FLIGHTS),
    "polars lazy": lambda: pl.from_arrow(FLIGHTS).lazy(),
    "pyarrow": lambda: FLIGHTS,
    "pyarrow reader": FLIGHTS.to_reader,
    "duckdb": lambda: duckdb.connect().from_arrow(FLIGHTS.drop_columns("took")),
}


@pytest.fixture
def session(tmp_path):
    store = ParquetStore(tmp_path)
    with store.session("flow.task") as session:
        yield session
    store.close()


@pytest.fixture
def keep(session, tmp_path):
    capabilities = ParquetStore(tmp_path).capabilities

    def go(obj, name, *inputs):
        data = hooks.for_object(obj).write(obj, WriteContext(session, capabilities, "clean", ""))
        prepared = None
        if isinstance(data, QueryData):
            prepared = session.prepare(data.text, {table.name: Placeholder(table.name, table) for table in inputs}, frozenset({"raw"}))
        written = session.write(data, Target("raw", 1, name, "clean"), prepared=prepared)
        return StoredTable(name, "raw", 1, name, written.location, written.schema, name, written.rows, written.size)

    return go


@pytest.fixture
def load(session, tmp_path):
    capabilities = ParquetStore(tmp_path).capabilities
    return lambda table, as_type: hooks.for_type(as_type).read(table, as_type, ReadContext(session, capabilities, table.name, table.name))


@pytest.mark.parametrize("library", MAKERS)
def test_every_library_loads_what_one_has_stored(library, keep, load):
    stored = keep(MAKERS[library](), "flights")
    expected = FLIGHTS.select(stored.schema.names)
    assert load(stored, pa.Table).to_pylist() == expected.to_pylist()
    assert load(stored, pl.LazyFrame).collect().rows() == pl.from_arrow(expected).rows()
    assert load(stored, pl.DataFrame).equals(pl.from_arrow(expected))
    assert load(stored, pd.DataFrame)["delay"].astype("Int64").tolist() == [1, pd.NA, 2**60 + 1]
    assert load(stored, duckdb.DuckDBPyRelation).filter("flights.delay > 1").project("carrier").fetchall() == [(None,)]


def test_sql_from_an_input_stays_in_the_store(keep, load):
    flights = keep(FLIGHTS, "flights")
    t = load(flights, sa.Alias)
    result = keep(sa.select(sa.func.sum(t.c.delay).label("n")).where(t.c.carrier.like("%A")), "late", flights)
    assert load(result, pa.Table).to_pydict() == {"n": [1]}
    text = keep(f"SELECT carrier FROM {t.original.schema}.{t.original.name} WHERE delay IS NULL", "unknown", flights)
    assert load(text, pa.Table).to_pydict() == {"carrier": ["b'6"]}


def test_a_relation_over_two_inputs_is_written_from_one_connection(keep, load):
    one, other = (load(keep(FLIGHTS.drop_columns("took"), name), duckdb.DuckDBPyRelation) for name in ("one", "other"))
    result = keep(one.join(other, "delay").aggregate("count(*) AS n, sum(delay) AS s"), "joined")
    assert load(result, pa.Table).to_pydict() == {"n": [2], "s": [2**60 + 2]}


@pytest.mark.parametrize("as_type", [pl.LazyFrame, duckdb.DuckDBPyRelation])
def test_an_empty_input_for_tracing_has_the_types_of_the_loaded_one(as_type, keep, load):
    stored = keep(FLIGHTS.append_column("day", pa.array([1, 2, 3], pa.date32())), "flights")
    loaded, empty = load(stored, as_type), hooks.for_type(as_type).empty(stored.schema, as_type, "flights")
    if as_type is pl.LazyFrame:
        assert empty.collect_schema() == loaded.collect_schema()
    else:
        assert list(zip(empty.columns, empty.types, strict=True)) == list(zip(loaded.columns, loaded.types, strict=True))
