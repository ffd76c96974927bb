"""What a task's fingerprint would be made of today, on the results that a run sees; nothing is executed or written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from pipedag_core.cache import fingerprint
from pipedag_core.define.flow import Flow
from pipedag_core.define.task import Task
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import GenerationKey, TaskResult
from pipedag_core.run.calling import call_task, trace_task
from pipedag_core.run.inputs import resolve
from pipedag_core.run.job import Job
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.midway import WouldWrite
from pipedag_core.run.session import Run, Session
from pipedag_core.run.slots import Policy, prepare, query_parts
from pipedag_core.run.versions import resolve_own_side

#: Fresh input is not what makes a stored result stale here.
_CACHE_VALUE: Final = "cache function's value"


def why_stale(session: Session, run: Run, flow: Flow, plan: Plan, task: Task, stored: TaskResult) -> str:
    """Say how a stored result differs from what today's code would make of the same inputs, as far as fingerprints tell; "" if it does not.

    Versions, expressions, queries, arguments and inputs are compared; fresh input (the value of a cache function) is not. A function that returns
    queries is called for its queries if it gets no rows. What a task that compares two versions got of the other one is not to be had any more: of such a
    task, and of what it makes of both, only the rest is compared.

    Args:
        session: Opened.
        run: What sees the inputs.
        flow, plan: Whole.
        task: The task.
        stored: Its result as this run sees it.

    Raises:
        PipedagError, or whatever the task's function raises when it is asked for its queries or its expression.
    """
    planned = plan_lookup(run, plan).tasks[task.stage.name, task.id]
    if task.options.versions is not None:
        return _why_stale_on_own_side(session, run, plan, task, stored)
    inputs = resolve(session, run, plan, task)
    job = Job(session, run, flow, plan, planned, task, GenerationKey(planned.stage, 0), inputs, time.monotonic(), None)
    before = {key: text for key, text in stored.parts.items() if key != _CACHE_VALUE}
    now: Mapping[str, str] = inputs.parts()
    if planned.cached_by == "version":
        now = {"version": str(task.options.version), **now}
    elif planned.cached_by == "auto":
        now = {"expression": fingerprint.short(trace_task(job)), **now}
    elif planned.cached_by == "lazy":
        queries = _queries(job, before)
        if queries is None:
            before = {key: text for key, text in before.items() if not key.startswith("query")}
        now = {**(queries or {}), **now}
        if task.options.version is not None:
            now = {"version": str(task.options.version), **now}
    return fingerprint.explain(before, now)


def _why_stale_on_own_side(session: Session, run: Run, plan: Plan, task: Task, stored: TaskResult) -> str:
    versions = task.options.versions
    assert versions is not None
    now = dict(resolve_own_side(session, run, plan, task).parts())
    if isinstance(task.options.version, str):
        now["version"] = task.options.version
    made_of_both = (f"input {versions.other}.", "query", "expression")
    left_out = (f"argument {versions.other}", _CACHE_VALUE)
    before = {key: text for key, text in stored.parts.items() if key not in left_out and not key.startswith(made_of_both)}
    return fingerprint.explain(before, now)


def _queries(job: Job, before: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the queries of a lazy task as parts; None if its function works on rows, which is not done here."""
    if job.inputs.placeholders:
        if not job.session.hooks.for_type(job.task.options.input_type).by_reference:
            return None
    elif not any(key.startswith("query") for key in before):
        return None
    with job.session.tables.session(f"{job.plan.flow}: {job.planned.id} (looking)") as access:
        # Whatever the cache function says: fresh input does not make a result stale.
        policy = Policy("lazy", False, True, True, None, None)
        try:
            place, _, slots = call_task(job, access, policy, [], writes=False)
        except WouldWrite:
            return {"query of a table written on the way": ""}
        prepare(place, slots, policy)
    return query_parts(slots, place.inputs)
