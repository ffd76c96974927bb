"""What an evaluation is made of, as MLflow can show it: metrics, series, figures, tables, and the rest as text."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from numbers import Real
from typing import Any, Final, cast, final

from pipedag_mlflow import library, names

log = logging.getLogger(__name__)

#: Held while the list of tables is read and written again: several tasks of a process may log to one run.
_listing = threading.Lock()

#: Metrics that one call takes.
_BATCH: Final = 1000

#: Rows of a table that are kept: a browser shows them.
MOST_ROWS: Final = 10_000


@final
@dataclass(slots=True)
class Evaluation:
    """The parts of an evaluation by their place in it, such as `test/auc`.

    Attributes:
        metrics: Numbers: one, or one per step.
        figures, tables: As they are; tables of Arrow.
        plain: All that is no figure and no table, as JSON values.
    """

    metrics: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    tables: dict[str, Any] = field(default_factory=dict[str, Any])
    plain: Any = None


def split(result: Any, prefix: str = "") -> Evaluation:
    """Return what a result is made of.

    Args:
        result: A nest of dicts, lists, dataclasses, plain values, Arrow tables and figures.
        prefix: Stands before all names.
    """
    found = Evaluation()
    found.plain = _collect(result, prefix, found)
    return found


def _collect(value: Any, path: str, found: Evaluation) -> Any:
    """Sort a value in; return it as JSON values, without what is no plain value."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _collect(item, _join(path, str(key)), found) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = list(cast("Sequence[Any]", value))
        series = [number for item in items if (number := _number(item)) is not None]
        if items and len(series) == len(items):
            found.metrics[path or "value"] = series
            return [_json(item) for item in items]
        return [_collect(item, _join(path, str(place)), found) for place, item in enumerate(items)]
    number = _number(value)
    if number is not None:
        found.metrics[path or "value"] = [number]
        return _json(value)
    if _library(value) == "pyarrow" and hasattr(value, "to_pydict"):
        found.tables[path or "table"] = value
        return f"tables/{_file(path or 'table')}.json"
    if hasattr(value, "savefig") or (_library(value) == "plotly" and hasattr(value, "to_json")):
        found.figures[path or "figure"] = value
        return f"figures/{_figure_file(path or 'figure', value)}"
    return _json(value)


def log_evaluation(client: Any, mlflow_run_id: str, result: Any, prefix: str = "") -> None:
    """Log an evaluation to an MLflow run; again to the same one, it takes the place of what was there.

    Args:
        client: Of the server that has the run.
        mlflow_run_id: The run.
        result, prefix: As for `split`.
    """
    found = split(result, prefix)
    at = int(time.time() * 1000)
    metric = library.entities().Metric
    metrics = [metric(names.key(path), value, at, step) for path, values in found.metrics.items() for step, value in enumerate(values)]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(mlflow_run_id, metrics=metrics[start : start + _BATCH])
    for path, figure in found.figures.items():
        client.log_figure(mlflow_run_id, figure, f"figures/{_figure_file(path, figure)}")
    for path, table in found.tables.items():
        _log_table(client, mlflow_run_id, f"tables/{_file(path)}.json", table)
    text = json.dumps(found.plain, indent=1, ensure_ascii=False)
    client.log_text(mlflow_run_id, text, "/".join(filter(None, (_file(prefix), "evaluation.json"))))


def _log_table(client: Any, mlflow_run_id: str, file: str, table: Any) -> None:
    if table.num_rows > MOST_ROWS:
        log.warning("%s of MLflow run %s has %s rows; the first %s are kept.", file, mlflow_run_id, table.num_rows, MOST_ROWS)
        table = table.slice(0, MOST_ROWS)
    columns = [[_json(value) for value in column.to_pylist()] for column in table.columns]
    data = [list(row) for row in zip(*columns, strict=True)]
    client.log_text(mlflow_run_id, json.dumps({"columns": table.column_names, "data": data}, ensure_ascii=False), file)
    entry = {"path": file, "type": "table"}
    # Where MLflow's pages look for what they show as tables. Its own `log_table` would add to a table that is there.
    with _listing:
        known = json.loads(client.get_run(mlflow_run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        if entry not in known:
            client.set_tag(mlflow_run_id, "mlflow.loggedArtifacts", json.dumps([*known, entry]))


def _number(value: Any) -> float | None:
    """Return a number, also one of an array library, or of decimals; None if it is none."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Real) or type(value).__name__ == "Decimal":
        return float(cast("Any", value))
    return None


def _json(value: Any) -> Any:
    """Return a plain value as JSON has it, anything else as text."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    text = str(value)
    # What has no text of its own is told by its class; an address in memory would say nothing.
    return f"({type(value).__module__}.{type(value).__qualname__})" if text.startswith("<") else text


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _file(path: str) -> str:
    """Return a place as a path of files; a name stays in its folder whatever it is."""
    return names.key(path) if path else ""


def _figure_file(path: str, figure: Any) -> str:
    return f"{_file(path)}.{'png' if hasattr(figure, 'savefig') else 'html'}"
