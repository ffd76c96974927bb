"""Jobs, schedules and conditions for the assets of a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import dagster as dg

from pipedag_core.errors import ConfigError
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.translator import safe

#: Name of the job, and in schedules, that stands for all of a flow.
EVERYTHING = "*"


def eager_when_changed() -> dg.AutomationCondition[Any]:
    """Return a condition that materializes an asset once something that it is made from has other content, or its code has another version.

    Dagster's own eager condition starts whenever an upstream asset was materialized. Here an upstream table that was made again with the same rows
    starts nothing, since its data version is the same.
    """
    # Dagster's types tell conditions on assets from those on checks where it does not matter.
    condition: Any = dg.AutomationCondition
    changed = condition.any_deps_match(condition.data_version_changed()).with_label("any_deps_changed")
    start = condition.newly_missing() | changed | condition.code_version_changed()
    return (
        condition.in_latest_time_window()
        & start.since_last_handled()
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    ).with_label("eager_when_changed")


def job_name(job: FlowJob, part: str = EVERYTHING) -> str:
    """Return the name of the job that materializes a flow, or a part of it."""
    whole = safe(f"{job.plan.flow}_{job.context.instance_name}")
    return whole if part == EVERYTHING else f"{whole}_{safe(part)}"


def part_of(job: FlowJob, part: str) -> list[dg.AssetKey]:
    """Return the assets of a part: a stage with all that is committed with it, or a tag of tasks, or `*` for all.

    Raises:
        ConfigError: There is no such stage or tag.
    """
    if part == EVERYTHING:
        return list(job.tables)
    found = [key for key, table in job.tables.items() if part in (table.stage, table.unit, table.task.tag)]
    if not found:
        known = sorted({*(table.stage for table in job.tables.values()), *(table.task.tag for table in job.tables.values())} - {""})
        near = get_close_matches(part, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        raise ConfigError(f"Flow {job.plan.flow!r} has no stage or tag {part!r}. {hint}", flow=job.plan.flow)
    return found


def flow_jobs(
    job: FlowJob, parts: Sequence[str], schedules: Mapping[str, str], timezone: str | None
) -> tuple[list[Any], list[dg.ScheduleDefinition]]:
    """Return jobs for a flow and parts of it, and schedules that start them.

    Args:
        job: The flow.
        parts: Stages or tags that get a job of their own.
        schedules: Stage or tag, or `*` for all of the flow -> cron expression.
        timezone: In which the expressions are read; None for UTC.

    Raises:
        ConfigError: There is no such stage or tag.
    """
    made: dict[str, Any] = {}
    for part in dict.fromkeys([EVERYTHING, *parts, *schedules]):
        keys = part_of(job, part)
        if keys:
            tags = {"pipedag/flow": job.plan.flow, "pipedag/instance": job.context.instance_name}
            what = f"the flow {job.plan.flow}" if part == EVERYTHING else f"{part} of the flow {job.plan.flow}"
            made[part] = dg.define_asset_job(
                job_name(job, part), selection=dg.AssetSelection.assets(*keys), tags=tags, description=f"Materialize {what}."
            )
    planned = [
        dg.ScheduleDefinition(name=f"{job_name(job, part)}_schedule", job=made[part], cron_schedule=cron, execution_timezone=timezone)
        for part, cron in schedules.items()
        if part in made
    ]
    return list(made.values()), planned
