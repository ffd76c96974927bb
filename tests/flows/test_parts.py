"""Several steps in one call, steps of a flow named by reference, and what reports tell to orchestrators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from pipedag_core import PipedagConfig, execute
from pipedag_core.config.flows import load_flow
from pipedag_core.config.wire import open_session
from pipedag_core.errors import PlanMismatch
from pipedag_core.ports.events import Outcome
from pipedag_core.runner import execute_reference

PIPELINE = textwrap.dedent(
    """
    import os
    import pandas as pd
    import sqlalchemy as sa
    from pipedag_core import Flow, Stage, materialize

    @materialize(version="1.0", outputs=["numbers"])
    def numbers():
        from pipedag_core import Table
        return Table(pd.DataFrame({"x": [1, 2, 3]}), "numbers")

    @materialize(lazy=True, input_type=sa.Table)
    def doubled(table) -> sa.Select:
        return sa.select((table.c.x * 2).label("y"))

    @materialize(version=os.environ.get("TOTAL_VERSION", "1.0"), input_type=pd.DataFrame)
    def total(table) -> pd.DataFrame:
        if os.path.exists("broken"):
            raise ValueError("it is broken")
        return table.sum().to_frame("total").reset_index(drop=True)

    with Flow("parts") as flow:
        with Stage("raw"):
            table = numbers()
        with Stage("features"):
            features = doubled(table)
            total(features)
    """
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "parts_pipe.py").write_text(PIPELINE)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("parts_pipe", None)


@pytest.fixture
def config(project):
    return PipedagConfig({})


@pytest.fixture
def plan(project):
    return load_flow("parts_pipe:flow")[0].plan()


def call(config, step, run_id="r1", **more):
    return execute_reference("parts_pipe:flow", step, run_id=run_id, config=config, **more)


def states(config):
    with open_session(config.get()) as session:
        return {(row.stage, row.state) for row in session.catalog.generations()}, [lease.stage for lease in session.catalog.leases()]


def test_a_stage_in_one_call_gives_what_its_steps_give(config, project):
    assert call(config, "stage:raw").outcome is Outcome.COMMITTED
    report = call(config, "stage:features")
    assert report.outcome is Outcome.COMMITTED
    assert (report.step, report.rows, report.tables) == ("stage:features", 4, ("doubled", "total"))
    assert call(config, "finish").reason == "succeeded"
    again = call(config, "flow", "r2")
    assert (again.outcome, again.reason) == (Outcome.FINISHED, "succeeded")
    assert {item.name: item.changed for item in again.given} == {"numbers": False, "doubled": False, "total": False}


def test_a_flow_in_one_call_tells_observers_of_every_step(config, project):
    told = []

    class Observer:
        def on_event(self, event):
            if type(event).__name__ == "StepEnded":
                told.append((event.report.step, event.report.outcome.value))

    report = call(config, "flow", observers=[Observer()])
    assert report.outcome is Outcome.FINISHED
    assert told[0] == ("open:raw", "opened")
    assert told[-1] == ("finish", "finished")
    assert len(told) == 8


def test_a_stage_that_failed_stays_open_until_it_is_closed(config, project):
    call(config, "stage:raw")
    (project / "broken").touch()
    report = call(config, "stage:features")
    assert (report.outcome, report.message) == (Outcome.FAILED, "ValueError: it is broken")
    assert ("features", "open") in states(config)[0]
    assert states(config)[1] == ["features"]
    assert call(config, "close:features").reason == "features g1 given up"
    assert ("features", "failed") in states(config)[0]
    assert states(config)[1] == []
    (project / "broken").unlink()
    # The same run goes on with what its first attempt had.
    assert call(config, "stage:features").outcome is Outcome.COMMITTED


def test_closing_after_the_commit_does_nothing(config, project):
    call(config, "stage:raw")
    before = states(config)
    report = call(config, "close:raw")
    assert (report.outcome, report.reason) == (Outcome.FINISHED, "nothing was open")
    assert states(config) == before


def test_a_flow_that_fails_in_one_call_ends_its_run(config, project):
    (project / "broken").touch()
    assert call(config, "flow").outcome is Outcome.FAILED
    found, leases = states(config)
    assert (leases, ("raw", "committed") in found, ("features", "failed") in found) == ([], True, True)


def test_a_part_waits_for_another_run(config, project):
    call(config, "open:raw", "other")
    for part in ("stage:raw", "flow"):
        assert call(config, part).outcome is Outcome.WAITING


def test_reports_tell_what_was_given(config, plan):
    def run(step):
        return execute(plan, step, run_id="r1", config=config)

    run("open:raw")
    (numbers,) = run("task:raw.numbers").given
    assert (numbers.stage, numbers.task, numbers.name, numbers.rows, numbers.changed) == ("raw", "numbers", "numbers", 3, None)
    (shown,) = run("commit:raw").given
    assert (shown.generation, shown.changed, shown.identity) == (1, True, numbers.identity)
    run("open:features")
    assert "SELECT" in run("task:features.doubled").given[0].query
    run("task:features.total")
    assert [item.name for item in run("commit:features").given] == ["doubled", "total"]
    assert run("finish").given == ()


def test_code_that_is_wired_differently_is_refused_with_what_differs(config, plan):
    steps = [step.id for step in plan.steps if step.id != "task:features.total"]
    with pytest.raises(PlanMismatch, match=r"new: task:features\.total") as caught:
        call(config, "open:raw", digest="of another wiring", known_steps=[*steps, "task:features.old"])
    assert caught.value.gone == ("task:features.old",)
    assert call(config, "open:raw", digest=plan.digest).outcome is Outcome.OPENED


def test_a_run_may_be_made_of_some_stages(config, project):
    call(config, "flow", "r0")
    report = call(config, "flow", "r1", stages=["features"], cache_validation_mode="force_cache_invalid")
    assert {item.stage for item in report.given} == {"features"}
    with pytest.raises(PlanMismatch, match="no step 'open:raw'"):
        call(config, "open:raw", "r2", stages=["features"])


@pytest.mark.parametrize("part", ["stage:nowhere", "close:nowhere"])
def test_a_part_of_no_stage_is_refused(config, project, part):
    with pytest.raises(PlanMismatch, match=r"stage:raw|close:raw"):
        call(config, part)


def test_the_command_carries_out_steps_of_a_flow_by_name(project, plan):
    def pipedag(*args):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "pipedag_core.cli", *args]
        return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)

    done = pipedag("step", "parts_pipe:flow", "stage:raw", "--run-id", "r1", "--digest", plan.digest, "--note", "me")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == ["open:raw", "task:raw.numbers", "commit:raw", "stage:raw"]
    assert json.loads(done.stdout.splitlines()[-1])["given"][0]["rows"] == 3
    drifted = pipedag("step", "parts_pipe:flow", "stage:raw", "--run-id", "r1", "--digest", "other")
    assert (drifted.returncode, drifted.stdout) == (2, "")
    assert "another wiring" in drifted.stderr
    waiting = pipedag("step", "parts_pipe:flow", "open:raw", "--run-id", "r2")
    assert waiting.returncode == 0
    assert pipedag("step", "parts_pipe:flow", "stage:raw", "--run-id", "r3").returncode == 75
