"""Jobs whose steps run in processes of their own, with a Dagster home on disk: a stage in each, or a task; one of them is killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import dagster as dg
import polars as pl
import pytest
import yaml

from pipedag_core import PipedagConfig
from pipedag_core.config.wire import open_session
from pipedag_core.looking import stored_value
from tests.architecture.house import ROOT

PIPELINE = textwrap.dedent(
    """
    import os, pathlib, signal
    import polars as pl
    from pipedag_core import Flow, Stage, materialize

    PLACE = pathlib.Path(__file__).parent

    def note(what):
        with (PLACE / "calls.txt").open("a") as file:
            file.write(what + "\\n")

    @materialize()
    def orders() -> pl.DataFrame:
        note("orders")
        return pl.DataFrame({"x": [1, 2, 3]})

    @materialize(version="1", input_type=pl.DataFrame)
    def safe(table) -> pl.DataFrame:
        note("safe")
        return table * 10

    @materialize(version="1", input_type=pl.DataFrame)
    def deadly(table, safe) -> pl.DataFrame:
        note("deadly")
        if not (PLACE / "spare.txt").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return safe.sum()

    @materialize(input_type=pl.DataFrame)
    def last(table) -> pl.DataFrame:
        note("last")
        return table + 1

    with Flow("lives") as flow:
        with Stage("raw"):
            table = orders()
        with Stage("marts"):
            total = deadly(table, safe(table))
        with Stage("reports"):
            last(total)
    """
)
#: Two tasks of one stage that end only if they are at work at the same time, and what comes after them, and beside.
PAIR = textwrap.dedent(
    """
    import os, pathlib, time
    import polars as pl
    from pipedag_core import Flow, Stage, Table, materialize

    PLACE = pathlib.Path(__file__).parent

    def note(what):
        with (PLACE / "calls.txt").open("a") as file:
            file.write(what + "\\n")

    def meet(me, other):
        note(me)
        (PLACE / f"{me}.here").touch()
        for _ in range(1200):
            if (PLACE / f"{other}.here").exists():
                return pl.DataFrame({"name": [me], "process": [os.getpid()]})
            time.sleep(0.1)
        raise TimeoutError(f"{other} did not come")

    @materialize()
    def left() -> pl.DataFrame:
        table = meet("left", "right")
        if (PLACE / "fail.txt").exists():
            raise ValueError("left has no table today")
        return table

    @materialize()
    def right() -> pl.DataFrame:
        return meet("right", "left")

    @materialize(input_type=pl.DataFrame)
    def both(left, right) -> Table:
        note("both")
        return Table(pl.concat([left, right, pl.DataFrame({"name": ["both"], "process": [os.getpid()]})]), primary_key="name")

    @materialize(input_type=pl.DataFrame)
    def last(both) -> pl.DataFrame:
        note("last")
        return both

    @materialize()
    def alone() -> pl.DataFrame:
        note("alone")
        return pl.DataFrame({"x": [1]})

    with Flow("lives") as flow:
        with Stage("pairs"):
            total = both(left(), right())
        with Stage("reports"):
            last(total)
        with Stage("apart"):
            alone()
    """
)
LAUNCH = textwrap.dedent(
    """
    import os
    import dagster as dg
    from pipedag_dagster import build_definitions

    defs = build_definitions("lives:flow", "full", granularity=os.environ["GRANULARITY"])

    def job():
        return defs.resolve_job_def("lives_full")

    CONFIG = {"execution": {"config": {"multiprocess": {
        "max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": ["dagster", "pipedag_dagster.definitions"]}}}}}}

    def main(failed=None):
        with dg.DagsterInstance.get() as instance:
            again = None if failed is None else dg.ReexecutionOptions.from_failure(failed, instance)
            with dg.execute_job(dg.reconstructable(job), instance, run_config=CONFIG, reexecution_options=again) as result:
                print(result.run_id)
    """
)


@pytest.fixture(params=["parquet", "postgres"])
def project(request, tmp_path, monkeypatch):
    """A folder with a flow, its configuration and a Dagster home, in which the test works."""
    folder = tmp_path / "project"
    home = tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    store = {"class": "parquet", "args": {"base_path": "store/{instance_id}"}}
    if request.param == "postgres":
        url, prefix = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema_prefix")
        store = {"class": "sql", "args": {"url": url, "schema_prefix": prefix + "{instance_id}_"}}
    (folder / "pipedag.yaml").write_text(yaml.safe_dump({"instances": {"full": {"table_store": store}}}))
    (folder / "lives.py").write_text(PIPELINE)
    (folder / "launch.py").write_text(LAUNCH)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.chdir(folder)
    return folder


def launch(folder, granularity, failed=None):
    """Run the job in a process of its own, all of it or from its failure; return the id of its run."""
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "adapters")])
    env = {**os.environ, "PYTHONPATH": path, "GRANULARITY": granularity}
    code = f"import launch; launch.main({failed!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def calls(folder):
    """Return which tasks were called since the last look."""
    file = folder / "calls.txt"
    told = file.read_text().split()
    file.unlink()
    return told


def materialized(instance, run_id):
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return sorted(event.asset_key.to_user_string() for event in (entry.dagster_event for entry in events))


def state(folder):
    with open_session(PipedagConfig(folder / "pipedag.yaml").get("full")) as session:
        return session.catalog.runs(10), session.catalog.leases(), session.catalog.shown()


def test_a_job_whose_process_was_killed_goes_on_from_there(project, granularity):
    first = launch(project, granularity)
    assert sorted(calls(project)) == ["deadly", "orders", "safe"]
    with dg.DagsterInstance.get() as instance:
        assert instance.get_run_by_id(first).status is dg.DagsterRunStatus.FAILURE
        assert materialized(instance, first) == ["raw/orders"]
        runs, leases, shown = state(project)
        assert (len(runs), [lease.stage for lease in leases], list(shown)) == (1, ["marts"], ["raw"])

        (project / "spare.txt").touch()
        second = launch(project, granularity, failed=first)
        # What was finished is neither called nor lost; the lease of the dead process is the run's own.
        assert calls(project) == ["deadly", "last"]
        assert instance.get_run_by_id(second).status is dg.DagsterRunStatus.SUCCESS
        assert materialized(instance, second) == ["marts/deadly", "marts/safe", "reports/last"]
        runs, leases, shown = state(project)
        assert [(run.info.run_id, run.state) for run in runs] == [(instance.get_run_by_id(first).tags["pipedag/run_id"], "succeeded")]
        assert leases == []
        assert {stage: sorted(tables) for stage, tables in shown.items()} == {
            "raw": ["orders"],
            "marts": ["deadly", "safe"],
            "reports": ["last"],
        }


def rows(folder, stage, table):
    return stored_value(stage, table, pl.DataFrame, config=PipedagConfig(folder / "pipedag.yaml").get("full"))


def test_tasks_of_a_stage_are_spread_over_processes_and_committed_at_once(project):
    (project / "lives.py").write_text(PAIR)
    (project / "fail.txt").touch()
    first = launch(project, "task")
    assert sorted(calls(project)) == ["alone", "left", "right"]
    with dg.DagsterInstance.get() as instance:
        assert instance.get_run_by_id(first).status is dg.DagsterRunStatus.FAILURE
        # What depends on nothing that failed is committed; the stage of the failed task is given back with the last of its tasks.
        assert materialized(instance, first) == ["apart/alone"]
        runs, leases, shown = state(project)
        assert ([run.state for run in runs], leases, list(shown)) == (["failed"], [], ["apart"])

        (project / "fail.txt").unlink()
        second = launch(project, "task", failed=first)
        # What has no version, and so is never found again, is still there within the run.
        assert calls(project) == ["left", "both", "last"]
        assert materialized(instance, second) == ["pairs/both", "pairs/left", "pairs/right", "reports/last"]
        steps = {event.step_key for event in instance.all_logs(second, of_type=dg.DagsterEventType.STEP_SUCCESS)}
        assert steps == {
            *(f"lives__full__pairs.{name}" for name in ("task_left", "task_both", "commit")),
            *(f"lives__full__reports.{name}" for name in ("open", "task_last", "commit")),
        }
    runs, leases, shown = state(project)
    assert ([(run.state, run.attempt) for run in runs], leases) == ([("succeeded", 2)], [])
    assert rows(project, "reports", "last")["name"].to_list() == ["left", "right", "both"]
    assert rows(project, "pairs", "both")["process"].n_unique() == 3
