"""How a run goes on: failures, interruptions, selections, nested stages, observers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

import pipedag_core
from pipedag_core import ConfigContext, Flow, SequentialEngine, Stage, StageLockContext, ThreadEngine, materialize
from pipedag_core.config.settings import Attrs
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FlowError, PipedagError, RunError
from pipedag_core.ports.catalogs import Retention
from pipedag_core.ports.events import Outcome, StepEnded
from pipedag_core.run import memory


class Observer:
    """Remembers all events."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)


@pytest.fixture(params=["sequential", "threads"])
def engine(request):
    return SequentialEngine() if request.param == "sequential" else ThreadEngine(max_workers=3)


@materialize(version="1.0", name="good")
def good(x=1):
    return pl.DataFrame({"x": [x]})


@materialize(version="1.0", input_type=pl.DataFrame, name="bad")
def bad(*tables):
    raise ZeroDivisionError("the user's own error")


@materialize(version="1.0", input_type=pl.DataFrame, name="after")
def after(table):
    return table


def outcomes(result):
    return {report.step: report.outcome.value for report in result.reports}


def broken_flow():
    with Flow("broken") as flow:
        with Stage("a"):
            table = good()
        with Stage("b"):
            after(bad(table))
            good(2)
        with Stage("c"):
            after(table)
        with Stage("d"):
            after(flow["b"]["good"])
    return flow


def test_independent_branches_go_on_after_a_failure(config, engine, tables_of):
    result = broken_flow().run(config=config, orchestration_engine=engine)
    assert not result.successful
    assert isinstance(result.exception, ZeroDivisionError)
    assert outcomes(result) == {
        "open:a": "opened",
        "task:a.good": "ran",
        "commit:a": "committed",
        "open:b": "opened",
        "task:b.bad": "failed",
        "task:b.after": "skipped",
        "task:b.good": "ran",
        "commit:b": "skipped",
        "open:c": "opened",
        "task:c.after": "ran",
        "commit:c": "committed",
        "open:d": "skipped",
        "task:d.after": "skipped",
        "commit:d": "skipped",
        "finish": "finished",
    }
    skipped = next(report for report in result.reports if report.step == "task:d.after")
    assert "task:b.bad failed" in skipped.reason
    assert set(tables_of(config)) == {"a", "c"}


def test_fail_fast_raises_the_users_exception_with_the_users_line_last(config, engine):
    with pytest.raises(ZeroDivisionError, match="the user's own error") as caught:
        broken_flow().run(config=config, orchestration_engine=engine, fail_fast=True)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.name == "bad"
    assert any("b.bad" in note and "broken" in note for note in caught.value.__notes__)


def test_what_a_failed_run_finished_is_not_done_again(config):
    broken_flow().run(config=config)
    again = broken_flow().run(config=config)
    assert outcomes(again)["task:b.good"] == "cached"


def test_ctrl_c_leaves_the_committed_state_and_frees_the_leases(config, tables_of):
    calls = []

    def flow(stop):
        @materialize(version="2.0" if stop else "1.0", input_type=pl.DataFrame, name="after")
        def after(table):
            calls.append("after")
            if stop:
                raise KeyboardInterrupt
            return table

        with Flow("f") as flow, Stage("s"):
            after(good(2 if stop else 1))
        return flow

    flow(stop=False).run(config=config)
    for engine in (SequentialEngine(), ThreadEngine(max_workers=2)):
        with pytest.raises(KeyboardInterrupt):
            flow(stop=True).run(config=config, orchestration_engine=engine)
        assert tables_of(config)["s"]["good"]["x"].to_list() == [1]
        assert flow(stop=False).run(config=config).successful


def test_the_sequential_engine_runs_tasks_in_the_calling_thread(config):
    seen = []

    @materialize
    def where():
        seen.append(threading.current_thread())

    with Flow("f") as flow, Stage("s"):
        where()
    flow.run(config=config, orchestration_engine=SequentialEngine())
    assert seen == [threading.main_thread()]


def test_a_stage_run_by_name_is_committed_and_takes_its_inputs_from_the_store(config, tables_of):
    def flow(x):
        with Flow("f") as flow:
            with Stage("a"):
                table = good(x)
            with Stage("b"):
                after(table)
        return flow

    flow(1).run(config=config)
    wired = flow(1)
    result = wired.run("b", config=config)
    assert result.successful
    assert set(outcomes(result)) == {"open:b", "task:b.after", "commit:b", "finish"}
    other = flow(2)
    missing = other.run(other["b"], config=config)
    assert isinstance(missing.exception, RunError)
    assert "Run stage a first" in str(missing.exception)
    assert other.run("b", config=config, ignore_position_hashes=True).successful


