"""A unit of stages as ops, one for each task: their names, and what comes before what."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, final

from pipedag_core.plan.model import PlanTask, StepKind
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.translator import safe

OPEN: Final = "open"
COMMIT: Final = "commit"


@final
@dataclass(frozen=True)
class UnitOps:
    """The ops of a unit.

    Attributes:
        unit: The outermost stage.
        tasks: Full id -> task, in wiring order.
        names: Full id of a task -> name of its op.
        before: Name of a task's op -> names of the tasks' ops that come right before it.
    """

    unit: str
    tasks: Mapping[str, PlanTask]
    names: Mapping[str, str]
    before: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, job: FlowJob, unit: str) -> UnitOps:
        """Return the ops of a unit of stages."""
        stages = set(job.plan.unit(unit))
        tasks = {task.id: task for task in job.plan.tasks if task.stage in stages}
        names: dict[str, str] = {}
        taken: set[str] = set()
        for id, task in tasks.items():
            # Dagster refuses some words as names.
            base = safe(f"task_{task.task}" if task.stage == unit else f"task_{task.stage}_{task.task}")
            name, number = base, 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name)
            names[id] = name
        steps = {step.id: step for step in job.plan.steps if step.kind is StepKind.TASK and step.stage in stages}
        task_of = {id: f"{step.stage}.{step.task}" for id, step in steps.items()}
        before = {
            names[task_of[id]]: tuple(names[task_of[other]] for other in step.upstream if other in steps) for id, step in steps.items()
        }
        return cls(unit, tasks, names, before)

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all ops."""
        return (OPEN, *self.names.values(), COMMIT)

    def behind(self, failed: AbstractSet[str]) -> set[str]:
        """Return the names of the tasks' ops that are not reached any more after some have failed."""
        if failed & {OPEN, COMMIT}:
            return set(self.names.values())
        behind: set[str] = set()
        # Steps stand in an order in which each comes after what it needs.
        for name, before in self.before.items():
            if any(other in failed or other in behind for other in before):
                behind.add(name)
        return behind
