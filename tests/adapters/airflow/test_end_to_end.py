"""Generated DAGs on a running Airflow. Takes minutes: `make e2e-airflow`."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from pipedag_core import PipedagConfig
from tests.adapters.airflow import flows
from tests.adapters.airflow.conftest import environment
from tests.adapters.airflow.stack import Stack

pytestmark = [
    pytest.mark.skipif("PIPEDAG_LONG_TESTS" not in os.environ, reason="takes minutes: make e2e-airflow"),
    pytest.mark.timeout(900),
]

#: Tasks at the same time.
SLOTS = 2

CONFIG = """
name: small
instances:
  full:
    table_store:
      class: parquet
      args: {base_path: "store/{instance_id}"}
    adapters:
      airflow:
        dag: {max_active_runs: 2}
        default_args: {retries: 1, retry_delay: 1s, wait_interval: 1}
        tasks:
          raw.numbers: {retry_delay: 40s}
          beside.numbers: {retry_delay: 40s}
"""

#: Runs when a table of the generated DAG changes.
FOLLOWER = """
from airflow.sdk import DAG, Asset, task

with DAG(dag_id="follower", schedule=[Asset("x-pipedag://small/full/features/total")], catchup=False):

    @task
    def read(triggering_asset_events=None):
        return [event.extra["rows"] for events in triggering_asset_events.values() for event in events]

    read()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def project(place):
    # The project lies in the DAG folder, as it does where a DAG bundle holds both.
    folder = place / "home" / "dags" / "project"
    folder.mkdir(parents=True)
    (folder / "small_flow.py").write_text(flows.TWO)
    (folder / "pipedag.yaml").write_text(CONFIG)
    (folder / ".airflowignore").write_text("small_flow.py\n")
    return folder


@pytest.fixture(scope="module")
def airflow(place, project):
    import subprocess

    (project.parent / "follower.py").write_text(FOLLOWER)
    words = ["airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags", "--events", "changed"]
    subprocess.run([sys.executable, "-m", "pipedag_core.cli", *words], cwd=project, env=environment(), check=True)
    stack = Stack(place / "home", environment(), SLOTS)
    try:
        stack.start()
        stack.knows("small_full")
        stack.knows("follower")
        yield stack
    finally:
        stack.stop()


def calls(project):
    return (project / "calls").read_text().split() if (project / "calls").exists() else []


def test_a_run_makes_the_tables_of_a_run_in_one_process_and_others_follow(airflow, project, tables_of, tmp_path):
    import shutil
    import subprocess

    run = airflow.trigger("small_full")
    assert airflow.end("small_full", run) == "success"
    assert {item["state"] for item in airflow.tasks("small_full", run).values()} == {"success"}
    other = tmp_path / "other"
    other.mkdir()
    for name in ("small_flow.py", "pipedag.yaml"):
        shutil.copy(project / name, other / name)
    words = ["run", "small_flow:flow", "--instance", "full"]
    subprocess.run([sys.executable, "-m", "pipedag_core.cli", *words], cwd=other, env=environment(), check=True)

    def tables(folder):
        found = tables_of(PipedagConfig(folder / "pipedag.yaml").get("full", "small"))
        return {stage: {name: frame.to_dicts() for name, frame in some.items()} for stage, some in found.items()}

    assert tables(project) == tables(other) != {}
    (followed,) = airflow.until(lambda: airflow.runs("follower"), "the follower")
    assert airflow.end("follower", followed["dag_run_id"]) == "success"
    assert airflow.report("follower", followed["dag_run_id"], "read") == [1]
    # Nothing has changed the second time, so nobody follows.
    again = airflow.trigger("small_full")
    assert airflow.end("small_full", again) == "success"
    assert airflow.report("small_full", again, "features.total")["outcome"] == "cached"
    time.sleep(3)
    assert len(airflow.runs("follower")) == 1


