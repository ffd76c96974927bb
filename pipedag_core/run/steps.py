"""One step, whatever its kind: the single door through which everything that executes a flow goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipedag_core.define.flow import Flow
from pipedag_core.errors import LeaseHeld, PipedagError, RunError
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.ports.catalogs import GenerationKey, Held, Opened, TaskResult
from pipedag_core.ports.events import Outcome, PointReached, RunFinished, StepEnded, StepReport, StepStarted
from pipedag_core.run.lookup import find_task, flow_lookup, plan_lookup
from pipedag_core.run.notes import add_note, is_interruption, message_of
from pipedag_core.run.outputs import discard
from pipedag_core.run.outside import told_of
from pipedag_core.run.session import Run, Session
from pipedag_core.run.showing import refresh_names, settle_names, show_failed, show_generation
from pipedag_core.run.task_run import run_task, take_supplied, take_valid

log = logging.getLogger("pipedag_core.run")

#: Seconds after which waiting for another run's lease is worth a warning.
LONG_WAIT_S = 10.0


def execute_step(
    session: Session,
    run: Run,
    flow: Flow,
    plan: Plan,
    step: Step,
    *,
    state: str | None = None,
    computed: Callable[[], None] | None = None,
) -> StepReport:
    """Carry out one step of a registered run.

    Args:
        session: The opened parts.
        run: The run, as it was registered with `begin_run`.
        flow: The flow's code, wired as the plan says.
        plan: What is being done.
        step: Which step.
        computed: Told when all that remains is to write rows that are in memory; see `pipedag_core.ports.engines.RunStep`.
        state: For the finish step: how the run ended, if the caller knows; else it follows from the catalog.

    Returns:
        The report. A step that failed is reported as FAILED with its exception; only what ends programs (KeyboardInterrupt, SystemExit) is raised.
    """
    session.tell(StepStarted(run.id, step.id))
    started = time.monotonic()
    try:
        match step.kind:
            case StepKind.OPEN:
                report = _open(session, run, flow, plan, step)
            case StepKind.TASK:
                report = _task(session, run, flow, plan, step, computed)
            case StepKind.COMMIT:
                report = _commit(session, run, plan, step)
            case StepKind.FINISH:
                report = _finish(session, run, plan, step, state)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if is_interruption(error):
            raise KeyboardInterrupt from error
        _complete(error, plan, step)
        _tell_outside(error, session, run, flow, plan, step)
        report = StepReport(step.id, Outcome.FAILED, type(error).__name__, step.stage, step.task, message=message_of(error), error=error)
    if not report.seconds:
        report = replace(report, seconds=time.monotonic() - started)
    _log(run, plan, report)
    if report.outcome is Outcome.FAILED:
        _remember(session, run, report)
    session.tell(StepEnded(run.id, report))
    return report


def settle_step(session: Session, run: Run, flow: Flow, plan: Plan, step: Step) -> StepReport | None:
    """Carry out the step of a task whose stage is open here, if that takes no more than pointing to a result that its version says is valid.

    Returns:
        The report, as of `execute_step`; None if the step has to be carried out, maybe to fail.
    """
    assert step.stage is not None
    assert step.task is not None
    planned = plan_lookup(run, plan).tasks[step.stage, step.task]
    started = time.monotonic()
    try:
        found = take_valid(session, run, flow, plan, planned, find_task(run, flow, step.stage, step.task), run.open[step.stage])
    except PipedagError as error:
        log.debug("Step %s is left to be carried out: %s", step.id, error)
        return None
    if found is None:
        return None
    report = found if found.seconds else replace(found, seconds=time.monotonic() - started)
    session.tell(StepStarted(run.id, step.id))
    _log(run, plan, report)
    session.tell(StepEnded(run.id, report))
    return report


def _complete(error: BaseException, plan: Plan, step: Step) -> None:
    """Say where an error of ours belongs, as far as whoever raised it could not know."""
    if not isinstance(error, PipedagError) or step.stage is None:
        return
    facts = {"flow": plan.flow, "stage": step.stage, **({} if step.task is None else {"task": step.task})}
    error.__dict__.update({name: value for name, value in facts.items() if name not in error.__dict__})
    told = " ".join([str(error), *getattr(error, "__notes__", ())])
    if not all(str(value) in told for value in facts.values()):
        add_note(error, f"in step {step.id} of flow {plan.flow!r}")


def _tell_outside(error: BaseException, session: Session, run: Run, flow: Flow, plan: Plan, step: Step) -> None:
    """Say what a task took as it was committed by another run: that may have been made by other code than there is now."""
    task = flow_lookup(run, flow).tasks.get((step.stage or "", step.task or ""))
    told = "" if task is None else told_of(session, run, plan, task)
    if told:
        add_note(error, told)


def skip_step(session: Session, run: Run, step: Step, because: Step) -> StepReport:
    """Report a step that cannot run, because of another one."""
    report = StepReport(step.id, Outcome.SKIPPED, f"{because.id} failed", step.stage, step.task)
    _remember(session, run, report)
    session.tell(StepEnded(run.id, report))
    return report


def _remember(session: Session, run: Run, report: StepReport) -> None:
    """Note in the catalog what became of a task that gave no result; a catalog that cannot take it must not hide why."""
    if report.stage is None or report.task is None:
        return
    reason = (report.message or report.reason).partition("\n")[0]
    result = TaskResult(report.task, "", "", "", {}, "", {}, report.outcome.value, reason, None, report.seconds)
    try:
        session.catalog.log_task(run.id, report.stage, result)
    except PipedagError as error:
        log.warning("The outcome of task %s.%s could not be noted: %s", report.stage, report.task, error)


def _log(run: Run, plan: Plan, report: StepReport) -> None:
    level = logging.ERROR if report.outcome is Outcome.FAILED else logging.INFO
    if report.outcome is Outcome.WAITING:
        level = _level_of_waiting(run, report.step)
    else:
        run.waiting.pop(report.step, None)
    rows = "" if report.rows is None else f", {report.rows:,} rows"
    log.log(
        level,
        "%s: %s %s (%s%s, %.3f s)",
        plan.flow,
        report.step,
        report.outcome.value,
        report.message or report.reason,
        rows,
        report.seconds,
    )


def _level_of_waiting(run: Run, step: str) -> int:
    """A wait is told when it begins, and once more, aloud, when it has become long."""
    now = time.monotonic()
    if step not in run.waiting:
        run.waiting[step] = (now, False)
        return logging.INFO
    since, told = run.waiting[step]
    if told or now - since < LONG_WAIT_S:
        return logging.DEBUG
    run.waiting[step] = (since, True)
    return logging.WARNING


def flush(session: Session, run: Run) -> None:
    """Record what waits to be recorded where nothing is committed with it; what is refused would not have been seen by anybody."""
    try:
        run.catalog(session).flush()
    except PipedagError as error:
        log.warning("Results of run %s that are valid still were not noted: %s", run.id, error)


def give_up(session: Session, run: Run, plan: Plan, stage: str) -> None:
    """Give back the lease of a unit of which nothing more will be done in this run, so that others need not wait for the run's end.

    What its tasks gave is kept in generations that count as failed, where the next run finds it.
    """
    unit = plan.unit(stage)
    flush(session, run)
    numbers = _numbers(session, run, unit) if _shows(session) else {}
    session.catalog.give_up(run.id, unit)
    run.catalog(session).leave(unit)
    for name, number in numbers.items():
        show_failed(session, name, number)
    for name in unit:
        run.open.pop(name, None)


# --- open ---------------------------------------------------------------------------------------------------------------------------


def reads_of(plan: Plan, unit: Sequence[str]) -> tuple[str, ...]:
    """Return the stages outside of a unit whose results its tasks take."""
    own = set(unit)
    stages = {task.id: task.stage for task in plan.tasks}
    found = dict.fromkeys(stages[upstream] for task in plan.tasks if task.stage in own for upstream in task.upstream)
    return tuple(stage for stage in found if stage not in own)


def open_unit(session: Session, run: Run, flow: Flow, plan: Plan, stage: str) -> Opened | Held:
    """Open a stage with all that is committed with it, or find it open."""
    unit = plan.unit(stage)
    is_scratch = unit[0] in run.supplied.scratch
    # What is committed of a unit that will not be committed anew is looked at for the whole run.
    reads = (*reads_of(plan, unit), *unit) if is_scratch else reads_of(plan, unit)
    if run.take_over:
        _warn_of_taking(session, run, unit)
    opened = session.catalog.open_stages(run.id, unit, reads, scratch=plan.scratch or is_scratch, take_over=run.take_over)
    if isinstance(opened, Opened):
        run.open.update(opened.generations)
        compared = [name for name in unit if name in flow_lookup(run, flow).compared]
        if compared:
            # A task that comes after the commit may ask what was there before it.
            session.catalog.before(run.id, compared)
        session.tell(PointReached(run.id, "after_open"))
    return opened


def _warn_of_taking(session: Session, run: Run, unit: Sequence[str]) -> None:
    for lease in session.catalog.leases():
        if lease.stage in unit and lease.run_id != run.id:
            log.warning(
                "Run %s takes stage %s over from %s (run %s): what that run does with it from now on is refused",
                run.id,
                lease.stage,
                lease.owner.note or "another run",
                lease.run_id,
            )


def _open(session: Session, run: Run, flow: Flow, plan: Plan, step: Step) -> StepReport:
    assert step.stage is not None
    opened = open_unit(session, run, flow, plan, step.stage)
    if isinstance(opened, Held):
        return _waiting(session, run, plan, step, opened)
    numbers = ", ".join(f"{name} g{key.number}" for name, key in opened.generations.items())
    not_committed = "; not committed, because of inputs=" if step.stage in run.supplied.scratch else ""
    return StepReport(step.id, Outcome.OPENED, numbers + not_committed, step.stage)


def _waiting(session: Session, run: Run, plan: Plan, step: Step, held: Held) -> StepReport:
    """Report that a step has to wait for another run.

    Raises:
        LeaseHeld: It has waited for as long as the configuration allows.
    """
    owner = held.owner
    who = f"stage {held.stage} is being written by {owner.note or 'a run'}"
    if owner.pid:
        reason = (
            f"{who} (run {held.run_id}, process {owner.pid} on {owner.host}) until that has ended; "
            f"without a sign of life its lease holds for at most {_span(held.expires_in_s)}"
        )
    else:
        reason = (
            f"{who} (run {held.run_id}, steps in many processes, begun on {owner.host}), whose lease holds for at most {_span(held.expires_in_s)} "
            f"unless it goes on; if it is over, `pipedag step PLAN.json finish --run-id {held.run_id}` frees the stage"
        )
    waited = time.monotonic() - run.waiting[step.id][0] if step.id in run.waiting else 0.0
    if waited > session.wait_s:
        raise LeaseHeld(
            f"Flow {plan.flow!r} has waited {_span(waited)}, longer than lease_wait allows: {reason}. Run again when that is over, set lease_wait in "
            "the configuration to a longer time, or take the stage away from that run with --take-over.",
            flow=plan.flow,
            stage=held.stage,
            run_id=held.run_id,
        )
    return StepReport(step.id, Outcome.WAITING, reason, step.stage, step.task)


def _span(seconds: float) -> str:
    minutes = max(int(seconds) // 60, 0)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min" if minutes else f"{max(int(seconds), 0)} s"


# --- task ---------------------------------------------------------------------------------------------------------------------------


def _task(session: Session, run: Run, flow: Flow, plan: Plan, step: Step, computed: Callable[[], None] | None) -> StepReport:
    assert step.stage is not None
    assert step.task is not None
    generation = run.open.get(step.stage)
    if generation is None:
        # Another process opened the stage, or the step is executed again after its stage was committed.
        opened = open_unit(session, run, flow, plan, step.stage)
        if isinstance(opened, Held):
            return _waiting(session, run, plan, step, opened)
        generation = opened.generations[step.stage]
    planned = plan_lookup(run, plan).tasks[step.stage, step.task]
    task = find_task(run, flow, step.stage, step.task)
    if (step.stage, step.task) in run.supplied.values:
        return take_supplied(session, run, flow, plan, planned, task, generation, run.supplied.values[step.stage, step.task])
    return run_task(session, run, flow, plan, planned, task, generation, computed)


# --- commit -------------------------------------------------------------------------------------------------------------------------


def _commit(session: Session, run: Run, plan: Plan, step: Step) -> StepReport:
    assert step.stage is not None
    unit = plan.unit(step.stage)
    run.catalog(session).flush()
    _refuse_incomplete(session, run, plan, unit)
    session.tell(PointReached(run.id, "before_commit"))
    publication = session.tables.publication(_numbers(session, run, unit))
    result = session.catalog.commit(run.id, unit, publication)
    for stage in unit:
        run.open.pop(stage, None)
    run.catalog(session).leave(unit)
    session.tell(PointReached(run.id, "after_commit"))
    if publication is not None:
        settle_names(session, run.id, unit, publication)
    elif result.changed and _shows(session):
        for stage, number in result.generations.items():
            show_generation(session, stage, number)
        refresh_names(session)
    numbers = ", ".join(f"{stage} g{number}" for stage, number in result.generations.items())
    return StepReport(step.id, Outcome.COMMITTED if result.changed else Outcome.UNCHANGED, numbers, step.stage)


def _numbers(session: Session, run: Run, unit: Sequence[str]) -> dict[str, int]:
    keys = {stage: run.open.get(stage) or _open_generation(session, run, stage) for stage in unit}
    return {stage: key.number for stage, key in keys.items() if key is not None}


def _refuse_incomplete(session: Session, run: Run, plan: Plan, unit: Sequence[str]) -> None:
    """A stage is committed whole: every task of the plan has a result in the generation that becomes visible."""
    memory = run.catalog(session)
    for stage in unit:
        if all(memory.has_given(stage, task.task) for task in plan.tasks if task.stage == stage):
            continue
        generation: GenerationKey | None = run.open.get(stage) or _open_generation(session, run, stage)
        if generation is None:
            continue
        done = {result.task for result in session.catalog.results(stage, generation.number)}
        absent = [task.task for task in plan.tasks if task.stage == stage and task.task not in done]
        if absent:
            raise RunError(
                f"Stage {stage} of flow {plan.flow!r} cannot be committed by run {run.id}: its tasks {', '.join(absent)} have no result in "
                f"generation {generation.number}. Execute their steps first.",
                stage=stage,
                tasks=tuple(absent),
            )


def _open_generation(session: Session, run: Run, stage: str) -> GenerationKey | None:
    rows = [row for row in session.catalog.generations() if row.stage == stage and row.run_id == run.id and row.state == "open"]
    return GenerationKey(stage, rows[-1].number) if rows else None


# --- finish -------------------------------------------------------------------------------------------------------------------------


def _finish(session: Session, run: Run, plan: Plan, step: Step, state: str | None) -> StepReport:
    state = state or _state(session, run, plan)
    session.tell(PointReached(run.id, "before_finish"))
    flush(session, run)
    left = [row for row in session.catalog.generations() if row.run_id == run.id and row.state == "open"] if _shows(session) else []
    session.catalog.finish_run(run.id, state)
    run.open.clear()
    for row in left:
        show_failed(session, row.stage, row.number)
    session.tell(PointReached(run.id, "after_finish"))
    clean_up(session, run.id)
    session.tell(PointReached(run.id, "before_show"))
    refresh_names(session)
    session.tell(PointReached(run.id, "after_show"))
    session.tell(RunFinished(run.id, state))
    return StepReport(step.id, Outcome.FINISHED, state)


def _shows(session: Session) -> bool:
    return session.tables.capabilities.live_names


def _state(session: Session, run: Run, plan: Plan) -> str:
    """Say how a run ended, from the catalog alone: all tasks of the plan recorded, and nothing left open."""
    log_of_run = session.catalog.task_log(run.id)
    recorded = {(stage, result.task) for stage, result in log_of_run if result.outcome in (Outcome.RAN.value, Outcome.CACHED.value)}
    wanted = {(step.stage, step.task) for step in plan.steps if step.kind is StepKind.TASK}
    left_open = any(row.run_id == run.id and row.state == "open" for row in session.catalog.generations())
    return "succeeded" if wanted <= recorded and not left_open else "failed"


def clean_up(session: Session, run_id: str = "") -> int:
    """Remove what retention does not keep; `run_id` names the run that does it, for observers.

    Returns:
        The number of stored objects that were deleted.
    """
    session.tell(PointReached(run_id, "before_clean_up"))
    garbage = session.catalog.expire(session.retention)
    session.tell(PointReached(run_id, "before_deletion"))
    session.tables.hide_generations(garbage.generations)
    discard(session, garbage.objects)
    session.tell(PointReached(run_id, "after_clean_up"))
    return len(garbage.objects)
