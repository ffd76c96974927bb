"""Which steps are ready: the bookkeeping that all engines of this process share."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import final

from pipedag_core.errors import RunError
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.ports.events import Outcome, StepReport


@final
class Agenda:
    """Keeps what is to be done, what is ready, and what became impossible. Not shared between threads: its owner asks and tells it."""

    def __init__(self, plan: Plan, skip_step: Callable[[Step, Step], StepReport], *, fail_fast: bool) -> None:
        self._steps = {step.id: step for step in plan.steps if step.kind is not StepKind.FINISH}
        self._ids = list(self._steps)
        self._order = {id: number for number, id in enumerate(self._ids)}
        self.finish = next((step for step in plan.steps if step.kind is StepKind.FINISH), None)
        self._missing = {step.id: {up for up in step.upstream if up in self._steps} for step in self._steps.values()}
        self._downstream: dict[str, list[str]] = {id: [] for id in self._steps}
        for id, ups in self._missing.items():
            for up in ups:
                self._downstream[up].append(id)
        # A heap of places in the plan's order; what was skipped meanwhile is passed over when it comes up.
        self._ready = [self._order[id] for id in self._steps if not self._missing[id]]
        self._left = set(self._steps)
        self._skip = skip_step
        self._fail_fast = fail_fast
        self.reports: list[StepReport] = []

    def take(self) -> Step | None:
        """Return the ready step that is first in the plan's order, or None; it is the caller's now."""
        while self._ready:
            id = self._ids[heapq.heappop(self._ready)]
            if id in self._left:
                return self._steps[id]
        return None

    def give_back(self, step: Step) -> None:
        """Put a step that has to wait back among the ready ones."""
        self._make_ready(step.id)

    def note(self, report: StepReport) -> None:
        """Note how a step ended: more may be ready now, or impossible."""
        self.reports.append(report)
        self._left.discard(report.step)
        if report.outcome.is_good:
            for id in self._downstream[report.step]:
                self._missing[id].discard(report.step)
                if not self._missing[id] and id in self._left:
                    self._make_ready(id)
            return
        failed = self._steps[report.step]
        if report.outcome is Outcome.FAILED and self._fail_fast:
            self._ready.clear()
        self._skip_downstream(failed, failed)

    def skip_rest(self, because: Step) -> None:
        """Skip all that has neither ended nor been taken."""
        for id in [id for id in self._steps if id in self._left]:
            self._skip_one(self._steps[id], because)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to start and nothing can become ready."""
        return not self._left

    def stuck(self) -> RunError:
        """Return the error for a plan of which nothing is at work, nothing is ready, and something is left."""
        left = [id for id in self._steps if id in self._left]
        return RunError(
            f"The steps {', '.join(left[:5])}{' ...' if len(left) > 5 else ''} of the plan need each other, so that none of them can start. "
            "The plan was changed by hand; make it again with `pipedag plan`.",
            steps=tuple(left),
        )

    def _make_ready(self, id: str) -> None:
        # Steps near each other in the plan stay near in time: a stage that was begun is finished first.
        heapq.heappush(self._ready, self._order[id])

    def _skip_downstream(self, step: Step, because: Step) -> None:
        # A stack of its own: a chain of steps may be longer than Python's.
        open_ends = list(reversed(self._downstream[step.id]))
        while open_ends:
            id = open_ends.pop()
            if id in self._left:
                self._skip_one(self._steps[id], because)
                open_ends += reversed(self._downstream[id])

    def _skip_one(self, step: Step, because: Step) -> None:
        self._left.discard(step.id)
        self.reports.append(self._skip(step, because))


def pause(waited: int) -> float:
    """Return seconds to wait before the next try for a lease: 20 ms, doubling up to 1 s."""
    return min(0.02 * 2**waited, 1.0)
