"""Values that are made only when a task that takes them really runs, and that never decide on whether it does."""

from __future__ import annotations

import polars as pl
import pytest

from pipedag_core import AUTO_VERSION, Flow, Stage, execute, materialize
from pipedag_core.define.context import executing
from pipedag_core.define.late import LateValue, late_maker
from pipedag_core.errors import RunError

MADE = []


@late_maker("test record")
def make_record(value, context):
    MADE.append((value.source, f"{context.stage}.{context.task}"))
    return f"record of {context.run_id}"


@materialize(version="1.0")
def record():
    return LateValue("test record")


@pytest.fixture(autouse=True)
def _nothing_made_yet():
    MADE.clear()


class Work:
    """A flow in which one task trains with a record and another looks up which record that was."""

    def __init__(self):
        self.calls = []
        self.seen = []
        self.version = "1.0"
        self.asked = "1.0"

    def flow(self):
        @materialize(version=self.version)
        def train(record):
            self.calls.append(record)
            return {"record": record}

        def earlier(record):
            return list(executing.get().earlier(record.source))

        @materialize(version=self.asked, cache=earlier, takes_late=True, ordering_barrier=True)
        def look_up(record):
            assert isinstance(record, LateValue)
            self.seen.append(earlier(record))

        with Flow("late") as flow:
            with Stage("training"):
                made = record()
                train(made)
            with Stage("after"):
                look_up(made)
        return flow


def test_nothing_is_made_when_all_who_would_take_it_are_valid(config):
    work = Work()
    first = work.flow().run(config=config)
    assert MADE == [("training.record", "training.train")]
    assert work.calls == [f"record of {first.run_id}"]
    second = work.flow().run(config=config)
    assert [report.outcome.value for report in second.reports if report.task] == ["cached"] * 3
    assert len(MADE) == 1


def test_what_was_made_is_remembered_with_the_result_of_who_took_it(config):
    work = Work()
    first = work.flow().run(config=config)
    work.asked = "2.0"
    work.flow().run(config=config)
    assert work.seen == [[f"record of {first.run_id}"]] * 2
    assert len(MADE) == 1


def test_who_runs_again_gets_a_value_of_this_run(config):
    work = Work()
    work.flow().run(config=config)
    work.version = "2.0"
    second = work.flow().run(config=config)
    assert work.calls[-1] == work.seen[-1][0] == f"record of {second.run_id}"
    reason = next(report.reason for report in second.reports if report.task == "train")
    assert reason == "version 1.0 -> 2.0"


def test_going_back_to_an_earlier_result_goes_back_to_its_value(config):
    work = Work()
    first = work.flow().run(config=config)
    work.version = "2.0"
    work.flow().run(config=config)
    work.version, work.asked = "1.0", "2.0"
    work.flow().run(config=config)
    assert work.seen[-1] == [f"record of {first.run_id}"]
    assert len(MADE) == 2


def test_it_is_the_same_in_processes_of_their_own(config):
    work = Work()
    flow = work.flow()
    plan = flow.plan()
    for step in plan.steps:
        assert execute(plan, step, run_id="r1", flow=flow, config=config).outcome.is_good
    assert work.seen == [["record of r1"]]


def test_a_task_that_is_only_asked_what_it_would_do_makes_nothing(config):
    asked = []

    @materialize(version="1.0")
    def table():
        return pl.DataFrame({"x": [1]})

    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def traced(frame, record):
        asked.append(record)
        return frame.with_columns(y=1)

    def flow():
        with Flow("traced") as made, Stage("s"):
            traced(table(), record())
        return made

    assert flow().run(config=config).successful
    assert flow().run(config=config).successful
    assert len(MADE) == 1
    assert [text.startswith("record of") for text in asked] == [False, True, False]


def test_a_maker_that_is_not_loaded_is_an_error_that_says_so(config):
    @materialize
    def stranger():
        return LateValue("nobody knows")

    @materialize
    def takes(value):
        return 1

    with Flow("f") as flow, Stage("s"):
        takes(stranger())
    error = flow.run(config=config).exception
    assert isinstance(error, RunError)
    assert "nobody knows" in str(error)
    assert "s.stranger" in str(error)


def test_what_the_maker_is_told_reaches_it_and_has_no_say_in_anything(config):
    told = []

    @late_maker("test record with a word")
    def make_with_word(value, context):
        told.append(value.about)
        return "made"

    def run(word):
        @materialize
        def record_with_word():
            return LateValue("test record with a word", about=word)

        @materialize(version="1.0")
        def takes(value):
            return 1

        with Flow("told") as flow, Stage("s"):
            takes(record_with_word())
        return flow.run(config=config)

    assert run("one").successful
    second = run("two")
    assert told == ["one"]
    assert next(report.outcome.value for report in second.reports if report.task == "takes") == "cached"
