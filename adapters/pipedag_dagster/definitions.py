"""From a flow to Dagster definitions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from pipedag_core import ConfigContext, Flow, PipedagConfig, Plan
from pipedag_core.config.choice import configuration
from pipedag_core.errors import ConfigError, DuplicateName, PlanMismatch
from pipedag_dagster.assets import stage_assets
from pipedag_dagster.automation import flow_jobs
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.options import StepOptions
from pipedag_dagster.props import FlowState, TableProps, known_tables
from pipedag_dagster.sensors import finish_sensors, outside_runs_sensor
from pipedag_dagster.states import annotated, learned, load_state, source_root
from pipedag_dagster.translator import PipedagTranslator


def build_assets(
    flow: str | Flow | Plan,
    instance: str | None = None,
    *,
    plan: str | Path | None = None,
    learn: str | None = None,
    config: str | Path | PipedagConfig | ConfigContext | None = None,
    translator: PipedagTranslator | None = None,
    deployment: str | None = None,
    preview_rows: int = 0,
    granularity: str | Mapping[str, str] = "stage",
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
) -> list[dg.AssetsDefinition]:
    """Return a flow as assets: one for each table and blob, or for each task whose tables are not known before it runs; a step for each stage.

    Args:
        flow: `package.module:flow_or_factory` or `path/file.py:flow_or_factory`, which is imported only when something is materialized; or a flow
            of this process; or its plan.
        instance: Name of the instance.
        plan: File of the plan, as `pipedag plan --json` writes it. None: the plan is made by a process of its own, and kept below `.pipedag/`
            beside the configuration until a source file of the flow changes.
        learn: Name of an instance whose stored tables teach the names that a plan cannot know, and what tables promise.
        config: A configuration, its file, or one of its instances; by default the `pipedag.yaml` that is found.
        translator: Says what asset a table becomes.
        deployment: Tells apart Dagster deployments that share a store; by default the name that Dagster+ gives it.
        preview_rows: Show so many rows of each table; reads them after each commit.
        granularity: How much one step of Dagster does: "stage" for a stage with all of its tasks, in threads; "task" for one task, so that Dagster's
            executors spread the tasks of a stage over processes or machines; or stage -> one of these, "stage" where none is named.
        retry_policy, op_tags, pool: Of each step, as in `dagster.multi_asset`.

    Raises:
        ConfigError: There is no such instance, plan, flow, granularity or stage.
        PlanMismatch: The plan is one of another flow or instance, or the code is wired differently since.
        DuplicateName: Two tables want one asset key.
    """
    job = make_job(flow, instance, plan, learn, config, translator, deployment, preview_rows)
    return stage_assets(job, StepOptions(granularity, retry_policy, op_tags or {}, pool))


def build_definitions(
    flow: str | Flow | Plan,
    instance: str | None = None,
    *,
    plan: str | Path | None = None,
    learn: str | None = None,
    config: str | Path | PipedagConfig | ConfigContext | None = None,
    translator: PipedagTranslator | None = None,
    deployment: str | None = None,
    preview_rows: int = 0,
    granularity: str | Mapping[str, str] = "stage",
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    jobs: Sequence[str] = (),
    schedules: Mapping[str, str] | None = None,
    timezone: str | None = None,
    report_outside_runs: bool = False,
) -> dg.Definitions:
    """Return a flow as definitions: its assets, jobs that materialize them, schedules, and sensors.

    Args:
        flow, instance, plan, learn, config, translator, deployment, preview_rows, granularity, retry_policy, op_tags, pool: As for `build_assets`.
        jobs: Stages or tags of tasks that get a job of their own, beside the one for the whole flow (`<flow>_<instance>`).
        schedules: Stage or tag, or `*` for all of the flow -> cron expression.
        timezone: In which the expressions are read; None for UTC.
        report_outside_runs: Switch the sensor on from the start that tells Dagster of tables committed by others (the command line, another
            orchestrator).

    Raises:
        ConfigError, PlanMismatch, DuplicateName: As for `build_assets`; and ConfigError if there is no such stage or tag.
    """
    job = make_job(flow, instance, plan, learn, config, translator, deployment, preview_rows)
    return definitions_of(
        job,
        options=StepOptions(granularity, retry_policy, op_tags or {}, pool),
        jobs=jobs,
        schedules=schedules or {},
        timezone=timezone,
        report_outside_runs=report_outside_runs,
    )


def definitions_of(
    job: FlowJob,
    *,
    options: StepOptions | None = None,
    jobs: Sequence[str] = (),
    schedules: Mapping[str, str] | None = None,
    timezone: str | None = None,
    report_outside_runs: bool = False,
) -> dg.Definitions:
    """Return the definitions of a flow whose plan is at hand; arguments as for `build_definitions`."""
    made, planned = flow_jobs(job, jobs, schedules or {}, timezone)
    sensors = [outside_runs_sensor(job, running=report_outside_runs), *finish_sensors(job)]
    assets = stage_assets(job, options or StepOptions())
    return dg.Definitions(assets=assets, jobs=made, schedules=planned, sensors=sensors)


# --- inside -------------------------------------------------------------------------------------------------------------------------


def make_job(
    flow: str | Flow | Plan,
    instance: str | None,
    plan: str | Path | None,
    learn: str | None,
    config: str | Path | PipedagConfig | ConfigContext | None,
    translator: PipedagTranslator | None,
    deployment: str | None,
    preview_rows: int,
) -> FlowJob:
    """Return what ops need to know of a flow; arguments as for `build_assets`."""
    given = PipedagConfig(config) if isinstance(config, (str, Path)) else config
    state, context = _state_and_settings(flow, instance, plan, learn, given)
    code = flow if isinstance(flow, Flow) else None
    return job_of(state, context, translator or PipedagTranslator(), code=code, deployment=deployment, preview_rows=preview_rows)


def job_of(
    state: FlowState,
    context: ConfigContext,
    translator: PipedagTranslator,
    *,
    code: Flow | None = None,
    deployment: str | None = None,
    preview_rows: int = 0,
) -> FlowJob:
    """Return what ops need to know of a flow whose plan is at hand; arguments as for `build_assets`.

    Raises:
        DuplicateName: Two tables want one asset key.
    """
    tables = _by_key(known_tables(state, context), translator)
    where = deployment or os.environ.get("DAGSTER_CLOUD_DEPLOYMENT_NAME", "")
    root = source_root(state.plan.source) if code is None and state.plan.source is not None else None
    return FlowJob(
        state.plan, context, code, translator, tables, _dependencies(state, tables, translator), where, preview_rows, str(root or "")
    )


def _state_and_settings(
    flow: str | Flow | Plan,
    instance: str | None,
    plan: str | Path | None,
    learn: str | None,
    config: PipedagConfig | ConfigContext | None,
) -> tuple[FlowState, ConfigContext]:
    if isinstance(flow, str):
        general = configuration(config, instance, None)
        state = load_state(flow, config if isinstance(config, PipedagConfig) else None, general, plan, learn)
        return state, configuration(config, instance, state.plan.flow)
    if plan is not None:
        raise ConfigError(
            "plan= is the file of the plan of a flow that is named by its import reference; pass either the flow, or its name and plan=."
        )
    if isinstance(flow, Plan):
        if flow.source is None:
            raise PlanMismatch(
                f"The plan of flow {flow.flow!r} does not say where its code is. Make it with `pipedag plan MODULE:FLOW`, or pass the flow itself.",
                flow=flow.flow,
            )
        return FlowState(flow), configuration(config, instance or flow.instance, flow.flow)
    context = configuration(config, instance, flow.name)
    made = flow.plan(context.instance_name)
    return (annotated(flow, made) if learn is None else learned(made, configuration(config, learn, flow.name))), context


def _by_key(tables: Sequence[TableProps], translator: PipedagTranslator) -> dict[dg.AssetKey, TableProps]:
    found: dict[dg.AssetKey, TableProps] = {}
    for table in tables:
        key = translator.get_asset_key(table)
        other = found.setdefault(key, table)
        if other is not table:
            raise DuplicateName(
                f"{other.kind} {other.id} (task {other.task.id}) and {table.kind} {table.id} (task {table.task.id}) of flow {table.flow!r} both want the asset "
                f"key {key.to_user_string()!r}. Rename one of them, or override get_asset_key of the translator.",
                flow=table.flow,
                stage=table.stage,
                name=table.name,
            )
    return found


def _dependencies(
    state: FlowState, tables: Mapping[dg.AssetKey, TableProps], translator: PipedagTranslator
) -> dict[dg.AssetKey, list[dg.AssetKey]]:
    """Return what each asset is made from: the tables that its task really read where that is known, else all of its upstream tasks; tables of others."""
    of_task: dict[str, list[dg.AssetKey]] = {}
    of_table: dict[str, dg.AssetKey] = {}
    for key, table in tables.items():
        of_task.setdefault(table.task.id, []).append(key)
        of_table[table.id] = key
    by_task: dict[str, list[dg.AssetKey]] = {}
    for task in state.plan.tasks:
        read = state.reads.get(task.id)
        if read is not None and all(name in of_table for name in read):
            by_task[task.id] = [of_table[name] for name in read]
        else:
            by_task[task.id] = [key for other in task.upstream for key in of_task[other]]
        for other in task.external:
            key = translator.get_external_key(*other.rsplit(".", 1))
            # A table of another flow may have the key of one of this flow's own.
            if key not in by_task[task.id] and key not in of_task[task.id]:
                by_task[task.id].append(key)
    return {key: by_task[table.task.id] for key, table in tables.items()}
