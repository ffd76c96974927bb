"""A part of a plan: named stages, which run and commit, or named tasks, which run into scratch generations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

from pipedag_core import naming
from pipedag_core.define import doors
from pipedag_core.define.flow import Flow
from pipedag_core.define.hints import nearest
from pipedag_core.define.options import Declared
from pipedag_core.define.refs import Reference
from pipedag_core.define.stage import Stage
from pipedag_core.errors import FlowError
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.model import Plan, Step, StepKind


@final
@dataclass(frozen=True, slots=True)
class Selection:
    """What was named: normalised stage names, or full task ids (`stage.task`), each once; both empty for everything."""

    stages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


def resolve(flow_or_plan: Flow | Plan, components: Iterable[Any]) -> Selection:
    """Return which stages or tasks were named.

    Args:
        flow_or_plan: Where they are looked for.
        components: Stages, tasks, items of tasks (which stand for their task), or names: `stage`, `stage.task`.

    Raises:
        FlowError: A component is not part of the flow (the message shows the nearest names) or of another type; or stages and tasks are mixed.
    """
    if isinstance(flow_or_plan, Plan):
        name, stage_names, task_ids = (
            flow_or_plan.flow,
            [item.name for item in flow_or_plan.stages],
            [item.id for item in flow_or_plan.tasks],
        )
    else:
        name, stage_names = flow_or_plan.name, [item.name for item in flow_or_plan.stages]
        task_ids = [item.full_id for item in flow_or_plan.tasks]
    own = flow_or_plan if isinstance(flow_or_plan, Flow) else None
    known_stages, known_tasks = set(stage_names), set(task_ids)
    stages: dict[str, None] = {}
    tasks: dict[str, None] = {}
    for component in components:
        if isinstance(component, Stage):
            _belongs(component, component.flow, own, name, component.name in known_stages)
            stages[component.name] = None
        elif isinstance(component, Reference):
            for task in component.tasks:
                _belongs(component, task.flow, own, name, task.full_id in known_tasks)
                tasks[task.full_id] = None
        elif isinstance(component, str):
            wanted = naming.normalize(component, "stage or task")
            if wanted not in known_stages and wanted not in known_tasks:
                raise FlowError(
                    f"There is no stage or task {component!r} in flow {name!r}. {nearest(wanted, [*stage_names, *task_ids])}", flow=name
                )
            (stages if wanted in known_stages else tasks)[wanted] = None
        elif isinstance(component, Declared):
            raise FlowError(
                f"{component!r} is a function, which a flow may call several times. Name a call of it: flow['stage'][{component.options.name!r}].",
                flow=name,
            )
        else:
            raise FlowError(
                f"A part of a flow is a stage, a task, or a name, not a {type(component).__name__}: {component!r:.80}.", flow=name
            )
    if stages and tasks:
        raise FlowError(
            f"Stages ({', '.join(stages)}) and tasks ({', '.join(tasks)}) of flow {name!r} cannot be chosen together: stages are committed, tasks "
            "run into scratch generations. Choose one kind.",
            flow=name,
        )
    return Selection(tuple(stages), tuple(tasks))


def _belongs(component: object, found: Flow | None, flow: Flow | None, name: str, named: bool) -> None:
    if not named or (flow is not None and found is not flow):
        raise FlowError(f"{component!r} is not part of flow {name!r}. Choose among its own stages and tasks.", flow=name)


def select(plan: Plan, stages: Iterable[str] = (), tasks: Iterable[str] = ()) -> Plan:
    """Return a plan with the steps of named stages, or of named tasks; of everything if nothing is named.

    Args:
        plan: A plan of the whole flow.
        stages: Names of stages; each stands for its whole unit: the outermost stage around it and all stages inside, as they commit together.
        tasks: Full ids of tasks. The plan is a scratch plan then: their units are opened, and nothing is committed.

    Returns:
        The same stages, tasks and digest, with fewer steps. What came before a step, through steps that are left out, still comes before it.

    Raises:
        FlowError: A name is not in the plan, or both kinds are named.
    """
    chosen = resolve(plan, [*stages, *tasks])
    if not chosen.stages and not chosen.tasks:
        return plan
    unit_of = {stage.name: stage.unit for stage in plan.stages}
    if chosen.stages:
        units = {unit_of[name] for name in chosen.stages}
        kept = {step.id for step in plan.steps if step.stage is None or unit_of[step.stage] in units}
        return replace(plan, steps=contract(plan.steps, kept))
    wanted = set(chosen.tasks)
    units = {unit_of[task.stage] for task in plan.tasks if task.id in wanted}
    kept = {
        step.id
        for step in plan.steps
        if step.kind is StepKind.FINISH
        or (step.kind is StepKind.OPEN and step.stage in units)
        or (step.kind is StepKind.TASK and f"{step.stage}.{step.task}" in wanted)
    }
    return replace(plan, steps=contract(plan.steps, kept), scratch=True)


def contract(steps: tuple[Step, ...], kept: set[str]) -> tuple[Step, ...]:
    """Return the kept steps of a plan; an edge to a step that is left out becomes edges to the kept steps before that one."""
    behind: dict[str, dict[str, None]] = {}
    result: list[Step] = []
    for step in steps:
        before: dict[str, None] = {}
        for other in step.upstream:
            before.update({other: None} if other in kept else behind.get(other, {}))
        if step.id in kept:
            result.append(replace(step, upstream=tuple(before)))
        else:
            behind[step.id] = before
    return tuple(result)


@final
class Subflow:
    """A part of a flow that can be planned and run.

    Attributes:
        flow: The whole flow.
        stages, tasks: The named stages, or the named tasks.
    """

    def __init__(self, flow: Flow, selection: Selection) -> None:
        self.flow = flow
        self.selection = selection
        chosen = set(selection.tasks)
        self.stages = tuple(flow.get_stage(name) for name in selection.stages)
        self.tasks = tuple(task for task in flow.tasks if task.full_id in chosen)

    def plan(self, instance: str | None = None, source: str | None = None) -> Plan:
        """Return the plan of this part."""
        return select(compile_flow(self.flow, instance, source), self.selection.stages, self.selection.tasks)

    def run(self, **options: Any) -> Any:
        """Run this part; see `pipedag_core.runner.run_flow`."""
        return doors.run_flow(self.flow, *self.selection.stages, *self.selection.tasks, **options)

    def __repr__(self) -> str:
        return f"<part of flow {self.flow.name}: {', '.join([*self.selection.stages, *self.selection.tasks]) or 'everything'}>"


def subflow(flow: Flow, *components: Any) -> Subflow:
    """Return a part of a flow: what `flow.get_subflow(...)` calls.

    Raises:
        FlowError: As for `resolve`.
    """
    return Subflow(flow, resolve(flow, components))
