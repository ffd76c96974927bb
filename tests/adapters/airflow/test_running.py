"""Generated DAGs, run by Airflow in this process."""

from __future__ import annotations

import pytest

from pipedag_core import PipedagConfig
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
