"""The flights pipeline in MLflow: a small share of its flights, in the instance that documents."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipedag_core import PipedagConfig
from pipedag_mlflow import log_production_flow

DAGS = Path(__file__).parents[3] / "dags"
if str(DAGS) not in sys.path:
    sys.path.insert(0, str(DAGS))

from pipelines import flights  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.examples]


@pytest.fixture
def config(tmp_path):
    """The example's own instance, with its data in a temporary folder and little of it."""
    settings = yaml.safe_load((DAGS / "pipedag.yaml").read_text())
    settings["instances"]["demo"]["attrs"] |= {"input": {"sample_share": 0.02}, "model": {"iterations": 20}}
    return PipedagConfig(settings, base_dir=tmp_path).get("demo")


def text_of(client, run, path):
    return Path(client.download_artifacts(run.info.run_id, path)).read_text(encoding="utf-8")


def test_flights_are_documented_and_become_a_model(config, tmp_path, runs_of, client):
    import mlflow

    flow, spec = flights.get_pipeline(config.attrs)
    for _ in range(2):
        assert flow.run(config=config, fail_fast=True).successful
    uri = f"sqlite:///{tmp_path}/.pipedag/demo/mlflow.db"
    # The observers are those of the configuration, so each run has one of its own, and nobody waits for it but the end of the process.
    for _ in range(600):
        if [run.info.status for run in runs_of(uri, "flights")] == ["FINISHED"] * 2:
            break
        time.sleep(0.1)
    first, second = runs_of(uri, "flights")
    assert second.data.metrics["tasks/hit_ratio"] == 1
    assert {name for name in first.data.metrics if name.startswith("train/")} == {"train/ROC AUC", "train/log loss", "train/Brier score"}
    assert first.data.metrics["test/ROC AUC"] > 0.55
    assert not any(name.startswith("test/") for name in second.data.metrics)
    connected = client(uri)
    assert json.loads(text_of(connected, first, "tables/tables/airlines.json"))["columns"][0] == "airline"
    assert connected.download_artifacts(first.info.run_id, "figures/reliability.png").endswith(".png")

    prod = flow.extract(spec, config=config)
    training = prod.training_inputs()["clean"]
    known = {f"clean.{name}": table for name, table in training.items() if name != "flights"}
    info = log_production_flow(
        prod, registered_model_name="flights", alias="champion", fixed_inputs=known, tracking_uri=uri, verify={"tolerance": 1e-9}
    )
    assert info.run_id == first.info.run_id
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/flights@champion")
        ten = pl.DataFrame(training["flights"]).sort("flight_id").head(10)
        answer = pl.from_pandas(model.predict(ten.to_pandas())).sort("flight_id")
    finally:
        mlflow.set_tracking_uri(before)
    expected = prod.run({"clean": {**training, "flights": ten}}, as_type=pl.DataFrame).sort("flight_id")
    assert answer["flight_id"].to_list() == expected["flight_id"].to_list()
    assert answer["probability"].to_list() == pytest.approx(expected["probability"].to_list(), abs=1e-12)


def test_flights_in_a_process_per_stage_log_to_one_run(tmp_path, server, runs_of):
    settings = yaml.safe_load((DAGS / "pipedag.yaml").read_text())
    demo = settings["instances"]["demo"]
    demo["attrs"] |= {"input": {"sample_share": 0.02}, "model": {"iterations": 20}}
    demo["observers"][0]["args"]["tracking_uri"] = server
    (tmp_path / "pipedag.yaml").write_text(yaml.safe_dump(settings))
    shutil.copytree(DAGS / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    flow, _ = flights.get_pipeline(PipedagConfig(settings).get("demo").attrs)
    for step in [*(f"stage:{stage.name}" for stage in flow.stages), "finish"]:
        words = ["step", "pipelines.flights:get_pipeline", step, "--instance", "demo", "--run-id", "r1"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        done = subprocess.run(
            [sys.executable, "-m", "pipedag_core.cli", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs_of(server, "flights")
    assert (run.info.status, run.data.tags["pipedag.run_id"]) == ("FINISHED", "r1")
    assert run.data.metrics["tasks/ran"] == sum(len(stage.tasks) for stage in flow.stages)
    assert {"train/ROC AUC", "test/ROC AUC"} <= set(run.data.metrics)
