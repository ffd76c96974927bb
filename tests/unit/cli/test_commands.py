"""The command, as people and machines call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pipedag_core
from pipedag_core.catalogs.sqlite import SqliteCatalog
from pipedag_core.cli.app import app
from pipedag_core.errors import CatalogError

CODE = """
import sys
import pyarrow as pa
from pipedag_core import Flow, Stage, Table, materialize

@materialize(version="1.0", nout=2)
def load():
    print("loading")
    return Table(pa.table({"id": [1, 2, 3], "name": ["Alice", "Bob", "Charlie"]}), "names"), Table(pa.table({"id": [1, 2, 3]}), "ages")

@materialize(version="1.0", input_type=pa.Table)
def joined(names, ages):
    return names.join(ages, "id").sort_by("id")

@materialize(input_type=pa.Table)
def broken(table):
    return 1 / 0

@materialize
def unsupported():
    return object()

@materialize
def ends():
    sys.exit(0)

@materialize
def interrupted():
    raise KeyboardInterrupt

def one(task):
    def make():
        with Flow("one") as flow, Stage("s"):
            task()
        return flow
    return make

@materialize(version="1.0")
def gaps():
    return pa.table({"text": ["", None, "x"]})

keeps_nothing, stops, is_stopped, has_gaps = one(unsupported), one(ends), one(interrupted), one(gaps)

def make(attrs):
    with Flow("demo") as flow:
        with Stage("inputs"):
            names, ages = load()
        with Stage("features"):
            table = joined(names, ages)
            if attrs.get("broken"):
                broken(table)
    return flow