def test_a_task_that_fails_once_is_tried_again(airflow, project):
    (project / "total.fails_once").touch()
    run = airflow.trigger("small_full", cache_validation_mode="force_cache_invalid")
    assert airflow.end("small_full", run) == "success"
    tasks = airflow.tasks("small_full", run)
    assert (tasks["features.total"]["try_number"], tasks["features.commit_stage"]["try_number"]) == (2, 1)


def test_a_worker_that_is_killed_in_the_middle_of_a_task_is_replaced(airflow, project):
    (project / "total.hangs").touch()
    (project / "total.pid").unlink(missing_ok=True)
    run = airflow.trigger("small_full", cache_validation_mode="force_cache_invalid")
    airflow.until((project / "total.pid").exists, "the task to hang")
    pid = int(airflow.until((project / "total.pid").read_text, "its process"))
    (project / "total.hangs").unlink()
    os.kill(pid, signal.SIGKILL)
    assert airflow.end("small_full", run) == "success"
    assert airflow.tasks("small_full", run)["features.total"]["try_number"] == 2


def test_a_task_that_is_cleared_runs_again_in_the_same_run(airflow, project):
    run = airflow.trigger("small_full", cache_validation_mode="force_cache_invalid")
    assert airflow.end("small_full", run) == "success"
    before = airflow.report("small_full", run, "features.total")["run_id"]
    count = calls(project).count("numbers")
    body = {"dry_run": False, "dag_run_id": run, "task_ids": ["features.total"], "include_downstream": True, "only_failed": False}
    cleared = airflow.call("/api/v2/dags/small_full/clearTaskInstances", body)["task_instances"]
    # Its stage is opened and closed again with it, and no other one.
    assert {item["task_id"].partition(".")[0] for item in cleared} == {"features", "finish_run"}
    assert "features.doubled" not in {item["task_id"] for item in cleared}
    assert airflow.end("small_full", run) == "success"
    assert airflow.report("small_full", run, "features.total")["run_id"] == before
    assert airflow.tasks("small_full", run)["features.total"]["try_number"] == 2
    assert calls(project).count("numbers") == count


def test_two_runs_at_once_take_turns_with_as_many_waiting_as_there_are_slots(airflow, project):
    # The first run holds two stages and no slot: a task in each of them has failed and will be tried again. The second run opens both: as many
    # tasks wait as there are slots, and if they kept these, the first run could not go on.
    (project / "numbers.fails").touch()
    first = airflow.trigger("small_full", cache_validation_mode="force_cache_invalid")
    numbers = ("raw.numbers", "beside.numbers")
    airflow.until(
        lambda: {airflow.tasks("small_full", first)[id]["state"] for id in numbers} == {"up_for_retry"}, "the first run to fail once"
    )
    second = airflow.trigger("small_full", cache_validation_mode="force_cache_invalid")
    waited = set()

    def both_have_waited():
        tasks = airflow.tasks("small_full", second)
        waited.update(id for id in ("raw.open_stage", "beside.open_stage") if tasks[id]["state"] == "up_for_reschedule")
        return len(waited) == SLOTS

    airflow.until(both_have_waited, "both openings of the second run to wait")
    (project / "numbers.fails").unlink()
    assert airflow.end("small_full", first) == "success"
    assert airflow.end("small_full", second) == "success"
    before, after = airflow.tasks("small_full", first), airflow.tasks("small_full", second)
    assert {before[id]["try_number"] for id in numbers} == {2}
    # Waiting is no failure.
    assert {item["try_number"] for item in after.values()} == {1}
    for stage in ("raw", "beside", "features"):
        assert before[f"{stage}.commit_stage"]["end_date"] <= after[f"{stage}.open_stage"]["end_date"]
    outcomes = {
        airflow.report("small_full", run, f"{stage}.commit_stage")["outcome"] for run in (first, second) for stage in ("raw", "beside")
    }
    assert outcomes <= {"committed", "unchanged"}
