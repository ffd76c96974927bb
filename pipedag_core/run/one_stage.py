"""A stage with all that is committed with it, carried out by one process for an orchestrator that knows stages only, or tables of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pipedag_core.define.flow import Flow
from pipedag_core.errors import PipedagError, RunError
from pipedag_core.plan.model import Plan, PlanTask, Step, StepKind
from pipedag_core.ports.catalogs import Record, TaskResult
from pipedag_core.ports.data import StoredObject
from pipedag_core.ports.engines import Engine
from pipedag_core.ports.events import Outcome, StageReport, StepReport
from pipedag_core.run import steps
from pipedag_core.run.one_process import Units, step_skipper
from pipedag_core.run.session import Run, Session
from pipedag_core.run.showing import refresh_names
from pipedag_core.run.slots import missing

log = logging.getLogger("pipedag_core.run")

#: What is said of a task that a run was not asked for.
NOT_CHOSEN = "not chosen, as committed"


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
            reports = _run_steps(session, run, flow, plan, mine, engine, fail_fast=fail_fast)
        else:
            opened = _run_steps(
                session, run, flow, plan, [step for step in mine if step.kind is StepKind.OPEN], engine, fail_fast=fail_fast
            )
            reports = list(opened)
            failed = next((report for report in opened if not report.outcome.is_good), None)
            if failed is not None:
                skipped = [step for step in mine if step.id != failed.step]
                reports += [steps.skip_step(session, run, step, plan.step(failed.step)) for step in skipped]
            else:
                chosen = point_rest(session, run, plan, unit, frozenset(tasks))
                if keep_others:
                    _keep_others(session, run, plan, unit)
                left = [step for step in mine if step.kind is StepKind.COMMIT or f"{step.stage}.{step.task}" in chosen]
                reports += _run_steps(session, run, flow, plan, left, engine, fail_fast=fail_fast)
    except BaseException:
        _give_back(session, run, plan, stage)
        raise
    return _report(session, run, unit, reports)


def _run_steps(
    session: Session, run: Run, flow: Flow, plan: Plan, wanted: Sequence[Step], engine: Engine, *, fail_fast: bool
) -> list[StepReport]:
    kept = {step.id for step in wanted}
    part = replace(plan, steps=tuple(replace(step, upstream=tuple(id for id in step.upstream if id in kept)) for step in wanted))
    # An open step on its own must not count as a unit of which nothing more will be done.
    units = Units(session, run, part if any(step.kind is StepKind.COMMIT for step in wanted) else replace(part, steps=()))

    def run_step(step: Step, computed: Callable[[], None] | None = None, /) -> StepReport:
        report = steps.execute_step(session, run, flow, part, step, computed=computed)
        units.note(report)
        return report

    return list(engine.run(part, run_step, step_skipper(session, run, units), fail_fast=fail_fast))


def dependents(plan: Plan, stages: Sequence[str], tasks: frozenset[str]) -> frozenset[str]:
    """Return full ids of tasks with all tasks of these stages that need them, directly or not."""
    found = set(tasks)
    needed_by: dict[str, list[str]] = {}
    for task in plan.tasks:
        if task.stage in stages:
            for other in task.upstream:
                needed_by.setdefault(other, []).append(task.id)
    left = list(tasks)
    while left:
        for id in needed_by.get(left.pop(), ()):
            if id not in found:
                found.add(id)
                left.append(id)
    return frozenset(found)


def point_rest(session: Session, run: Run, plan: Plan, unit: Sequence[str], chosen: frozenset[str]) -> frozenset[str]:
    """Let open generations of a unit point to what is committed, for the tasks that were not chosen.

    Returns:
        Full ids of the tasks that have to run: the chosen ones, their dependents, and those that have no committed result to point to.

    Raises:
        RunError: A chosen task is not part of the unit.
    """
    own = {task.id: task for task in plan.tasks if task.stage in unit}
    strange = sorted(chosen - own.keys())
    if strange:
        raise RunError(
            f"Tasks {', '.join(strange)} are not part of stage {unit[0]} of flow {plan.flow!r}. Its tasks are: {', '.join(own) or 'none'}.",
            stage=unit[0],
            tasks=tuple(strange),
        )
    running = dependents(plan, unit, chosen)
    found = {
        stage: _committed(session, run, stage, [own[id] for id in own if own[id].stage == stage and id not in running]) for stage in unit
    }
    absent = {id for id, task in own.items() if id not in running and task.task not in found[task.stage]}
    if absent:
        log.info("%s: %s run too, since nothing that could be kept is committed of them", plan.flow, ", ".join(sorted(absent)))
    running = dependents(plan, unit, running | absent)
    records = [
        Record(run.open[stage], replace(result, outcome=Outcome.CACHED.value, reason=NOT_CHOSEN, seconds=0.0))
        for stage, results in found.items()
        for task, result in results.items()
        if f"{stage}.{task}" not in running
    ]
    if records:
        session.catalog.record_all(run.id, records)
    return running


def _keep_others(session: Session, run: Run, plan: Plan, unit: Sequence[str]) -> None:
    """Let open generations point to what is committed of tasks that are not in the plan."""
    own = {(task.stage, task.task) for task in plan.tasks}
    for stage in unit:
        number = session.catalog.current(stage)
        results: Sequence[TaskResult] = () if number is None else session.catalog.results(stage, number)
        records = [
            Record(run.open[stage], replace(result, outcome=Outcome.CACHED.value, reason=NOT_CHOSEN, seconds=0.0))
            for result in results
            if (stage, result.task) not in own
        ]
        if records:
            session.catalog.record_all(run.id, records)


def _committed(session: Session, run: Run, stage: str, tasks: Sequence[PlanTask]) -> dict[str, TaskResult]:
    """Return what is committed of tasks, by task: wired as they are now, and with all of their data there."""
    number = session.catalog.current(stage)
    if number is None or not tasks:
        return {}
    results = {result.task: result for result in session.catalog.results(stage, number)}
    fitting = [results[task.task] for task in tasks if task.task in results and results[task.task].position == task.position]
    entries = session.catalog.entries(stage, number)
    objects: list[StoredObject] = [entries[name] for result in fitting for name in result.entries]
    gone = missing(session, run, objects)
    return {result.task: result for result in fitting if not gone & set(result.entries.values())}


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
    return described(session, run, unit, reports)


def described(session: Session, run: Run, unit: tuple[str, ...], reports: Sequence[StepReport]) -> StageReport:
    """Return the report of a unit that this run has committed, with what its stages hold since."""
    # Asked again, a commit that was done says what it did.
    done = session.catalog.commit(run.id, unit)
    results = {
        f"{stage}.{result.task}": result for stage, number in done.generations.items() for result in session.catalog.results(stage, number)
    }
    entries = {stage: session.catalog.entries(stage, number) for stage, number in done.generations.items()}
    return StageReport(unit, tuple(reports), done.generations, done.changed, entries, results)
