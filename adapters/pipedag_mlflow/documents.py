"""Tasks that write into MLflow what a flow has found out: `document_link` and `document_evaluation`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipedag_core import materialize
from pipedag_core.define.context import TaskContext, executing
from pipedag_core.define.late import LateValue
from pipedag_core.errors import RunError
from pipedag_mlflow import links
from pipedag_mlflow.evaluation import log_evaluation
from pipedag_mlflow.run_ids import connected, make_run_id, reporting


def _context() -> TaskContext:
    context = executing.get()
    if context is None:
        raise RunError(
            "Documenting in MLflow is what a task of a run does. Call document_link and document_evaluation while a flow is wired."
        )
    return context


def _texts(value: Any) -> list[str]:
    """Return the MLflow runs that an id stood for, in the order of the tasks that got it."""
    if isinstance(value, LateValue):
        return list(_context().earlier(value.source))
    return [value] if value else []


def _both(run_id: Any, other_run_id: Any) -> list[list[str]]:
    """The ids that the tasks before have got say whether a link is there already."""
    return [_texts(run_id), _texts(other_run_id)]


@materialize(version="1.0", cache=_both, takes_late=True, ordering_barrier=True)
def document_link(run_id: Any, other_run_id: Any) -> None:
    """Say in an MLflow run that it belongs to another one: that of an evaluation to that in which the model was trained.

    Runs again when one of the two ids has become another, so when the model was trained again or evaluated again. Nothing is written where both are one
    run. It is an ordering barrier, since it looks at what the tasks before it have got: wire it after those that take `run_id`.

    Args:
        run_id, other_run_id: What `get_run_id` gave, or ids as text.
    """
    context = _context()
    ids, others = _both(run_id, other_run_id)
    with reporting(context, "links MLflow runs"):
        if not ids:
            ids = [make_run_id(run_id, context)]
        tracked = connected(context)
        # What was evaluated in this run, if anything was; older runs said what held for them.
        own = tracked.known()
        for id in [own] if own in ids else ids:
            links.link(tracked, id, others)


@materialize(version="1.0", input_type=pa.Table)
def document_evaluation(result: Any, run_id: str, prefix: str = "") -> None:
    """Write an evaluation into an MLflow run, in the form in which MLflow shows each part.

    Numbers become metrics, named by their place (`test/auc`), lists of numbers metrics with a step each; figures of matplotlib and plotly become
    `figures/<place>.png` and `.html`; tables become `tables/<place>.json`; all plain values together become `evaluation.json`. Runs again when the result
    has changed, and not because of another MLflow run.

    Args:
        result: A nest of dicts, lists, dataclasses and plain values, with tables and with figures as blobs.
        run_id: What `get_run_id` gave, or an id as text.
        prefix: Stands before all names, for several evaluations in one MLflow run.

    Raises:
        RunError: MLflow does not take it. Then nothing counts as documented.
    """
    context = _context()
    with reporting(context, "documents an evaluation"):
        log_evaluation(connected(context).client, run_id, result, prefix)
