"""Generated DAGs, run by Airflow in this process."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from pipedag_core import PipedagConfig
from pipedag_core.config.wire import open_catalog
from tests.adapters.airflow import flows

pytestmark = pytest.mark.usefixtures("modules")

GENERATE = ("airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "small_flow.py").write_text(flows.SMALL)
    (folder / "pipedag.yaml").write_text(flows.PARQUET)
    return folder


@pytest.fixture
def dag(project, pipedag, load_dag):
    def make(*options):
        pipedag(project, *GENERATE, *options)
        bag = load_dag(project / "dags")
        assert bag.import_errors == {}
        (dag,) = bag.dags.values()
        return dag

    return make


def calls(project):
    return (project / "calls").read_text().split() if (project / "calls").exists() else []


def xcom(instance):
    return instance.xcom_pull(task_ids=instance.task_id)


def states(tasks):
    return {id: str(task.state) for id, task in tasks.items()}


def shown(project, tables_of):
    return {
        stage: {name: frame.to_dicts() for name, frame in tables.items()}
        for stage, tables in tables_of(PipedagConfig(project / "pipedag.yaml").get("full", "small")).items()
    }


@pytest.fixture
def told(caplog, capfd):
    """All that was logged or written up to now: Airflow does both."""
    heard = []

    def read():
        out, err = capfd.readouterr()
        heard.extend([out, err])
        return "".join([*heard, caplog.text])

    return read


@contextmanager
def catalog_of(project):
    catalog = open_catalog(PipedagConfig(project / "pipedag.yaml").get("full", "small"))
    try:
        yield catalog
    finally:
        catalog.close()


def test_a_dag_makes_the_tables_of_its_flow_and_the_second_run_finds_them(project, dag, run_dag, tables_of):
    made = dag()
    done, tasks = run_dag(made)
    assert str(done.state) == "success"
    assert set(states(tasks).values()) == {"success"}
    assert shown(project, tables_of) == {
        "raw": {"numbers": [{"x": 1}, {"x": 2}, {"x": 3}]},
        "features": {"doubled": [{"y": 2}, {"y": 4}, {"y": 6}], "total": [{"total": 12}]},
    }
    assert calls(project) == ["numbers", "total"]
    done, tasks = run_dag(made)
    assert str(done.state) == "success"
    assert calls(project) == ["numbers", "total"]


@pytest.mark.parametrize(("granularity", "operators"), [("stage", {"raw", "features", "finish_run"}), ("flow", {"small"})])
def test_larger_operators_make_the_same_tables(project, dag, run_dag, tables_of, granularity, operators):
    done, tasks = run_dag(dag("--granularity", granularity))
    assert (str(done.state), set(tasks)) == ("success", operators)
    assert shown(project, tables_of)["features"]["total"] == [{"total": 12}]
    assert calls(project) == ["numbers", "total"]
    assert len(xcom(tasks[min(operators)])["run_id"]) == len("airflow-") + 24


def test_a_failing_task_fails_the_run_and_gives_its_stage_back(project, dag, run_dag):
    (project / "total.fails").touch()
    done, tasks = run_dag(dag())
    assert str(done.state) == "failed"
    assert states(tasks) == {
        "raw.open_stage": "success",
        "raw.numbers": "success",
        "raw.commit_stage": "success",
        "raw.close_stage": "success",
        "features.open_stage": "success",
        "features.doubled": "success",
        "features.total": "failed",
        "features.commit_stage": "upstream_failed",
        "features.close_stage": "success",
        "finish_run": "success",
    }
    assert xcom(tasks["raw.close_stage"])["reason"] == "nothing was open"
    assert xcom(tasks["features.close_stage"])["reason"] == "features g1 given up"
    assert xcom(tasks["finish_run"])["reason"] == "failed"
    with catalog_of(project) as catalog:
        assert catalog.leases() == []
        assert [(row.state, row.info.external_id) for row in catalog.runs()] == [("failed", f"small_full/{done.run_id}")]


@pytest.mark.parametrize("granularity", ["stage", "flow"])
def test_a_larger_operator_that_fails_at_last_leaves_nothing_open(project, dag, run_dag, granularity):
    (project / "total.fails").touch()
    done, _ = run_dag(dag("--granularity", granularity))
    assert str(done.state) == "failed"
    with catalog_of(project) as catalog:
        assert catalog.leases() == []
        assert {(row.stage, row.state) for row in catalog.generations()} == {("raw", "committed"), ("features", "failed")}


def test_the_report_is_small_and_says_what_happened(project, dag, run_dag):
    made = dag()
    _, first = run_dag(made)
    _, second = run_dag(made)
    report = xcom(first["raw.numbers"])
    assert (report["outcome"], report["rows"], report["tables"]) == ("ran", 3, ["numbers"])
    assert xcom(second["raw.numbers"])["outcome"] == "cached"
    assert (xcom(first["raw.commit_stage"])["changed"], xcom(second["raw.commit_stage"])["changed"]) == (1, 0)
    assert xcom(second["features.commit_stage"])["outcome"] == "unchanged"


def test_the_mode_is_a_parameter_of_the_run(project, dag, run_dag):
    made = dag()
    run_dag(made)
    done, _ = run_dag(made, run_conf={"cache_validation_mode": "force_cache_invalid"})
    assert str(done.state) == "success"
    assert calls(project) == ["numbers", "total"] * 2


def test_some_stages_may_be_chosen_for_a_run(project, dag, run_dag):
    made = dag()
    run_dag(made)
    done, tasks = run_dag(made, run_conf={"stages": ["features"], "cache_validation_mode": "force_cache_invalid"})
    assert str(done.state) == "success"
    assert {id for id, state in states(tasks).items() if state == "skipped"} == {id for id in tasks if id.startswith("raw.")}
    assert calls(project) == ["numbers", "total", "total"]
    assert xcom(tasks["finish_run"])["reason"] == "succeeded"


def test_another_interpreter_does_the_work(project, dag, run_dag, tables_of):
    import sys

    done, tasks = run_dag(dag("--python", sys.executable))
    assert str(done.state) == "success"
    assert shown(project, tables_of)["features"]["total"] == [{"total": 12}]
    assert xcom(tasks["raw.numbers"])["rows"] == 3
    assert "small_flow" not in sys.modules


def test_a_command_that_fails_shows_its_last_lines(project, dag, run_dag, told):
    import sys

    (project / "numbers.fails").touch()
    done, tasks = run_dag(dag("--command", f"{sys.executable} -m pipedag_core.cli"))
    assert (str(done.state), str(tasks["raw.numbers"].state)) == ("failed", "failed")
    assert "ValueError: numbers was told to fail" in told()
    with catalog_of(project) as catalog:
        assert catalog.leases() == []


@pytest.mark.parametrize("python", [False, True])
def test_code_that_is_wired_differently_is_refused_at_once(project, dag, run_dag, told, python):
    import sys

    made = dag(*(["--python", sys.executable] if python else []))
    source = (project / "small_flow.py").read_text()
    (project / "small_flow.py").write_text(source.replace("total(doubled(table))", "total(doubled(doubled(table)))"))
    for task in made.tasks:
        task.retries = 5
    done, tasks = run_dag(made)
    assert (str(done.state), str(tasks["raw.open_stage"].state)) == ("failed", "failed")
    assert "task:features.doubled_2" in told()
    assert "Generate the DAG file again" in told() or "as its header says" in told()
    for task in made.tasks:
        task.allow_drift, task.retries = True, 0
    done, tasks = run_dag(made)
    # What the code has more than the DAG is missed by the task that needs it.
    assert states(tasks)["raw.commit_stage"] == "success"
    assert states(tasks)["features.total"] == "failed"


def test_an_unknown_instance_is_not_tried_again(project, dag, run_dag, told):
    made = dag()
    for task in made.tasks:
        task.retries, task.instance = 5, "fool"
    done, tasks = run_dag(made)
    assert (str(done.state), str(tasks["raw.open_stage"].state)) == ("failed", "failed")
    assert "There are: full." in told()


def test_fields_may_be_templates_and_those_that_are_none_are_not_stored_for_each_try(project, dag, run_dag):
    made = dag()
    made.get_task("raw.open_stage").instance = "{{ 'fu' ~ 'll' }}"
    made.get_task("raw.numbers").environment = {"DAY": "{{ ds }}"}
    done, _ = run_dag(made, logical_date=datetime(2026, 1, 31, tzinfo=UTC))
    assert str(done.state) == "success"
    assert rendered("small_full", done.run_id) == {
        "raw.open_stage": {"instance": "full"},
        "raw.numbers": {"environment": {"DAY": "2026-01-31"}},
    }


def rendered(dag_id, run_id):
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.scalars(select(RenderedTaskInstanceFields).where(RenderedTaskInstanceFields.run_id == run_id))
        return {row.task_id: row.rendered_fields for row in rows if row.dag_id == dag_id}


def test_killing_a_task_ends_its_command_and_the_closing_gives_the_stage_back(project, dag):
    import os
    import sys
    import time
    from concurrent.futures import ThreadPoolExecutor
    from types import SimpleNamespace

    from airflow.sdk.exceptions import AirflowException

    from pipedag_airflow.work import Worker

    made = dag("--python", sys.executable)
    context = {"ti": SimpleNamespace(dag_id="small_full", run_id="r", try_number=1, max_tries=0), "params": {}}

    def work(task_id):
        task = made.get_task(task_id)
        task._worker = Worker(task, context)
        return task._worker.work()

    (project / "numbers.hangs").touch()
    assert work("raw.open_stage")["outcome"] == "opened"
    with ThreadPoolExecutor() as pool:
        try:
            at_work = pool.submit(work, "raw.numbers")
            while not ((project / "numbers.pid").exists() and (project / "numbers.pid").read_text()):
                assert not at_work.done()
                time.sleep(0.1)
            made.get_task("raw.numbers").on_kill()
            with pytest.raises(AirflowException, match="was ended by signal 15"):
                at_work.result(60)
        finally:
            (project / "numbers.hangs").unlink()
    with pytest.raises(ProcessLookupError):
        os.kill(int((project / "numbers.pid").read_text()), 0)
    assert work("raw.close_stage")["reason"] == "raw g1 given up"
    with catalog_of(project) as catalog:
        assert catalog.leases() == []


def test_a_file_that_was_told_to_goes_on_with_code_that_is_wired_differently(project, dag, run_dag):
    made = dag("--allow-drift")
    source = (project / "small_flow.py").read_text()
    (project / "small_flow.py").write_text(source.replace('"x": [1, 2, 3]', '"x": [1, 2]').replace("total(doubled(table))", "total(table)"))
    done, tasks = run_dag(made)
    # What is gone from the code cannot be carried out, but what is still there is.
    assert states(tasks)["raw.commit_stage"] == "success"
    assert str(done.state) == "failed"


def test_a_step_that_has_to_wait_comes_back_later(project, dag, run_dag, told):
    import threading

    from pipedag_core.runner import execute_reference

    made = dag()
    for task in made.tasks:
        task.wait_interval = 0.5
    config = PipedagConfig(project / "pipedag.yaml")
    flow = f"{project / 'small_flow.py'}:flow"

    def other(step):
        return execute_reference(flow, step, run_id="other", instance="full", config=config)

    assert other("open:raw").outcome.value == "opened"
    timer = threading.Timer(4.0, lambda: other("finish"))
    timer.start()
    try:
        done, tasks = run_dag(made)
    finally:
        timer.join()
    assert (str(done.state), tasks["raw.open_stage"].try_number) == ("success", 1)
    assert "the slot is free until then" in told()


def asset_events(dag_id):
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.execute(
            select(AssetModel.uri, AssetEvent.extra)
            .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            .where(AssetEvent.source_dag_id == dag_id)
            .order_by(AssetEvent.id)
        )
        found = {}
        for uri, extra in rows:
            found.setdefault(uri.removeprefix("x-pipedag://"), []).append(extra)
        return found


@pytest.mark.parametrize(("events", "second"), [("always", 3), ("changed", 0)])
def test_tables_are_assets_whose_events_come_with_the_commit(project, dag, run_dag, events, second):
    made = dag("--events", events, "--dag-id", f"events_{events}")
    run_dag(made)
    found = asset_events(f"events_{events}")
    assert set(found) == {"small/full/raw/numbers", "small/full/features/doubled", "small/full/features/total"}
    (extra,) = found["small/full/raw/numbers"]
    assert (extra["rows"], extra["changed"], extra["generation"], bool(extra["identity"])) == (3, True, 1, True)
    assert extra["run_id"].startswith("airflow-")
    run_dag(made)
    again = [extra for extras in asset_events(f"events_{events}").values() for extra in extras[1:]]
    assert len(again) == second
    assert {extra["changed"] for extra in again} <= {False}


def test_the_url_of_the_store_can_come_from_a_connection(project, dag, run_dag, postgres_url, schema_prefix, monkeypatch):
    (project / "pipedag.yaml").write_text(
        f"""
name: small
instances:
  full:
    table_store:
      class: sql
      args: {{url: "{{$STORE_URL}}", schema_prefix: "{schema_prefix}{{instance_id}}_"}}
    blob_store:
      class: file
      args: {{base_path: "blobs/{{instance_id}}"}}
"""
    )
    monkeypatch.setenv("STORE_URL", postgres_url)
    made = dag("--connection", "STORE_URL=warehouse", "--dag-id", "by_connection")
    monkeypatch.delenv("STORE_URL")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", postgres_url)
    done, _ = run_dag(made)
    assert str(done.state) == "success"
    assert "STORE_URL" not in __import__("os").environ
    assert postgres_url not in (project / "dags" / "by_connection.py").read_text()
    monkeypatch.setenv("STORE_URL", postgres_url)
    with catalog_of(project) as catalog:
        assert set(catalog.shown()["features"]) == {"doubled", "total"}
