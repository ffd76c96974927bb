"""Flows whose production flows become models, in a module of their own, so that models can carry it along."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from pipedag_core import Blob, Flow, InOutSpecification, Stage, Table, materialize
from pipedag_mlflow import document_evaluation, get_run_id

TRIPS = pl.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "day": [date(2013, 1, 1), date(2013, 6, 1), None, date(9999, 12, 31)],
        "leaves": [datetime.fromisoformat(text) for text in ("2013-01-01 08:00", "2013-06-01 09:30", "2013-07-01")] + [None],
        "fare": [Decimal("1.50"), Decimal("2.25"), None, Decimal("10.00")],
        "bags": [1, None, 3, 0],
        "place": ["a", "b", None, "a"],
        "km": [1.0, 2.0, 3.0, None],
    },
    schema_overrides={"fare": pl.Decimal(9, 2), "bags": pl.Int32},
)
PLACES = pl.DataFrame({"place": ["a", "b"], "toll": [0.5, 1.0], "since": [date(2000, 1, 1), date(2001, 1, 1)]})

#: What training is about to learn, and what the code makes of it; tests change both.
WEIGHT = [2.0]
EXTRA = [0.0]


@materialize(version="1.0", outputs=["trips", "places"])
def read() -> dict[str, Table]:
    return {"trips": Table(TRIPS, "trips", primary_key="id"), "places": Table(PLACES, "places", primary_key="place")}


@materialize(version="1.0")
def hurry() -> float:
    return 1.5


def learnt(*_: Any) -> float:
    return WEIGHT[0]


@materialize(version="1.0", input_type=pl.DataFrame, cache=learnt)
def train(trips: pl.DataFrame, run_id: str) -> Blob:
    return Blob({"weight": WEIGHT[0], "rows": trips.height}, "model")


@materialize(version="1.0", input_type=pl.DataFrame)
def predict(model: dict[str, Any], trips: pl.DataFrame, hurry: float) -> Table:
    minutes = (
        model["weight"] * pl.col("km").fill_null(0) / hurry + pl.col("bags").fill_null(0) + pl.col("fare").cast(pl.Float64).fill_null(0)
    )
    return Table(
        trips.select("id", minutes=minutes + EXTRA[0], arrives=pl.col("leaves").dt.offset_by("1h"), year=pl.col("day").dt.year()),
        "predictions",
        primary_key="id",
    )


@materialize(version="1.0", input_type=pl.DataFrame)
def add_toll(predictions: pl.DataFrame, trips: pl.DataFrame, places: pl.DataFrame) -> Table:
    known = predictions.join(trips.select("id", "place"), on="id").join(places, on="place", how="left")
    return Table(known.select("id", "toll", "since"), "tolls", primary_key="id")


@materialize(version="1.0", input_type=pl.DataFrame)
def evaluate(predictions: pl.DataFrame) -> dict[str, float]:
    return {"mean": predictions["minutes"].mean()}


def _wire() -> dict[str, Any]:
    with Flow("trips") as flow:
        with Stage("data"):
            tables, pace = read(), hurry()
        with Stage("training"):
            run_id = get_run_id()
            model = train(tables["trips"], run_id)
        with Stage("evaluation"):
            predictions = predict(model, tables["trips"], pace)
            tolls = add_toll(predictions, tables["trips"], tables["places"])
            document_evaluation(evaluate(predictions), get_run_id(run_id))
    return {"flow": flow, "tables": tables, "pace": pace, "model": model, "predictions": predictions, "tolls": tolls}


def one_table() -> tuple[Flow, InOutSpecification]:
    """One table and a number come in, one table goes out."""
    made = _wire()
    inputs = {"trips": made["tables"]["trips"], "hurry": made["pace"]}
    return made["flow"], InOutSpecification(input=inputs, const=made["model"], output=made["predictions"])


def two_tables() -> tuple[Flow, InOutSpecification]:
    """Two tables come in, nested, two go out."""
    made = _wire()
    outputs = {"times": made["predictions"], "tolls": made["tolls"]}
    return made["flow"], InOutSpecification(input={"read": made["tables"]}, const=[made["model"], made["pace"]], output=outputs)
