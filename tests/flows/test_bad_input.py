"""What a flow can be given that it cannot work with: each case is a clear error that says where, or works; and nothing is lost.

The table in docs/bad-input.md names these tests; `test_the_page_names_every_test` keeps the two in step.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, RawSql, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import (
    CatalogError,
    DuplicateName,
    FlowError,
    LeaseHeld,
    MaterializationError,
    PipedagError,
    QueryFailed,
    StoredDataMissing,
    UnsupportedValue,
)
from pipedag_core.testing.table_store_contract import STRANGE_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"

GOOD = pl.DataFrame({"x": [1, 2, 3]})


@pytest.fixture
def shop(config, tables_of, store_folder):
    """A pipeline with a past: one good run of stage raw, then one in which a task does something else."""
    return Shop(config, tables_of, store_folder)


class Shop:
    def __init__(self, config, tables_of, store_folder):
        self.config, self._tables_of, self._folder = config, tables_of, store_folder
        self._good = lambda: GOOD
        self.run(self._good, version="1")

    def run(self, fn, **options):
        sick = materialize(name="sick", **options)(fn)

        @materialize(version="1")
        def neighbour():
            return pl.DataFrame({"y": [7]})

        @materialize(version="1", input_type=pl.DataFrame)
        def consumer(table):
            return table

        with Flow("shop") as flow, Stage("raw"):
            neighbour()
            consumer(sick())
        return flow.run(config=self.config)

    def rows(self):
        return {name: frame.to_dicts() for name, frame in self._tables_of(self.config)["raw"].items()}

    def error_of(self, fn, kind, *words, table=None, **options):
        """Run with `fn`: it fails with an error of this kind that says where and holds these words, and nothing is lost."""
        before = self.rows()
        result = self.run(fn, **({"version": "2"} | options))
        error = result.exception
        assert isinstance(error, PipedagError)
        assert type(error) is kind
        told = "\n".join([str(error), *getattr(error, "__notes__", ())])
        for word in ("shop", "raw", "sick", *words, *([] if table is None else [table])):
            assert word in told, f"{word!r} is missing in: {told}"
        assert (error.flow, error.stage, error.task) == ("shop", "raw", "sick")
        assert table is None or error.table == table
        self._nothing_is_lost(result, before)
        return error

    def _nothing_is_lost(self, result, before):
        # Readers have the last good state, what went well is kept, no file is left that nobody knows, and the flow can be mended.
        assert self.rows() == before
        outcomes = {report.task: report.outcome.value for report in result.reports if report.task}
        assert outcomes == {"neighbour": "cached", "sick": "failed", "consumer": "skipped"}
        with open_session(self.config) as session:
            known = {entry.location for entries in session.catalog.shown().values() for entry in entries.values()}
        assert {str(file.relative_to(self._folder)) for file in self._folder.glob("*/g*/*")} == known
        again = self.run(self._good, version="1")
        assert {report.outcome.value for report in again.reports if report.task} == {"cached"}


# --- what a task returns ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [object(), print, iter([1]), re.compile("x"), b"".join, pa.array([1])], ids=lambda value: type(value).__name__
)
def test_an_unsupported_return_value_is_named_with_its_path(shop, value):
    error = shop.error_of(lambda: {"fine": GOOD, "inner": [0, value]}, UnsupportedValue, "inner")
    assert error.path.startswith("inner")


@pytest.mark.parametrize("value", [pd.Series([1]), pl.Series([1])], ids=["pandas", "polars"])
def test_a_column_that_is_no_table_is_named_with_its_path(shop, value):
    shop.error_of(lambda: {"fine": GOOD, "inner": [0, value]}, MaterializationError, "inner.1", "Return a table")


@pytest.mark.parametrize(
    "value",
    [(Table(GOOD, name="Größe"), Table(GOOD, name="GRÖSSE")), {"a_b": GOOD, "a": {"b": GOOD}}],
    ids=["of one task", "made from paths"],
)
def test_two_tables_of_one_name_are_named_with_both_places(shop, value):
    shop.error_of(lambda: value, DuplicateName, "one name")


def test_two_tables_of_one_name_from_two_tasks_are_named_with_both_tasks(shop):
    before = shop.rows()
    error = shop.run(lambda: Table(GOOD, name="neighbour"), version="2").exception
    assert type(error) is DuplicateName
    told = "\n".join([str(error), *error.__notes__])
    assert all(word in told for word in ("'shop'", "'raw'", "'sick'", "'neighbour'"))
    # Whichever comes second is the one that fails.
    assert (error.flow, error.stage) == ("shop", "raw")
    assert error.task in ("sick", "neighbour")
    assert shop.rows() == before


# --- queries ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "position"),
    [
        ("SELECT 1 AS a,\n  nope\nFROM (SELECT 2 AS b) AS t", "LINE 2:   nope\n          ^^^^"),
        ("SELECT 1 AS a\nFRM t", "LINE 2: FRM t"),
        ("SELECT *\nFROM nowhere", "LINE 2: FROM nowhere\n             ^"),
        ("SELECT CAST(t.x AS INTEGER) AS y FROM (VALUES ('a')) AS t(x)", "^^^^"),
    ],
    ids=["column", "syntax", "table", "value"],
)
def test_a_failing_query_is_shown_with_its_position(shop, query, position):
    error = shop.error_of(lambda: sa.text(query), QueryFailed, query, position, table="sick", lazy=True, version=None)
    assert error.query == query


def test_a_failing_statement_of_a_script_is_shown_with_number_and_position(shop):
    script = "CREATE TABLE raw.a AS SELECT 1 AS x; CREATE TABLE raw.b AS SELECT nope"
    error = shop.error_of(lambda: RawSql(script), QueryFailed, "statement 2 of 2", "LINE 1", "^^^^", lazy=True, version=None)
    assert error.statement == 2


# --- files and catalog --------------------------------------------------------------------------------------------------------------------


def damage(file, how):
    match how:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(file.read_bytes()[:-9])
        case "corrupt":
            file.write_bytes(bytes(reversed(file.read_bytes())))


@pytest.mark.parametrize("how", ["missing", "truncated", "corrupt"])
def test_a_damaged_parquet_file_is_a_miss_with_a_warning(shop, store_folder, caplog, how):
    before = shop.rows()
    for file in list(store_folder.glob("raw/g*/*.parquet")):
        damage(file, how)
    again = shop.run(lambda: GOOD, version="1")
    assert again.successful
    assert shop.rows() == before
    assert "stored sick is gone or damaged; the task runs again" in caplog.text


@pytest.mark.parametrize("how", ["missing", "truncated", "corrupt"])
@pytest.mark.parametrize("as_type", [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.Table, sa.Table])
def test_an_input_that_is_damaged_and_not_made_again_is_an_error_with_its_name(config, store_folder, tables_of, how, as_type):
    @materialize(version="1")
    def source():
        return GOOD

    @materialize(input_type=as_type)
    def use(table):
        return sa.text(f'FROM "{table.original.schema}"."{table.original.name}"') if as_type is sa.Table else table

    with Flow("shop") as flow:
        with Stage("raw"):
            table = source()
        with Stage("features") as features:
            use(table)
    assert flow.run(config=config).successful
    (file,) = store_folder.glob("raw/g*/*.parquet")
    damage(file, how)
    error = flow.run(features, config=config).exception
    assert type(error) is StoredDataMissing
    assert all(word in str(error) for word in ("shop", "features.use", "raw.source", str(file), "next run"))
    assert (error.flow, error.stage, error.table) == ("shop", "raw", "source")
    assert flow.run(config=config).successful
    assert tables_of(config)["raw"]["source"].equals(GOOD)


def test_a_damaged_catalog_is_an_error_with_its_path_and_is_left_as_it_is(shop, store_folder):
    path = store_folder / "catalog.sqlite"
    for file in store_folder.glob("catalog.sqlite-*"):
        file.unlink()
    files = len(list(store_folder.glob("raw/g*/*.parquet")))
    raw = path.read_bytes()[:100] + bytes(5000)
    path.write_bytes(raw)
    with pytest.raises(CatalogError, match=re.escape(str(path))):
        shop.run(lambda: GOOD, version="1")
    assert path.read_bytes() == raw
    assert len(list(store_folder.glob("raw/g*/*.parquet"))) == files


def test_a_newer_catalog_is_an_error_with_both_versions_and_is_left_as_it_is(shop, store_folder):
    path = store_folder / "catalog.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
        before = connection.execute("SELECT count(*) FROM runs").fetchone()
    with pytest.raises(CatalogError, match=r"version 99.*newer version"):
        shop.run(lambda: GOOD, version="1")
    assert connection.execute("SELECT count(*) FROM runs").fetchone() == before
    connection.close()


@pytest.mark.parametrize("engine", ["sequential", "threads"])
def test_a_second_writer_waits_and_then_says_who_holds_the_lease(config, tables_of, engine):
    inside, go_on = threading.Event(), threading.Event()

    @materialize
    def slow():
        inside.set()
        assert go_on.wait(60)
        return GOOD

    @materialize
    def quick():
        return GOOD

    with Flow("night") as night, Stage("raw"):
        slow()
    with Flow("shop") as shop:
        with Stage("raw"):
            quick()
        with Stage("other"):
            quick()
    found = []
    one = threading.Thread(target=lambda: found.append(night.run(config=config)))
    one.start()
    assert inside.wait(60)
    result = shop.run(config=config.evolve(lease_wait=0.3), orchestration_engine=engine)
    go_on.set()
    one.join()
    error = result.exception
    assert type(error) is LeaseHeld
    text = str(error)
    assert all(
        word in text
        for word in ("'shop'", "stage raw is being written by", "flow night", found[0].run_id, f"process {os.getpid()}", "lease_wait")
    )
    # What does not need the stage is done, and whoever holds the lease notices nothing.
    assert {report.step: report.outcome.value for report in result.reports}["commit:other"] == "committed"
    assert found[0].successful
    assert list(tables_of(config)["raw"]) == ["slow"]
    assert shop.run(config=config).successful


# --- names --------------------------------------------------------------------------------------------------------------------------------

NAMES = [
    *STRANGE_NAMES,
    'it\'s a "table"',
    "UPPER Case",
    "Größe",
    "🦆 duck",
    "select",
    "order",
    "n" * 200,
    "x'; DROP TABLE runs; --",
    'x"; DROP SCHEMA raw CASCADE; --',
    "../../outside",
    "a\\b",
    "100%",
    ":x {y} $z ?",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_stage_task_table_and_column_works_in_frames_and_sql(config, tables_of, store_folder, name):
    column = "c" + name

    @materialize(version="1", name=name)
    def source():
        return Table(pl.DataFrame({column: [1]}), name=name)

    @materialize(lazy=True, input_type=sa.Table)
    def by_expression(table):
        return sa.select(table.c[column])

    @materialize(lazy=True, input_type=sa.Table)
    def by_text(table):
        quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (table.original.schema, table.original.name))
        return sa.text(f"SELECT * FROM {quoted} AS t".replace(":", "\\:"))

    @materialize(version="1", input_type=pl.LazyFrame)
    def by_frame(table):
        return table

    with Flow(name) as flow:
        with Stage(name):
            table = source()
        with Stage("features"):
            by_expression(table)
            by_text(table)
            by_frame(table)
    result = flow.run(config=config)
    assert result.successful, result.exception
    found = tables_of(config)
    assert {table: frame.to_dicts() for table, frame in found["features"].items()} == {
        table: [{column: 1}] for table in ("by_expression", "by_text", "by_frame")
    }
    assert len(found) == 2
    assert all(store_folder.resolve() in file.resolve().parents for file in store_folder.parent.rglob("*.parquet"))
    assert set(pl.Series([report.outcome.value for report in flow.run(config=config).reports if report.task])) == {"cached"}


@pytest.mark.parametrize("name", ["n" * 300, "ü" * 200, "🦆" * 60])
def test_a_name_that_is_too_long_for_a_file_is_refused_with_its_length(shop, name):
    shop.error_of(lambda: Table(GOOD, name=name), FlowError, "bytes long", "Shorten it", name)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00b", "t__g12", "t__old"])
def test_a_name_that_cannot_be_kept_is_refused(shop, name):
    shop.error_of(lambda: Table(GOOD, name=name), FlowError, "name")


# --- tables -------------------------------------------------------------------------------------------------------------------------------

AS = {
    "polars": pl.from_arrow,
    "polars lazy": lambda table: pl.from_arrow(table).lazy(),
    "pandas": lambda table: table.to_pandas(),
    "pyarrow": lambda table: table,
    "pyarrow reader": lambda table: table.to_reader(),
}


@pytest.mark.parametrize("library", AS)
@pytest.mark.parametrize(
    "table",
    [
        pa.table({"i": pa.array([], pa.int32()), "s": pa.array([], pa.string()), "t": pa.array([], pa.timestamp("us", "UTC"))}),
        pa.table({"i": pa.nulls(3, pa.int32()), "s": pa.nulls(3, pa.string()), "n": pa.nulls(3)}),
    ],
    ids=["empty", "null-only"],
)
def test_empty_tables_and_null_only_columns_come_back(config, library, table):
    expected = AS[library](table)

    @materialize(version="1")
    def source():
        return AS[library](table)

    @materialize(input_type=pl.DataFrame)
    def frames(table):
        return table

    @materialize(lazy=True, input_type=sa.Table)
    def queries(table):
        return sa.select(table)

    with Flow("shop") as flow, Stage("raw"):
        made = source()
        found = [frames(made), queries(made)]
    result = flow.run(config=config)
    assert result.successful, result.exception
    for item in (made, *found):
        back = result.get(item, as_type=pl.DataFrame)
        assert back.columns == table.column_names
        assert back.to_dicts() == table.to_pylist()
    if library == "pyarrow":
        assert result.get(made, as_type=pa.Table).schema.types == expected.schema.types


@pytest.mark.parametrize(
    "make",
    [pl.DataFrame, pl.LazyFrame, pd.DataFrame, lambda: pd.DataFrame(index=range(3)), lambda: pa.table({}), lambda: pl.DataFrame(height=3)],
    ids=["polars", "lazy", "pandas", "pandas with rows", "pyarrow", "polars with rows"],
)
def test_a_table_without_columns_is_refused(shop, make):
    shop.error_of(make, MaterializationError, "no columns", table="sick")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: pa.table([[1], [2]], names=["a", "a"]), {}),
        (lambda: pl.DataFrame({"a": [1], "A": [2]}), {}),
        (lambda: pl.LazyFrame({"a": [1], "A": [2]}), {}),
        (lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]), {}),
        (lambda: pd.DataFrame([[1, 2]], columns=["a", "A"]), {}),
        (lambda: sa.text("SELECT 1 AS a, 2 AS a"), {"lazy": True, "version": None}),
        (lambda: sa.text('SELECT 1 AS a, 2 AS "A"'), {"lazy": True, "version": None}),
    ],
    ids=["pyarrow", "polars", "lazy", "pandas", "pandas case", "query", "query case"],
)
def test_two_columns_of_one_name_are_named(shop, make, options):
    shop.error_of(make, MaterializationError, "'a'", table="sick", **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pl.DataFrame({"odd": [object()]}),
        lambda: pd.DataFrame({"odd": [1, "x"]}),
        lambda: pa.table({"odd": pa.nulls(1, pa.decimal256(50, 2))}),
    ],
    ids=["polars objects", "mixed objects", "pyarrow"],
)
def test_a_column_that_no_table_can_keep_is_named(shop, make):
    shop.error_of(make, MaterializationError, "'odd'", table="sick")


# --- the page -----------------------------------------------------------------------------------------------------------------------------


def test_a_lost_file_is_told_too_where_only_the_new_rows_show_that_it_is_needed(config, store_folder, caplog, tables_of):
    @materialize
    def streamed():
        return pl.LazyFrame({"x": [1, 2]})

    with Flow("f") as flow, Stage("s"):
        streamed()
    flow.run(config=config, fail_fast=True)
    next(store_folder.rglob("streamed*.parquet")).unlink()
    flow.run(config=config, fail_fast=True)
    assert "stored streamed, which has the same rows, is gone or damaged" in caplog.text
    assert tables_of(config)["s"]["streamed"]["x"].to_list() == [1, 2]


def test_the_page_names_every_test():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    here = Path(__file__).parent
    files = [Path(__file__), here / "test_full_disk.py", here / "test_read_only_folder.py"]
    there_are = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)}
    assert named == there_are - {"test_the_page_names_every_test"}
