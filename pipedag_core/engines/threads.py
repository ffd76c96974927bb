"""Independent steps at the same time, in threads of this process."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import final

from pipedag_core.engines.order import Agenda, pause
from pipedag_core.errors import ConfigError
from pipedag_core.plan.model import Plan, Step
from pipedag_core.ports.engines import RunStep
from pipedag_core.ports.events import Outcome, StepReport

#: Seconds for which an interrupted run waits for the tasks that are at work before it leaves them behind.
GRACE_S = 2.0


class _Computed:
    """Says that a step only writes any more."""


_Answer = tuple[Step, StepReport | BaseException | _Computed]


@final
class ThreadEngine:
    """Carries out independent steps at the same time; see `pipedag_core.ports.engines.Engine`.

    A step that only writes any more what it has in memory makes room for the next one, so that writing and computing overlap.

    Args:
        max_workers: Steps that compute at the same time; by default the number of processors, at least 2 and at most 4, since tasks use many
            threads inside. As many again may be writing.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ConfigError(f"max_workers of the thread engine must be at least 1, not {max_workers}.")
        self.max_workers = max_workers or max(2, min(4, os.cpu_count() or 2))

    def run(self, plan: Plan, run_step: RunStep, skip_step: Callable[[Step, Step], StepReport], *, fail_fast: bool) -> Sequence[StepReport]:
        """Carry out all steps of the plan, each as soon as its upstream steps are done and a thread is free."""
        agenda = Agenda(plan, skip_step, fail_fast=fail_fast)
        todo: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[_Answer] = queue.SimpleQueue()

        def work() -> None:
            while (step := todo.get()) is not None:
                try:
                    done.put((step, run_step(step, lambda step=step: done.put((step, _Computed())))))
                except BaseException as error:  # noqa: BLE001 -- it is raised again in the thread that waits
                    done.put((step, error))

        # Daemons: a task that does not end must not keep an interrupted program alive.
        workers = [threading.Thread(target=work, name=f"pipedag-{number}", daemon=True) for number in range(2 * self.max_workers)]
        for worker in workers:
            worker.start()
        try:
            self._work(agenda, todo, done, fail_fast=fail_fast)
        except BaseException:
            self._stop(workers, todo, GRACE_S)
            raise
        else:
            self._stop(workers, todo, None)
        finally:
            if agenda.finish is not None:
                agenda.reports.append(run_step(agenda.finish))
        return agenda.reports

    def _work(self, agenda: Agenda, todo: queue.SimpleQueue[Step | None], done: queue.SimpleQueue[_Answer], *, fail_fast: bool) -> None:
        computing: set[str] = set()
        writing: set[str] = set()
        waiting: list[Step] = []
        waited = 0
        retry_at = 0.0
        while computing or writing or not agenda.is_done:
            if waiting and time.monotonic() >= retry_at:
                for step in waiting:
                    agenda.give_back(step)
                waiting.clear()
            while len(computing) < self.max_workers and (step := agenda.take()) is not None:
                todo.put(step)
                computing.add(step.id)
            if not computing and not writing and not waiting:
                raise agenda.stuck()
            try:
                # A timeout even when there is nothing to retry: without one, Ctrl-C is not noticed on every platform.
                answer = done.get(timeout=max(retry_at - time.monotonic(), 0.001) if waiting else 1.0)
            except queue.Empty:
                continue
            step, report = answer
            if isinstance(report, _Computed):
                # What is written is held in memory, so there is a limit to it.
                if len(writing) < self.max_workers:
                    computing.discard(step.id)
                    writing.add(step.id)
                continue
            computing.discard(step.id)
            writing.discard(step.id)
            if isinstance(report, BaseException):
                raise report
            if report.outcome is Outcome.WAITING:
                waiting.append(step)
                retry_at = time.monotonic() + pause(waited)
                waited += 1
                continue
            waited = 0
            agenda.note(report)
            if report.outcome is Outcome.FAILED and fail_fast:
                self._drain(agenda, done, len(computing) + len(writing))
                agenda.skip_rest(step)
                return

    def _drain(self, agenda: Agenda, done: queue.SimpleQueue[_Answer], at_work: int) -> None:
        """Let the steps that are at work come to their end; nothing new is started."""
        while at_work:
            step, report = done.get()
            if isinstance(report, _Computed):
                continue
            at_work -= 1
            if isinstance(report, BaseException):
                raise report
            if report.outcome is not Outcome.WAITING:
                agenda.note(report)
            else:
                agenda.give_back(step)

    def _stop(self, workers: Sequence[threading.Thread], todo: queue.SimpleQueue[Step | None], seconds: float | None) -> None:
        for _ in workers:
            todo.put(None)
        deadline = None if seconds is None else time.monotonic() + seconds
        for worker in workers:
            worker.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
