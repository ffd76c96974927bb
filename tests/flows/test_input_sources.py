"""`add_input_source`: a task gets what is loaded together with where it is from, on every kind of store."""

from __future__ import annotations

import dataframely as dy
import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import (
    AUTO_VERSION,
    Blob,
    Flow,
    InOutSpecification,
    InputSource,
    RawSql,
    Stage,
    Table,
    View,
    materialize,
)
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ExtractionRefused, MaterializationError


@materialize(version="1", nout=3)
def source(name="flights", number=1):
    frame = pl.DataFrame({"x": [number]})
    return Table(frame, name, primary_key="x", indexes=[["x"]]), {"bare": frame}, Blob([number], "model")


def run(config, wire):
    """Run a flow whose stage `mart` is wired by a function of what stage `raw` gives; return name -> outcome of its tasks."""
    with Flow("f") as flow:
        with Stage("raw"):
            given = source(*wire.given) if hasattr(wire, "given") else source()
        with Stage("mart"):
            wire(*given)
    result = flow.run(config=config, fail_fast=True)
    return {report.task: report.outcome.value for report in result.reports if report.task and report.stage == "mart"}


def named(*given):
    def mark(wire):
        wire.given = given
        return wire

    return mark


def test_every_table_and_blob_comes_as_a_pair(each_store):
    seen = {}

    @materialize(input_type=pl.DataFrame, add_input_source=True)
    def task(table, nest, model, plain):
        seen.update(table=table, nest=nest, model=model, plain=plain)

    run(each_store, lambda table, nest, model: task(table, [nest, {"again": table}], model, (1, "text")))
    frame, origin = seen["table"]
    assert frame.rows() == [(1,)]
    assert (origin.kind, origin.stage, origin.name, origin.primary_key, origin.indexes) == ("table", "raw", "flights", ("x",), (("x",),))
    bare, origin = seen["nest"][0]["bare"]
    assert (bare.rows(), origin.name, origin.primary_key) == ([(1,)], "source_1_bare", ())
    assert seen["nest"][1]["again"][1].name == "flights"
    assert seen["model"][0] == [1]
    assert (seen["model"][1].kind, seen["model"][1].name) == ("blob", "model")
    assert seen["plain"] == (1, "text")


@pytest.mark.parametrize("as_type", [pd.DataFrame, pl.LazyFrame, sa.Table])
def test_the_pair_holds_what_the_task_asked_for(each_store, as_type):
    kinds = []

    @materialize(input_type=as_type, add_input_source=True)
    def task(table):
        kinds.append((type(table[0]), table[1].name))

    run(each_store, lambda table, *_: task(table))
    [(kind, name)] = kinds
    assert issubclass(kind, (sa.Alias,) if as_type is sa.Table else as_type)
    assert name == "flights"


def test_a_query_is_made_from_the_pair(each_store):
    @materialize(lazy=True, input_type=sa.Table, add_input_source=True)
    def task(table):
        loaded, origin = table
        return sa.select(loaded.c.x, sa.literal(f"{origin.stage}.{origin.name}").label("origin"))

    assert run(each_store, lambda table, *_: task(table)) == {"task": "ran"}
    assert run(each_store, lambda table, *_: task(table)) == {"task": "cached"}
    with open_session(each_store) as session, session.tables.session("t") as access:
        from pipedag_core.run.result import read_first_rows

        assert read_first_rows(access, session.catalog.entries("mart", 1)["task"], 5) == [[1, "raw.flights"]]


