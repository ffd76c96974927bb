"""What is to be noticed between Dagster runs: runs made by others, and runs of ours that died before they could end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import dagster as dg

from pipedag_core.config.wire import has_catalog, open_catalog
from pipedag_core.ports.catalogs import Catalog
from pipedag_core.ports.events import StageReport
from pipedag_core.runner import finish_run
from pipedag_dagster.automation import job_name
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.telling import known_version, provenance, told

#: Runs that are looked at to find out who committed a generation.
_RUNS: Final = 1000
#: Seconds between two looks.
_INTERVAL_S: Final = 60
#: Dagster runs that may still go on.
_ALIVE: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def outside_runs_sensor(job: FlowJob, *, interval_s: int = _INTERVAL_S, running: bool = False) -> dg.SensorDefinition:
    """Return a sensor that tells Dagster of tables that were committed by others: the command line, a notebook, another orchestrator.

    Each of their tables becomes a materialization with the same data version as if Dagster had run it. What Dagster knows already is not told
    again.

    Args:
        job: The flow.
        interval_s: Seconds between two looks at the catalog.
        running: Whether it is switched on from the start.
    """

    @dg.sensor(
        name=f"{job_name(job)}_outside_runs",
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description=f"Reports tables of flow {job.plan.flow} that were committed outside of Dagster.",
    )
    def outside_runs(context):  # noqa: ANN001, ANN202 -- Dagster resolves annotations itself, and knows no postponed ones
        seen: dict[str, int] = json.loads(context.cursor or "{}")
        events, now = committed_by_others(context.instance, job, seen)
        return dg.SensorResult(asset_events=events, cursor=json.dumps(now))

    return outside_runs


def committed_by_others(
    instance: dg.DagsterInstance, job: FlowJob, seen: Mapping[str, int]
) -> tuple[list[dg.AssetMaterialization], dict[str, int]]:
    """Return what to tell of stages whose current generation is another one than when somebody looked last.

    Args:
        instance: The Dagster instance.
        job: The flow.
        seen: Stage -> generation that was current then.

    Returns:
        Materializations of tables that Dagster knows in another version or not at all, upstream tables first; and what is current now.
    """
    if not has_catalog(job.context):
        return [], dict(seen)
    catalog = open_catalog(job.context, read_only=True)
    try:
        stages = [stage.name for stage in job.plan.stages]
        now = {stage: number for stage in stages if (number := catalog.current(stage)) is not None}
        fresh = [stage for stage, number in now.items() if seen.get(stage) != number]
        reports = [(_report(catalog, stage, now[stage]), _run_of(catalog, stage, now[stage])) for stage in fresh]
    finally:
        catalog.close()
    events: list[dg.AssetMaterialization] = []
    versions: dict[dg.AssetKey, str] = {}
    # Rows are read after commits of our own only, so that a sensor weighs nothing.
    light = replace(job, preview_rows=0)
    for report, run_id in reports:
        for key, told_of in told(light, report, {}):
            versions[key] = told_of.data_version.value
            if known_version(instance, key) != versions[key]:
                facts = {**told_of.metadata, "pipedag/run_id": run_id}
                tags = provenance(instance, light, key, versions, run_id)
                events.append(dg.AssetMaterialization(key, metadata=facts, tags=tags))
    return events, now


def _report(catalog: Catalog, stage: str, number: int) -> StageReport:
    results = {f"{stage}.{result.task}": result for result in catalog.results(stage, number)}
    return StageReport((stage,), (), {stage: number}, True, {stage: catalog.entries(stage, number)}, results)


def _run_of(catalog: Catalog, stage: str, number: int) -> str:
    return next((row.run_id for row in catalog.generations() if (row.stage, row.number) == (stage, number)), "")


def finish_sensors(job: FlowJob) -> Sequence[dg.SensorDefinition]:
    """Return sensors that end our runs whose Dagster run was cancelled, or failed without an op that could still do so (its process was killed).

    Until then, and for six hours at most, such a run keeps its stages from others; a re-execution of the Dagster run goes on with it.
    """

    def end(context: dg.RunStatusSensorContext, state: str) -> None:
        run = context.dagster_run
        run_id = run.tags.get("pipedag/run_id")
        mine = (run.tags.get("pipedag/flow"), run.tags.get("pipedag/instance")) == (job.plan.flow, job.context.instance_name)
        if run_id is None or not mine:
            return
        again = dg.RunsFilter(tags={"dagster/root_run_id": run.root_run_id or run.run_id}, statuses=_ALIVE)
        if context.instance.get_runs(again, limit=1):
            return
        finish_run(job.plan, run_id=run_id, state=state, config=job.context)

    def make(status: dg.DagsterRunStatus, state: str) -> dg.SensorDefinition:
        @dg.run_status_sensor(
            run_status=status,
            name=f"{job_name(job)}_ends_{state}",
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=f"Gives back the stages of runs of flow {job.plan.flow} that {state}.",
        )
        def ends(context):  # noqa: ANN001, ANN202 -- as above
            end(context, state)

        return ends

    return [make(dg.DagsterRunStatus.FAILURE, "failed"), make(dg.DagsterRunStatus.CANCELED, "aborted")]
