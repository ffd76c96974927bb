"""Tables that somebody else owns: read where they lie, known by the task's cache function or not at all."""

from __future__ import annotations

from collections import Counter

import duckdb
import polars as pl
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, CacheValidationMode, ExternalTableReference, Flow, Stage, View, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FreshInput, MaterializationError, StoreError
from pipedag_core.housekeeping import clean_up
from pipedag_core.ports.data import ExternalTable

CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh_counter():
    CALLS.clear()


class Theirs:
    """A table that somebody else writes: `put` replaces its rows."""

    def __init__(self, kind, tmp_path, request):
        self.kind = kind
        self.folder = tmp_path
        self.schema = "theirs"
        if kind == "postgres":
            self.url, self.schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema_prefix") + "theirs"

    def put(self, *values):
        rows = pl.DataFrame({"x": list(values)}, schema={"x": pl.Int64})
        if self.kind == "parquet":
            (self.folder / "theirs").mkdir(exist_ok=True)
            rows.write_parquet(self.folder / "theirs" / "numbers.parquet")
        elif self.kind == "duckdb":
            (self.folder / "data").mkdir(exist_ok=True)
            with duckdb.connect(self.folder / "data" / "full.duckdb") as connection:
                connection.execute("CREATE SCHEMA IF NOT EXISTS theirs")
                connection.execute("CREATE OR REPLACE TABLE theirs.numbers AS SELECT unnest($1::BIGINT[]) AS x", [list(values)])
        else:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"')
                connection.execute(f'DROP TABLE IF EXISTS "{self.schema}".numbers')
                connection.execute(f'CREATE TABLE "{self.schema}".numbers AS SELECT unnest(%s::bigint[]) AS x', (list(values),))

    def reference(self, name="numbers"):
        return ExternalTableReference(name, self.schema)


@pytest.fixture
def theirs(store_kind, tmp_path, request):
    table = Theirs(store_kind, tmp_path, request)
    table.put(1, 2)
    return table


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task}


def consume(table, as_type=pl.DataFrame, version="1"):
    @materialize(version=version, input_type=as_type)
    def consumer(table):
        CALLS["consumer"] += 1
        return table

    return consumer(table)


def run(config, wire, *named, **options):
    with Flow("f") as flow, Stage("a"):
        out = wire()
    result = flow.run(*named, config=config, **options)
    return result, out


@pytest.mark.parametrize("as_type", [pl.DataFrame, pl.LazyFrame, pa.Table, duckdb.DuckDBPyRelation, sa.Table])
def test_tasks_of_all_kinds_read_it(each_store, theirs, as_type):
    @materialize(version="1")
    def external():
        return theirs.reference()

    result, (reference, copy) = run(each_store, lambda: (out := external(), consume(out, as_type)))
    assert result.successful, result.exception
    assert sorted(result.get(copy, as_type=pl.DataFrame)["x"]) == [1, 2]
    assert sorted(result.get(reference, as_type=pl.DataFrame)["x"]) == [1, 2]
    assert isinstance(result.task_values[reference], ExternalTable)
    with open_session(each_store) as session:
        # The last one returned the reference as it came, so it is one, too.
        assert set(session.catalog.shown()["a"]) == (set() if as_type is sa.Table else {"consumer"})


@pytest.mark.parametrize("options", [{"version": "1"}, {"lazy": True}, {}])
def test_consumers_run_again_when_the_cache_function_says_so(each_store, theirs, options):
    state = "monday"

    @materialize(**options, cache=lambda: state)
    def external():
        return theirs.reference()

    def go():
        CALLS.clear()
        result, copy = run(each_store, lambda: consume(external()))
        assert result.successful, result.exception
        return CALLS["consumer"], sorted(result.get(copy)["x"])

    assert go() == (1, [1, 2])
    assert go() == (0, [1, 2])
    theirs.put(5)
    assert go() == (0, [1, 2])
    state = "tuesday"
    calls, values = go()
    if options:
        assert (calls, values) == (1, [5])
        assert go() == (0, [5])
        state = "monday"
        # What was there then is still known, though the table itself has changed since.
        assert go() == (0, [1, 2])
    else:
        assert (calls, values) == (1, [5])


@pytest.mark.parametrize("options", [{"lazy": True}, {}])
def test_without_a_cache_function_nobody_can_know_so_consumers_always_run(each_store, theirs, options):
    @materialize(**options)
    def external():
        return theirs.reference()

    for values in ([1, 2], [1, 2], [3]):
        theirs.put(*values)
        result, copy = run(each_store, lambda: consume(external()))
        assert outcomes(result)["consumer"] == "ran"
        assert sorted(result.get(copy)["x"]) == values


def test_a_new_version_counts_as_a_new_table(each_store, theirs):
    def go(version):
        @materialize(version=version)
        def external():
            return theirs.reference()

        result, copy = run(each_store, lambda: consume(external()))
        return outcomes(result), sorted(result.get(copy)["x"])

    assert go("1") == ({"external": "ran", "consumer": "ran"}, [1, 2])
    theirs.put(3)
    assert go("1") == ({"external": "cached", "consumer": "cached"}, [1, 2])
    assert go("2") == ({"external": "ran", "consumer": "ran"}, [3])
    assert go("1") == ({"external": "cached", "consumer": "cached"}, [1, 2])


