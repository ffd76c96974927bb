"""What an evaluation leaves in MLflow: each part in the form in which MLflow shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import polars as pl
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from pipedag_core import Blob, Flow, PipedagConfig, Stage, Table, materialize
from pipedag_mlflow import MlflowObserver, document_evaluation, get_run_id
from pipedag_mlflow.evaluation import MOST_ROWS, log_evaluation, split


@dataclass
class Scores:
    auc: float
    confusion: dict


def figure():
    made = Figure()
    made.subplots().plot([1, 2, 3])
    return made


@pytest.fixture
def config(tmp_path):
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "store" / "{instance_id}")}}
    return PipedagConfig({"instances": {"full": {"instance_id": "full", "table_store": store}}}).get("full")


@pytest.fixture
def mlflow_run(database, client):
    made = client(database)
    experiment = made.create_experiment(
        "evaluations", artifact_location=(Path(database.removeprefix("sqlite:///")).parent / "files").as_uri()
    )
    return made, made.create_run(experiment).info.run_id


def text_of(client, run_id, path):
    return Path(client.download_artifacts(run_id, path)).read_text(encoding="utf-8")


def files(client, run_id, folder=None):
    return sorted(item.path for item in client.list_artifacts(run_id, folder))


def test_each_part_lands_where_mlflow_shows_it(config, database, runs_of, client):
    @materialize(version="1.0", nout=2)
    def evaluate():
        by_carrier = pd.DataFrame({"carrier": ["AA", None], "share": [0.5, float("nan")], "day": [date(2013, 1, 2)] * 2})
        numbers = {"test": {"auc": 0.75, "rows": 12, "passed": True, "loss": [0.5, 0.25]}, "remark": "good enough"}
        return {**numbers, "carriers": Table(by_carrier, "carriers")}, {"roc": Blob(figure()), "bars": Blob(go.Figure(go.Bar(y=[1, 2])))}

    with Flow("evaluates") as flow, Stage("s"):
        numbers, figures = evaluate()
        document_evaluation({"numbers": numbers, "plots": figures}, get_run_id())
    observer = MlflowObserver(database)
    result = flow.run(config=config, observers=[observer])
    assert result.successful, result.exception
    observer.flush()
    (run,) = runs_of(database, "evaluates")
    ours, id = client(database), run.info.run_id
    metrics = {name: value for name, value in run.data.metrics.items() if name.startswith("numbers/")}
    assert metrics == {"numbers/test/auc": 0.75, "numbers/test/rows": 12, "numbers/test/passed": 1, "numbers/test/loss": 0.25}
    assert [(item.step, item.value) for item in ours.get_metric_history(id, "numbers/test/loss")] == [(0, 0.5), (1, 0.25)]
    assert Path(ours.download_artifacts(id, "figures/plots/roc.png")).read_bytes().startswith(b"\x89PNG")
    assert "<html>" in text_of(ours, id, "figures/plots/bars.html")
    table = json.loads(text_of(ours, id, "tables/numbers/carriers.json"))
    assert table["columns"] == ["carrier", "share", "day"]
    assert [row[0] for row in table["data"]] == ["AA", None]
    assert table["data"][0][1:] == [0.5, "2013-01-02"]
    assert {"path": "tables/numbers/carriers.json", "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])
    plain = json.loads(text_of(ours, id, "evaluation.json"))
    assert plain["numbers"]["remark"] == "good enough"
    assert plain["plots"]["roc"] == "figures/plots/roc.png"


def test_mlflow_itself_reads_the_tables(mlflow_run, by_default):
    client, id = mlflow_run
    log_evaluation(client, id, {"scores": pa.table({"a": [1, 2], "b": ["x", None]})})
    experiment = client.get_run(id).info.experiment_id
    assert client.load_table(experiment, "tables/scores.json")["a"].tolist() == [1, 2]


def test_numbers_of_all_kinds_are_metrics_and_the_rest_is_text():
    found = split(
        {
            "np": np.float32(0.5),
            "decimal": Decimal("0.25"),
            "scores": Scores(0.9, {"late": 3}),
            "nothing": None,
            "day": date(2013, 1, 1),
            "mixed": [1, "a", {"deep": 2}],
            "endless": float("inf"),
            "model": object(),
        }
    )
    assert found.metrics == {
        "np": [0.5],
        "decimal": [0.25],
        "scores/auc": [0.9],
        "scores/confusion/late": [3.0],
        "mixed/0": [1.0],
        "mixed/2/deep": [2.0],
        "endless": [float("inf")],
    }
    assert found.plain["day"] == "2013-01-01"
    assert found.plain["endless"] == "inf"
    assert found.plain["model"] == "(builtins.object)"
    json.dumps(found.plain, allow_nan=False)


def test_a_single_number_and_a_single_table_have_names_too():
    assert split(0.5).metrics == {"value": [0.5]}
    assert list(split(pa.table({"a": [1]})).tables) == ["table"]


def test_several_evaluations_stand_apart_by_their_prefix(mlflow_run):
    client, id = mlflow_run
    for prefix in ("", "by day", "../../out"):
        log_evaluation(client, id, {"auc": 0.5, "rows": pa.table({"a": [1]})}, prefix)
    metrics = set(client.get_run(id).data.metrics)
    assert {"auc", "by day/auc"} <= metrics
    assert len(metrics) == 3
    assert len(files(client, id, "tables")) == 3
    assert "by day/evaluation.json" in files(client, id, "by day")
    assert not any("out.json" in path for path in files(client, id))


def test_what_is_written_again_takes_the_place_of_what_was_there(mlflow_run):
    client, id = mlflow_run
    for _ in range(2):
        log_evaluation(client, id, {"rows": pa.table({"a": [1]})})
    assert json.loads(text_of(client, id, "tables/rows.json"))["data"] == [[1]]
    assert json.loads(client.get_run(id).data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/rows.json", "type": "table"}]


def test_of_a_long_table_the_first_rows_are_kept(mlflow_run, caplog):
    client, id = mlflow_run
    log_evaluation(client, id, {"long": pl.DataFrame({"a": range(MOST_ROWS + 5)}).to_arrow()})
    assert len(json.loads(text_of(client, id, "tables/long.json"))["data"]) == MOST_ROWS
    assert "has 10005 rows; the first 10000 are kept" in caplog.text


def test_more_metrics_than_one_call_takes(mlflow_run):
    client, id = mlflow_run
    log_evaluation(client, id, {f"m{number}": number for number in range(1234)})
    assert len(client.get_run(id).data.metrics) == 1234
