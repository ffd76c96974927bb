"""`get_run_id`: the id of a run's MLflow run for tasks of it, made when one of them really runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pipedag_core import materialize
from pipedag_core.config.wire import open_catalog
from pipedag_core.define.context import TaskContext, declaring, executing
from pipedag_core.define.late import LateValue, late_maker
from pipedag_core.errors import PipedagError, RunError
from pipedag_mlflow import current, links, names
from pipedag_mlflow.tracked import Target, Tracked

#: Name of what makes the ids.
MAKER: Final = "mlflow run"


def get_run_id(run_id: Any = None) -> Any:
    """Return the id of the MLflow run of the run that is going on.

    While a flow is wired, this is a task, and what it gives is to be passed to tasks that log something. They get the id as text. It has no say in
    whether they run: an MLflow run is made only when one of them does, if no observer has made it already, and the id is remembered with the result of
    whoever got it. A task whose result stands in so keeps the id under which it ran.

    With `run_id`, that one is given again if it was made in this very run; else a new one is made, which says that it is linked to it.

    Inside of a task that is running, the id is returned at once; nothing remembers it.

    Args:
        run_id: What `get_run_id` gave before, or the id of an MLflow run as text.

    Raises:
        RunError: Called where no flow is wired and no task runs.
    """
    context, declaration = executing.get(), declaring.get()
    # A flow may be run while another is wired, and be wired while another runs: the inner one counts.
    if declaration is not None and declaration.executing is context:
        return _run_id_task(run_id)
    if context is None:
        raise RunError(
            "get_run_id() was called where no flow is wired and no task runs, so there is no run whose MLflow run it could name."
        )
    return make_run_id(LateValue(MAKER, about=_about(run_id)), context)


@materialize(name="get_run_id", version="1.0", takes_late=True)
def _run_id_task(run_id: Any) -> LateValue:
    return LateValue(MAKER, about=_about(run_id))


def _about(run_id: Any) -> str:
    """Return what the maker is told of an earlier id."""
    if run_id is None:
        return ""
    return json.dumps({"source": run_id.source} if isinstance(run_id, LateValue) else {"id": str(run_id)})


@late_maker(MAKER)
def make_run_id(value: LateValue, context: TaskContext) -> str:
    """Return the id of the MLflow run of a task's run.

    Raises:
        RunError: MLflow cannot be reached, or does not take it.
    """
    with reporting(context, "needs the id of its MLflow run"):
        tracked, id = run_of(context)
        if not value.about:
            return id
        about = json.loads(value.about)
        given = [about["id"]] if "id" in about else list(context.earlier(about["source"]))
        for other in given:
            if other != id and "id" in about and _is_of_this_run(tracked, other):
                return other
        links.link(tracked, id, given)
        return id


def run_of(context: TaskContext) -> tuple[Tracked, str]:
    """Return the MLflow run of a task's run, and the connection to it. Where no observer has made one, it is made, and ended at once: nobody else would."""
    tracking = current.tracking_of(context.run_id)
    if tracking is not None:
        tracking.begin()
    tracked = connected(context)
    tags = {names.FLOW: context.flow, names.INSTANCE: context.config.instance_name, names.RUN_ID: context.run_id}
    name = f"{context.flow} {context.config.instance_name} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"
    id, made = tracked.ensure(tags, name=name)
    if made:
        tracked.end(id, "FINISHED")
    return tracked, id


def connected(context: TaskContext) -> Tracked:
    """Return a connection to where a task's run is tracked, or would be."""
    tracking = current.tracking_of(context.run_id)
    return Tracked(tracking.target if tracking is not None else Target(), context.config, context.run_id, context.flow)


@contextmanager
def reporting(context: TaskContext, what: str) -> Iterator[None]:
    """Make errors of MLflow, and of the way to it, into ours.

    Args:
        context: The task.
        what: What it wants of MLflow: "needs ...".
    """
    try:
        yield
    except PipedagError:
        raise
    except Exception as error:
        raise RunError(
            f"Task {context.stage}.{context.task} of flow {context.flow!r} {what}, and MLflow did not take part: {type(error).__name__}: {error}. "
            "Look at the tracking server, and run again; what is done is kept.",
            flow=context.flow,
            stage=context.stage,
            task=context.task,
        ) from error


def _is_of_this_run(tracked: Tracked, mlflow_run_id: str) -> bool:
    """Return whether an MLflow run was made while this run was going on, by whomever."""
    run = tracked.client.get_run(mlflow_run_id)
    if names.RUN_ID in run.data.tags:
        return run.data.tags[names.RUN_ID] == tracked.run_id
    catalog = open_catalog(tracked.config)
    try:
        started = next((row.started for row in catalog.unfinished() if row.info.run_id == tracked.run_id), None)
    finally:
        catalog.close()
    # MLflow counts whole milliseconds.
    return started is not None and run.info.start_time >= int(started * 1000)
