"""A DAG whose tasks log to MLflow: Airflow and MLflow in environments of their own, so tasks run with the interpreter that has MLflow."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.adapters.airflow import flows

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-mlflow" / "bin" / "python"

pytestmark = [
    pytest.mark.usefixtures("modules"),
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="MLflow is in an environment of its own, which is not there: make test-mlflow makes it"),
]

#: Says what MLflow has of a flow's runs.
LOOK = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
runs = client.search_runs([client.get_experiment_by_name(sys.argv[2]).experiment_id])
print(json.dumps([[run.info.status, run.data.tags, run.data.metrics, len(run.inputs.dataset_inputs)] for run in runs]))
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}.items():
        monkeypatch.setenv(name, value)


def run_in_airflow(folder, load_dag, run_dag):
    """Run the only DAG of a folder, which has to succeed."""
    bag = load_dag(folder)
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()
    done, _ = run_dag(dag)
    assert str(done.state) == "success"


def runs_in_mlflow(uri, experiment):
    told = subprocess.run([str(PYTHON), "-c", LOOK, uri, experiment], capture_output=True, text=True, check=True).stdout
    return json.loads(told.splitlines()[-1])


def test_all_tasks_of_a_dag_run_log_to_one_mlflow_run(tmp_path, pipedag, load_dag, run_dag):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    project = tmp_path / "project"
    project.mkdir()
    (project / "small_flow.py").write_text(flows.SMALL)
    observers = f'\n    observers:\n      - {{class: pipedag_mlflow.MlflowObserver, args: {{tracking_uri: "{uri}"}}}}\n'
    (project / "pipedag.yaml").write_text(flows.PARQUET.rstrip() + observers)
    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags", "--python", str(PYTHON))
    run_in_airflow(project / "dags", load_dag, run_dag)
    [[status, tags, metrics, datasets]] = runs_in_mlflow(uri, "small")
    assert (status, tags["pipedag.orchestrator"]) == ("FINISHED", "airflow")
    assert (metrics["tasks/ran"], datasets) == (3, 3)
    assert {name for name in metrics if name.startswith("rows/")} == {"rows/raw.numbers", "rows/features.doubled", "rows/features.total"}


def test_the_flights_in_airflow_are_documented_in_one_mlflow_run(tmp_path, pipedag, load_dag, run_dag):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = yaml.safe_load((ROOT / "dags" / "pipedag.yaml").read_text())
    demo = settings["instances"]["demo"]
    demo["attrs"] |= {"input": {"sample_share": 0.02}, "model": {"iterations": 20}}
    demo["observers"][0]["args"]["tracking_uri"] = uri
    project = tmp_path / "project"
    shutil.copytree(ROOT / "dags" / "pipelines", project / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "pipedag.yaml").write_text(yaml.safe_dump(settings))
    words = ["--instance", "demo", "-o", "dags", "--python", str(PYTHON), "--granularity", "stage"]
    pipedag(project, "airflow", "generate", "pipelines.flights:get_pipeline", *words)
    run_in_airflow(project / "dags", load_dag, run_dag)
    [[status, tags, metrics, _]] = runs_in_mlflow(uri, "flights")
    assert (status, tags["pipedag.orchestrator"], metrics["tasks/hit_ratio"]) == ("FINISHED", "airflow", 0)
    assert metrics["tasks/ran"] > 15
    assert {"train/ROC AUC", "test/ROC AUC"} <= set(metrics)
