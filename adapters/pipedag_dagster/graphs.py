"""A unit of stages as a graph of ops: open, an op for each task, commit. All of its assets come from the last one.

Ops hand nothing on but that they are done: what tasks give is in the store. So no IO manager is asked for, and each may run on another machine.
Without postponed annotations, since Dagster reads those of an op's function as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import dagster as dg

from pipedag_dagster.jobs import STEP_CONFIG, FlowJob
from pipedag_dagster.options import StepOptions
from pipedag_dagster.task_by_task import commit, open_up, run_one
from pipedag_dagster.units import COMMIT, OPEN, UnitOps

_START: Final = "start"
_DONE: Final = "done"
_OPENED: Final = "opened"


def graph_assets(
    job: FlowJob, unit: str, specs: Sequence[dg.AssetSpec], checks: Sequence[dg.AssetCheckSpec], options: StepOptions
) -> dg.AssetsDefinition:
    """Return the assets of a unit whose tasks have an op each.

    The first op opens the stages and sets off the ops of the tasks that have to run: Dagster skips the others, which keep what is committed. The
    last op commits, and gives all assets.

    Args:
        job, unit: The flow, and the unit.
        specs, checks: Of its assets.
        options: What Dagster is told about each op.
    """
    ops = UnitOps.of(job, unit)
    own = {spec.key for spec in specs}
    read = dict.fromkeys(dep.asset_key for spec in specs for dep in spec.deps if dep.asset_key not in own)
    inputs = {f"upstream_{number}": key for number, key in enumerate(read)}
    outputs = {spec.key.to_python_identifier(): spec.key for spec in specs}
    checked = {check.get_python_identifier(): check for check in checks}
    first = _open(job, ops, inputs, options)
    last = _commit(job, ops, [*outputs, *checked], options)
    graph = dg.GraphDefinition(
        name=job.step_name(unit),
        node_defs=[first, *(_task(job, ops, task, options) for task in ops.names), last],
        dependencies={
            # Dagster wants names of ops that are unique in all of a code location; in their graph they are called by the shorter ones.
            dg.NodeInvocation(_full(job, ops, name), alias=name): before
            for name, before in _edges(ops).items()
        },
        input_mappings=[dg.InputMapping(graph_input_name=name, mapped_node_name=OPEN, mapped_node_input_name=name) for name in inputs],
        output_mappings=[
            dg.OutputMapping(graph_output_name=name, mapped_node_name=COMMIT, mapped_node_output_name=name) for name in [*outputs, *checked]
        ],
        config=dg.ConfigMapping(config_schema=dict(STEP_CONFIG), config_fn=lambda chosen: {OPEN: {"config": chosen}}),
    )
    return dg.AssetsDefinition(
        node_def=graph,
        keys_by_input_name=inputs,
        keys_by_output_name=outputs,
        check_specs_by_output_name=checked,
        specs=specs,
        can_subset=True,
    )


def _edges(ops: UnitOps) -> dict[str, dict[str, dg.MultiDependencyDefinition]]:
    """Return what comes before what. With several before it, an op is skipped only if all of these are."""
    edges: dict[str, dict[str, dg.MultiDependencyDefinition]] = {OPEN: {}}
    for name in ops.names.values():
        sources = [dg.DependencyDefinition(OPEN, name), *(dg.DependencyDefinition(other, _DONE) for other in ops.before[name])]
        edges[name] = {_START: dg.MultiDependencyDefinition(sources)}
    ended = [dg.DependencyDefinition(OPEN, _OPENED), *(dg.DependencyDefinition(name, _DONE) for name in ops.names.values())]
    edges[COMMIT] = {_START: dg.MultiDependencyDefinition(ended)}
    return edges


def _open(job: FlowJob, ops: UnitOps, inputs: dict[str, dg.AssetKey], options: StepOptions) -> dg.OpDefinition:
    @dg.op(
        name=_full(job, ops, OPEN),
        description=f"Open stage {ops.unit} for writing.",
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={_OPENED: dg.Out(dg.Nothing), **{name: dg.Out(dg.Nothing, is_required=False) for name in ops.names.values()}},
        config_schema=dict(STEP_CONFIG),
        retry_policy=options.retry_policy,
        tags=_tags(ops, options),
        pool=options.pool,
    )
    def opens(context: dg.AssetExecutionContext) -> Iterator[Any]:
        wanted = open_up(context, job, ops)
        yield dg.Output(None, _OPENED)
        for task in ops.names:
            if task in wanted:
                yield dg.Output(None, ops.names[task])

    return opens


def _task(job: FlowJob, ops: UnitOps, task: str, options: StepOptions) -> dg.OpDefinition:
    planned = ops.tasks[task]

    @dg.op(
        name=_full(job, ops, ops.names[task]),
        description=planned.description or f"Task {task} of flow {job.plan.flow}.",
        ins={_START: dg.In(dg.Nothing)},
        out={_DONE: dg.Out(dg.Nothing)},
        retry_policy=options.retry_policy,
        tags={**_tags(ops, options), "pipedag/task": task, **job.translator.get_op_tags(planned)},
        pool=job.translator.get_pool(planned) or options.pool,
    )
    def runs(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from run_one(context, job, ops, task)
        yield dg.Output(None, _DONE)

    return runs


def _commit(job: FlowJob, ops: UnitOps, outputs: Sequence[str], options: StepOptions) -> dg.OpDefinition:
    @dg.op(
        name=_full(job, ops, COMMIT),
        description=f"Commit stage {ops.unit}: all of its tables become visible at once.",
        ins={_START: dg.In(dg.Nothing)},
        # What a run finds under another name, or not at all, is not materialized.
        out={name: dg.Out(dg.Nothing, is_required=False) for name in outputs},
        retry_policy=options.retry_policy,
        tags=_tags(ops, options),
        pool=options.pool,
    )
    def commits(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from commit(context, job, ops)

    return commits


def _full(job: FlowJob, ops: UnitOps, name: str) -> str:
    return f"{job.step_name(ops.unit)}__{name}"


def _tags(ops: UnitOps, options: StepOptions) -> dict[str, Any]:
    return {"pipedag/stage": ops.unit, **options.op_tags}
