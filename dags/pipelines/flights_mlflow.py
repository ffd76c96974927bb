"""Flights, in MLflow: what an instance with `mlflow: {documents: true}` among its attrs documents beside all that the others do."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipedag_core import Blob, materialize
from pipedag_mlflow import document_evaluation, document_link, get_run_id


@materialize(version="1.0", input_type=pd.DataFrame)
def measure_training(output: pd.DataFrame, target: pd.DataFrame) -> dict[str, float]:
    """Say how well the model knows the flights that it was trained on."""
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    data = output.merge(target, on="flight_id", validate="one_to_one")
    late, predicted = data["late"].astype(bool), data["probability"]
    measures = {"ROC AUC": roc_auc_score, "log loss": log_loss, "Brier score": brier_score_loss}
    return {name: float(measure(late, predicted)) for name, measure in measures.items()}


@materialize(version="1.0", input_type=pd.DataFrame)
def measures_of(evaluation: pd.DataFrame) -> dict[str, float]:
    """Return the model's measures by name."""
    return dict(zip(evaluation["measure"], evaluation["model"].map(float), strict=True))


@materialize(version="1.0", input_type=pd.DataFrame)
def draw_reliability(reliability: pd.DataFrame) -> Blob:
    """Draw predicted and observed shares of late flights: on the diagonal the model says what happens."""
    # Comes with MLflow.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    axes.plot(reliability["mean_prediction"], reliability["observed_share"], marker="o")
    axes.set(xlabel="mean prediction", ylabel="observed share of late flights", title="Tenths of the test set, by prediction")
    return Blob(figure, "reliability_figure")


def document_training(output: Any, target: Any) -> Any:
    """Document the training while the flow is wired; return the id of the MLflow run in which the model was trained."""
    run_id = get_run_id()
    document_evaluation({"train": measure_training(output, target)}, run_id)
    return run_id


def document_test(evaluation: Any, airlines: Any, training_run_id: Any) -> None:
    """Document the evaluation on the test set while the flow is wired: in the run of the training, or in one that leads to it."""
    run_id = get_run_id(training_run_id)
    found = {
        "test": measures_of(evaluation["evaluation"]),
        "tables": {"measures": evaluation["evaluation"], "reliability": evaluation["reliability"], "airlines": airlines},
        "reliability": draw_reliability(evaluation["reliability"]),
    }
    document_evaluation(found, run_id)
    document_link(run_id, training_run_id)
