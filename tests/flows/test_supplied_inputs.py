"""`flow.run(inputs=...)`: a value in place of what a task would give, for one run, and nothing of it is committed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Blob, Flow, LazyDict, RawSql, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FlowError, PipedagError, RunError, UnsupportedValue

calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


@materialize(version="1.0", outputs=["numbers", "words"])
def read():
    calls["read"] += 1
    return {
        "numbers": Table(pl.DataFrame({"i": [1, 2, 3], "x": [1.0, 2.0, 3.0]}), "numbers", primary_key="i"),
        "words": Table(pl.DataFrame({"i": [1, 2, 3], "w": ["a", "b", "c"]}), "words"),
    }


@materialize(version="1.0", input_type=pl.DataFrame)
def other():
    calls["other"] += 1
    return Table(pl.DataFrame({"k": [1]}), "other")


@materialize(lazy=True, input_type=sa.Table)
def join(numbers: sa.Alias, words: sa.Alias):
    calls["join"] += 1
    return Table(sa.select(numbers.c.i, numbers.c.x, words.c.w).join_from(numbers, words, numbers.c.i == words.c.i), "joined")


@materialize(version="1.0", input_type=pd.DataFrame, nout=2)
def fit(joined: pd.DataFrame):
    calls["fit"] += 1
    return Blob({"mean": float(joined["x"].mean())}, "model"), len(joined)


@materialize(version="1.0", input_type=pl.DataFrame)
def score(joined: pl.DataFrame, model: Any, count: int):
    calls["score"] += 1
    return Table(joined.with_columns(score=pl.col("x") - model["mean"], n=pl.lit(count)), "scores")


@materialize(version="1.0", input_type=pl.DataFrame)
def aside(k: pl.DataFrame):
    calls["aside"] += 1
    return Table(k * 2, "aside")


@dataclass
class Wired:
    flow: Flow
    tables: Any
    joined: Any
    model: Any
    count: Any
    scores: Any
    aside: Any


def make() -> Wired:
    with Flow("supplied") as flow:
        with Stage("raw"):
            tables = read()
        with Stage("elsewhere"):
            k = aside(other())
        with Stage("features"):
            joined = join(tables["numbers"], tables["words"])
        with Stage("model"):
            model, count = fit(joined)
            scores = score(joined, model, count)
    return Wired(flow, tables, joined, model, count, scores, k)


def committed(config):
    """Return all that can be seen: generations that are current, and what is in them."""
    with open_session(config) as session:
        rows = [row for row in session.catalog.generations() if row.state != "scratch"]
        return rows, session.catalog.shown()


def ran(result):
    assert result.successful, result.exception
    return {task.full_id for task, outcome in result.task_states.items() if outcome.value == "ran"}


def values(result, task):
    return result.get(task, as_type=pl.DataFrame)


NEW = pl.DataFrame({"i": [2, 3, 3], "x": [10.0, 20.0, 30.0]}).unique("i", keep="last", maintain_order=True)


def test_an_item_is_replaced_for_one_run_and_nothing_computed_from_it_is_committed(each_store):
    wired = make()
    assert wired.flow.run(config=each_store).successful
    before, first = committed(each_store), dict(calls)

    result = wired.flow.run(config=each_store, inputs={wired.tables["numbers"]: NEW})
    assert ran(result) == {"features.join", "model.fit", "model.score"}
    assert calls["read"] == first["read"]
    scores = values(result, wired.scores).sort("i")
    assert scores.to_dict(as_series=False) == {"i": [2, 3], "x": [10.0, 30.0], "w": ["b", "c"], "score": [-10.0, 10.0], "n": [2, 2]}
    # The other item is what is committed, also for those who ask the result.
    assert values(result, wired.tables)["words"]["w"].to_list() == ["a", "b", "c"]
    assert values(result, wired.tables)["numbers"].sort("i").equals(NEW)

    assert committed(each_store) == before
    # Outside of the run everything is as it was.
    assert wired.scores.get_output_from_store(as_type=pl.DataFrame, config=each_store)["n"].to_list() == [3, 3, 3]

    after = dict(calls)
    again = make().flow.run(config=each_store)
    assert ran(again) == set()
    assert dict(calls) == {**after, "join": after["join"] + 1}  # a lazy task always builds its query
    assert committed(each_store) == before


def test_a_run_with_other_inputs_finds_nothing_of_an_earlier_one(config):
    wired = make()
    wired.flow.run(config=config)
    for _ in range(2):
        assert ran(wired.flow.run(config=config, inputs={wired.tables["numbers"]: NEW})) == {"features.join", "model.fit", "model.score"}
    assert calls["fit"] == 3


def test_rows_equal_to_what_is_committed_leave_all_valid(config):
    wired = make()
    wired.flow.run(config=config)
    same = pl.DataFrame({"i": [1, 2, 3], "x": [1.0, 2.0, 3.0]})
    assert ran(wired.flow.run(config=config, inputs={wired.tables["numbers"]: same})) == set()


@pytest.mark.parametrize(
    "make_frame", [lambda frame: frame, lambda frame: frame.lazy(), pl.DataFrame.to_pandas, pl.DataFrame.to_arrow, Table]
)
def test_frames_of_any_library_and_tables_can_be_supplied(config, make_frame):
    wired = make()
    wired.flow.run(config=config)
    result = wired.flow.run(config=config, inputs={wired.tables["numbers"]: make_frame(NEW)})
    assert values(result, wired.joined).sort("i")["x"].to_list() == [10.0, 30.0]


def test_all_that_a_task_gives_can_be_supplied_before_anything_was_computed(config):
    wired = make()
    result = wired.flow.run(config=config, inputs={wired.tables: {"numbers": NEW, "words": pl.DataFrame({"i": [2], "w": ["z"]})}})
    assert ran(result) == {"elsewhere.other", "elsewhere.aside", "features.join", "model.fit", "model.score"}
    assert calls["read"] == 0
    assert values(result, wired.joined).to_dict(as_series=False) == {"i": [2], "x": [10.0], "w": ["z"]}
    # A stage that takes nothing from it is committed as ever.
    assert committed(config)[1].keys() == {"elsewhere"}


def test_blobs_and_values_can_be_supplied(config):
    wired = make()
    wired.flow.run(config=config)
    result = wired.flow.run(config=config, inputs={wired.model: {"mean": 1.0}, wired.count: 7})
    assert ran(result) == {"model.score"}
    assert values(result, wired.scores).sort("i").select("score", "n").rows() == [(0.0, 7), (1.0, 7), (2.0, 7)]
    result = wired.flow.run(config=config, inputs={"model.fit": (Blob({"mean": 2.0}), 8)})
    assert values(result, wired.scores).sort("i").select("score", "n").rows() == [(-1.0, 8), (0.0, 8), (1.0, 8)]


def test_a_task_of_the_middle_is_replaced_and_what_comes_before_it_is_committed(config):
    wired = make()
    frame = pl.DataFrame({"i": [1], "x": [4.0], "w": ["q"]})
    result = wired.flow.run(config=config, inputs={wired.joined: frame})
    assert calls["join"] == 0
    assert calls["read"] == 1
    assert committed(config)[1].keys() == {"raw", "elsewhere"}
    assert values(result, wired.scores)["score"].to_list() == [0.0]


def test_a_stage_can_be_run_on_what_is_supplied_for_another(config):
    wired = make()
    wired.flow.run(config=config)
    before = committed(config)
    frame = pl.DataFrame({"i": [1], "x": [4.0], "w": ["q"]})
    result = wired.flow.run("model", config=config, inputs={wired.joined: frame})
    assert {task.full_id for task in result.task_states} == {"features.join", "model.fit", "model.score"}
    assert values(result, wired.scores)["i"].to_list() == [1]
    # A single task, with the committed model.
    result = wired.flow.run(wired.scores, config=config, inputs={wired.joined: frame})
    assert ran(result) == {"model.score"}
    assert values(result, wired.scores)["score"].to_list() == [2.0]
    assert committed(config) == before


def test_an_entry_of_a_lazy_dict_and_an_update_stand_for_what_they_hold(config):
    with Flow("updated") as flow:
        with Stage("raw"):
            tables = read()
            state = LazyDict()
            state["words"] = tables["words"]
        with Stage("features"):
            tables.update({"numbers": aside(tables["numbers"])})
        with Stage("joined"):
            joined = join(tables["numbers"], state["words"])
    flow.run(config=config)
    result = flow.run(config=config, inputs={state["words"]: pl.DataFrame({"i": [2], "w": ["z"]})})
    assert values(result, joined)["w"].to_list() == ["z"]
    # `tables["numbers"]` is by now what `aside` gives.
    result = flow.run(config=config, inputs={tables["numbers"]: pl.DataFrame({"i": [2], "x": [0.5]})})
    assert ran(result) == {"joined.join"}
    assert values(result, joined)["x"].to_list() == [0.5]


def test_a_table_of_a_script_can_be_replaced(config):
    @materialize(lazy=True, input_type=sa.Table)
    def script(numbers: sa.Alias):
        source = numbers.original
        return RawSql(f'CREATE TABLE "made"."one" AS SELECT i + 1 AS i FROM "{source.schema}"."{source.name}"')

    @materialize(version="1.0", input_type=pl.DataFrame)
    def total(one: pl.DataFrame):
        return int(one["i"].sum())

    with Flow("scripted") as flow:
        with Stage("raw"):
            tables = read()
        with Stage("made"):
            raw = script(tables["numbers"])
        with Stage("told"):
            answer = total(raw["one"])
    assert flow.run(config=config).get(answer) == 9
    before = committed(config)
    assert flow.run(config=config, inputs={raw["one"]: pl.DataFrame({"i": [40, 2]})}).get(answer) == 42
    assert committed(config) == before


def test_a_failure_leaves_what_is_committed_as_it_was(config):
    wired = make()
    wired.flow.run(config=config)
    before = committed(config)
    result = wired.flow.run(config=config, inputs={wired.tables["numbers"]: pl.DataFrame({"i": [1], "y": [1.0]})})
    assert not result.successful
    assert isinstance(result.exception, AttributeError)
    assert committed(config) == before
    assert ran(make().flow.run(config=config)) == set()


def test_what_the_table_promised_is_asked_of_what_is_supplied(config):
    wired = make()
    wired.flow.run(config=config)
    twice = pl.DataFrame({"i": [1, 1], "x": [1.0, 2.0]})
    with pytest.raises(PipedagError, match="primary"):
        wired.flow.run(config=config, inputs={wired.tables["numbers"]: twice}, fail_fast=True)


def test_stages_that_take_nothing_from_what_is_supplied_are_committed_as_ever(config):
    wired = make()
    wired.flow.run(config=config, inputs={"model.fit": (Blob({"mean": 0.0}), 3)})
    shown = committed(config)[1]
    assert shown.keys() == {"raw", "elsewhere", "features"}
    assert ran(make().flow.run(config=config)) == {"model.fit", "model.score"}


# --- what is refused ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        (lambda wired: [wired.joined], FlowError, "inputs= takes a dict"),
        (lambda wired: {"features.nothing": 1}, FlowError, "there is no task 'features.nothing'"),
        (lambda wired: {"features": 1}, FlowError, "'features' is a stage"),
        (lambda wired: {join: 1}, FlowError, "is a function"),
        (lambda wired: {3: 1}, FlowError, "3 is not what one task gives"),
        (lambda wired: {make().joined: NEW}, FlowError, "is not part of flow 'supplied'"),
        (lambda wired: {wired.joined: NEW, "features.join": NEW}, FlowError, "twice"),
        (lambda wired: {wired.scores: NEW}, FlowError, "no task that runs takes it"),
        (lambda wired: {wired.tables["letters"]: NEW}, FlowError, r"supplies raw\.read\['letters'\], but no task that runs takes it"),
        (lambda wired: {wired.joined: object()}, UnsupportedValue, "which no hook understands"),
        (lambda wired: {wired.joined: RawSql("SELECT 1")}, UnsupportedValue, "cannot be a RawSql"),
        (lambda wired: {wired.joined: wired.tables}, UnsupportedValue, "Supply a frame"),
    ],
)
def test_what_cannot_be_supplied_is_refused_before_any_task_runs(config, inputs, error, said):
    wired = make()
    wired.flow.run(config=config)
    before, done = committed(config), dict(calls)
    with pytest.raises(error, match=said):
        wired.flow.run(config=config, inputs=inputs(wired))
    assert dict(calls) == done
    assert committed(config) == before
    with open_session(config) as session:
        assert not [run for run in session.catalog.runs() if run.state == "running"]


def test_an_item_needs_the_other_items(config):
    wired = make()
    with pytest.raises(RunError, match=r"the other items of raw\.read have no committed value.*Run stage raw first"):
        wired.flow.run(config=config, inputs={wired.tables["numbers"]: NEW})
    assert not calls


def test_a_selection_that_takes_what_is_supplied_through_something_stale_is_refused(config):
    wired = make()
    wired.flow.run(config=config)
    with pytest.raises(FlowError, match=r"no task that runs takes it"):
        wired.flow.run("model", config=config, inputs={wired.tables["numbers"]: NEW})

    @materialize(version="1.0", input_type=pl.DataFrame)
    def both(joined: pl.DataFrame, numbers: pl.DataFrame):
        return joined.join(numbers, on="i")

    with Flow("stale") as flow:
        with Stage("raw"):
            tables = read()
        with Stage("features"):
            joined = join(tables["numbers"], tables["words"])
        with Stage("last"):
            both(joined, tables["numbers"])
    flow.run(config=config)
    # The other item has nothing to do with it.
    result = flow.run("features", config=config, inputs={tables["words"]: pl.DataFrame({"i": [1], "w": ["z"]})})
    assert result.successful
    with pytest.raises(
        FlowError, match=r"last\.both takes features\.join, which is made from raw\.read\['numbers'\] that inputs= supplies"
    ):
        flow.run("last", config=config, inputs={tables["numbers"]: NEW})


def test_an_arrow_table_is_no_container(config):
    wired = make()
    wired.flow.run(config=config)
    result = wired.flow.run(config=config, inputs={wired.joined: pa.table({"i": [5], "x": [1.0], "w": ["w"]})})
    assert values(result, wired.scores)["i"].to_list() == [5]
