"""A DAG whose tasks log to MLflow: Airflow and MLflow in environments of their own, so tasks run with the interpreter that has MLflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

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
runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
print(json.dumps([[run.info.status, run.data.tags, run.data.metrics, len(run.inputs.dataset_inputs)] for run in runs]))
"""


def test_all_tasks_of_a_dag_run_log_to_one_mlflow_run(tmp_path, pipedag, load_dag, run_dag, monkeypatch):
    for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}.items():
        monkeypatch.setenv(name, value)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    project = tmp_path / "project"
    project.mkdir()
    (project / "small_flow.py").write_text(flows.SMALL)
    observers = f'\n    observers:\n      - {{class: pipedag_mlflow.MlflowObserver, args: {{tracking_uri: "{uri}"}}}}\n'
    (project / "pipedag.yaml").write_text(flows.PARQUET.rstrip() + observers)
    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags", "--python", str(PYTHON))
    bag = load_dag(project / "dags")
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()
    done, _ = run_dag(dag)
    assert str(done.state) == "success"
    told = subprocess.run([str(PYTHON), "-c", LOOK, uri], capture_output=True, text=True, check=True).stdout
    [[status, tags, metrics, datasets]] = json.loads(told.splitlines()[-1])
    assert (status, tags["pipedag.orchestrator"]) == ("FINISHED", "airflow")
    assert (metrics["tasks/ran"], datasets) == (3, 3)
    assert {name for name in metrics if name.startswith("rows/")} == {"rows/raw.numbers", "rows/features.doubled", "rows/features.total"}