def test_tables_of_a_script_views_and_tables_of_others_tell_where_they_are_from(config, tmp_path):
    seen = []
    (tmp_path / "theirs").mkdir()
    pl.DataFrame({"x": [7]}).write_parquet(tmp_path / "theirs" / "planes.parquet")

    @materialize(version="1")
    def script():
        return RawSql("CREATE TABLE raw.made AS SELECT 5 AS x")

    @materialize(version="1", input_type=pl.DataFrame)
    def view(table):
        return View(Table(table, "kept"), limit=1)

    from pipedag_core import ExternalTableReference

    @materialize(version="1", cache=lambda: 1)
    def external():
        return ExternalTableReference("planes", str(tmp_path / "theirs"))

    @materialize(input_type=pl.DataFrame, add_input_source=True)
    def task(raw, one, of_view, of_others):
        seen.extend([raw["made"], one, of_view, of_others])

    with Flow("f") as flow:
        with Stage("raw"):
            made, table = script(), source()[0]
            shown, others = view(table), external()
        with Stage("mart"):
            task(made, made["made"], shown, others)
    flow.run(config=config, fail_fast=True)
    assert [frame.rows() for frame, _ in seen] == [[(5,)], [(5,)], [(1,)], [(7,)]]
    assert [(origin.kind, origin.name) for _, origin in seen] == [
        ("table", "made"),
        ("table", "made"),
        ("view", ""),
        ("external table", "planes"),
    ]
    assert [inner.name for inner in seen[2][1].sources] == ["kept"]


def test_the_name_of_an_input_counts_where_the_task_is_told_of_it(config):
    def make(*, paired):
        @materialize(version="1", input_type=pl.DataFrame, add_input_source=paired)
        def task(table):
            return pl.DataFrame({"n": [1]})

        return task

    for number, paired, second in ((1, False, "cached"), (2, True, "ran")):
        task = make(paired=paired)

        def wire(table, _nest, _model, task=task):
            task(table)

        outcomes = [run(config, named(name, number)(wire))["task"] for name in ("flights", "planes", "planes")]
        assert outcomes == ["ran", second, "cached"]


def test_a_table_that_was_written_again_with_the_same_rows_leaves_the_task_valid(config):
    @materialize(version="1", input_type=pl.DataFrame, add_input_source=True)
    def task(table):
        return pl.DataFrame({"n": [len(table)]})

    def flow(version):
        @materialize(version=version)
        def made():
            return Table(pl.DataFrame({"x": [1]}), "t")

        with Flow("f") as flow:
            with Stage("raw"):
                table = made()
            with Stage("mart"):
                task(table)
        return flow

    outcomes = []
    for version in ("1", "2"):
        result = flow(version).run(config=config, fail_fast=True)
        outcomes += [report.outcome.value for report in result.reports if report.task == "task"]
    assert outcomes == ["ran", "cached"]


def test_a_source_that_is_returned_is_a_pointer_to_the_same_table(each_store):
    @materialize(version="1", input_type=pl.DataFrame, add_input_source=True)
    def task(table):
        return {"same": table[1]}

    run(each_store, lambda table, *_: task(table))
    with open_session(each_store) as session:
        assert len({row.stored.location for row in session.catalog.objects() if row.stored.name == "flights"}) == 1
        assert {item.stage for item in session.catalog.entries("mart", 1).values()} <= {"raw"}


def test_an_auto_version_task_is_looked_at_with_pairs(config):
    calls = []

    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame, add_input_source=True)
    def task(table):
        calls.append(table[1].name)
        return table[0].with_columns(origin=pl.lit(table[1].name))

    assert run(config, lambda table, *_: task(table))["task"] == "ran"
    assert run(config, lambda table, *_: task(table))["task"] == "cached"
    assert calls == ["flights"] * 3


def test_a_contract_of_an_argument_stands_in_its_pair(config):
    class Small(dy.Schema):
        x = dy.Int64(max=0)

    @materialize(version="1", input_type=pl.DataFrame, add_input_source=True)
    def task(table: tuple[dy.DataFrame[Small], InputSource]):
        return table[0]

    with pytest.raises(MaterializationError, match="max"):
        run(config, lambda table, *_: task(table))


def test_production_refuses_a_task_that_asks_where_its_inputs_are_stored(config):
    @materialize(version="1", input_type=pl.DataFrame, add_input_source=True)
    def task(table):
        return table[0]

    with Flow("f") as flow, Stage("s"):
        table, _, _ = source()
        out = task(table)
    flow.run(config=config, fail_fast=True)
    with pytest.raises(ExtractionRefused, match="add_input_source=True"):
        flow.extract(InOutSpecification(input=table, output=out), config=config)
