"""What carries out the steps of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pipedag_core.plan.model import Plan, Step
from pipedag_core.ports.events import StepReport


class RunStep(Protocol):
    """Carries out one step and says how it went; raises only when the program is to end (KeyboardInterrupt)."""

    def __call__(self, step: Step, computed: Callable[[], None] | None = None, /) -> StepReport:
        """Carry out a step.

        Args:
            step: The step.
            computed: Called at most once, from the thread that carries out the step, when all that remains of it is to write rows that are in
                memory. An engine may start another step then, though this one has not ended.
        """
        ...


class Engine(Protocol):
    """Calls each step of a plan once all its upstream steps are done.

    Promises:
        1. A step starts only after all its upstream steps have ended well.
        2. A step with an upstream step that failed or was skipped is skipped; with `fail_fast` no further step starts after a failure.
        3. A step that reports WAITING is called again, with growing pauses, while other steps go on.
        4. The finish step is called last, once, whatever happened, a KeyboardInterrupt included (which is raised again after it).
        5. No step is called twice unless it reported WAITING.
    """

    def run(self, plan: Plan, run_step: RunStep, skip_step: Callable[[Step, Step], StepReport], *, fail_fast: bool) -> Sequence[StepReport]:
        """Carry out all steps of the plan.

        Args:
            plan: What to do.
            run_step: Carries out one step.
            skip_step: Reports a step that cannot run, because of the step given second.
            fail_fast: Start nothing more after the first failure.

        Returns:
            One report per step, in the order in which they ended.
        """
        ...
