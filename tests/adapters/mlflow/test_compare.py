"""`pipedag mlflow compare`: which tasks of two runs differed and why, beside their metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from pipedag_core.errors import ConfigError
from pipedag_mlflow.compare import compare, explained

PIPELINE = textwrap.dedent(
    """
    import polars as pl
    import sqlalchemy as sa
    from pipedag_core import Flow, Stage, Table, materialize
    from pipedag_mlflow import document_evaluation, get_run_id

    @materialize(version="1.0")
    def read(rows):
        return Table(pl.DataFrame({"x": range(rows)}), "numbers")

    @materialize(lazy=True, input_type=sa.Table)
    def doubled(numbers):
        return Table(sa.select((numbers.c.x * FACTOR).label("x")), "doubled")

    @materialize(version="VERSION", input_type=pl.DataFrame)
    def fit(numbers):
        return {"mean": numbers["x"].mean()}

    @materialize(version="1.0")
    def unchanged():
        return 1

    def make(attrs):
        with Flow("compared") as flow:
            with Stage("data"):
                numbers = read(attrs["rows"])
            with Stage("model"):
                fitted = fit(doubled(numbers))
                unchanged()
                document_evaluation(fitted, get_run_id())
        return flow
    """
)


def write(project, uri, *, rows=3, factor=2, version="1.0"):
    (project / "pipe.py").write_text(PIPELINE.replace("FACTOR", str(factor)).replace("VERSION", version))
    text = f"""
    instances:
      full:
        instance_id: full
        attrs: {{rows: {rows}}}
        table_store: {{class: parquet, args: {{base_path: ".pipedag/{{instance_id}}"}}}}
        observers:
          - {{class: pipedag_mlflow.MlflowObserver, args: {{tracking_uri: "{uri}"}}}}
    """
    (project / "pipedag.yaml").write_text(textwrap.dedent(text))


def pipedag(project, *words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "pipedag_core.cli", *words], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def run(project):
    done = pipedag(project, "run", "pipe:make", "--instance", "full")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_a_changed_version_and_a_changed_query_are_told_with_what_followed(project, database, runs_of, client):
    write(project, database)
    run(project)
    write(project, database, factor=3, version="1.1")
    run(project)
    first, second = (item.info.run_id for item in runs_of(database, "compared"))
    found = compare(client(database), first, second)
    told = {item.task: item.why for item in found.tasks}
    assert list(told) == ["model.doubled", "model.fit", "model.document_evaluation"]
    assert told["model.doubled"].startswith("query")
    assert told["model.doubled"].endswith("differs")
    assert told["model.fit"] == "version 1.0 -> 1.1, input numbers differs"
    assert told["model.document_evaluation"] == "argument result differs"
    assert [(item.name, item.values) for item in found.tables] == [("model.doubled", (3, 3))]
    metrics = {item.name: item.values for item in found.metrics}
    assert metrics["mean"] == (2.0, 3.0)
    assert metrics["tasks/ran"] == (6, 3)
    assert found.params == ()


def test_other_input_is_told_where_it_came_in(project, database, client, runs_of):
    write(project, database)
    run(project)
    write(project, database, rows=5)
    run(project)
    first, second = (item.info.run_id for item in runs_of(database, "compared"))
    found = compare(client(database), first, second)
    assert (found.tasks[0].task, found.tasks[0].why) == ("data.read", "argument rows differs")
    assert found.tasks[0].rows == (3, 5)
    assert [(item.name, item.values) for item in found.tables] == [("data.numbers", (3, 5)), ("model.doubled", (3, 5))]
    assert [(item.name, item.values) for item in found.params] == [("attrs/rows", ("3", "5"))]


def test_equal_runs_differ_in_no_task(project, database, client, runs_of):
    write(project, database)
    for _ in range(2):
        run(project)
    first, second = (item.info.run_id for item in runs_of(database, "compared"))
    found = compare(client(database), first, second)
    assert (found.tasks, found.tables, found.params) == ((), (), ())


def test_the_command_takes_run_ids_of_either_kind_and_finds_the_server_by_itself(project, database, runs_of):
    write(project, database)
    run(project)
    write(project, database, factor=3)
    run(project)
    one, other = runs_of(database, "compared")
    ours = other.data.tags["pipedag.run_id"]
    done = pipedag(project, "mlflow", "compare", one.info.run_id, ours[:12], "--instance", "full")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "tasks that differ:" in shown
    assert "model.doubled" in shown
    assert "data.read" not in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("mean ")] == [["mean", "2", "3", "+1"]]
    assert "parameters that differ: none" in shown
    done = pipedag(project, "mlflow", "compare", one.info.run_id, ours, "--json", "--instance", "full")
    told = json.loads(done.stdout)
    assert [item["task"] for item in told["tasks"]] == ["model.doubled", "model.fit", "model.document_evaluation"]


def test_a_run_that_is_not_there_is_told_with_where_it_was_looked_for(project, database):
    write(project, database)
    run(project)
    done = pipedag(project, "mlflow", "compare", "nothing", "nothing", "--instance", "full")
    assert done.returncode == 2
    assert "There is no run 'nothing' in MLflow at sqlite:///" in done.stderr


def test_a_beginning_that_fits_several_runs_is_refused(project, database, client):
    write(project, database)
    for _ in range(2):
        run(project)
    with pytest.raises(ConfigError, match="There are 2 runs or more ''"):
        compare(client(database), "", "")


def test_tasks_of_one_run_only_are_told():
    assert explained(None, {"version": "1.0"}) == "only in the second run"
    assert explained({"version": "1.0"}, None) == "only in the first run"
    assert explained({"input a": "1", "got from x": "2"}, {"input b": "1", "got from x": "3"}) == "input b is new, input a is gone"
