"""Views that tasks return or take: inlined into consumers, never written, and known by what they select from what."""

from __future__ import annotations

from collections import Counter

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Flow, SortCol, SortOrder, Stage, Table, View, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FlowError, MaterializationError, UnsupportedValue, WrongType
from pipedag_core.housekeeping import clean_up
from pipedag_core.ports.data import StoredView

CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh_counter():
    CALLS.clear()


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task}


def source(version="1", values=(3, 1, 2), name="source", **options):
    @materialize(version=version, name=name, **options)
    def task():
        CALLS[name] += 1
        return pl.DataFrame({"x": list(values), "t": [f"t{value}" for value in values]})

    return task()


def chosen(*upstream, version="1", lazy=False, **selection):
    """Wire a task that returns a view of its inputs."""

    @materialize(version=version, lazy=lazy, input_type=sa.Table, name="chosen")
    def task(tables):
        CALLS["chosen"] += 1
        return View(tables if len(tables) > 1 else tables[0], **selection)

    return task(list(upstream))


def consumer(view, name="consumer", as_type=pl.DataFrame, version="1"):
    @materialize(version=version, input_type=as_type, name=name)
    def task(table):
        CALLS[name] += 1
        return table

    return task(view)


def run(config, wire, **options):
    with Flow("f") as flow:
        with Stage("a"):
            parts = wire()
    result = flow.run(config=config, **options)
    assert result.successful, result.exception
    return result, parts


@pytest.mark.parametrize("as_type", [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.Table, duckdb.DuckDBPyRelation, sa.Table])
def test_consumers_of_all_kinds_get_the_selection(each_store, as_type):
    def wire():
        view = chosen(source(), source(name="other", values=(7,)), columns={"key": "x"}, sort_by=SortCol("x", SortOrder.DESC), limit=3)
        return view, consumer(view, as_type=as_type)

    result, (view, frame) = run(each_store, wire)
    assert result.get(frame, as_type=pa.Table).sort_by("key").to_pydict() == {"key": [2, 3, 7]}
    assert result.get(view, as_type=pl.DataFrame).to_dict(as_series=False) == {"key": [7, 3, 2]}
    assert isinstance(result.task_values[view], StoredView)


def test_a_view_writes_nothing_and_is_not_shown(each_store):
    run(each_store, lambda: chosen(source(), columns=["x"]))
    with open_session(each_store) as session:
        assert {stage: set(names) for stage, names in session.catalog.shown().items()} == {"a": {"source"}}
        assert len(session.tables.deposits()) == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_a_consumer_runs_again_exactly_when_the_selection_or_a_source_changes(each_store, lazy):
    def go(values=(3, 1, 2), version="1", source_version="1", **selection):
        CALLS.clear()
        run(each_store, lambda: consumer(chosen(source(source_version, values), version=version, lazy=lazy, **selection)))
        return CALLS["consumer"]

    assert go(columns=["x"]) == 1
    assert go(columns=["x"]) == 0
    # Another version of the view's task, or of its source, that comes to the same.
    assert go(columns=["x"], version="2") == 0
    assert go(columns=["x"], source_version="2") == 0
    # Every part of the selection counts.
    assert go(columns={"y": "x"}, version="3") == 1
    assert go(columns=["x"], limit=1, version="4") == 1
    assert go(columns=["x"], limit=1, sort_by="x", version="5") == 1
    assert go(columns=["x"], limit=1, sort_by=SortCol("x", SortOrder.DESC), version="6") == 1
    # So does every row of a source, even one that the view leaves out.
    assert go((9, 1, 2), columns=["x"], source_version="3", version="2") == 1
    # What was there before is found again.
    assert go(columns=["x"], version="2") == 0


def test_a_lazy_query_over_a_view_is_executed_again_when_the_view_changes(each_store):
    def go(limit):
        @materialize(lazy=True, input_type=sa.Table)
        def total(table):
            return sa.select(sa.func.count().label("n")).select_from(table)

        result, count = run(each_store, lambda: total(chosen(source(), sort_by="x", limit=limit, version=str(limit))))
        return outcomes(result)["total"], result.get(count, as_type=pl.DataFrame)["n"].to_list()

    assert go(2) == ("ran", [2])
    assert go(2) == ("cached", [2])
    assert go(1) == ("ran", [1])
    assert go(2) == ("cached", [2])


def test_sources_are_kept_for_as_long_as_the_view(make_store):
    config = make_store(retention={"committed": 1, "failed": 0, "minimum_age": "0s"})

    def flow_of(number, with_source=True):
        with Flow("f") as flow:
            with Stage("raw"):
                upstream = source(str(number), (number,)) if with_source else None
            with Stage("views"):
                view = chosen(upstream, columns=["x"], version=str(number))
            with Stage("end"):
                consumer(view)
        return flow, view

    flow, view = flow_of(1)
    assert flow.run(config=config).successful
    # Stage `raw` moves on; stage `views` still shows a view of what it had before.
    newer, _ = flow_of(2)
    for _ in range(3):
        assert newer.run(newer["raw"], config=config).successful
        clean_up(config)
    with open_session(config) as session:
        values = {row.stored.name for row in session.catalog.objects()}
        assert values == {"source", "consumer"}
        assert len(session.tables.deposits()) == 3  # both states of the source, and what the consumer made
    result = flow.run(flow["end"], config=config)
    assert outcomes(result) == {"consumer": "cached"}
    assert result.get(view, as_type=pl.DataFrame)["x"].to_list() == [1]
    # When the view goes, its source goes with it.
    assert newer.run(config=config).successful
    clean_up(config)
    with open_session(config) as session:
        assert len(session.tables.deposits()) == 2


