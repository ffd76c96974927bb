"""A saved model is asked before it is logged, and must answer as its production flow does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pandas as pd

from pipedag_core import ProductionFlow
from pipedag_core.errors import ProductionError
from pipedag_mlflow.asked import nested
from pipedag_mlflow.model import answered
from pipedag_mlflow.signature import Example

#: Relative and absolute difference that numbers may have.
_TOLERANCE: Final = 1e-9


def ask(prod: ProductionFlow, described: Any, folder: Path, fixed: Mapping[str, Any], example: Example) -> None:
    """Ask a saved model, as in a process and as over HTTP.

    Args:
        prod: The production flow.
        described: MLflow's description of the model.
        folder: The saved model.
        fixed: Inputs that nobody gives.
        example: What it is asked.

    Raises:
        ProductionError: It gives something else than the production flow, or nothing.
    """
    expected = answered(prod, nested(prod, {**fixed, **example.inputs}), frames=False)
    for how, answer in _answers(described, folder, example).items():
        if not same(expected, answer):
            raise ProductionError(
                f"The model does not give by {how} what the production flow gives, so nothing is logged:\n{answer!r:.1000}\ninstead of\n{expected!r:.1000}"
            )


def _answers(described: Any, folder: Path, example: Example) -> dict[str, Any]:
    pyfunc, models = import_module("mlflow.pyfunc"), import_module("mlflow.models")
    serving = described.get_serving_input(str(folder))
    how = "load_model"
    try:
        found = {how: pyfunc.load_model(str(folder), suppress_warnings=True).predict(example.asked, example.params)}
        how = "serving"
        if serving is not None:
            with warnings.catch_warnings():
                # What MLflow offers in its place makes an environment of its own each time.
                warnings.simplefilter("ignore")
                found[how] = models.validate_serving_input(str(folder), serving)
    except Exception as error:
        raise ProductionError(
            f"The model fails by {how} on the example, so nothing is logged: {type(error).__name__}: {error}\n"
            "Where the example is made of the first rows of training, pass an input_example whose tables belong together."
        ) from error
    return found


def same(one: Any, other: Any) -> bool:
    """Return whether two answers are equal but for rounding, the order of rows, and how texts, times and gaps are told."""
    return _equal(_told(one), _told(other))


def _told(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        value = value.to_dict(orient="records")
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_told(item) for item in value]
        # Rows of a table have no order.
        return sorted(items, key=_order) if all(isinstance(item, dict) for item in items) else items
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.isoformat() if isinstance(value, (date, datetime)) else value


def _order(row: Mapping[str, Any]) -> str:
    return repr(sorted((name, f"{value:.6g}" if isinstance(value, float) else repr(value)) for name, value in row.items()))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) or isinstance(other, float):
        if not (isinstance(one, (int, float)) and isinstance(other, (int, float))):
            return False
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return one == other