def test_a_task_run_by_name_always_runs_and_commits_nothing(config, tables_of):
    with Flow("f") as flow:
        with Stage("a"):
            table = good(1)
        with Stage("b"):
            last = after(table)
    flow.run(config=config)
    before = tables_of(config)
    result = flow.run(last, config=config)
    assert outcomes(result) == {"open:b": "opened", "task:b.after": "ran", "finish": "finished"}
    assert result.get(last)["x"].to_list() == [1]
    assert {name: list(tables) for name, tables in tables_of(config).items()} == {name: list(tables) for name, tables in before.items()}
    with pytest.raises(FlowError):
        flow.run(last, "a", config=config)


def test_what_a_stage_has_just_made_can_be_handed_on_by_one_inside_it(each_store, monkeypatch):
    # However slow the machine is, what was made still waits to be recorded.
    monkeypatch.setattr(memory, "MOMENT_S", 3600.0)
    monkeypatch.setattr(memory, "PATIENCE_S", 3600.0)

    @materialize(lazy=True)
    def made():
        return sa.text("SELECT 1 AS x")

    @materialize(lazy=True, input_type=sa.Table)
    def handed_on(table):
        return table

    with Flow("f") as flow, Stage("outer"):
        table = made()
        with Stage("inner"):
            last = handed_on(table)
    for _ in range(2):
        result = flow.run(config=each_store, orchestration_engine=SequentialEngine(), fail_fast=True)
        assert result.get(last, as_type=pa.Table).to_pydict() == {"x": [1]}


def test_nested_stages_are_committed_together(config, tables_of):
    def flow(fails):
        with Flow("f") as flow, Stage("outer"):
            table = good(2 if fails else 1)
            with Stage("inner"):
                inner = after(table)
            (bad if fails else after)(inner)
        return flow

    result = flow(fails=False).run(config=config)
    assert result.successful
    assert set(tables_of(config)) == {"outer", "inner"}
    assert not flow(fails=True).run(config=config).successful
    assert tables_of(config)["inner"]["after"]["x"].to_list() == [1]


def test_observers_see_every_step_and_cannot_disturb(config, caplog):
    class Rude:
        def on_event(self, event):
            raise RuntimeError("no")

    seen = Observer()
    with Flow("f") as flow, Stage("s"):
        good()
    result = flow.run(config=config, observers=[Rude(), seen])
    assert result.successful
    ended = [event.report.step for event in seen.events if isinstance(event, StepEnded)]
    assert ended == [report.step for report in result.reports]
    assert "the run goes on" in caplog.text


def test_two_runs_of_one_stage_take_turns(config):
    """The second waits for the lease of the first, and both commit."""
    inside = threading.Event()
    go_on = threading.Event()

    @materialize
    def slow():
        inside.set()
        assert go_on.wait(30)
        return pl.DataFrame({"x": [1]})

    with Flow("f") as first, Stage("s"):
        slow()
    with Flow("g") as second, Stage("s"):
        good(5)

    class Waiting:
        def on_event(self, event):
            if isinstance(event, StepEnded) and event.report.outcome is Outcome.WAITING:
                assert "stage s is being written by" in event.report.reason
                go_on.set()

    results = {}
    one = threading.Thread(target=lambda: results.update(one=first.run(config=config)))
    one.start()
    assert inside.wait(30)
    results["two"] = second.run(config=config, observers=[Waiting()])
    one.join()
    assert results["one"].successful
    assert results["two"].successful


def test_output_of_the_last_commit_can_be_had_without_running(config):
    with Flow("f") as flow, Stage("s"):
        out = good(7)
    with pytest.raises(RunError, match="Run stage s first"):
        out.get_output_from_store(config=config)
    flow.run(config=config)
    assert out.get_output_from_store(as_type=pl.DataFrame, config=config)["x"].to_list() == [7]


def test_a_failing_query_names_the_task_and_shows_the_query(config):
    @materialize(lazy=True, input_type=sa.Table)
    def wrong():
        return sa.text("SELECT no_such_column FROM (SELECT 1 AS x)")

    with Flow("f") as flow, Stage("s"):
        wrong()
    error = flow.run(config=config).exception
    assert isinstance(error, PipedagError)
    assert "no_such_column" in str(error)