def test_a_view_can_hold_new_tables_which_get_names(each_store):
    @materialize(version="1", nout=2)
    def both():
        frame = pl.DataFrame({"i": [1, 2], "j": [3, 4]})
        return View([Table(frame, "named"), frame.with_columns(pl.col("i") + 10)], sort_by="i"), View(View(frame, columns=["j"]), limit=0)

    result, (view, none) = run(each_store, both)
    assert result.get(view, as_type=pl.DataFrame)["i"].to_list() == [1, 2, 11, 12]
    assert result.get(none, as_type=pl.DataFrame).to_dict(as_series=False) == {"j": []}
    with open_session(each_store) as session:
        assert set(session.catalog.shown()["a"]) == {"named", "both_0_src_1", "both_1_src_src"}
    assert outcomes(run(each_store, both)[0]) == {"both": "cached"}


def test_a_view_that_comes_in_can_be_returned_and_selected_from_again(each_store):
    @materialize(version="1", input_type=sa.Table, nout=3)
    def again(view):
        return view, View(view, columns=["x"], sort_by="x", limit=1), Table(view, "written")

    def wire():
        return again(chosen(source(), source(name="other", values=(0,)), sort_by="x", limit=2))

    result, (same, one, written) = run(each_store, wire)
    assert result.get(same, as_type=pl.DataFrame)["x"].to_list() == [0, 1]
    assert result.get(one, as_type=pl.DataFrame)["x"].to_list() == [0]
    assert sorted(result.get(written, as_type=pl.DataFrame)["x"]) == [0, 1]
    assert isinstance(result.task_values[same.task][0], StoredView)


def test_a_view_can_be_wired_without_a_task(each_store):
    def wire(limit=2):
        view = View([source(), source(name="other", values=(0,))], columns={"k": "x"}, sort_by="k", limit=limit)
        return consumer([view])

    result, frame = run(each_store, wire)
    assert result.get(frame, as_type=pl.DataFrame)[0]["k"].to_list() == [0, 1]
    assert outcomes(run(each_store, wire)[0])["consumer"] == "cached"
    assert outcomes(run(each_store, lambda: wire(1))[0])["consumer"] == "ran"
    assert outcomes(run(each_store, wire)[0])["consumer"] == "cached"


def test_auto_version_sees_the_columns_of_a_view(config):
    def go(limit, factor=2):
        @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
        def double(table):
            CALLS["double"] += 1
            return table.with_columns(d=pl.col("key") * factor)

        CALLS.clear()
        result, frame = run(config, lambda: double(chosen(source(), columns={"key": "x"}, sort_by="x", limit=limit, version=str(limit))))
        assert result.get(frame, as_type=pl.DataFrame)["d"].to_list() == [factor, 2 * factor, 3 * factor][:limit]
        return outcomes(result)["double"]

    assert go(2) == "ran"
    assert go(2) == "cached"
    assert go(1) == "ran"
    assert go(2, factor=3) == "ran"


def test_a_task_that_makes_a_view_of_its_input_with_auto_version_is_known_by_it(config):
    def go(columns):
        @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
        def part(table):
            return View(table.filter(pl.col("x") > 1), columns=columns)

        result, frame = run(config, lambda: part(source()))
        return outcomes(result)["part"], result.get(frame, as_type=pl.DataFrame).columns

    assert go(["x"]) == ("ran", ["x"])
    assert go(["x"]) == ("cached", ["x"])
    assert go(["t"]) == ("ran", ["t"])


@pytest.mark.parametrize(
    ("selection", "error", "match"),
    [
        ({"columns": ["no"]}, MaterializationError, "'no'.*It has: x, t"),
        ({"sort_by": "no"}, MaterializationError, "'no'"),
        ({"columns": "x"}, WrongType, "list of names"),
        ({"columns": []}, WrongType, "at least one"),
        ({"columns": ["x", "X"]}, FlowError, "of one name"),
        ({"limit": -1}, WrongType, "whole number"),
        ({"sort_by": [3]}, WrongType, "SortCol"),
    ],
)
def test_a_view_that_means_nothing_is_refused_where_it_is_returned(config, selection, error, match):
    with Flow("f") as flow, Stage("a"):
        chosen(source(), **selection)
    result = flow.run(config=config)
    with pytest.raises(error, match=match):
        raise result.exception


def test_rows_that_do_not_fit_below_each_other_are_refused(config):
    @materialize(version="1", nout=2)
    def make():
        return pl.DataFrame({"x": [1]}), pl.DataFrame({"x": ["1"]})

    with Flow("f") as flow, Stage("a"):
        chosen(*make())
    with pytest.raises(MaterializationError, match=r"'x' is int64 in a\.make_0 and .*string in a\.make_1.*Cast"):
        raise flow.run(config=config).exception


@pytest.mark.parametrize("src", [[], 5, "text"])
def test_a_view_of_no_table_is_refused(config, src):
    @materialize
    def task():
        return View(src)

    with Flow("f") as flow, Stage("a"):
        task()
    with pytest.raises((UnsupportedValue, FlowError), match="View"):
        raise flow.run(config=config).exception
