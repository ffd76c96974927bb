"""Runs of a part of a flow whose other tasks were changed, renamed or reordered since they were committed: what is refused, and what is said."""

from __future__ import annotations

import polars as pl
import pytest

from pipedag_core import Flow, Stage, Table, materialize
from pipedag_core.errors import RunError, UnknownItem


def returns(value, name="load", **options):
    def task(*_):
        return value

    return materialize(task, name=name, **{"version": "1", **options})


@materialize(version="1", input_type=pl.DataFrame)
def consumer(table):
    return table.select("x")


def declare(wire):
    """Declare a flow: `wire` wires stage `raw` and returns what stage `mart` takes."""
    with Flow("f") as flow:
        with Stage("raw"):
            given = wire()
        with Stage("mart"):
            consumer(given)
    return flow


FRAME = pl.DataFrame({"x": [1]})
OTHER = pl.DataFrame({"y": [1]})


def fails(config, before, after):
    """Run all of a flow, then stage `mart` of the flow as it became; return the error."""
    declare(before).run(config=config)
    result = declare(after).run("mart", config=config)
    assert not result.successful
    return result.exception


def notes(error):
    return " ".join(error.__notes__)


def test_the_consumers_own_error_says_what_was_taken_as_it_was_committed(config):
    def before():
        returns(FRAME, "other")()
        return returns(OTHER)()

    def after():
        returns(OTHER, "other")()
        return returns(FRAME, version="2")()

    error = fails(config, before, after)
    assert isinstance(error, pl.exceptions.ColumnNotFoundError)
    assert "raw.load (generation 1, of version 1 where it is 2 now)" in notes(error)
    assert "Run stage raw first" in notes(error)
    assert declare(after).run(config=config, fail_fast=True).successful


def test_an_item_that_is_not_in_what_was_committed_is_told_with_that(config):
    error = fails(config, lambda: returns({"a": FRAME})()["a"], lambda: returns({"b": FRAME})()["b"])
    assert isinstance(error, UnknownItem)
    assert "raw.load (generation 1)" in notes(error)


@pytest.mark.parametrize(("committed", "told"), [((FRAME, FRAME, FRAME), "a result of 3 items"), (FRAME, "one value")])
def test_another_number_of_items_than_declared_is_refused(config, committed, told):
    error = fails(config, returns(committed), lambda: returns((FRAME, OTHER), nout=2)()[0])
    assert isinstance(error, RunError)
    assert "raw.load from outside of this run, from generation 1 of stage raw, which does not fit the task as it is now" in str(error)
    assert f"nout=2, and committed is {told}" in str(error)


def test_other_tables_than_declared_are_refused(config):
    def wire(*names):
        return lambda: returns([Table(FRAME, name) for name in names], outputs=names)()[0]

    error = fails(config, wire("a", "b"), wire("a", "c"))
    assert "outputs=a, c, and committed are a, b" in str(error)
    assert error.stage == "raw"


def test_what_is_declared_as_it_was_committed_is_taken(config):
    def wire():
        return returns([Table(FRAME, "a"), Table(FRAME, "b")], outputs=["a", "b"], nout=2)()[0]

    declare(wire).run(config=config)
    assert declare(wire).run("mart", config=config, fail_fast=True).successful
    assert declare(wire)["raw"]["load"].get_output_from_store(config=config)[0].num_rows == 1


def test_a_renamed_task_is_missed_under_its_new_name_and_found_under_its_old_one(config):
    error = fails(config, returns(FRAME, "load_flights"), returns(FRAME, "load_all_flights"))
    assert "needs the result of raw.load_all_flights" in str(error)
    assert "Generation 1 of stage raw has load_flights, which the flow does not have any more (renamed to load_all_flights?)" in str(error)


def test_repeated_calls_in_another_order_are_missed_as_such(config):
    def wire(*values):
        def make():
            task = returns(FRAME)
            wired = [task(value) for value in values]
            return wired[0]

        return make

    error = fails(config, wire(1, 2), wire(2, 1))
    assert "Generation 1 of stage raw has load with other arguments, or in another order" in str(error)


def test_a_value_that_is_supplied_need_not_be_like_what_is_committed(config):
    flow = declare(lambda: returns((FRAME, OTHER), nout=2)()[0])
    flow.run(config=config, fail_fast=True)
    load = flow["raw"]["load"]
    assert flow.run("mart", config=config, inputs={load[0]: FRAME}, fail_fast=True).successful


def test_a_run_of_the_whole_flow_says_nothing_of_this(config):
    error = declare(returns(OTHER)).run(config=config).exception
    assert "outside of this run" not in notes(error)
