"""Some tasks of a stage instead of all: which of them run, and what the rest of the stage points to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pipedag_core.errors import RunError
from pipedag_core.plan.model import Plan, PlanTask
from pipedag_core.ports.catalogs import Record, TaskResult
from pipedag_core.ports.data import StoredObject
from pipedag_core.ports.events import Outcome
from pipedag_core.run.session import Run, Session
from pipedag_core.run.slots import missing

log = logging.getLogger("pipedag_core.run")

#: What is said of a task that a run was not asked for.
NOT_CHOSEN: Final = "not chosen, as committed"


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


def keep_others_of(session: Session, run: Run, plan: Plan, unit: Sequence[str]) -> None:
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
