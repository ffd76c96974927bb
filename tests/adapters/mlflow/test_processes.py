"""One run in many processes, and processes that are killed: one MLflow run, with its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pipedag_core import Plan

PIPELINE = textwrap.dedent(
    """
    import os, time
    import polars as pl
    from pipedag_core import Flow, Stage, materialize

    @materialize(version="1.0")
    def left():
        return pl.DataFrame({"x": [1, 2]})

    @materialize(version="1.0")
    def right():
        return pl.DataFrame({"x": [1, 2, 3]})

    @materialize(input_type=pl.DataFrame)
    def both(a, b):
        if os.environ.get("HANG"):
            print("hangs", flush=True)
            time.sleep(600)
        return pl.concat([a, b])

    with Flow("apart") as flow:
        with Stage("one"):
            a = left()
        with Stage("two"):
            b = right()
        with Stage("three"):
            both(a, b)
    """
)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pipe.py").write_text(PIPELINE)
    return folder


def configure(project, uri):
    text = f"""
    instances:
      full:
        instance_id: full
        table_store: {{class: parquet, args: {{base_path: ".pipedag/{{instance_id}}"}}}}
        observers:
          - {{class: pipedag_mlflow.MlflowObserver, args: {{tracking_uri: "{uri}"}}}}
    """
    (project / "pipedag.yaml").write_text(textwrap.dedent(text))


def command(project, *args, **env):
    return {
        "args": [sys.executable, "-m", "pipedag_core.cli", *args],
        "cwd": project,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        "text": True,
    }


def pipedag(project, *args, **env):
    done = subprocess.run(**command(project, *args, **env), capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def only(found):
    assert len(found) == 1
    return found[0]


def test_the_steps_of_one_run_log_to_one_mlflow_run_wherever_they_are_executed(project, server, runs_of):
    configure(project, server)
    plan_file = project / "plan.json"
    plan_file.write_text(pipedag(project, "plan", "pipe:flow", "--instance", "full", "--json").stdout)
    plan = Plan.from_json(plan_file.read_text())
    first = [step.id for step in plan.steps if step.id.startswith("task:") and not step.id.endswith("both")]
    # The first two at the same time, as an orchestrator starts them.
    at_once = [
        subprocess.Popen(**command(project, "step", "plan.json", step, "--run-id", "r1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for step in first
    ]
    for process in at_once:
        out, err = process.communicate()
        assert json.loads(out)["outcome"] == "ran", err
    for step in plan.steps:
        if step.id not in first and not step.id.startswith("open:"):
            out = pipedag(project, "step", "plan.json", step.id, "--run-id", "r1").stdout
            assert len(out.splitlines()) == 1, "standard output is the report alone"
    run = only(runs_of(server, "apart"))
    assert (run.info.status, run.data.tags["pipedag.run_id"]) == ("FINISHED", "r1")
    assert {name for name in run.data.metrics if name.startswith("rows/")} == {"rows/one.left", "rows/two.right", "rows/three.both"}
    assert run.data.metrics["tasks/ran"] == 3
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"one.left", "two.right", "three.both"}
    assert run.data.params["version/one.left"] == "1.0"


def kill_in_mid_run(project, *args):
    process = subprocess.Popen(**command(project, *args, HANG="1"), stdout=subprocess.PIPE)
    for line in process.stdout:
        if "hangs" in line:
            break
    return process


def wait_until(found):
    for _ in range(600):
        if found():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def test_the_mlflow_run_of_a_killed_process_is_ended_by_the_next_run(project, database, runs_of):
    configure(project, database)
    process = kill_in_mid_run(project, "run", "pipe:flow", "--instance", "full")
    wait_until(lambda: any("rows/two.right" in run.data.metrics for run in runs_of(database, "apart")))
    process.kill()
    process.wait()
    process.stdout.close()
    assert only(runs_of(database, "apart")).info.status == "RUNNING"
    pipedag(project, "run", "pipe:flow", "--instance", "full")
    killed, whole = runs_of(database, "apart")
    assert (killed.info.status, whole.info.status) == ("KILLED", "FINISHED")
    assert killed.info.end_time is not None
    assert whole.data.metrics["tasks/cached"] == 2


def test_a_killed_run_that_another_process_finishes_has_failed(project, database, runs_of):
    configure(project, database)
    (project / "plan.json").write_text(pipedag(project, "plan", "pipe:flow", "--instance", "full", "--json").stdout)
    pipedag(project, "step", "plan.json", "task:one.left", "--run-id", "r2")
    process = subprocess.Popen(**command(project, "step", "plan.json", "task:two.right", "--run-id", "r2"), stdout=subprocess.PIPE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = subprocess.run(**command(project, "step", "plan.json", "finish", "--run-id", "r2"), capture_output=True, check=False)
    assert json.loads(done.stdout)["reason"] == "failed"
    run = only(runs_of(database, "apart"))
    assert (run.info.status, run.data.tags["pipedag.state"]) == ("FAILED", "failed")
    assert "rows/one.left" in run.data.metrics


def test_a_run_that_goes_on_in_another_process_is_left_alone(project, database, runs_of):
    configure(project, database)
    (project / "plan.json").write_text(pipedag(project, "plan", "pipe:flow", "--instance", "full", "--json").stdout)
    pipedag(project, "step", "plan.json", "task:one.left", "--run-id", "r3")
    subprocess.run(**command(project, "run", "pipe:flow", "--instance", "full", "--stage", "two"), capture_output=True, check=True)
    assert [run.info.status for run in runs_of(database, "apart")] == ["RUNNING", "FINISHED"]


def test_a_process_that_ends_waits_for_what_is_left_to_log(project, database, runs_of):
    configure(project, database)
    pipedag(project, "run", "pipe:flow", "--instance", "full")
    run = only(runs_of(database, "apart"))
    assert (run.info.status, run.data.metrics["tasks/ran"]) == ("FINISHED", 3)


def test_a_process_does_not_wait_for_a_server_that_is_not_there(project):
    configure(project, "http://127.0.0.1:9")
    done = pipedag(project, "run", "pipe:flow", "--instance", "full")
    assert done.stderr.count("not, or not completely, logged") <= 1
