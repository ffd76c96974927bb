"""DAGs and groups for DAG files that people write themselves, from the same layout as generated files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, final

from airflow.sdk import DAG, Asset, BaseOperator, TaskGroup

from pipedag_airflow.layout import Edge, Granularity, Group, Layout, Node, Role, lay_out
from pipedag_airflow.names import safe_id
from pipedag_airflow.operators import PipedagStepOperator, run_params
from pipedag_airflow.options import Options, Override, read_options
from pipedag_core.errors import ConfigError
from pipedag_core.plan.model import Plan

#: Arguments of operators that are the same for a whole flow.
_OF_FLOW = (
    "project",
    "config",
    "python",
    "command",
    "environment",
    "connections",
    "deployment",
    "events",
    "allow_drift",
    "wait_interval",
    "wait_timeout",
)


@final
class StageTasks(NamedTuple):
    """The operators of a stage, for putting others before, between and after them.

    Attributes:
        open: Opens the stage; what comes before it comes before the stage.
        tasks: Task (without the stage) -> its operator. What comes between one and `commit` can keep the stage from being committed.
        commit: Makes the stage visible; what comes after it comes after the stage.
        close: Gives the stage back if it was not committed.
    """

    open: BaseOperator
    tasks: Mapping[str, BaseOperator]
    commit: BaseOperator
    close: BaseOperator | None


def flow_to_dag(
    flow: str,
    instance: str | None = None,
    *,
    plan: Plan | str | Path | None = None,
    granularity: str | Granularity | None = None,
    dag_id: str | None = None,
    schedule: Any = None,
    start_date: datetime | None = None,
    default_args: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    override: Override | None = None,
    operator: Callable[..., BaseOperator] = PipedagStepOperator,
    **more: Any,
) -> DAG:
    """Return a DAG that carries out a flow.

    Nothing of the project is imported: the steps come from the plan, and each step imports the flow when it runs. Without a plan the steps are not
    known while the file is parsed, so one operator carries out all of the flow.

    Args:
        flow: Import reference of the flow, such as `pkg.mod:flow`.
        instance: Name of the instance.
        plan: What `pipedag plan MODULE:FLOW --json` wrote: the path (a relative one starts at the file that calls), or the plan.
        granularity: "task", "stage" or "flow": how much one operator does; by default "task" with a plan, "flow" without.
        dag_id: By default flow and instance.
        schedule, start_date, default_args: As for `DAG`.
        settings: What else could stand in the configuration under `adapters: airflow:` (`stages`, `tasks`, `tags`, `lifecycle`, `default_args`).
        override: Changes what each operator is given: called with the step, its task and the arguments; returns arguments.
        operator: Makes the operators.
        more: What operators are given for the whole flow (`python`, `project`, `connections`, ...), and other arguments of `DAG`.

    Raises:
        ConfigError: There is no plan for this granularity, or the settings name what is not there.
    """
    given = {name: more.pop(name) for name in _OF_FLOW if name in more}
    layout, options = _layout(flow, instance, plan, granularity, settings, override, _caller_folder())
    arguments: dict[str, Any] = {"catchup": False, "max_active_runs": 1, **options.dag, **more}
    if schedule is not None:
        arguments["schedule"] = schedule
    if start_date is not None:
        arguments["start_date"] = start_date
    stages = [stage.name for stage in layout.plan.stages]
    params = {**run_params(stages), **dict(arguments.pop("params", {}))}
    made = DAG(
        dag_id=dag_id or default_dag_id(layout.plan),
        schedule=arguments.pop("schedule", None),
        **arguments,
        params=params,  # pyright: ignore[reportArgumentType] -- a plain dict is what it is documented to take
        default_args={**options.default_args, **(default_args or {}), "pipedag": _flow_arguments(layout, flow, given)},
    )
    with made:
        _fill(layout, operator, None)
    return made


def flow_to_task_group(
    flow: str,
    instance: str | None = None,
    *,
    group_id: str | None = None,
    plan: Plan | str | Path | None = None,
    granularity: str | Granularity | None = None,
    settings: Mapping[str, Any] | None = None,
    override: Override | None = None,
    operator: Callable[..., BaseOperator] = PipedagStepOperator,
    **more: Any,
) -> TaskGroup:
    """Return a group with the operators of a flow, inside of a DAG that is being declared: `with DAG(...)`, or a function under `@dag`.

    `before >> group >> after` puts others around all of it, and `stage_tasks(group, "features")` gives the operators of a stage.

    Args:
        group_id: By default the flow's name.
        more: What operators are given for the whole flow (`python`, `project`, ...).
        flow, instance, plan, granularity, settings, override, operator: As for `flow_to_dag`.

    Raises:
        ConfigError: As `flow_to_dag`.
    """
    layout, options = _layout(flow, instance, plan, granularity, settings, override, _caller_folder())
    unknown = sorted(set(more) - set(_OF_FLOW))
    if unknown:
        raise ConfigError(f"flow_to_task_group has no argument {', '.join(unknown)}.")
    group = TaskGroup(group_id=group_id or safe_id(layout.plan.flow))
    group.default_args.update({**options.default_args, "pipedag": _flow_arguments(layout, flow, more)})
    with group:
        _fill(layout, operator, group)
    return group


def stage_tasks(container: DAG | TaskGroup, stage: str) -> StageTasks:
    """Return the operators of a stage (of the outermost one, where stages are nested), in a DAG or group of ours.

    With one operator per stage, `open` and `commit` are that one.

    Raises:
        ConfigError: There is no such stage.
    """
    found = {str(task.step): task for task in _tasks(container) if hasattr(task, "step")}
    name = stage.casefold()
    whole = found.get(f"stage:{name}")
    if whole is not None:
        return StageTasks(whole, {}, whole, None)
    if f"open:{name}" not in found:
        known = ", ".join(step.partition(":")[2] for step in found if step.startswith(("open:", "stage:"))) or "none"
        raise ConfigError(f"There is no stage {stage!r} that is committed on its own here. There are: {known}.", stage=stage)
    prefix = f"task:{name}."
    tasks = {step.removeprefix(prefix): task for step, task in found.items() if step.startswith(prefix)}
    return StageTasks(found[f"open:{name}"], tasks, found[f"commit:{name}"], found[f"close:{name}"])


def default_dag_id(plan: Plan) -> str:
    """Return the id of a plan's DAG: flow and instance."""
    return safe_id(plan.flow if plan.instance is None else f"{plan.flow}_{plan.instance}")


