"""Flights, stages 05 and 06: encode, train, predict, evaluate. pandas and scikit-learn, and one question asked in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from pipedag_core import Blob, Table, materialize
from pipelines.flights_data import ref

#: Features that are names. Their categories are learned from the training set; a name that is not among them counts as missing.
CATEGORICAL = ("carrier", "origin", "dest", "manufacturer")


@materialize(version="1.0", input_type=pd.DataFrame, nout=3)
def model_encoding(
    feature_tbls: Mapping[str, pd.DataFrame],
    train_test_set: pd.DataFrame | None = None,
    target: pd.DataFrame | None = None,
    *,
    train: bool = False,
    encoding_parameters: Mapping[str, Any] | None = None,
) -> tuple[Table, Table | None, dict[str, Any]]:
    """Put the features into one table of numbers.

    Args:
        feature_tbls: Tables with one row per flight.
        train_test_set: Which flights are for training; None takes all flights, as in production.
        target: Which flights were late; None where nobody knows yet. With it, flights without a target are left out.
        train: Take the training set and learn the encoding from it; else take the test set.
        encoding_parameters: How to encode, as learned in training.

    Returns:
        Inputs and target by flight, both in the order of `flight_id`, and the encoding.
    """
    data, *others = feature_tbls.values()
    for other in others:
        data = data.merge(other, on="flight_id", how="left", validate="one_to_one")
    if train_test_set is not None:
        data = data[data["flight_id"].isin(train_test_set.loc[train_test_set["is_train"].astype(bool) == train, "flight_id"])]
    if target is not None:
        data = data[data["flight_id"].isin(target["flight_id"])]
        target = target[target["flight_id"].isin(data["flight_id"])].sort_values("flight_id", ignore_index=True)
    # Stored rows have no order; the model's random numbers need one to give the same model again.
    data = data.sort_values("flight_id", ignore_index=True)

    if train:
        encoding_parameters = {
            "categories": {column: sorted(data[column].dropna().unique().tolist()) for column in CATEGORICAL},
            "columns": sorted(column for column in data.columns if column != "flight_id"),
        }
    elif encoding_parameters is None:
        raise ValueError("Pass train=True to learn an encoding, or the encoding_parameters that training has learned.")
    encoded = {"flight_id": data["flight_id"]}
    for column in encoding_parameters["columns"]:
        values = data[column]
        if column in CATEGORICAL:
            values = values.map({name: code for code, name in enumerate(encoding_parameters["categories"][column])})
        encoded[column] = values.astype("float64")
    inputs = Table(pd.DataFrame(encoded), "input_data", primary_key="flight_id")
    known = None if target is None else Table(target, "target", primary_key="flight_id")
    return inputs, known, dict(encoding_parameters)


def _predict(model: Any, input_data: pd.DataFrame) -> pd.DataFrame:
    probability = model.predict_proba(input_data.drop(columns="flight_id"))[:, 1]
    return pd.DataFrame({"flight_id": input_data["flight_id"], "probability": probability})


@materialize(version="1.0", input_type=pd.DataFrame, nout=2)
def model_train(input_data: pd.DataFrame, target: pd.DataFrame, *, iterations: int, learning_rate: float, seed: int) -> tuple[Blob, Table]:
    """Train the classifier, and return it with its predictions for the flights that it was trained on."""
    # Here, so that runs in which the model is still valid do not wait for scikit-learn to load.
    from sklearn.ensemble import HistGradientBoostingClassifier

    data = input_data.merge(target, on="flight_id", validate="one_to_one").sort_values("flight_id", ignore_index=True)
    inputs = data.drop(columns=["flight_id", "late"])
    model = HistGradientBoostingClassifier(
        max_iter=iterations,
        learning_rate=learning_rate,
        min_samples_leaf=100,
        l2_regularization=1.0,
        categorical_features=[column for column in inputs.columns if column in CATEGORICAL],
        # The number of iterations is given: stopping early would need a held-back part of its own, split by time.
        early_stopping=False,
        random_state=seed,
    )
    model.fit(inputs, data["late"].astype(bool))
    predictions = _predict(model, data.drop(columns="late"))
    return Blob(model, "model"), Table(predictions, "output_train", primary_key="flight_id")


@materialize(version="1.0", input_type=pd.DataFrame)
def model_predict(model: Any, input_data: pd.DataFrame) -> Table:
    """Return each flight's probability of arriving late."""
    return Table(_predict(model, input_data), "output", primary_key="flight_id")


@materialize(version="1.0", input_type=pd.DataFrame, outputs=["evaluation", "reliability"])
def evaluate_model(output: pd.DataFrame, target: pd.DataFrame, parameters: Mapping[str, float]) -> dict[str, Table]:
    """Compare the predictions with what happened, and with knowing no more than the training set's share of late flights.

    Returns:
        `evaluation`, one row per measure; and `reliability`, predicted and observed share of late flights by tenth of the predictions.
    """
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    data = output.merge(target, on="flight_id", validate="one_to_one").sort_values(["probability", "flight_id"], ignore_index=True)
    late, predicted = data["late"].astype(bool), data["probability"]
    constant = pd.Series(parameters["late_rate"], index=data.index)
    measures = [
        ("ROC AUC", "higher", roc_auc_score),
        ("average precision", "higher", average_precision_score),
        ("log loss", "lower", log_loss),
        ("Brier score", "lower", brier_score_loss),
        ("mean prediction", "as observed", lambda _, values: values.mean()),
    ]
    evaluation = pd.DataFrame(
        [(name, better, float(measure(late, predicted)), float(measure(late, constant))) for name, better, measure in measures]
        + [("observed share", "", float(late.mean()), float(late.mean()))],
        columns=["measure", "better", "model", "base_rate"],
    )
    # Tenths by rank, so that ties cannot make them unequal.
    data["tenth"] = np.arange(len(data)) * 10 // max(len(data), 1) + 1
    reliability = data.groupby("tenth", as_index=False).agg(
        flights=("late", "size"), lowest=("probability", "min"), mean_prediction=("probability", "mean"), observed_share=("late", "mean")
    )
    return {
        "evaluation": Table(evaluation, "evaluation", primary_key="measure"),
        "reliability": Table(reliability, "reliability", primary_key="tenth"),
    }


@materialize(lazy=True, input_type=sa.Table)
def evaluate_airlines(output: sa.Alias, target: sa.Alias, tbls: Mapping[str, sa.Alias], raw_tbls: Mapping[str, sa.Alias]) -> Table:
    """Show for each airline how many of its flights were predicted to be late, and how many were."""
    query = sa.text(f"""
        SELECT
            airline.name AS airline,
            COUNT(*) AS flights,
            AVG(o.probability) AS mean_prediction,
            AVG(CAST(CAST(t.late AS INTEGER) AS DOUBLE PRECISION)) AS observed_share
        FROM {ref(output)} AS o
        JOIN {ref(target)} AS t ON t.flight_id = o.flight_id
        JOIN {ref(tbls["flights"])} AS f ON f.flight_id = o.flight_id
        JOIN {ref(raw_tbls["airlines"])} AS airline ON airline.carrier = f.carrier
        GROUP BY airline.name
    """)
    return Table(query, "airlines", primary_key="airline")
