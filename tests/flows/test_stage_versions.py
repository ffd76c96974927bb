"""Tasks that get two versions of tables, on every kind of store."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Blob, Flow, InOutSpecification, RawSql, Stage, Table, View, input_stage_versions, materialize
from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ExtractionRefused, FlowError, OtherVersionMissing, UnsupportedByStore
from pipedag_core.ports.catalogs import Retention
from pipedag_core.ports.events import PointReached, StepEnded
from pipedag_core.run.doctor import examine
from pipedag_core.runner import clean_up


def numbers(values, name="numbers"):
    """Return a task that makes a table of one column."""

    @materialize(name=name, version=str(values))
    def make():
        return Table(pa.table({"i": pa.array(values, pa.int64())}), name=name)

    return make


def contents(tables):
    """Return what a task was given: name -> values, or 'missing'."""
    return {
        name: "missing" if isinstance(item, OtherVersionMissing) else sorted(item["i"].to_list() if hasattr(item, "height") else list(item["i"]))
        for name, item in tables.items()
    }


class Seen:
    """Collects what a comparing task has been given, call by call."""

    def __init__(self, **options):
        self.calls = []
        self.task = input_stage_versions(name="check", **{"input_type": pl.DataFrame, "version": "1", **options})(self.check)

    def check(self, now, before):
        self.calls.append((contents(now), contents(before)))
        return pa.table({"i": [len(self.calls)]})


def run(config, *tables, check, **options):
    """Run a flow with one stage; return the outcomes of its tasks."""
    with Flow("f") as flow, Stage("s"):
        for values, name in tables:
            numbers(values, name)()
        check()
    result = flow.run(config=config, fail_fast=True, **options)
    with open_session(config) as session:
        assert examine(session, lives, grace_s=0).findings == []
    return {report.task: report.outcome.value for report in result.reports if report.task}


# --- what is compared -------------------------------------------------------------------------------------------------------------------


def test_without_arguments_it_gets_the_stage_as_far_as_it_is_written_and_as_it_was_before(each_store):
    seen = Seen()
    assert run(each_store, ([1, 2], "a"), ([3], "b"), check=seen.task)["check"] == "ran"
    assert seen.calls.pop() == ({"a": [1, 2], "b": [3]}, {"a": "missing", "b": "missing"})
    assert run(each_store, ([1, 2, 3], "a"), ([3], "b"), check=seen.task)["check"] == "ran"
    assert seen.calls.pop() == ({"a": [1, 2, 3], "b": [3]}, {"a": [1, 2], "b": [3]})


def test_it_runs_again_exactly_when_something_on_either_side_has_changed(each_store):
    seen = Seen()
    for values, outcome in [([1], "ran"), ([1], "ran"), ([1], "cached"), ([2], "ran"), ([2], "ran"), ([2], "cached"), ([1], "ran")]:
        assert run(each_store, (values, "a"), check=seen.task)["check"] == outcome
    assert seen.calls == [
        ({"a": [1]}, {"a": "missing"}),
        ({"a": [1]}, {"a": [1]}),
        ({"a": [2]}, {"a": [1]}),
        ({"a": [2]}, {"a": [2]}),
        ({"a": [1]}, {"a": [2]}),
    ]


def test_a_table_that_is_made_no_more_is_in_the_other_version_only_and_what_comes_later_in_none(each_store):
    seen = Seen()
    run(each_store, ([1], "a"), ([2], "old"), check=seen.task)
    run(each_store, ([1], "a"), check=seen.task)
    assert seen.calls[-1] == ({"a": [1]}, {"a": [1], "old": [2]})
    run(each_store, ([1], "a"), check=seen.task)
    assert seen.calls[-1] == ({"a": [1]}, {"a": [1]})

    with Flow("f") as flow, Stage("s"):
        numbers([1], "a")()
        seen.task()
        numbers([5], "later")()
    for _ in range(2):
        flow.run(config=each_store, fail_fast=True)
        assert seen.calls[-1] == ({"a": [1]}, {"a": [1]})


def test_what_is_missing_says_where_it_was_looked_for(each_store):
    said = []

    @input_stage_versions(input_type=pl.DataFrame, lazy=True)
    def check(now, before):
        said.append(before["a"])

    run(each_store, check=check)
    run(each_store, ([1], "a"), check=check)
    error = said.pop()
    assert (error.stage, error.table, error.generation) == ("s", "a", 1)
    assert "Table s.a is not in the version of stage s (generation 1) that was committed before this run" in str(error)