def _tasks(container: DAG | TaskGroup) -> list[Any]:
    return list(container.tasks if isinstance(container, DAG) else container.iter_tasks())


def _layout(
    flow: str,
    instance: str | None,
    plan: Plan | str | Path | None,
    granularity: str | Granularity | None,
    settings: Mapping[str, Any] | None,
    override: Override | None,
    folder: Path,
) -> tuple[Layout, Options]:
    wanted = Granularity(granularity) if granularity is not None else Granularity.FLOW if plan is None else Granularity.TASK
    if plan is None:
        if wanted is not Granularity.FLOW:
            raise ConfigError(
                f"To make an operator per {wanted} of {flow!r}, its steps have to be known: write `pipedag plan {flow} --json > plan.json` and pass "
                "plan='plan.json', or generate the DAG file with `pipedag airflow generate`."
            )
        # One operator needs to know no more than whose it is.
        name = flow.rpartition(":")[2] if flow.rpartition(":")[2] not in ("", "flow") else flow.rpartition(":")[0].rpartition(".")[2]
        found = Plan(flow=name or flow, instance=instance, source=flow, digest="", stages=(), tasks=(), steps=())
    else:
        found = plan if isinstance(plan, Plan) else Plan.from_json((folder / plan).read_text(encoding="utf-8"))
        if instance is not None and found.instance not in (None, instance):
            raise ConfigError(f"The plan is for instance {found.instance!r}, not for {instance!r}. Make it with --instance {instance}.")
        if found.instance is None and instance is not None:
            from dataclasses import replace

            found = replace(found, instance=instance)
    options = read_options(settings or {}, found, override)
    return lay_out(found, wanted, options), options


def _flow_arguments(layout: Layout, flow: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"flow": flow, "instance": layout.plan.instance, "digest": layout.plan.digest or None, **given}


def _fill(layout: Layout, operator: Callable[..., BaseOperator], around: TaskGroup | None) -> None:
    """Make all operators and edges in the DAG, and group, that is being declared."""
    groups: dict[tuple[str, ...], TaskGroup] = {}
    for group in layout.groups:
        parent = groups.get(group.path[:-1], around)
        groups[group.path] = _group(group, parent)
    made: dict[str, BaseOperator] = {}
    for node in layout.nodes:
        made[node.full_id] = _operator(node, operator, groups.get(node.group, around))
    for node in layout.nodes:
        if node.role is Role.SETUP:
            made[node.full_id].as_setup()
    for node in layout.nodes:
        if node.role is Role.TEARDOWN:
            made[node.full_id].as_teardown(setups=[made[other] for other in node.setups] or None)
    for edge in layout.edges:
        _connect(edge, made)


def _group(group: Group, parent: TaskGroup | None) -> TaskGroup:
    more: dict[str, Any] = {"parent_group": parent} if parent is not None else {}
    return TaskGroup(group_id=group.id, group_display_name="" if group.id == group.stage else group.stage, **more)


def _operator(node: Node, operator: Callable[..., BaseOperator], group: TaskGroup | None) -> BaseOperator:
    arguments = dict(node.arguments)
    if node.display:
        arguments["task_display_name"] = node.display
    if node.doc:
        arguments.setdefault("doc_md", node.doc)
    if node.inlets:
        arguments.setdefault("inlets", [Asset(uri) for uri in node.inlets])
    if node.outlets:
        arguments["outlets"] = [Asset(uri) for uri in node.outlets]
    if group is not None:
        arguments["task_group"] = group
    return operator(task_id=node.task_id, step=node.step, **arguments)


def _connect(edge: Edge, made: Mapping[str, BaseOperator]) -> None:
    for after in edge.after:
        made[after].set_upstream([made[before] for before in edge.before])


def _caller_folder() -> Path:
    """Return the folder of the file that calls the function that calls this."""
    frame = sys._getframe(2)
    file = frame.f_globals.get("__file__")
    return Path(file).resolve().parent if file else Path.cwd()
