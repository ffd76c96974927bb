"""When our run ends: with the last stage of the Dagster run that it belongs to, whichever op that is. And when a stage does that will not be committed.

Ops of one run may end at the same time in different processes, so each notes in the catalog how it ended, and then looks at the notes: the last one
to do so sees those of all others. That two do so at the same time does no harm. If a process dies before it could, the run stays registered until it is
executed again, until `finish_sensors` see it, or until its leases expire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from typing import Final

import dagster as dg

from pipedag_core.config.wire import open_catalog
from pipedag_core.errors import PipedagError
from pipedag_core.ports.events import Outcome
from pipedag_core.runner import execute, finish_run
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.units import UnitOps

_GOOD: Final = (Outcome.RAN.value, Outcome.CACHED.value)
_WELL, _FAILED = "well", "failed"


def stage_ended(context: dg.AssetExecutionContext, job: FlowJob, unit: str, run_id: str, error: BaseException | None = None) -> None:
    """Note that a unit of stages has ended, and end our run if nothing of it is left to do in this Dagster run.

    Args:
        context, job, unit, run_id: Of whoever has committed the unit, or given it back.
        error: What it raises, if it failed. Where Dagster tries again, nothing has ended.
    """
    if error is not None and _is_tried_again(context, error):
        return
    try:
        own = _name(context, unit)
        notes = _noted(job, run_id, {own: _WELL if error is None else _FAILED}) if run_id else {}
        units = _units(context, job)
        ended = {other: notes[_name(context, other)] for other in units if _name(context, other) in notes}
        failed = {other for other, how in ended.items() if how == _FAILED}
        if notes and not units - ended.keys() - _behind(job, failed, units):
            finish_run(job.plan, run_id=run_id, state=_state(context, job, run_id, failed), config=job.context)
    except PipedagError as problem:
        context.log.warning("Run %s could not be ended: %s", run_id, problem)


def op_ended(
    context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps, op: str, run_id: str, error: BaseException | None = None
) -> None:
    """Note that an op of a unit has ended, and give the unit back once nothing of it is left to do in this Dagster run, and it cannot be committed.

    Args:
        context, job, run_id: Of the op.
        ops: All ops of the unit.
        op: Its name.
        error: As for `stage_ended`.
    """
    if error is not None and _is_tried_again(context, error):
        return
    try:
        notes = _noted(job, run_id, {_name(context, ops.unit, op): _WELL if error is None else _FAILED})
        ended = {name: notes[key] for name in ops.all if (key := _name(context, ops.unit, name)) in notes}
        failed = {name for name, how in ended.items() if how == _FAILED}
        if not failed or _expected(context, job, ops, notes) - ended.keys() - ops.behind(failed):
            return
        execute(job.plan, f"close:{ops.unit}", run_id=run_id, flow=job.code(), config=job.context)
    except PipedagError as problem:
        context.log.warning("Stage %s could not be given back by run %s: %s", ops.unit, run_id, problem)
    stage_ended(context, job, ops.unit, run_id, error or dg.Failure(allow_retries=False))


def note_tasks(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps, run_id: str, tasks: AbstractSet[str]) -> None:
    """Note for the ops of other processes which tasks of a unit are to run."""
    _noted(job, run_id, {_name(context, ops.unit, "tasks"): json.dumps(sorted(ops.names[task] for task in tasks))})


# --- inside -------------------------------------------------------------------------------------------------------------------------


def _name(context: dg.AssetExecutionContext, *parts: str) -> str:
    # A re-execution goes on in the same run of ours, where every step of it has yet to end.
    return " ".join(["dagster", context.run.run_id, *parts])


def _noted(job: FlowJob, run_id: str, notes: Mapping[str, str]) -> Mapping[str, str]:
    """Keep notes with our run, and return all that are there; nothing if it has not begun, or is over."""
    with closing(open_catalog(job.context)) as catalog:
        if all(row.info.run_id != run_id for row in catalog.unfinished()):
            return {}
        for name, text in notes.items():
            catalog.note(run_id, name, text)
        return catalog.notes(run_id)


def _is_tried_again(context: dg.AssetExecutionContext, error: BaseException) -> bool:
    if not isinstance(error, Exception) or (isinstance(error, dg.Failure) and not error.allow_retries):
        return False
    policy = context.job_def.get_retry_policy_for_handle(context.op_execution_context.op_handle)
    return policy is not None and context.retry_number < policy.max_retries


def _selected(context: dg.AssetExecutionContext) -> AbstractSet[dg.AssetKey]:
    return context.run.asset_selection or context.job_def.asset_layer.selected_asset_keys


def _units(context: dg.AssetExecutionContext, job: FlowJob) -> set[str]:
    """Return the units of which this Dagster run carries out something."""
    chosen = _selected(context)
    units = {table.unit for key, table in job.tables.items() if key in chosen}
    steps = context.run.step_keys_to_execute
    tops = None if steps is None else {step.partition(".")[0] for step in steps}
    return {unit for unit in units if tops is None or job.step_name(unit) in tops}


def _behind(job: FlowJob, failed: AbstractSet[str], units: AbstractSet[str]) -> set[str]:
    """Return the units of a Dagster run that are not reached any more after some have failed."""
    readers: dict[str, set[str]] = {}
    for key, table in job.tables.items():
        for other in job.deps[key]:
            if table.unit in units and other in job.tables and job.tables[other].unit != table.unit:
                readers.setdefault(job.tables[other].unit, set()).add(table.unit)
    behind: set[str] = set()
    left = list(failed)
    while left:
        new = readers.get(left.pop(), set()) - behind
        behind |= new
        left.extend(new)
    return behind


def _state(context: dg.AssetExecutionContext, job: FlowJob, run_id: str, failed: AbstractSet[str]) -> str:
    """Return how a run ended of which nothing is left to do: well if every task whose asset was to be materialized has given its result."""
    if failed:
        return _FAILED
    chosen = _selected(context)
    wanted = {table.task.id for key, table in job.tables.items() if key in chosen}
    with closing(open_catalog(job.context, read_only=True)) as catalog:
        last = {f"{stage}.{result.task}": result.outcome for stage, result in catalog.task_log(run_id)}
    return "succeeded" if all(last.get(task) in _GOOD for task in wanted) else _FAILED


def _expected(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps, notes: Mapping[str, str]) -> set[str]:
    """Return the ops of a unit that this Dagster run carries out, those that open and commit left aside."""
    chosen = notes.get(_name(context, ops.unit, "tasks"))
    names = set(ops.names.values()) if chosen is None else set(json.loads(chosen))
    steps = context.run.step_keys_to_execute
    return names if steps is None else {name for name in names if f"{job.step_name(ops.unit)}.{name}" in steps}
