"""What `Table(...)` may ask for, as seen by consumers, readers and the cache."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, RawSql, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FlowError, MaterializationError, PipedagError
from pipedag_core.hooks.registry import Hooks

FRAME = pl.DataFrame({"id": [1, 2, 3], "x": [1.5, None, 2.0], "name": ["a", "b", "b"]})

#: The same rows as each kind of thing that a task may return.
SHAPES = {
    "polars": lambda: FRAME,
    "lazy": FRAME.lazy,
    "pandas": lambda: pd.DataFrame({"id": [1, 2, 3], "x": pd.array([1.5, None, 2.0], dtype="Float64"), "name": ["a", "b", "b"]}),
    "arrow": FRAME.to_arrow,
    "query": lambda: sa.text("SELECT * FROM (VALUES (1, 1.5, 'a'), (2, NULL, 'b'), (3, 2.0, 'b')) AS t(id, x, name)"),
}


def one_task(fn, **options):
    with Flow("options") as flow:
        with Stage("s"):
            materialize(fn, **options)()
    return flow


def run(fn, config, **options):
    return one_task(fn, **options).run(config=config, fail_fast=True)


def stored(config, name="t"):
    with open_session(config) as session:
        return session.catalog.shown()["s"][name]


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


# --- types --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arrow"),
    [
        ("SMALLINT", "int16"),
        (sa.SmallInteger, "int16"),
        (sa.Numeric(10, 2), "decimal128(10, 2)"),
        (pl.Int16, "int16"),
        (pl.UInt64(), "uint64"),
        (pa.decimal128(10, 2), "decimal128(10, 2)"),
        (np.int32, "int32"),
        (np.dtype("int8"), "int8"),
        (pd.Int16Dtype(), "int16"),
        (float, "double"),
    ],
    ids=repr,
)
def test_a_column_is_stored_as_its_type_in_whatever_library_that_is_named(config, shape, kind, arrow):
    def t():
        return Table(shape(), "t", type_map={"id": kind})

    run(t, config)
    assert stored(config).schema.columns[0].type == arrow


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (str, "VARCHAR"),
        (bytes, "BLOB"),
        (dt.datetime, "TIMESTAMP"),
        (dt.date, "DATE"),
        (pl.List(pl.Int8), "TINYINT[]"),
        (sa.String(5), "VARCHAR(5)"),
        (pd.StringDtype(), "VARCHAR"),
    ],
    ids=repr,
)
def test_types_of_other_libraries_become_sql_text(kind, text):
    assert Hooks().sql_type(kind, "duckdb") == text


def test_types_become_text_of_the_stores_dialect():
    assert [Hooks().sql_type(kind, "postgres") for kind in (pl.Float64, pa.int64(), sa.JSON, bytes)] == [
        "DOUBLE PRECISION",
        "BIGINT",
        "JSON",
        "BYTEA",
    ]


def test_what_is_no_type_is_refused(config):
    def t():
        return Table(FRAME, "t", type_map={"id": object()})

    with pytest.raises(FlowError, match="not a type of a column"):
        run(t, config)


@pytest.mark.parametrize("kind", ["polars", "lazy", "arrow"])
def test_a_value_that_would_be_rounded_is_refused_for_frames_and_leaves_nothing(config, store_folder, kind):
    def t():
        return Table(SHAPES[kind](), "t", type_map={"x": "INTEGER"})

    with pytest.raises(MaterializationError, match="'x'"):
        run(t, config)
    assert not list(store_folder.rglob("*.parquet"))


@pytest.mark.parametrize("options", [{"version": "1.0"}, {"lazy": True}, {}], ids=repr)
def test_another_declared_type_is_another_table_and_the_same_one_is_not(config, options):
    calls = []

    def flow(kind):
        def t():
            return Table(FRAME, "t", type_map={"id": kind})

        def use(t):
            calls.append(t.schema["id"])

        with Flow("options") as flow:
            with Stage("s"):
                out = materialize(t, **{**options, **({"version": kind} if "version" in options else {})})()
            with Stage("u"):
                materialize(use, version="1", input_type=pl.DataFrame)(out)
        return flow

    for kind in ("SMALLINT", "SMALLINT", "INTEGER", "SMALLINT"):
        flow(kind).run(config=config, fail_fast=True)
    assert calls == [pl.Int16, pl.Int32]


# --- nulls and keys -----------------------------------------------------------------------------------------------------------------


def test_a_null_in_a_column_without_nulls_names_column_and_count_and_nothing_is_recorded(config, shape, store_folder):
    def t():
        return Table(shape(), "t", non_nullable=["id", "x"])

    with pytest.raises(MaterializationError, match=r"s'.*'x' is null in 1 of 3 rows"):
        run(t, config)
    with open_session(config) as session:
        assert session.catalog.objects() == []
    assert not list(store_folder.rglob("*.parquet"))


def test_nulls_in_nested_columns_are_counted_too(config):
    def t():
        return Table(pl.DataFrame({"s": [{"a": 1}, None], "l": [[1], [None]]}), "t", non_nullable=["l", "s"])

    with pytest.raises(MaterializationError, match=r"'s' is null in 1 of 2 rows"):
        run(t, config)

    def u():
        return Table(pl.DataFrame({"s": [{"a": 1}, None], "l": [[1], [None]]}), "t", non_nullable=["l"])

    run(u, config)


def test_nullability_reaches_consumers_that_can_see_it(config):
    seen = []

    def t():
        return Table(FRAME, "t", primary_key="id", nullable=["x"])

    def use(t):
        seen.extend((column.name, column.nullable) for column in t.c)
        return sa.select(t)

    with Flow("options") as flow:
        with Stage("s"):
            out = materialize(t, version="1")()
        with Stage("u"):
            materialize(use, lazy=True, input_type=sa.Table)(out)
    flow.run(config=config, fail_fast=True)
    assert seen == [("id", False), ("x", True), ("name", False)]


def test_a_key_that_is_not_unique_says_how_many_and_which(config, shape, store_folder):
    def t():
        return Table(shape(), "t", primary_key=["name"])

    with pytest.raises(MaterializationError, match=r"primary key \(name\) is not unique: 1 of its values .* name = 'b' in 2 rows"):
        run(t, config)
    assert not list(store_folder.rglob("*.parquet"))


def test_indexes_and_keys_are_recorded(config, shape):
    def t():
        return Table(shape(), "t", primary_key=["name", "id"], indexes=[["name"], ["x", "id"]])

    run(t, config)
    assert stored(config).options.primary_key == ("name", "id")
    assert stored(config).options.indexes == (("name",), ("x", "id"))


@pytest.mark.parametrize("options", [{"indexes": ["id", "x"]}, {"indexes": "id"}, {"primary_key": [1]}, {"nullable": [["id"]]}], ids=repr)
def test_options_of_the_wrong_shape_are_type_errors(options):
    with pytest.raises(TypeError) as caught:
        Table(FRAME, "t", **options)
    assert isinstance(caught.value, PipedagError)


def test_a_column_in_both_lists_is_an_error_at_once():
    with pytest.raises(FlowError, match="'x'"):
        Table(FRAME, "t", nullable=["x"], non_nullable=["x"])


# --- scripts ------------------------------------------------------------------------------------------------------------------------


def test_a_script_is_cut_into_statements_where_they_end_and_nowhere_else(config):
    def t():
        return RawSql(
            """
            CREATE TABLE a AS SELECT 'x;y' AS "se;mi", $$one; 'two'$$ AS d; -- a; comment
            /* another; one */ CREATE TABLE b AS SELECT 1 AS id;
            """
        )

    result = run(t, config)
    assert set(result.reports[1].tables) == {"a", "b"}


def test_a_failing_statement_is_told_with_its_number_and_text(config):
    def t():
        return RawSql("CREATE TABLE a AS SELECT ';' AS x; CREATE TABLE b AS SELECT nope FROM a; CREATE TABLE c AS SELECT 1 AS x")

    with pytest.raises(MaterializationError, match=r"(?s)statement 2 of 3.*SELECT nope FROM a"):
        run(t, config)
