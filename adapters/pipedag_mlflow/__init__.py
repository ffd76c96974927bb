"""Logs the runs of a flow to MLflow, and production flows as models. The names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipedag_mlflow.documents import document_evaluation as document_evaluation
    from pipedag_mlflow.documents import document_link as document_link
    from pipedag_mlflow.logmodel import log_production_flow as log_production_flow
    from pipedag_mlflow.observer import MlflowObserver as MlflowObserver
    from pipedag_mlflow.run_ids import get_run_id as get_run_id

_HOME = {
    "MlflowObserver": "observer",
    "document_evaluation": "documents",
    "document_link": "documents",
    "get_run_id": "run_ids",
    "log_production_flow": "logmodel",
}

__all__ = ["MlflowObserver", "document_evaluation", "document_link", "get_run_id", "log_production_flow"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
