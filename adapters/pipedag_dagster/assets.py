"""The assets of a flow: one multi-asset for each unit of stages, carried out as one step; or, by option, as a graph of ops, one for each task.

Without postponed annotations, since Dagster reads those of an op's function as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import dagster as dg

from pipedag_dagster.checks import check_specs
from pipedag_dagster.execution import carry_out
from pipedag_dagster.graphs import graph_assets
from pipedag_dagster.jobs import STEP_CONFIG, FlowJob
from pipedag_dagster.options import Granularity, StepOptions


def stage_assets(job: FlowJob, options: StepOptions) -> list[dg.AssetsDefinition]:
    """Return one multi-asset for each unit of stages that has assets.

    Raises:
        ConfigError: The granularity names a stage that is not there, or is none.
    """
    granularity = options.granularity_of(job.plan)
    specs: dict[str, list[dg.AssetSpec]] = {}
    checks: dict[str, list[dg.AssetCheckSpec]] = {}
    # Tables are read by more than one other, and Dagster looks closely at each dependency that it is given as a key.
    deps = {key: dg.AssetDep(key) for key in {*job.tables, *chain.from_iterable(job.deps.values())}}
    for key, table in job.tables.items():
        specs.setdefault(table.unit, []).append(job.translator.get_asset_spec(table, [deps[other] for other in job.deps[key]]))
        checks.setdefault(table.unit, []).extend(check_specs(key, table))
    made: Mapping[Granularity, Any] = {Granularity.STAGE: _stage, Granularity.TASK: graph_assets}
    return [made[granularity[unit]](job, unit, found, checks[unit], options) for unit, found in specs.items()]


def _stage(
    job: FlowJob, unit: str, specs: Sequence[dg.AssetSpec], checks: Sequence[dg.AssetCheckSpec], options: StepOptions
) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=job.step_name(unit),
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
