"""A training flow in three libraries and SQL, in a module of its own, so that bundles can name it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import polars as pl
import sqlalchemy as sa

from pipedag_core import Blob, Flow, InOutSpecification, LazyDict, Stage, Table, materialize

FLIGHTS = pl.DataFrame(
    {"id": [1, 2, 3, 4, 5, 6], "carrier": ["UA", "AA", "UA", "B6", "AA", "UA"], "minutes": [5.0, 30.0, 0.0, None, 12.5, 41.0]}
)
PLACES = pl.DataFrame({"carrier": ["UA", "AA", "B6"], "hub": ["EWR", "JFK", "JFK"]})


@dataclass(frozen=True)
class Model:
    """A model as simple as can be: a factor per hub."""

    factors: tuple[tuple[str, float], ...]

    def __call__(self, hub: str) -> float:
        return dict(self.factors)[hub]


@dataclass(frozen=True)
class State:
    """What training leaves behind."""

    tables: LazyDict = field(default_factory=LazyDict)
    parameters: LazyDict = field(default_factory=LazyDict)


@materialize(version="1.0", outputs=["flights", "places"])
def read() -> dict[str, Table]:
    return {"flights": Table(FLIGHTS, "flights", primary_key="id"), "places": Table(PLACES, "places", primary_key="carrier")}


@materialize(version="1.0", input_type=pl.LazyFrame, outputs=["flights", "places"])
def clean(raw: Any) -> dict[str, Table]:
    return {
        "flights": Table(raw["flights"].with_columns(pl.col("minutes").fill_null(0.0)), "flights", primary_key="id"),
        "places": Table(raw["places"], "places", primary_key="carrier"),
    }


@materialize(lazy=True, input_type=sa.Table)
def average(flights: sa.Alias) -> Table:
    query = sa.select(flights.c.carrier, sa.func.avg(flights.c.minutes).label("usual")).group_by(flights.c.carrier)
    return Table(query, "usual", primary_key="carrier")


@materialize(version="1.0", input_type=pl.DataFrame)
def largest(flights: pl.DataFrame) -> float:
    return flights["minutes"].max()


@materialize(lazy=True, input_type=sa.Table)
def join(tables: Any, usual: sa.Alias, scale: float) -> Table:
    flights, places = tables["flights"], tables["places"]
    name = usual.original
    query = sa.text(f"""
        SELECT f.id, f.carrier, p.hub, f.minutes / {scale} AS share, u.usual
        FROM "{flights.original.schema}"."{flights.original.name}" AS f
        JOIN "{places.original.schema}"."{places.original.name}" AS p USING (carrier)
        LEFT JOIN "{name.schema}"."{name.name}" AS u USING (carrier)
    """)
    return Table(query, "joined", primary_key="id")


@materialize(version="1.0", input_type=pd.DataFrame, nout=2)
def train(joined: pd.DataFrame, note: str | None = None) -> tuple[Blob, float]:
    means = joined.groupby("hub")["share"].mean().sort_index()
    return Blob(Model(tuple((hub, float(share) + 1) for hub, share in means.items())), "model"), float(joined["share"].mean())


@materialize(version="1.0", input_type=pd.DataFrame)
def predict(model: Any, joined: pd.DataFrame, mean: float, note: str | None = None) -> Table:
    joined["score"] = joined["hub"].map(model) * joined["share"].fillna(mean) + joined["usual"].fillna(0.0)
    return Table(joined[["id", "score"]], "scores", primary_key="id")


@materialize(version="1.0")
def run_note() -> str:
    return "a run of training"


def make() -> tuple[Flow, InOutSpecification]:
    """Return the training flow, and what of it runs in production."""
    with Flow("delays") as flow:
        with Stage("raw"):
            raw = read()
            note = run_note()
        with Stage("cleaned"):
            cleaned = clean(raw)
        with Stage("calibration"):
            state = State()
            state.tables["usual"] = average(cleaned["flights"])
            state.parameters["scale"] = largest(cleaned["flights"])
        with Stage("scoring"):
            joined = join(cleaned, state.tables["usual"], state.parameters["scale"])
            model, mean = train(joined, note)
            scores = predict(model, joined, mean, note)
    return flow, InOutSpecification(input={"clean": cleaned}, const=[state, model, mean], ignore=note, output=scores)
