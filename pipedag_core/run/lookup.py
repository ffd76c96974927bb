"""Tasks by their ids, for plans of any size: made once per run, so that a step costs the same whether the flow has ten tasks or ten thousand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from pipedag_core.define.flow import Flow
from pipedag_core.define.task import Task
from pipedag_core.errors import RunError
from pipedag_core.plan.model import Plan, PlanTask, StepKind
from pipedag_core.run.session import Run


@final
@dataclass(frozen=True, slots=True)
class PlanLookup:
    """What steps ask of a plan.

    Attributes:
        plan: The plan.
        tasks: (stage, task) -> what the plan knows of it.
        running: (stage, task) of all task steps.
        stages: Names of all stages.
    """

    plan: Plan
    tasks: Mapping[tuple[str, str], PlanTask]
    running: frozenset[tuple[str, str]]
    stages: frozenset[str]


@final
@dataclass(frozen=True, slots=True)
class FlowLookup:
    """What steps ask of a flow's code.

    Attributes:
        flow: The flow.
        tasks: (stage, task) -> task.
        compared: Names of the stages of which tasks get two versions.
    """

    flow: Flow
    tasks: Mapping[tuple[str, str], Task]
    compared: frozenset[str]


def plan_lookup(run: Run, plan: Plan) -> PlanLookup:
    """Return the tables for a plan, from the run's memory."""
    known = run.lookups.get(id(plan))
    if not isinstance(known, PlanLookup) or known.plan is not plan:
        tasks = {(task.stage, task.task): task for task in plan.tasks}
        running = frozenset((step.stage or "", step.task or "") for step in plan.steps if step.kind is StepKind.TASK)
        known = run.lookups[id(plan)] = PlanLookup(plan, tasks, running, frozenset(stage.name for stage in plan.stages))
    return known


def flow_lookup(run: Run, flow: Flow) -> FlowLookup:
    """Return the tables for a flow, from the run's memory."""
    known = run.lookups.get(id(flow))
    if not isinstance(known, FlowLookup) or known.flow is not flow:
        tasks = {(item.stage.name, item.id): item for item in flow.tasks}
        compared = frozenset(other.stage.name for item in flow.tasks if item.options.versions is not None for other in item.upstream)
        known = run.lookups[id(flow)] = FlowLookup(flow, tasks, compared)
    return known


def find_task(run: Run, flow: Flow, stage: str, task: str) -> Task:
    """Return the flow's task with this stage and id.

    Raises:
        RunError: There is none.
    """
    found = flow_lookup(run, flow).tasks.get((stage, task))
    if found is None:
        raise RunError(
            f"Flow {flow.name!r} has no task {stage}.{task}; the plan was made from other code. Make it again.", stage=stage, task=task
        )
    return found