def test_forced_fresh_input_is_read_and_stays_what_the_next_run_finds(each_store, theirs):
    @materialize(lazy=True, cache=lambda: "same")
    def external():
        return theirs.reference()

    def go(**options):
        result, copy = run(each_store, lambda: consume(external()), **options)
        return outcomes(result), sorted(result.get(copy)["x"])

    assert go() == ({"external": "ran", "consumer": "ran"}, [1, 2])
    theirs.put(7)
    assert go() == ({"external": "cached", "consumer": "cached"}, [1, 2])
    assert go(cache_validation_mode=CacheValidationMode.FORCE_FRESH_INPUT) == ({"external": "ran", "consumer": "ran"}, [7])
    # The function still says the same, but the fresh rows are newer than those of the first run.
    assert go() == ({"external": "cached", "consumer": "cached"}, [7])


def test_modes_that_ignore_or_forbid_fresh_input_hold(each_store, theirs):
    state = "monday"

    @materialize(lazy=True, cache=lambda: state)
    def external():
        return theirs.reference()

    assert run(each_store, lambda: consume(external()))[0].successful
    state = "tuesday"
    ignoring, _ = run(each_store, lambda: consume(external()), cache_validation_mode=CacheValidationMode.IGNORE_FRESH_INPUT)
    assert outcomes(ignoring) == {"external": "cached", "consumer": "cached"}
    refused, _ = run(each_store, lambda: consume(external()), cache_validation_mode=CacheValidationMode.ASSERT_NO_FRESH_INPUT)
    assert isinstance(refused.exception, FreshInput)
    state = "monday"
    asserted, _ = run(each_store, lambda: consume(external()), cache_validation_mode=CacheValidationMode.ASSERT_NO_FRESH_INPUT)
    assert outcomes(asserted) == {"external": "cached", "consumer": "cached"}


def test_it_can_be_wired_as_an_argument_and_be_in_a_view(each_store, theirs):
    state = "monday"

    def go(cache):
        @materialize(lazy=True, input_type=sa.Table, cache=cache)
        def total(tables):
            return sa.select(sa.func.sum(tables["direct"].c.x + tables["view"].c.y).label("s")).where(tables["view"].c.y == 2)

        result, out = run(
            each_store, lambda: total({"direct": theirs.reference(), "view": View(theirs.reference(), columns={"y": "x"}, sort_by="x")})
        )
        return outcomes(result)["total"], int(result.get(out, as_type=pl.DataFrame)["s"][0])

    def cached(tables):
        return state

    assert go(cached) == ("ran", 7)
    assert go(cached) == ("cached", 7)
    state = "tuesday"
    assert go(cached) == ("ran", 7)
    # Without a cache function it is read every time.
    assert go(None) == ("ran", 7)
    assert go(None) == ("ran", 7)


def test_a_view_of_it_keeps_its_identity(each_store, theirs):
    @materialize(lazy=True, cache=lambda: "same")
    def external():
        return View([theirs.reference(), theirs.reference()], columns={"y": "x"}, sort_by="x")

    result, (view, _) = run(each_store, lambda: (out := external(), consume(out)))
    assert result.get(view, as_type=pl.DataFrame)["y"].to_list() == [1, 1, 2, 2]
    result, _ = run(each_store, lambda: consume(external()))
    assert outcomes(result) == {"external": "cached", "consumer": "cached"}


def test_clean_up_never_touches_it(make_store, theirs):
    config = make_store(retention={"committed": 1, "failed": 0, "minimum_age": "0s"})
    for version in ("1", "2", "3"):

        @materialize(version=version)
        def external():
            return theirs.reference()

        result, copy = run(config, lambda task=external, version=version: consume(task(), version=version))
        assert outcomes(result) == {"external": "ran", "consumer": "ran"}
        clean_up(config)
    assert sorted(result.get(copy)["x"]) == [1, 2]
    with open_session(config) as session:
        assert len([row for row in session.catalog.objects() if isinstance(row.stored, ExternalTable)]) == 1


def test_one_that_is_not_there_fails_where_it_is_returned(each_store, theirs):
    @materialize(version="1")
    def external():
        return theirs.reference("nobody's")

    result, _ = run(each_store, external)
    assert isinstance(result.exception, StoreError)
    assert "nobody's" in str(result.exception)


def test_one_that_goes_later_fails_where_it_is_read(each_store, theirs, store_kind):
    @materialize(version="1")
    def external():
        return theirs.reference()

    assert run(each_store, external)[0].successful
    if store_kind == "parquet":
        (theirs.folder / "theirs" / "numbers.parquet").unlink()
    elif store_kind == "duckdb":
        with duckdb.connect(theirs.folder / "data" / "full.duckdb") as connection:
            connection.execute("DROP TABLE theirs.numbers")
    else:
        with psycopg.connect(theirs.url, autocommit=True) as connection:
            connection.execute(f'DROP TABLE "{theirs.schema}".numbers')
    for as_type in (pl.DataFrame, sa.Table):
        result, _ = run(each_store, lambda as_type=as_type: consume(external(), as_type))
        assert isinstance(result.exception, StoreError)
        assert "numbers" in str(result.exception)


def test_auto_version_does_not_take_it(each_store, theirs):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def external(table):
        return theirs.reference()

    @materialize(version="1")
    def frame():
        return pl.DataFrame({"x": [1]})

    result, _ = run(each_store, lambda: external(frame()))
    assert isinstance(result.exception, MaterializationError)
    assert "AUTO_VERSION" in str(result.exception)
