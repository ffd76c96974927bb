"""The assets of a flow: one multi-asset for each unit of stages, carried out as one step.

Without postponed annotations, since Dagster reads those of an op's function as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, final

import dagster as dg

from pipedag_dagster.checks import check_specs
from pipedag_dagster.execution import carry_out
from pipedag_dagster.jobs import STEP_CONFIG, FlowJob
from pipedag_dagster.translator import safe


@final
@dataclass(frozen=True)
class StepOptions:
    """What Dagster is told about each step; as in `dagster.multi_asset`."""

    retry_policy: dg.RetryPolicy | None = None
    op_tags: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pool: str | None = None


def stage_assets(job: FlowJob, options: StepOptions) -> list[dg.AssetsDefinition]:
    """Return one multi-asset for each unit of stages that has assets."""
    specs: dict[str, list[dg.AssetSpec]] = {}
    checks: dict[str, list[dg.AssetCheckSpec]] = {}
    # Tables are read by more than one other, and Dagster looks closely at each dependency that it is given as a key.
    deps = {key: dg.AssetDep(key) for key in {*job.tables, *chain.from_iterable(job.deps.values())}}
    for key, table in job.tables.items():
        specs.setdefault(table.unit, []).append(job.translator.get_asset_spec(table, [deps[other] for other in job.deps[key]]))
        checks.setdefault(table.unit, []).extend(check_specs(key, table))
    return [_stage(job, unit, found, checks[unit], options) for unit, found in specs.items()]


def _stage(
    job: FlowJob, unit: str, specs: Sequence[dg.AssetSpec], checks: Sequence[dg.AssetCheckSpec], options: StepOptions
) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=safe(f"{job.plan.flow}__{job.context.instance_name}__{unit}"),
        specs=specs,
        check_specs=checks,
        can_subset=True,
        config_schema=dict(STEP_CONFIG),
        retry_policy=options.retry_policy,
        op_tags={"pipedag/stage": unit, **options.op_tags},
        pool=options.pool,
    )
    def stage(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from carry_out(context, job, unit)

    return stage
