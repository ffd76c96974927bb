"""A run whose steps are all carried out by one process: what its engine calls, and what goes on beside it."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

from pipedag_core.define.flow import Flow
from pipedag_core.errors import ObserverFailed, PipedagError
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.ports.engines import RunStep
from pipedag_core.ports.events import Outcome, RunLeft, RunStarted, StepReport
from pipedag_core.run import steps
from pipedag_core.run.session import Run, Session
from pipedag_core.run.showing import NamesBeside

log = logging.getLogger("pipedag_core.run")

#: Seconds for which the end of a run waits for a heartbeat that is under way.
JOIN_S = 5.0

#: Seconds between looks at whether something waits to be recorded while tasks take long.
FLUSH_S = 1.0


@final
class Units:
    """Notes which steps of each unit are still to come, and gives back the lease of a unit that will not be committed.

    Otherwise two runs, each with a failed unit that the other one waits for, would wait for each other's end.
    """

    def __init__(self, session: Session, run: Run, plan: Plan) -> None:
        self._session, self._run, self._plan = session, run, plan
        self._unit = {stage.name: stage.unit for stage in plan.stages}
        self._lock = threading.Lock()
        self._left: dict[str, set[str]] = {}
        for step in plan.steps:
            if step.stage is not None and not plan.scratch and self._unit[step.stage] not in run.supplied.scratch:
                self._left.setdefault(self._unit[step.stage], set()).add(step.id)

    def note(self, report: StepReport) -> None:
        """Note how a step ended."""
        if report.stage is None or report.outcome is Outcome.WAITING:
            return
        unit = self._unit[report.stage]
        with self._lock:
            left = self._left.get(unit, set())
            was_left = report.step in left
            left.discard(report.step)
        # A commit that went well has given the lease back itself.
        committed = report.outcome in (Outcome.COMMITTED, Outcome.UNCHANGED)
        if was_left and not left and not committed:
            try:
                steps.give_up(self._session, self._run, self._plan, unit)
            except PipedagError as error:
                # The end of the run gives everything back once more.
                log.warning("The lease of stage %s could not be given back before the end of the run: %s", unit, error)


def step_runner(session: Session, run: Run, flow: Flow, plan: Plan, units: Units) -> RunStep:
    """Return what the engine calls for a step."""
    names = NamesBeside(session)
    failed = threading.Event()
    around = sys.exc_info()[1]

    def run_step(step: Step, computed: Callable[[], None] | None = None, /) -> StepReport:
        state = None
        if step.kind is StepKind.FINISH:
            # The engine calls the finish step while an interruption is on its way up through it; the caller of the run may be handling
            # an exception of its own.
            interrupted = sys.exc_info()[1] not in (None, around)
            state = "aborted" if interrupted else "failed" if failed.is_set() else None
            names.stop(JOIN_S)
        report = steps.execute_step(session, run, flow, plan, step, state=state, computed=computed)
        if report.outcome is Outcome.FAILED:
            failed.set()
        elif report.outcome is Outcome.COMMITTED:
            names.refresh()
        units.note(report)
        return report

    return run_step


def step_skipper(session: Session, run: Run, units: Units) -> Callable[[Step, Step], StepReport]:
    """Return what the engine calls for a step that cannot run."""

    def skip_step(step: Step, because: Step) -> StepReport:
        report = steps.skip_step(session, run, step, because)
        units.note(report)
        return report

    return skip_step


@contextmanager
def taking_part(session: Session, run: Run, plan: Plan) -> Generator[None]:
    """Tell observers that this process takes part in a run, and at the end that it leaves it.

    Raises:
        ObserverFailed: As `Session.tell`; nothing was done yet, or all is done.
    """
    steps_of_plan = tuple(step.id for step in plan.steps)
    session.tell(RunStarted(run.id, plan.flow, run.info.instance, steps_of_plan, plan, session.config))
    try:
        yield
    except BaseException:
        try:
            session.tell(RunLeft(run.id))
        except ObserverFailed as error:
            log.warning("Run %s ends with an error of its own, and an observer failed too: %s", run.id, error)
        raise
    session.tell(RunLeft(run.id))


@contextmanager
def heartbeat(session: Session, run: Run) -> Generator[None]:
    """Renew the run's leases and pins while something is at work, and let nothing wait to be recorded for long, nor beyond the end."""
    stop = threading.Event()

    def beat() -> None:
        every = run.info.ttl_s / 3
        renewed = time.monotonic()
        while not stop.wait(min(every, FLUSH_S)):
            try:
                run.catalog(session).flush()
            except PipedagError as error:
                # It is tried again; what is refused then is told by the step that needs it.
                log.debug("Results of run %s wait still: %s", run.id, error)
            if time.monotonic() - renewed < every:
                continue
            renewed = time.monotonic()
            try:
                session.catalog.renew(run.id)
            except PipedagError as error:
                # The next beat may do better; if none does, another run may take the stages over, and recording is refused.
                log.warning("Run %s could not renew its leases and tries again in %.0f s: %s", run.id, every, error)

    thread = threading.Thread(target=beat, name="pipedag-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A beat that waits for a locked catalog must not keep an interrupted program waiting; it is a daemon and ends by itself.
        thread.join(JOIN_S)
        steps.flush(session, run)
