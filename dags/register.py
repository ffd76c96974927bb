"""Register the production flow of the flights pipeline in MLflow, and score ten flights with the model. Run it in the folder dags, after `make demo-mlflow`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import polars as pl
from pipelines.flights import get_pipeline
from score import INSTANCE_WITH_MLFLOW, explore, requests, show

from pipedag_core import PipedagConfig
from pipedag_mlflow import log_production_flow

HERE = Path(__file__).resolve().parent
TRACKING_URI = f"sqlite:///{HERE / '.pipedag' / INSTANCE_WITH_MLFLOW / 'mlflow.db'}"

#: Tables that a service has at hand; only the flights differ from request to request.
KNOWN = ("clean.weather", "clean.planes", "clean.airports")


def main() -> None:
    """Extract, verify, register, load, score."""
    config = PipedagConfig(HERE / "pipedag.yaml").get(INSTANCE_WITH_MLFLOW)
    flow, spec = get_pipeline(config.attrs)
    prod = flow.extract(spec, config=config)
    mlflow.set_tracking_uri(TRACKING_URI)
    training = prod.training_inputs()["clean"]
    known = {name: training[name.removeprefix("clean.")] for name in KNOWN}
    info = log_production_flow(prod, registered_model_name="flights", alias="champion", fixed_inputs=known)
    print(f"registered: flights, version {info.registered_model_version}, as champion; trained in MLflow run {info.run_id}")

    model = mlflow.pyfunc.load_model("models:/flights@champion")
    flights = requests(explore(INSTANCE_WITH_MLFLOW))["flights"]
    show(flights, pl.from_pandas(model.predict(flights.to_pandas())), "Ten flights, scored by the registered model")


if __name__ == "__main__":
    sys.exit(main())
