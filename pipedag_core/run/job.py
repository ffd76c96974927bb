"""One execution of one task step, as all that takes part in it sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.define.flow import Flow
from pipedag_core.define.task import Task
from pipedag_core.errors import FreshInput
from pipedag_core.plan.model import Plan, PlanTask
from pipedag_core.ports.catalogs import GenerationKey
from pipedag_core.run.inputs import TaskInputs
from pipedag_core.run.memory import RunMemory
from pipedag_core.run.session import Run, Session


@final
@dataclass(frozen=True, slots=True)
class Job:
    """One execution of one task step: everything that stays the same from its start to its end, and what it got that is to be remembered."""

    session: Session
    run: Run
    flow: Flow
    plan: Plan
    planned: PlanTask
    task: Task
    generation: GenerationKey
    inputs: TaskInputs
    started: float
    computed: Callable[[], None] | None
    remembered: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def who(self) -> str:
        """The task, for messages."""
        return f"Task {self.planned.id} of flow {self.plan.flow!r}"

    @property
    def catalog(self) -> RunMemory:
        """What answers questions and records results."""
        return self.run.catalog(self.session)


def refuse_fresh_input(job: Job, *, lazy: bool) -> None:
    """Refuse to run on fresh input where the run's mode forbids it.

    Raises:
        FreshInput: The mode is ASSERT_NO_FRESH_INPUT, and the task is not exempt.
    """
    options = job.task.options
    if job.run.options.mode is not CacheValidationMode.ASSERT_NO_FRESH_INPUT or options.allow_fresh_input:
        return
    if lazy or options.cache is not None:
        raise FreshInput(
            f"{job.who} would have to run on fresh input, and cache validation mode ASSERT_NO_FRESH_INPUT forbids it. Run in mode NORMAL to "
            "take the new input, or declare the task with allow_fresh_input=True.",
            flow=job.plan.flow,
            stage=job.planned.stage,
            task=job.planned.task,
        )
