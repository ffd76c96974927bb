"""From a declared flow to its plan: steps with edges, in an order that never changes by chance."""

from __future__ import annotations

from typing import Any

from pipedag_core import naming
from pipedag_core.define.flow import Flow
from pipedag_core.define.group import Container, GroupNode
from pipedag_core.define.options import AUTO_VERSION
from pipedag_core.define.shapes import text_of
from pipedag_core.define.task import Task
from pipedag_core.errors import DuplicateName
from pipedag_core.hashing import digest
from pipedag_core.plan.canonical import edges, external_tables, nest_text
from pipedag_core.plan.model import Plan, PlanStage, PlanTask, Step, StepKind
from pipedag_core.plan.ordering import Ordering
from pipedag_core.plan.outputs import known_outputs


def compile_flow(flow: Flow, instance: str | None = None, source: str | None = None) -> Plan:
    """Return the plan of a whole flow.

    Steps: per unit (an outermost stage with all stages in it) `open:<unit>`, its tasks, `commit:<unit>`; at last `finish`. A unit opens after the
    commits of the units that it reads; a task starts after its upstream tasks of the same unit; everything keeps its order of wiring where it can.

    Args:
        flow: A flow whose declaration has ended.
        instance: The instance that the plan is for; None for the configuration's default.
        source: Import reference under which other processes find the flow; by default the flow's own.

    Raises:
        FlowError: The flow is not declared completely, or parts of it need each other.
        DuplicateName: Two tasks of a stage are known to want one table name.
    """
    flow.require_declared()
    ordering = Ordering(flow)
    groups = _groups(flow)
    positions = _positions(flow, [task for unit in ordering.units for task in ordering.tasks[unit]])
    tasks = tuple(_plan_task(task, positions[task], groups[task]) for task in flow.tasks)
    _check_names(flow, tasks)
    stages = tuple(PlanStage(stage.name, stage.unit.name, stage.parent.name if stage.parent is not None else None) for stage in flow.stages)
    steps = _steps(ordering)
    return Plan(
        flow=flow.name,
        instance=instance,
        source=source if source is not None else flow.source,
        digest=_digest(flow, stages, steps),
        stages=stages,
        tasks=tasks,
        steps=steps,
    )


def plan_flow(flow: Flow, instance: str | None = None, source: str | None = None, **_: Any) -> Plan:
    """Return the plan of a flow: what `flow.plan(...)` calls; see `compile_flow`."""
    return compile_flow(flow, instance, source)


def _steps(ordering: Ordering) -> tuple[Step, ...]:
    steps: list[Step] = []
    for unit in ordering.units:
        opened = f"open:{unit.name}"
        before = tuple(f"commit:{other.name}" for other in ordering.units if other in ordering.unit_needs[unit])
        steps.append(Step(opened, StepKind.OPEN, unit.name, None, before))
        ids: list[str] = []
        for task in ordering.tasks[unit]:
            ids.append(f"task:{task.full_id}")
            upstream = (opened, *(f"task:{other.full_id}" for other in ordering.task_needs[task]))
            steps.append(Step(ids[-1], StepKind.TASK, task.stage.name, task.id, upstream))
        steps.append(Step(f"commit:{unit.name}", StepKind.COMMIT, unit.name, None, tuple(ids) or (opened,)))
    steps.append(Step("finish", StepKind.FINISH, None, None, tuple(step.id for step in steps)))
    return tuple(steps)


def _positions(flow: Flow, in_order: list[Task]) -> dict[Task, str]:
    """Return the position of each task: equal wirings of one function in a stage are told apart by their number."""
    plain: dict[Task, str] = {}

    def of_task(task: Task) -> str:
        return f"task {plain[task]}"

    for task in in_order:
        text = nest_text(dict(task.parameters), of_task)
        if task.whole:
            text += nest_text([other for other in task.upstream if other.stage in task.whole], of_task)
        plain[task] = digest("position", naming.normalize(task.name), task.stage.name, text)
    result: dict[Task, str] = {}
    counts: dict[str, int] = {}
    for task in flow.tasks:
        count = counts[plain[task]] = counts.get(plain[task], 0) + 1
        result[task] = plain[task] if count == 1 else digest("repeated", plain[task], str(count))
    return result


def _digest(flow: Flow, stages: tuple[PlanStage, ...], steps: tuple[Step, ...]) -> str:
    # Commits and the end follow from the rest; a text per item is told apart by Python's own quoting.
    wired = [
        repr((task.full_id, [edge for label, value in task.parameters.items() for edge in edges(value, label)])) for task in flow.tasks
    ]
    starts = [repr((step.id, step.upstream)) for step in steps if step.kind in (StepKind.OPEN, StepKind.TASK)]
    return digest("wiring", *(repr((stage.name, stage.parent)) for stage in stages), "tasks", *wired, "steps", *starts)


def _groups(flow: Flow) -> dict[Task, tuple[str, ...]]:
    found: dict[Task, tuple[str, ...]] = {}

    def visit(container: Container, labels: tuple[str, ...]) -> None:
        for node in container.nodes:
            if isinstance(node, Task):
                found[node] = labels
            else:
                visit(node, (*labels, node.label) if isinstance(node, GroupNode) and node.label else labels)

    visit(flow, ())
    return found


def _plan_task(task: Task, position: str, groups: tuple[str, ...]) -> PlanTask:
    options = task.options
    auto = options.version is AUTO_VERSION
    if auto:
        cached_by = "auto"
    elif options.lazy:
        cached_by = "lazy"
    else:
        cached_by = "never" if options.version is None else "version"
    return PlanTask(
        stage=task.stage.name,
        task=task.id,
        name=task.name,
        position=position,
        upstream=tuple(other.full_id for other in task.upstream),
        cached_by=cached_by,
        version="AUTO_VERSION" if auto else str(options.version or ""),
        input_type="" if options.input_type is None else text_of(options.input_type),
        outputs=known_outputs(task),
        description=task.function.description,
        groups=groups,
        tag=options.group_node_tag or "",
        external=tuple(dict.fromkeys(external_tables(dict(task.parameters)))),
    )


def _check_names(flow: Flow, tasks: tuple[PlanTask, ...]) -> None:
    owners: dict[tuple[str, str], PlanTask] = {}
    for task in tasks:
        for name in task.outputs or ():
            other = owners.setdefault((task.stage, name), task)
            if other is not task:
                raise DuplicateName(
                    f"Tasks {other.task!r} and {task.task!r} of stage {task.stage!r} (flow {flow.name!r}) both make a table {name!r}. "
                    "Give one of them another name.",
                    flow=flow.name,
                    stage=task.stage,
                    task=task.task,
                    name=name,
                )
