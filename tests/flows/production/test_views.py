"""Views in production flows: among arguments, returned by tasks, frozen, supplied and given back."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, InOutSpecification, ProductionFlow, SortCol, SortOrder, Stage, Table, View, materialize
from pipedag_core.errors import ExtractionRefused, InputMismatch


@materialize(version="1.0", nout=2)
def sources():
    first = pl.DataFrame({"x": [3, 1, None, 2], "t": ["c", "a", "n", "b"]})
    return Table(first, "first"), Table(pl.DataFrame({"t": ["z"], "x": [7]}), "second")


@materialize(lazy=True, input_type=sa.Table)
def newest(tables):
    return View([*tables], columns={"key": "x", "t": "t"}, sort_by=SortCol("x", SortOrder.DESC), limit=3)


@materialize(version="1.0", input_type=pl.DataFrame)
def renamed(table: pl.DataFrame):
    return View(table.with_columns(more=pl.lit(1)), columns={"k": "key", "more": "more"})


@materialize(version="1.0", input_type=pd.DataFrame)
def in_pandas(table):
    return table.assign(y=table.iloc[:, 0] * 2)


@materialize(lazy=True, input_type=sa.Table)
def in_sql(table):
    return sa.select(sa.func.count().label("n"), sa.func.sum(table.c.key).label("total")).select_from(table)


@materialize(version="1.0", input_type=pl.DataFrame)
def in_polars(table: pl.DataFrame | None = None):
    return pl.DataFrame({"rows": [-1]}) if table is None else table


def wire():
    with Flow("views") as flow:
        with Stage("raw"):
            first, second = sources()
        with Stage("made"):
            view = newest([first, second])
            nested = renamed(view)
            parts = {"pandas": in_pandas(nested), "sql": in_sql(view)}
            parts["argument"] = in_polars(View(View([first, second], columns=["t", "x"]), columns={"key": "x"}, limit=2))
    return flow, {"one": first, "two": second}, view, parts


@pytest.fixture
def trained_there(each_store):
    flow, inputs, view, parts = wire()
    assert flow.run(config=each_store).successful
    return flow, inputs, view, parts


def test_views_give_what_training_has_committed_on_all_stores(trained_there, each_store, tmp_path):
    flow, inputs, view, parts = trained_there
    prod = flow.extract(InOutSpecification(input=inputs, output={**parts, "view": view}), config=each_store)
    assert [path for path, _ in prod.verify().compared] == ["pandas", "sql", "argument", "view"]
    given = {"one": pl.DataFrame({"x": [10, 30], "t": ["i", "k"]}), "two": pl.DataFrame({"t": ["j"], "x": [20]})}
    for one in (prod, ProductionFlow.load(prod.save(tmp_path / "bundle"))):
        found = one.run(given)
        assert found["view"].to_pydict() == {"key": [30, 20, 10], "t": ["k", "j", "i"]}
        assert found["pandas"]["y"].to_list() == [60, 40, 20]
        assert found["sql"].to_pydict() == {"n": [3], "total": [60]}
        assert found["argument"]["key"].to_list() == [10, 30]


def test_a_view_is_frozen_supplied_and_given_back_like_a_table(trained_there, each_store):
    flow, _, view, parts = trained_there
    frozen = flow.extract(InOutSpecification(input={}, const=view, output=parts["sql"]), config=each_store)
    assert frozen.run({}).to_pydict() == {"n": [3], "total": [12]}
    prod = flow.extract(InOutSpecification(input={"rows": view}, output={"sql": parts["sql"], "same": view}), config=each_store)
    assert prod.inputs["rows"].names == ["key", "t"]
    found = prod.run({"rows": pd.DataFrame({"key": [1, 2], "t": ["a", "b"]})})
    assert found["sql"].to_pydict() == {"n": [2], "total": [3]}
    with pytest.raises(InputMismatch, match="missing column 'key'"):
        prod.run({"rows": pl.DataFrame({"t": ["a"]})})


def test_a_selection_copies_nothing_and_the_frame_keeps_its_library(config):
    seen = []

    @materialize(version="1.0", input_type=pl.DataFrame)
    def chosen(table: pl.DataFrame):
        return View(table, columns=["x"])

    @materialize(version="1.0", input_type=pl.DataFrame)
    def look(table: pl.DataFrame):
        seen.append(table)
        return table

    with Flow("f") as flow:
        with Stage("a"):
            first, _ = sources()
            last = look(chosen(first))
    assert flow.run(config=config).successful
    prod = flow.extract(InOutSpecification(input={"x": first}, output={"chosen": last}), config=config)
    frame = pl.DataFrame({"x": [1, 2], "t": ["a", "b"]})
    prod.run({"x": frame})
    assert seen[-1].to_arrow().column("x").chunk(0).buffers()[1].address == frame.to_arrow().column("x").chunk(0).buffers()[1].address
    assert type(prod.run({"x": frame}, outputs=["a.chosen"])["a.chosen"]) is pl.DataFrame


def test_what_is_ignored_adds_no_rows_to_a_view(config):
    with Flow("f") as flow:
        with Stage("a"):
            first, second = sources()
            last = in_polars(View([first, second], columns=["x"]))
            alone = in_polars(View(second, columns=["x"]))
    assert flow.run(config=config).successful
    prod = flow.extract(InOutSpecification(input={"one": first}, ignore=second, output={"last": last, "alone": alone}), config=config)
    found = prod.run({"one": pl.DataFrame({"x": [5], "t": ["e"]})})
    assert found["last"]["x"].to_list() == [5]
    assert found["alone"]["rows"].to_list() == [-1]


def test_an_external_table_behind_a_view_is_in_the_way(config):
    from pipedag_core import ExternalTableReference

    with Flow("f") as flow:
        with Stage("a"):
            first, _ = sources()
            last = in_polars(View([first, ExternalTableReference("t", "other")], columns=["x"]))
    with pytest.raises(ExtractionRefused, match=r"reads the external table other\.t"):
        flow.extract(InOutSpecification(input={"one": first}, output=last), config=config)


def test_sources_that_keep_text_in_other_ways_go_below_each_other(config):
    @materialize(version="1.0", input_type=pa.Table)
    def both(one, two):
        wide = two.set_column(0, "t", two.column("t").cast(pa.large_string()))
        return View([one.set_column(1, "t", one.column("t").cast(pa.string())), wide], columns=["t"])

    with Flow("f") as flow:
        with Stage("a"):
            first, second = sources()
            last = both(first, second)
    assert flow.run(config=config).successful
    prod = flow.extract(InOutSpecification(input={"one": first, "two": second}, output=last), config=config)
    assert prod.verify().compared