def test_unsupported_returns_are_refused_with_their_path(config):
    @materialize(version="1.0")
    def odd():
        return {"fine": 1, "inner": [object()]}

    with Flow("f") as flow, Stage("s"):
        odd()
    error = flow.run(config=config).exception
    assert "s.odd" in str(error)
    assert "inner.0" in str(error)


def test_unknown_items_are_named_when_the_flow_runs(config):
    @materialize(version="1.0")
    def parts():
        return {"a": 1}

    @materialize(version="1.0")
    def use(value):
        return value

    with Flow("f") as flow, Stage("s"):
        use(parts()["b"])
    error = flow.run(config=config).exception
    assert "'b'" in str(error)
    assert "'a'" in str(error)


def test_inside_a_stage_lock_context_clean_up_leaves_a_results_tables_alone(config):
    quick = config.evolve(retention=Retention(committed=1, failed=0, minimum_age_s=0.0))

    def flow(x):
        with Flow("f") as flow, Stage("s"):
            good(x)
        return flow

    with StageLockContext():
        result = flow(1).run(config=quick)
        for x in (2, 3):
            assert flow(x).run(config=quick).successful
        assert result.get(result.flow["s"]["good"], as_type=pl.DataFrame)["x"].to_list() == [1]
    assert flow(4).run(config=quick).successful
    with pytest.raises(RunError):
        result.get(result.flow["s"]["good"], as_type=pl.DataFrame)


def test_a_task_can_read_its_configuration(config):
    @materialize
    def share():
        return ConfigContext.get().attrs["share"]

    with Flow("f") as flow, Stage("s"):
        out = share()
    result = flow.run(config=config.evolve(attrs=Attrs({"share": 0.5})))
    assert result.get(out) == 0.5


def test_the_catalog_remembers_what_failed_and_what_was_skipped(config):
    with Flow("f") as flow, Stage("s"):
        after(bad(good()))
    result = flow.run(config=config)
    with open_session(config) as session:
        log = {result.task: (result.outcome, result.reason) for _, result in session.catalog.task_log(result.run_id)}
    assert log["bad"] == ("failed", "ZeroDivisionError: the user's own error")
    assert log["after"] == ("skipped", "task:s.bad failed")
    assert log["good"][0] == "ran"


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error whose attributes cannot be set, so not its traceback from Python code either."""

    code: int


@materialize(version="1.0")
def freezing():
    raise Frozen(1)


@materialize(lazy=True)
def freezing_lazily():
    raise Frozen(2)


@materialize(version="1.0")
def freezing_batches():
    def batches():
        raise Frozen(3)
        yield

    return pa.RecordBatchReader.from_batches(pa.schema([("a", pa.int64())]), batches())


@pytest.mark.parametrize("task", [freezing, freezing_lazily, freezing_batches])
def test_an_exception_that_cannot_be_changed_comes_out_as_it_is(config, task):
    with Flow("f") as flow, Stage("s"):
        task()
    assert isinstance(flow.run(config=config).exception, Frozen)
    with pytest.raises(Frozen):
        flow.run(config=config, fail_fast=True)


def ended_by_ctrl_c(process):
    """Nothing tells from outside that a query has begun, so a signal that came before it is sent again."""
    for _ in range(20):
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=8)[1]
    pytest.fail("Ctrl-C did not end the query")


@pytest.mark.parametrize("engine", ["SequentialEngine", "ThreadEngine"])
def test_ctrl_c_ends_a_running_query_and_the_run(engine, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import signal
            import sqlalchemy as sa
            from pipedag_core import Flow, Stage, {engine}, materialize

            signal.signal(signal.SIGINT, signal.default_int_handler)

            @materialize(lazy=True, input_type=sa.Table)
            def endless():
                print("building", flush=True)
                return sa.text("SELECT count(*) AS n FROM range(900000) a, range(900000) b WHERE a.range * b.range % 7 = 3")

            with Flow("slow") as flow, Stage("s"):
                endless()
            flow.run(orchestration_engine={engine}())
            """
        )
    )
    env = {**os.environ, "PYTHONPATH": str(Path(pipedag_core.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "building\n"
            err = ended_by_ctrl_c(process)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in err
    assert process.returncode in (1, 130, -signal.SIGINT)
