"""What MLflow adds: the observer to a flow whose tasks are all valid, and a logged model to its production flow.

MLflow takes no pyarrow that the rest is measured with, so it is in an environment of its own (`make test-mlflow` makes it). Where this is imported without
MLflow, it is measured there, in a process that prints its rows as JSON: `with_mlflow.py` as a command.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lazy_sql
import polars as pl
from timing import Row, Stopwatch, Unavailable, in_turns, row

from pipedag_core import Flow, InOutSpecification, PipedagConfig, ProductionFlow, SequentialEngine, Stage, Table, materialize

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-mlflow" / "bin" / "python"

OBSERVED_LIMIT_MS, PREDICT_LIMIT_MS = 150, 1

#: No news to anybody while this runs.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}

#: Calls per measurement of a model.
CALLS = 100

TRIPS = pl.DataFrame({"id": [1], "place": ["a"], "km": [2.5], "bags": [1], "fare": [12.5]})
PLACES = pl.DataFrame({"place": ["a", "b"], "toll": [0.5, 1.0]})


@materialize(version="1.0", outputs=["trips", "places"])
def read() -> dict[str, Table]:
    return {"trips": Table(TRIPS, "trips", primary_key="id"), "places": Table(PLACES, "places", primary_key="place")}


@materialize(version="1.0", input_type=pl.DataFrame)
def price(trips: pl.DataFrame) -> pl.DataFrame:
    return trips.select("id", price=pl.col("km") * 1.5 + pl.col("bags"))


@materialize(version="1.0", input_type=pl.DataFrame)
def price_with_toll(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    known = tables["trips"].join(tables["places"], on="place", how="left")
    return known.select("id", price=pl.col("km") * 1.5 + pl.col("toll"))


def settings(folder: Path) -> Any:
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    return PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": store}}}).get("bench")


# --- the observer -----------------------------------------------------------------------------------------------------------------------


def observed(folder: Path, quick: bool, repeats: int) -> list[Row]:
    """Run a flow whose tasks are all valid, with the observer and without, until all is logged."""
    from pipedag_mlflow import MlflowObserver

    config, tasks = settings(folder / "observed"), lazy_sql.tasks_per_stage(quick)
    observer = MlflowObserver(f"sqlite:///{folder}/mlflow.db")

    def run(observers: list[Any], watch: Stopwatch, flushed: bool) -> None:
        flow = lazy_sql.chain(tasks)
        with watch:
            result = flow.run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True, observers=observers)
            if flushed:
                observer.flush()
        if not flushed:
            observer.flush()
        assert result.successful

    timed = in_turns(
        {
            "with": lambda watch: run([observer], watch, True),
            "run": lambda watch: run([observer], watch, False),
            "without": lambda watch: run([], watch, False),
        },
        repeats,
        warmups=2,
    )
    count = tasks * lazy_sql.STAGES
    return [
        row(
            f"MLflow: {count} cached tasks with the observer",
            timed["with"],
            raw=timed["without"],
            raw_what="without it",
            compared="above",
            limit=OBSERVED_LIMIT_MS,
            note="until all is logged to SQLite",
        ),
        row("the same, until the run has ended", timed["run"], raw=timed["without"], raw_what="without it", compared="above"),
    ]


# --- the model --------------------------------------------------------------------------------------------------------------------------


def asked(folder: Path, repeats: int) -> list[Row]:
    """Ask models for one row, and their production flows for the same."""
    import mlflow
    import pandas as pd

    from pipedag_mlflow import log_production_flow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    config = settings(folder / "asked")
    with Flow("prices") as flow:
        with Stage("data"):
            tables = read()
        with Stage("prices"):
            one, several = price(tables["trips"]), price_with_toll(tables)
    flow.run(config=config, fail_fast=True)
    frame = TRIPS.to_pandas()
    rows: list[Row] = []
    for what, spec, inputs, question in (
        ("one table", InOutSpecification(input={"trips": tables["trips"]}, output=one), {"trips": frame}, frame),
        (
            "two tables",
            InOutSpecification(input={"read": tables}, output=several),
            {"read": {"trips": TRIPS, "places": PLACES}},
            {"read.trips": TRIPS, "read.places": PLACES},
        ),
    ):
        prod: ProductionFlow = flow.extract(spec, config=config)
        model = mlflow.pyfunc.load_model(log_production_flow(prod, code="package").model_uri)
        assert model.predict(question)["price"].tolist() == prod.run(inputs)["price"].to_list()
        timed = in_turns(
            {
                "model": calls(model.predict, question),
                "flow": calls(lambda given, prod=prod: prod.run(given, as_type=pd.DataFrame), inputs),
            },
            repeats,
        )
        rows.append(
            row(
                f"MLflow: predict of one row, {what}",
                timed["model"],
                per=CALLS,
                raw=timed["flow"],
                raw_what="prod.run, as pandas",
                compared="above",
                limit=PREDICT_LIMIT_MS,
            )
        )
    return rows


def calls(function: Callable[[Any], Any], question: Any) -> Callable[[Stopwatch], None]:
    """Return a run of many calls."""

    def run(watch: Stopwatch) -> None:
        with watch:
            for _ in range(CALLS):
                function(question)

    return run


# --- where MLflow is --------------------------------------------------------------------------------------------------------------------


def measure(quick: bool) -> list[Row]:
    """Measure here, or where MLflow is."""
    if find_spec("mlflow") is None:
        return elsewhere(quick)
    os.environ.update(QUIET)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    repeats = 3 if quick else 10
    with tempfile.TemporaryDirectory(prefix="pipedag-mlflow-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        return [*observed(folder, quick, repeats), *asked(folder, repeats)]


def elsewhere(quick: bool) -> list[Row]:
    """Measure in the environment that has MLflow."""
    if not PYTHON.exists():
        raise Unavailable("MLflow is in an environment of its own, and .venv-mlflow is not there. `make test-mlflow` makes it.")
    environment = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    words = [str(PYTHON), __file__, *(["--quick"] if quick else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return [Row(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def as_fields(found: Row) -> dict[str, Any]:
    """Return a row as what makes it again."""
    return {name: value for name, value in found.to_dict().items() if name not in ("figure", "within")}


def main() -> None:
    """Measure, and print the rows as one line of JSON."""
    print(json.dumps([as_fields(found) for found in measure("--quick" in sys.argv)]))


if __name__ == "__main__":
    # As a module: what a model carries along must be importable.
    import with_mlflow

    with_mlflow.main()
