"""The code of a logged model: MLflow keeps this file beside the bundle, and runs it when the model is loaded."""

from __future__ import annotations

from importlib import import_module

from pipedag_mlflow.model import ProductionModel

import_module("mlflow.models").set_model(ProductionModel())
