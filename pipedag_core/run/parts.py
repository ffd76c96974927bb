"""Many steps in one call, for orchestrators that do not want a task of theirs per step: all of a stage, some tasks of it, or all of a flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, final

from pipedag_core.define.flow import Flow
from pipedag_core.errors import PipedagError, PlanMismatch
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.plan.selection import contract
from pipedag_core.ports.engines import Engine
from pipedag_core.ports.events import Outcome, StageReport, StepReport
from pipedag_core.run import steps
from pipedag_core.run.choosing import NOT_CHOSEN, keep_others_of, point_rest
from pipedag_core.run.given import current_generations, given_by
from pipedag_core.run.one_process import Units
from pipedag_core.run.session import Run, Session
from pipedag_core.run.showing import refresh_names

log = logging.getLogger("pipedag_core.run")

#: All steps of a unit of stages: `stage:features`.
STAGE: Final = "stage:"
#: Gives back the lease of a unit that has not been committed: `close:features`.
CLOSE: Final = "close:"
#: All steps of the plan.
FLOW: Final = "flow"


def is_part(id: str) -> bool:
    """Return whether an id stands for several steps, or for giving a stage back."""
    return id == FLOW or id.startswith((STAGE, CLOSE))


def check_part(plan: Plan, id: str) -> None:
    """Make sure that a plan has the stage that a part names.

    Raises:
        PlanMismatch: It has not, or the stage is inside of another one, with which it is committed.
    """
    if id == FLOW:
        return
    kind, _, stage = id.partition(":")
    units = [step.stage for step in plan.steps if step.kind is StepKind.OPEN]
    if stage not in units:
        raise PlanMismatch(
            f"The plan of flow {plan.flow!r} has no part {id!r}. It has: {', '.join(f'{kind}:{unit}' for unit in units)}.",
            flow=plan.flow,
            step=id,
        )


def execute_part(session: Session, run: Run, flow: Flow, plan: Plan, id: str, engine: Engine) -> StepReport:
    """Carry out several steps of a registered run.

    Args:
        session, run, flow, plan: As for `execute_step`.
        id: `stage:<unit>`, `close:<unit>` or `flow`.
        engine: Carries out the steps.

    Returns:
        One report: that of the commit or the end, with what was given; the first failure; or WAITING, if the first stage is being written by
        another run. Observers are told of every single step.
    """
    if id.startswith(CLOSE):
        return _close(session, run, plan, id)
    wanted = plan.steps if id == FLOW else tuple(step for step in plan.steps if step.stage in plan.unit(id.removeprefix(STAGE)))
    # A stage that fails on its own stays open: it may be tried again, and is given back by `close:`.
    work = _Work(session, run, flow, plan, Units(session, run, plan) if id == FLOW else None)
    first = next((step for step in wanted if step.kind is StepKind.OPEN), None)
    if first is not None:
        # Whoever calls may have better things to do than to wait.
        report = work.run_step(first)
        if report.outcome is Outcome.WAITING:
            return replace(report, step=id)
        if work.failed:
            wanted = tuple(step for step in wanted if step.kind is StepKind.FINISH)
    before = current_generations(session, plan, wanted)
    reports = work.through([step for step in wanted if step is not first], engine, fail_fast=False)
    if work.failed:
        return replace(work.failed[0], step=id, seconds=sum(report.seconds for report in reports))
    last = reports[-1]
    given = [given_by(session, run, plan, step, before) for step in wanted if step.kind is StepKind.COMMIT]
    everything = tuple(item for some in given for item in some)
    rows = [item.rows for item in everything if item.rows is not None]
    return replace(
        last,
        step=id,
        seconds=sum(report.seconds for report in reports),
        rows=sum(rows) if rows else None,
        tables=tuple(item.name for item in everything) if id != FLOW else (),
        given=everything,
    )


def carry_out_stage(
    session: Session,
    run: Run,
    flow: Flow,
    plan: Plan,
    stage: str,
    engine: Engine,
    *,
    tasks: Iterable[str] | None,
    fail_fast: bool,
    keep_others: bool = False,
) -> StageReport:
    """Open a stage, run its tasks, and commit it with all stages that are committed with it.

    Unlike `execute_part` with `stage:<unit>` it waits for another run that writes the stage, may run some of the tasks only, and leaves nothing open.

    Args:
        session, run: The opened parts, and the run as it was registered.
        flow, plan: The code, and the plan of all of it.
        stage: The stage, or one that is committed with it.
        engine: Carries out the steps, those of independent tasks at the same time.
        tasks: Full ids of the tasks to run. Their dependents within the unit run too; the rest keeps the results that are committed, and runs only
            where there is none for the wiring as it is now, or its data is gone. None: all.
        fail_fast: Start nothing more after the first failure.
        keep_others: With `tasks`, keep also what is committed of tasks that the plan does not know; else a commit makes it vanish.

    Returns:
        What became of it. After a failure the lease is given back and readers see what they saw before.
    """
    unit = plan.unit(stage)
    mine = [step for step in plan.steps if step.stage in unit]
    try:
        if tasks is None:
            reports = _committing(session, run, flow, plan, mine).through(mine, engine, fail_fast=fail_fast)
        else:
            reports = _some_tasks(session, run, flow, plan, unit, mine, engine, frozenset(tasks), fail_fast, keep_others)
    except BaseException:
        _give_back(session, run, plan, stage)
        raise
    return _report(session, run, unit, reports)


def open_stage(
    session: Session, run: Run, flow: Flow, plan: Plan, stage: str, engine: Engine, *, tasks: Iterable[str] | None
) -> tuple[StepReport, frozenset[str]]:
    """Open a stage with all that is committed with it, for tasks that are carried out one by one, maybe by other processes.

    Waits for another run that writes the stage. What is not to run points to what is committed, and a task whose version says that a stored result
    may stand in for it is done with that.

    Args:
        session, run, flow, plan, stage, engine: As for `carry_out_stage`.
        tasks: As for `carry_out_stage`.

    Returns:
        The report, and the full ids of the tasks that have to be carried out before the commit; none if it failed.
    """
    unit = plan.unit(stage)
    opens = [step for step in plan.steps if step.stage in unit and step.kind is StepKind.OPEN]
    # As in `execute_part`, what fails stays open, since whoever calls may try again.
    [report] = _Work(session, run, flow, _part(plan, opens), None).through(opens, engine, fail_fast=False)
    if not report.outcome.is_good:
        return report, frozenset()
    own = frozenset(task.id for task in plan.tasks if task.stage in unit)
    wanted = own if tasks is None else point_rest(session, run, plan, unit, frozenset(tasks))
    left = set(wanted)
    names = {task.id: f"task:{task.id}" for task in plan.tasks}
    waits = {names[id] for id in left}
    for step in plan.steps:
        # What is computed from something that will run is to be looked at then.
        if step.id in waits and not waits & set(step.upstream) and steps.settle_step(session, run, flow, plan, step) is not None:
            waits.discard(step.id)
            left.discard(f"{step.stage}.{step.task}")
    return report, frozenset(left)


def commit_stage(session: Session, run: Run, flow: Flow, plan: Plan, stage: str, engine: Engine) -> StageReport:
    """Commit a stage whose tasks were carried out one by one.

    Args:
        session, run, flow, plan, stage, engine: As for `carry_out_stage`.

    Returns:
        What became of it, with the reports of all tasks that this run has carried out, in whichever process. What fails stays open. If the stage
        was given back meanwhile, it is opened again first, with what the run has made of it.
    """
    unit = plan.unit(stage)
    mine = [step for step in plan.steps if step.stage in unit and step.kind in (StepKind.OPEN, StepKind.COMMIT)]
    own = {row.state for row in session.catalog.generations() if row.run_id == run.id and row.stage in unit}
    wanted = [step for step in mine if step.kind is StepKind.COMMIT or not own & {"open", "committed"}]
    reports = _Work(session, run, flow, _part(plan, wanted), None).through(wanted, engine, fail_fast=False)
    return _report(session, run, unit, [*_carried_out(session, run, unit), *reports])


def _carried_out(session: Session, run: Run, unit: Sequence[str]) -> list[StepReport]:
    """Return the reports of the tasks of a unit that this run has carried out, as its log knows them; the last one of each."""
    last = {(stage, result.task): result for stage, result in session.catalog.task_log(run.id) if stage in unit}
    return [
        StepReport(
            f"task:{stage}.{task}", Outcome(result.outcome), result.reason, stage, task, tuple(result.entries), result.rows, result.seconds
        )
        for (stage, task), result in last.items()
        if result.reason != NOT_CHOSEN
    ]


@final
class _Work:
    """Steps of a plan that one call carries out.

    Args:
        session, run, flow, plan: As for `execute_step`; what tasks need from outside of the plan's steps must be wired as it says.
        units: Gives stages back that will not be committed; None where they are to stay open.

    Attributes:
        failed: The reports of failed steps up to now.
    """

    def __init__(self, session: Session, run: Run, flow: Flow, plan: Plan, units: Units | None) -> None:
        self._session, self._run, self._flow, self._plan, self._units = session, run, flow, plan, units
        self.failed: list[StepReport] = []

    def through(self, wanted: Iterable[Step], engine: Engine, *, fail_fast: bool) -> list[StepReport]:
        """Let the engine carry out some steps, and return their reports in the order in which they ended."""
        return list(engine.run(_part(self._plan, wanted), self.run_step, self.skip_step, fail_fast=fail_fast))

    def run_step(self, step: Step, computed: Callable[[], None] | None = None, /) -> StepReport:
        """Carry out one step."""
        state = "failed" if self.failed and step.kind is StepKind.FINISH else None
        report = steps.execute_step(self._session, self._run, self._flow, self._plan, step, state=state, computed=computed)
        if report.outcome is Outcome.FAILED:
            self.failed.append(report)
        return self._noted(report)

    def skip_step(self, step: Step, because: Step) -> StepReport:
        """Report a step that cannot run."""
        return self._noted(steps.skip_step(self._session, self._run, step, because))

    def _noted(self, report: StepReport) -> StepReport:
        if self._units is not None:
            self._units.note(report)
        return report


def _part(plan: Plan, wanted: Iterable[Step]) -> Plan:
    return replace(plan, steps=contract(plan.steps, {step.id for step in wanted}))


def _committing(session: Session, run: Run, flow: Flow, plan: Plan, wanted: Iterable[Step]) -> _Work:
    """Return what carries out the steps of a unit up to its commit, and leaves nothing open."""
    part = _part(plan, wanted)
    return _Work(session, run, flow, part, Units(session, run, part))


def _some_tasks(
    session: Session,
    run: Run,
    flow: Flow,
    plan: Plan,
    unit: Sequence[str],
    mine: Sequence[Step],
    engine: Engine,
    tasks: frozenset[str],
    fail_fast: bool,
    keep_others: bool,
) -> list[StepReport]:
    """Open a unit, let what was not chosen point to what is committed, and carry out the rest."""
    # An open step on its own must not count as a unit of which nothing more will be done.
    opens = [step for step in mine if step.kind is StepKind.OPEN]
    opened = _Work(session, run, flow, _part(plan, opens), None).through(opens, engine, fail_fast=fail_fast)
    failed = next((report for report in opened if not report.outcome.is_good), None)
    if failed is not None:
        skipped = [step for step in mine if step.id != failed.step]
        return [*opened, *(steps.skip_step(session, run, step, plan.step(failed.step)) for step in skipped)]
    chosen = point_rest(session, run, plan, unit, tasks)
    if keep_others:
        keep_others_of(session, run, plan, unit)
    left = [step for step in mine if step.kind is StepKind.COMMIT or f"{step.stage}.{step.task}" in chosen]
    return [*opened, *_committing(session, run, flow, plan, left).through(left, engine, fail_fast=fail_fast)]


def _close(session: Session, run: Run, plan: Plan, id: str) -> StepReport:
    stage = id.removeprefix(CLOSE)
    left = [row for row in session.catalog.generations() if row.run_id == run.id and row.state == "open" and row.stage in plan.unit(stage)]
    if left:
        steps.give_up(session, run, plan, stage)
    reason = ", ".join(f"{row.stage} g{row.number} given up" for row in left) or "nothing was open"
    return StepReport(id, Outcome.FINISHED, reason, stage)


def _give_back(session: Session, run: Run, plan: Plan, stage: str) -> None:
    try:
        steps.give_up(session, run, plan, stage)
    except PipedagError as error:
        log.warning("The lease of stage %s could not be given back before the end of the run: %s", stage, error)


def _report(session: Session, run: Run, unit: tuple[str, ...], reports: Sequence[StepReport]) -> StageReport:
    commit = next((report for report in reports if report.outcome in (Outcome.COMMITTED, Outcome.UNCHANGED)), None)
    if commit is None:
        return StageReport(unit, tuple(reports))
    if commit.outcome is Outcome.COMMITTED:
        try:
            refresh_names(session)
        except PipedagError as error:
            # The end of the run does it again, and says what is wrong then.
            log.debug("Readable names could not be refreshed before the end of the run: %s", error)
    return _described(session, run, unit, reports)


def _described(session: Session, run: Run, unit: tuple[str, ...], reports: Sequence[StepReport]) -> StageReport:
    """Return the report of a unit that this run has committed, with what its stages hold since."""
    # Asked again, a commit that was done says what it did.
    done = session.catalog.commit(run.id, unit)
    results = {
        f"{stage}.{result.task}": result for stage, number in done.generations.items() for result in session.catalog.results(stage, number)
    }
    entries = {stage: session.catalog.entries(stage, number) for stage, number in done.generations.items()}
    return StageReport(unit, tuple(reports), done.generations, done.changed, entries, results)
