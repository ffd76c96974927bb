"""What the ops of a stage do where each of its tasks has one: open, carry out a task, commit; each maybe in a process, or on a machine, of its own."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg

from pipedag_core.ports.events import Outcome, StepReport
from pipedag_core.runner import commit_stage, execute, open_stage
from pipedag_dagster.checks import failed_midway
from pipedag_dagster.ending import note_tasks, op_ended, stage_ended
from pipedag_dagster.execution import FailingWith, failure_of, results, tag
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.units import COMMIT, OPEN, UnitOps


def open_up(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps) -> AbstractSet[str]:
    """Open a unit, and let what was not selected point to what is committed.

    Returns:
        Full ids of the tasks that have to run.

    Raises:
        dagster.Failure: It failed in a way that another try cannot mend.
        PipedagError: It failed.
    """
    run_id = job.run_id(context.run)
    tag(context, job, run_id)
    with FailingWith(lambda error: op_ended(context, job, ops, OPEN, run_id, error)):
        report, wanted = open_stage(
            job.plan,
            ops.unit,
            tasks=job.tasks_of(ops.unit, context.selected_asset_keys),
            cache_validation_mode=context.op_execution_context.op_config["cache_validation_mode"],
            **_common(context, job, run_id),
        )
        _raise_failure(report)
        note_tasks(context, job, ops, run_id, wanted)
    return wanted


def run_one(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps, task: str) -> Iterator[dg.AssetCheckEvaluation]:
    """Carry out a task; yield the checks that its tables do not pass.

    Raises:
        dagster.Failure: It failed in a way that another try cannot mend.
        Exception: What the task raised.
    """
    run_id = job.run_id(context.run)
    steps = context.run.step_keys_to_execute
    if steps is not None and f"{job.step_name(ops.unit)}.{OPEN}" not in steps:
        # A re-execution from failure.
        tag(context, job, run_id)
    with FailingWith(lambda error: op_ended(context, job, ops, ops.names[task], run_id, error)):
        report = _carry_out(context, job, ops, task, run_id)
        yield from failed_midway(job, report, context.selected_asset_check_keys)
        _raise_failure(report)
    rows = "" if report.rows is None else f", {report.rows:,} rows"
    context.log.info("%s: %s (%s%s, %.3f s)", report.step, report.outcome.value, report.reason, rows, report.seconds)
    op_ended(context, job, ops, ops.names[task], run_id)


def commit(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps) -> Iterator[Any]:
    """Commit a unit, and yield a result for each selected table after the commit.

    Raises:
        dagster.Failure: It failed in a way that another try cannot mend.
        PipedagError: It failed.
    """
    run_id = job.run_id(context.run)
    with FailingWith(lambda error: op_ended(context, job, ops, COMMIT, run_id, error)):
        report = commit_stage(job.plan, ops.unit, **_common(context, job, run_id))
        if not report.is_committed:
            raise failure_of(context, report)
    stage_ended(context, job, ops.unit, run_id)
    yield from results(context, job, report, context.selected_asset_keys)


# --- inside -------------------------------------------------------------------------------------------------------------------------


def _common(context: dg.AssetExecutionContext, job: FlowJob, run_id: str) -> dict[str, Any]:
    dagster_run = context.run.run_id
    return {
        "run_id": run_id,
        "flow": job.code(),
        "config": job.context,
        "note": f"dagster run {dagster_run}",
        "external_id": dagster_run,
    }


def _carry_out(context: dg.AssetExecutionContext, job: FlowJob, ops: UnitOps, task: str, run_id: str) -> StepReport:
    common = _common(context, job, run_id)
    report = execute(job.plan, f"task:{task}", **common)
    if report.outcome is Outcome.WAITING:
        # Another run has taken the stage since this one had to give it back.
        opened, _ = open_stage(job.plan, ops.unit, **common)
        report = execute(job.plan, f"task:{task}", **common) if opened.outcome.is_good else opened
    return report


def _raise_failure(report: StepReport) -> None:
    if not report.outcome.is_good:
        raise report.error or dg.Failure(f"{report.step}: {report.message or report.reason}")
