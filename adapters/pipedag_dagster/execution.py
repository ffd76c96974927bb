"""What the op of a stage does: carry the stage out, and tell Dagster what became of each of its tables once it is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, final

import dagster as dg

from pipedag_core.errors import CacheError, ConfigError, FlowError, PipedagError
from pipedag_core.ports.events import StageReport
from pipedag_core.runner import execute_stage
from pipedag_dagster.checks import failed, passed
from pipedag_dagster.ending import stage_ended
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.telling import provenance, told

#: Errors that are there again when nothing is changed.
_LASTING = (ConfigError, FlowError, CacheError)


def carry_out(context: dg.AssetExecutionContext, job: FlowJob, unit: str) -> Iterator[Any]:
    """Carry out a stage with all that is committed with it, and yield a result for each selected table after the commit.

    Raises:
        dagster.Failure: It failed in a way that another try cannot mend.
        Exception: What the first failed task raised.
    """
    selected = context.selected_asset_keys
    run_id = job.run_id(context.run)
    tag(context, job, run_id)
    with FailingWith(lambda error: stage_ended(context, job, unit, run_id, error)):
        report = execute_stage(
            job.plan,
            unit,
            run_id=run_id,
            tasks=job.tasks_of(unit, selected),
            flow=job.code(),
            config=job.context,
            cache_validation_mode=context.op_execution_context.op_config["cache_validation_mode"],
            note=f"dagster run {context.run.run_id}",
            external_id=context.run.run_id,
        )
    if not report.is_committed:
        raised = failure_of(context, report)
        stage_ended(context, job, unit, run_id, raised)
        yield from failed(job, report, context.selected_asset_check_keys)
        raise raised
    stage_ended(context, job, unit, run_id)
    yield from results(context, job, report, selected)


def tag(context: dg.AssetExecutionContext, job: FlowJob, run_id: str) -> None:
    """Let people find the run in both places."""
    if context.run.tags.get("pipedag/run_id") != run_id:
        tags = {"pipedag/run_id": run_id, "pipedag/flow": job.plan.flow, "pipedag/instance": job.context.instance_name}
        context.instance.add_run_tags(context.run.run_id, tags)


def results(context: dg.AssetExecutionContext, job: FlowJob, report: StageReport, selected: AbstractSet[dg.AssetKey]) -> Iterator[Any]:
    """Yield, or log, what became of the tables; upstream tables first, as Dagster notes with each one which versions of the others it was made from.

    A result is yielded where another step waits for it, or a check is to be reported with it. A materialization that is logged says the same for
    less than half of the time, since Dagster handles an output for the other one as well. Logged are also tables that were not asked for, but ran
    with what was, or because nothing was committed of them, and tables whose names the plan does not know.
    """
    done = {f"{item.stage}.{item.task}": item for item in report.reports if item.task is not None}
    graph = context.job_def.asset_layer.asset_graph
    own = set(job.keys_of(report.stages[0]))
    versions: dict[dg.AssetKey, str] = {}
    for key, told_of in told(job, report, done):
        versions[key] = told_of.data_version.value
        if key not in selected and told_of.task not in done:
            continue
        checks = passed(key, job.tables[key], context.selected_asset_check_keys) if key in job.tables and key in selected else []
        if checks or (key in selected and graph.get(key).child_keys - own):
            yield dg.MaterializeResult(asset_key=key, metadata=told_of.metadata, data_version=told_of.data_version, check_results=checks)
        else:
            tags = provenance(context.instance, job, key, versions, context.run.run_id)
            context.log_event(dg.AssetMaterialization(key, metadata=told_of.metadata, tags=tags))


def failure_of(context: dg.AssetExecutionContext, report: StageReport) -> BaseException:
    """Return what the op raises: the first failure as it is; all are in the log."""
    failures = report.failures
    for failure in failures[1:]:
        context.log.error("%s failed too: %s", failure.step, failure.message)
    error = failures[0].error if failures else None
    if error is None:
        return dg.Failure(f"Stage {report.stages[0]} was not committed.", metadata={"steps": [item.step for item in report.reports]})
    return lasting(error) if isinstance(error, PipedagError) else error


def lasting(error: PipedagError) -> BaseException:
    """Return what an op raises for an error of ours: one that is there again when nothing is changed is not to be tried again."""
    if not isinstance(error, _LASTING):
        return error
    failure = dg.Failure("\n".join([str(error), *getattr(error, "__notes__", ())]), allow_retries=False)
    failure.__cause__ = error
    return failure


@final
class FailingWith(AbstractContextManager[None]):
    """Tells what an op is going to raise before it does, in a `with` block; an error of ours becomes what `lasting` makes of it.

    Args:
        tell: Called with the exception.
    """

    # A class, since `contextlib.contextmanager` sets the traceback of the exceptions that pass through, and users' exceptions may be frozen.

    def __init__(self, tell: Callable[[BaseException], None]) -> None:
        self._tell = tell

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /) -> None:
        if error is None:
            return
        raised = lasting(error) if isinstance(error, PipedagError) else error
        self._tell(raised)
        if raised is not error:
            raise raised from error