"""


@pytest.fixture
def cli(tmp_path):
    """Call the command in a folder with a flow in `demo.py`."""
    (tmp_path / "demo.py").write_text(CODE)
    (tmp_path / "broken.yaml").write_text("instances: {bad: {attrs: {broken: true}}}")
    (tmp_path / "raises.py").write_text("def make():\n    return undefined_name\n")
    before, path = set(sys.modules), list(sys.path)
    runner = CliRunner()
    yield lambda *args: runner.invoke(app, args)
    for name in set(sys.modules) - before:
        if name.startswith("pipedag_flow_"):
            del sys.modules[name]
    sys.path[:] = path


def outcomes(result):
    """Return name -> outcome of the lines of a run."""
    lines = [line.split("  ") for line in result.stdout.splitlines() if not line.startswith("flow ")]
    return {
        parts[1].strip() or parts[2].strip(): parts[0].strip() for parts in ([p for p in line if p] for line in lines) if len(parts) > 1
    }


def test_a_flow_runs_and_the_second_time_everything_is_cached(cli):
    first, second = cli("run", "demo.py:make"), cli("run", "demo.py:make")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert outcomes(first) == {"inputs.load": "ran", "stage inputs": "committed", "features.joined": "ran", "stage features": "committed"}
    assert set(outcomes(second).values()) == {"cached", "unchanged"}
    assert "flow demo, instance default: succeeded" in first.stdout
    assert "2 tasks (2 cached); 2 stages (2 unchanged)" in second.stdout


def test_a_mode_makes_everything_run_again(cli):
    cli("run", "demo.py:make")
    assert "2 tasks (2 ran)" in cli("run", "demo.py:make", "--mode", "force-caches-invalid").stdout


def test_a_stage_or_a_task_can_be_run_alone(cli):
    cli("run", "demo.py:make")
    assert "1 task (1 cached); 1 stage" in cli("run", "demo.py:make", "--stage", "Features").stdout
    alone = cli("run", "demo.py:make", "--task", "features.joined")
    assert "1 task (1 ran); run" in alone.stdout, alone.output


def test_a_failing_task_ends_with_the_users_own_line_and_exit_code_1(cli):
    result = cli("run", "demo.py:make", "--instance", "bad", "--config", "broken.yaml")
    assert result.exit_code == 1
    assert outcomes(result)["features.broken"] == "failed"
    assert outcomes(result)["stage features"] == "skipped"
    assert "return 1 / 0" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "pipedag_core" not in result.stderr.split("Traceback", 1)[1].split("ZeroDivisionError", 1)[0]
    assert "failed in" in result.stdout


def test_fail_fast_shows_the_failure_once(cli):
    result = cli("run", "demo.py:make", "-i", "bad", "-c", "broken.yaml", "--fail-fast")
    assert result.exit_code == 1
    assert result.stderr.count("ZeroDivisionError: division by zero") == 1


def test_an_error_of_ours_in_a_task_is_its_message_only(cli):
    result = cli("run", "demo.py:keeps_nothing")
    assert result.exit_code == 1
    assert "UnsupportedValue: Task s.unsupported returned something" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("engine", ["sequential", "threads"])
def test_the_task_that_ends_the_program_is_named(cli, engine):
    result = cli("run", "demo.py:stops", "--engine", engine)
    assert result.exit_code == 1
    assert "sys.exit(0)" in result.stderr
    assert "in task s.ends of flow" in result.stderr


@pytest.mark.parametrize("engine", ["sequential", "threads"])
def test_ctrl_c_is_one_line_and_exit_code_130(cli, engine):
    result = cli("run", "demo.py:is_stopped", "--engine", engine)
    assert (result.exit_code, result.stderr) == (130, "interrupted in s.interrupted; what is finished is kept\n")
    assert "aborted" in cli("status").stdout


def test_only_the_users_lines_are_shown_of_an_import_that_fails(cli, tmp_path):
    (tmp_path / "bad_syntax.py").write_text("x = (1")
    result = cli("run", "bad_syntax.py:x")
    assert result.exit_code == 1
    assert "bad_syntax.py" in result.stderr
    assert "pipedag_core" not in result.stderr


def test_a_reader_that_goes_away_does_not_disturb_the_run(cli, tmp_path):
    read, write = os.pipe()
    os.close(read)
    assert called("run", "demo.py:make", stdout=write) == ""
    os.close(write)
    assert "succeeded" in cli("status").stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "demo.py:make", "-i", "nope"], 2, "so the only instance is 'default'"),
        (["run", "demo.py:make", "--engine", "dask"], 2, "--engine"),
        (["run", "demo.py:mke"], 2, "Did you mean make?"),
        (["run", "demo.py:make", "--mode", "sometimes"], 2, "is not one of normal"),
        (["run", "demo.py:make", "--stage", "inputs", "--task", "inputs.load"], 2, "not both"),
        (["run", "demo.py:make", "--task", "load"], 2, "write STAGE.load"),
        (["run", "demo.py:make", "--stage", "inptus"], 2, "inputs"),
        (["run", "demo.py:make", "--config", "nothing.yaml"], 2, "cannot be read"),
        (["run", "demo.py:make", "-i", "full", "-c", "broken.yaml"], 2, "named nowhere"),
        (["run", "raises.py:make"], 1, "undefined_name"),
        (["status"], 2, "Nothing has run yet"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_usage_is_told_with_an_exit_code(cli, args, code, message):
    result = cli(*args)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr or code == 1


def test_a_plan_is_shown_and_written_as_json(cli):
    shown = cli("plan", "demo.py:make")
    assert "task:features.joined" in shown.stdout
    raw = json.loads(cli("plan", "demo.py:make", "--json").stdout)
    assert (raw["flow"], raw["source"]) == ("demo", "demo.py:make")


def test_a_plan_learns_names_of_tables_from_an_instance(cli):
    assert cli("plan", "demo.py:make", "--json", "--learn", "default").exit_code == 2
    cli("run", "demo.py:make")
    raw = json.loads(cli("plan", "demo.py:make", "--json", "--learn", "default").stdout)
    assert {task["task"]: task["outputs"] for task in raw["tasks"]} == {"load": ["names", "ages"], "joined": ["joined"]}


def test_a_flow_is_drawn(cli):
    assert cli("graph", "demo.py:make").stdout.startswith("flowchart")
    assert cli("graph", "demo.py:make", "--format", "dot").stdout.startswith("digraph")
    assert cli("graph", "demo.py:make", "--format", "png").exit_code == 2


def test_steps_are_carried_out_one_by_one_and_reported_as_json(cli, tmp_path):
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    steps = [step["id"] for step in json.loads((tmp_path / "plan.json").read_text())["steps"]]
    reports = []
    for step in steps:
        result = cli("step", "plan.json", step, "--run-id", "r1")
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    assert [report["outcome"] for report in reports if report["task"]] == ["ran", "ran"]
    assert "loading" not in "".join(map(json.dumps, reports))
    assert cli("show", "features.joined").exit_code == 0


def test_a_step_that_is_not_in_the_plan_is_wrong_usage(cli, tmp_path):
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    result = cli("step", "plan.json", "task:features.jined", "--run-id", "r1")
    assert (result.exit_code, "Did you mean task:features.joined" in result.stderr) == (2, True)


def test_a_failing_step_ends_with_exit_code_1_and_a_step_that_waits_with_75(cli, tmp_path):
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    assert cli("step", "plan.json", "open:inputs", "--run-id", "r1").exit_code == 0
    waiting = cli("step", "plan.json", "open:inputs", "--run-id", "r2")
    assert (waiting.exit_code, json.loads(waiting.stdout)["outcome"]) == (75, "waiting")
    assert cli("step", "plan.json", "commit:inputs", "--run-id", "r1").exit_code == 1


def test_finishing_a_failed_run_ends_with_exit_code_1(cli, tmp_path):
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    cli("step", "plan.json", "open:inputs", "--run-id", "r1")
    finished = cli("step", "plan.json", "finish", "--run-id", "r1")
    assert (finished.exit_code, json.loads(finished.stdout)["reason"]) == (1, "failed")


def test_a_step_that_waits_says_for_whom_how_long_and_how_to_free_the_stage(cli, tmp_path):
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    cli("step", "plan.json", "open:inputs", "--run-id", "r1")
    reason = json.loads(cli("step", "plan.json", "open:inputs", "--run-id", "r2").stdout)["reason"]
    assert "run r1, steps in many processes" in reason
    assert "for at most 5 h 59 min" in reason
    assert "pipedag step PLAN.json finish --run-id r1" in reason
    assert cli("step", "plan.json", "finish", "--run-id", "r1").exit_code == 1
    assert cli("step", "plan.json", "open:inputs", "--run-id", "r2").exit_code == 0


def test_a_plan_that_cannot_be_read_is_named_with_the_place(cli, tmp_path):
    (tmp_path / "plan.json").write_text('{"a": 1,\n "b"}')
    result = cli("step", "plan.json", "finish", "--run-id", "r1")
    assert (result.exit_code, "plan.json, line 2 column 5: " in result.stderr) == (2, True)


def test_status_leaves_older_generations_out_unless_they_are_asked_for(cli, tmp_path):
    cli("run", "demo.py:make")
    (tmp_path / "plan.json").write_text(cli("plan", "demo.py:make", "--json").stdout)
    cli("step", "plan.json", "open:inputs", "--run-id", "r1")
    assert states(cli("status")) == ["current", "current", "open"]
    cli("step", "plan.json", "finish", "--run-id", "r1")
    assert states(cli("status")) == ["current", "current"]
    assert states(cli("status", "--all")) == ["current", "current", "failed"]


def states(result):
    """Return the states of the generations that `status` shows, sorted."""
    rows = result.stdout.partition("generations")[2].partition("leases")[0].strip().splitlines()[2:]
    return sorted(row.split()[2] for row in rows if row)


def test_a_run_whose_process_is_gone_is_shown_as_died(cli):
    Path("dies.py").write_text(Path("demo.py").read_text().replace('print("loading")', "__import__('os')._exit(9)"))
    called("run", "dies.py:make", check=9)
    shown = cli("status").stdout
    assert " died " in shown
    assert " running " not in shown


def called(*args, stdout=subprocess.DEVNULL, check=0):
    """Call the command in a process of its own, and return what it wrote to standard error."""
    env = {**os.environ, "PYTHONPATH": str(Path(pipedag_core.__file__).parents[1])}
    env.pop("PYTHONUNBUFFERED", None)
    code = "from pipedag_core.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *args], stdout=stdout, stderr=subprocess.PIPE, env=env, text=True, check=False)
    assert done.returncode == check, done.stderr
    return done.stderr


def test_a_catalog_opened_for_looking_refuses_writing_and_makes_nothing(cli, tmp_path):
    cli("run", "demo.py:make")
    catalog = SqliteCatalog(tmp_path / ".pipedag/default/catalog.sqlite", read_only=True)
    (run,) = catalog.runs()
    assert run.state == "succeeded"
    with pytest.raises(CatalogError, match="cannot be written"):
        catalog.begin_run(replace(run.info, run_id="another"))
    catalog.close()
    with pytest.raises(CatalogError, match="cannot be opened"):
        SqliteCatalog(tmp_path / "nowhere" / "catalog.sqlite", read_only=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="the super-user may write everywhere")
def test_status_and_show_work_where_nothing_can_be_written(cli, tmp_path):
    cli("run", "demo.py:make")
    folder = tmp_path / ".pipedag/default"
    folder.chmod(0o555)
    try:
        assert "succeeded" in cli("status").stdout
        assert "Alice" in cli("show", "joined").stdout
    finally:
        folder.chmod(0o755)


def test_status_shows_runs_generations_and_what_a_run_did(cli):
    cli("run", "demo.py:make")
    shown = cli("status").stdout
    assert "succeeded" in shown
    assert "features" in shown
    run_id = next(line for line in shown.splitlines() if "succeeded" in line).split()[0]
    log = cli("status", run_id[:8]).stdout
    assert "inputs.load" in log
    assert "features.joined" in log
    assert cli("status", "nothing").exit_code == 2


def test_a_table_is_shown_by_its_readable_name(cli):
    cli("run", "demo.py:make")
    shown = cli("show", "Joined", "--limit", "2").stdout
    assert "features.joined: 3 rows x 2 columns" in shown
    assert "Alice" in shown
    assert "Charlie" not in shown
    assert "Did you mean features.joined?" in cli("show", "joned").stderr


def test_an_empty_text_is_shown_as_another_thing_than_none(cli):
    cli("run", "demo.py:has_gaps")
    assert cli("show", "gaps").stdout.splitlines()[-3:] == ["", "null", "x"]


def test_clean_up_says_what_it_removed(cli):
    cli("run", "demo.py:make")
    assert cli("gc").stdout == "instance default: 0 tables and blobs removed\n"


def test_the_log_is_written_when_it_is_asked_for(cli):
    assert cli("--version").stdout.startswith("pipedag-core ")


def test_the_query_of_a_table_is_printed_with_readable_names_and_can_be_pasted(cli, tmp_path):
    (tmp_path / "queries.py").write_text(
        "import pyarrow as pa, sqlalchemy as sa\n"
        "from pipedag_core import Flow, Stage, materialize\n"
        "rows = materialize(lambda: pa.table({'id': [1, 2, 3]}), name='rows', version='1')\n"
        "large = materialize(lambda t: sa.select(t.c.id).where(t.c.id > 1), name='large', lazy=True, input_type=sa.Table)\n"
        "with Flow('f') as flow:\n"
        "    with Stage('a'):\n"
        "        table = rows()\n"
        "    with Stage('b'):\n"
        "        large(table)\n"
    )
    assert cli("run", "queries.py:flow").exit_code == 0
    text = cli("sql", "large").stdout
    assert '"a"."rows"' in text
    assert text.startswith("SELECT\n")
    import duckdb

    with duckdb.connect(str(next(tmp_path.rglob("explore.duckdb"))), read_only=True) as connection:
        assert connection.execute(text).fetchall() == [(2,), (3,)]
    refused = cli("sql", "a.rows")
    assert refused.exit_code != 0
    assert "not made by a query" in refused.stderr


def test_a_stage_goes_back_and_forth(cli):
    cli("run", "demo.py:make")
    refused = cli("rollback", "features")
    assert (refused.exit_code, "no generation before its current one, 1" in refused.stderr) == (1, True)
    code = Path("demo.py").read_text()
    Path("changed.py").write_text(code.replace('version="1', 'version="2'))
    cli("run", "changed.py:make", "--mode", "force_cache_invalid")
    back = cli("rollback", "FEATURES")
    assert (back.exit_code, back.stdout) == (0, "stage features is back, as generation 3\n"), back.output
    assert "rollback of features" in cli("status").stdout
    again = cli("rollback", "features", "--to", "1")
    assert again.stdout == "stage features is so already, in generation 3\n"
    assert cli("rollback", "features", "--to", "7").exit_code == 1


def test_going_back_needs_something_that_has_run(cli):
    result = cli("rollback", "features")
    assert (result.exit_code, "Nothing has run yet" in result.stderr) == (2, True)
