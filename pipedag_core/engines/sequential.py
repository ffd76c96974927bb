"""One step after another, in the calling thread: what a debugger wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import final

from pipedag_core.engines.order import Agenda, pause
from pipedag_core.plan.model import Plan, Step
from pipedag_core.ports.engines import RunStep
from pipedag_core.ports.events import Outcome, StepReport


@final
class SequentialEngine:
    """Carries out the steps one after another, in the calling thread; see `pipedag_core.ports.engines.Engine`."""

    def run(self, plan: Plan, run_step: RunStep, skip_step: Callable[[Step, Step], StepReport], *, fail_fast: bool) -> Sequence[StepReport]:
        """Carry out all steps of the plan in depth-first order."""
        agenda = Agenda(plan, skip_step, fail_fast=fail_fast)
        try:
            self._work(agenda, run_step, fail_fast=fail_fast)
        finally:
            if agenda.finish is not None:
                agenda.reports.append(run_step(agenda.finish))
        return agenda.reports

    def _work(self, agenda: Agenda, run_step: RunStep, *, fail_fast: bool) -> None:
        waiting: list[Step] = []
        waited = 0
        while not agenda.is_done:
            step = agenda.take()
            if step is None:
                if not waiting:
                    raise agenda.stuck()
                time.sleep(pause(waited))
                waited += 1
                for item in waiting:
                    agenda.give_back(item)
                waiting.clear()
                continue
            report = run_step(step)
            if report.outcome is Outcome.WAITING:
                waiting.append(step)
                continue
            waited = 0
            agenda.note(report)
            if report.outcome is Outcome.FAILED and fail_fast:
                agenda.skip_rest(step)
