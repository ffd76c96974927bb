"""When our run ends: with the last stage of the Dagster run that it belongs to, whichever op that is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import dagster as dg

from pipedag_core.config.wire import open_catalog
from pipedag_core.errors import PipedagError
from pipedag_core.plan.model import Plan, StepKind
from pipedag_core.ports.events import Outcome
from pipedag_core.runner import finish_run
from pipedag_dagster.jobs import FlowJob

_GOOD = (Outcome.RAN.value, Outcome.CACHED.value)


def finish_if_last(context: dg.AssetExecutionContext, job: FlowJob, unit: str, run_id: str) -> None:
    """End our run if nothing of it is left to do in this Dagster run.

    Ops of one run may end at the same time in different processes. Each looks after it has committed, or given its stage back, so the last one to
    do so sees that all others have; that two see it does no harm. If a process dies before it has looked, the run stays registered until it is
    executed again, until `finish_sensor` sees it, or until its lease expires.
    """
    try:
        wanted = _selected_tasks(context, job)
        state = _state(job, run_id, unit, wanted)
        if state is not None:
            finish_run(job.plan, run_id=run_id, state=state, config=job.context)
    except PipedagError as error:
        context.log.warning("Run %s could not be ended: %s", run_id, error)


def _selected_tasks(context: dg.AssetExecutionContext, job: FlowJob) -> AbstractSet[str]:
    """Return full ids of the tasks whose assets this Dagster run materializes."""
    chosen = context.run.asset_selection
    if not chosen:
        chosen = context.job_def.asset_layer.selected_asset_keys
    return {table.task.id for key, table in job.tables.items() if key in chosen}


def _state(job: FlowJob, run_id: str, ended: str, wanted: AbstractSet[str]) -> str | None:
    """Return how the run ended, or None while something is left.

    Args:
        job, run_id: The run.
        ended: The unit that has just ended, whatever the catalog says.
        wanted: The tasks that are to be carried out.
    """
    catalog = open_catalog(job.context, read_only=True)
    try:
        last = {f"{stage}.{result.task}": result.outcome for stage, result in catalog.task_log(run_id)}
        is_open = {row.stage for row in catalog.generations() if row.run_id == run_id and row.state == "open"}
    finally:
        catalog.close()
    unit_of = {stage.name: stage.unit for stage in job.plan.stages}
    open_units = {unit_of[stage] for stage in is_open if stage in unit_of} - {ended}
    tasks = {unit: [task.id for task in job.plan.tasks if task.id in wanted and unit_of[task.stage] == unit] for unit in unit_of.values()}
    failed = {unit for unit, ids in tasks.items() if any(last.get(id) not in (*_GOOD, None) for id in ids)}
    over = {unit for unit, ids in tasks.items() if unit == ended or all(id in last for id in ids)} - open_units
    pending = {unit for unit, ids in tasks.items() if ids} - over - _behind(job.plan, failed)
    if pending:
        return None
    return "succeeded" if not failed and all(last.get(id) in _GOOD for id in wanted) else "failed"


def _behind(plan: Plan, failed: AbstractSet[str]) -> set[str]:
    """Return the units that are not reached any more after some have failed."""
    behind: set[str] = set()
    opens = {step.id.removeprefix("open:"): step.upstream for step in plan.steps if step.kind is StepKind.OPEN}
    lost = {f"commit:{unit}" for unit in failed}
    for unit, upstream in opens.items():
        if lost & set(upstream):
            behind.add(unit)
            lost.add(f"commit:{unit}")
    return behind
