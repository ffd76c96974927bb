"""The steps of one plan, executed by one process or by many, give the same tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from pipedag_core import Flow, PipedagConfig, Plan, Stage, execute, materialize
from pipedag_core.errors import PlanMismatch

PIPELINE = textwrap.dedent(
    """
    import pandas as pd
    import polars as pl
    import sqlalchemy as sa
    from pipedag_core import Blob, Flow, Stage, materialize

    @materialize(version="1.0", nout=2)
    def inputs():
        return pd.DataFrame({"x": [1, 2, 3]}), {"factor": 2}

    @materialize(lazy=True, input_type=sa.Table)
    def doubled(table, factor):
        return sa.select(table.c.x, (table.c.x * factor).label("y"))

    @materialize(version="1.0", input_type=pl.DataFrame, nout=2)
    def model(table):
        return Blob({"mean": table["y"].mean()}, "model"), table

    @materialize(input_type=pl.LazyFrame)
    def scored(table, model):
        return table.with_columns(score=pl.col("y") - model["mean"])

    with Flow("steps") as flow:
        with Stage("raw"):
            table, numbers = inputs()
        with Stage("features"):
            features = doubled(table, numbers["factor"])
        with Stage("training"):
            fitted, trained_on = model(features)
            scored(trained_on, fitted)
    """
)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pipe.py").write_text(PIPELINE)
    return folder


def pipedag(project, *args, check=True):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "pipedag_core.cli", *args], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def tables(project, tables_of):
    config = PipedagConfig(
        {
            "instances": {
                "__any__": {"table_store": {"class": "parquet", "args": {"base_path": str(project / ".pipedag" / "{instance_id}")}}}
            }
        }
    )
    return {
        stage: {name: frame.sort(frame.columns).to_dicts() for name, frame in content.items()}
        for stage, content in tables_of(config.get()).items()
    }


def test_a_process_per_step_gives_the_tables_of_one_process(project, tables_of, tmp_path):
    plan_text = pipedag(project, "plan", "pipe:flow", "--json").stdout
    (project / "plan.json").write_text(plan_text)
    plan = Plan.from_json(plan_text)
    running, done = {}, set()
    left = {step.id: step for step in plan.steps}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    most = 0
    while left or running:
        for id, step in list(left.items()):
            if set(step.upstream) <= done and len(running) < 6:
                command = [sys.executable, "-m", "pipedag_core.cli", "step", "plan.json", id, "--run-id", "r1"]
                running[id] = subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                del left[id]
        most = max(most, len(running))
        id, process = next(iter(running.items()))
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert json.loads(out.strip().splitlines()[-1])["step"] == id
        done.add(id)
        del running[id]
    by_steps = tables(project, tables_of)
    other = tmp_path / "other"
    other.mkdir()
    (other / "pipe.py").write_text(PIPELINE)
    pipedag(other, "run", "pipe:flow")
    assert by_steps == tables(other, tables_of)
    assert set(by_steps) == {"raw", "features", "training"}
    # And what the steps stored, a whole run finds again.
    again = pipedag(project, "run", "pipe:flow")
    assert "version 1.0" not in again.stdout


def test_six_processes_execute_the_steps_of_independent_tasks(project, tables_of):
    """Six independent tasks, executed at the same time, all land in the one commit."""
    (project / "wide.py").write_text(
        textwrap.dedent(
            """
            import polars as pl
            from pipedag_core import Flow, Stage, materialize

            @materialize(version="1.0")
            def part(number):
                return pl.DataFrame({"number": [number]})

            with Flow("wide") as flow, Stage("parts"):
                for number in range(6):
                    part(number)
            """
        )
    )
    (project / "plan.json").write_text(pipedag(project, "plan", "wide:flow", "--json").stdout)
    pipedag(project, "step", "plan.json", "open:parts", "--run-id", "r")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    names = ["part", *(f"part_{number}" for number in range(2, 7))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pipedag_core.cli", "step", "plan.json", f"task:parts.{name}", "--run-id", "r"],
            cwd=project,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    pipedag(project, "step", "plan.json", "commit:parts", "--run-id", "r")
    pipedag(project, "step", "plan.json", "finish", "--run-id", "r")
    found = tables(project, tables_of)["parts"]
    assert found == {name: [{"number": number}] for number, name in enumerate(names)}


def test_a_stage_is_not_committed_before_all_its_tasks_have_results(config):
    @materialize(version="1.0")
    def one():
        return 1

    with Flow("f") as flow, Stage("s"):
        one()
    plan = flow.plan(instance=config.instance_name)
    execute(plan, "open:s", run_id="r", flow=flow, config=config)
    early = execute(plan, "commit:s", run_id="r", flow=flow, config=config)
    assert early.outcome.value == "failed"
    assert "Execute their steps first" in early.message
    assert execute(plan, "task:s.one", run_id="r", flow=flow, config=config).outcome.value == "ran"
    assert execute(plan, "commit:s", run_id="r", flow=flow, config=config).outcome.value == "committed"
    assert execute(plan, "finish", run_id="r", flow=flow, config=config).reason == "succeeded"


def test_a_step_executed_again_after_the_commit_keeps_what_its_siblings_gave(config, tables_of):
    import polars as pl

    @materialize(version="1.0")
    def part(number):
        return pl.DataFrame({"number": [number]})

    with Flow("f") as flow, Stage("s"):
        part(1)
        part(2)
    plan = flow.plan(instance=config.instance_name)
    for step in plan.steps:
        execute(plan, step, run_id="r", flow=flow, config=config)
    for id in ("task:s.part", "commit:s", "finish"):
        assert execute(plan, id, run_id="r", flow=flow, config=config).outcome.is_good
    assert set(tables_of(config)["s"]) == {"part", "part_2"}


def test_a_failed_run_can_be_mended_step_by_step(config, tables_of):
    import polars as pl

    broken = [True]

    @materialize(version="1.0")
    def part(number):
        if number == 2 and broken[0]:
            raise ValueError("not yet")
        return pl.DataFrame({"number": [number]})

    with Flow("f") as flow, Stage("s"):
        part(1)
        part(2)
    plan = flow.plan(instance=config.instance_name)

    def steps(*ids):
        return [execute(plan, id, run_id="r", flow=flow, config=config).outcome.value for id in ids]

    assert steps("open:s", "task:s.part", "task:s.part_2", "finish") == ["opened", "ran", "failed", "finished"]
    broken[0] = False
    assert steps("task:s.part_2", "commit:s", "finish") == ["ran", "committed", "finished"]
    assert set(tables_of(config)["s"]) == {"part", "part_2"}


def test_a_plan_of_another_wiring_is_refused(config):
    @materialize(version="1.0")
    def one(x=None):
        return 1

    def flow(twice):
        with Flow("f") as flow, Stage("s"):
            one()
            if twice:
                one(2)
        return flow

    plan = flow(twice=False).plan(instance=config.instance_name)
    with pytest.raises(PlanMismatch, match="another wiring"):
        execute(plan, "open:s", run_id="r", flow=flow(twice=True), config=config)
