"""A plan in which some tasks are not run, since the caller supplies what they would give: what `flow.run(inputs=...)` carries out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipedag_core.define.flow import Flow
from pipedag_core.errors import FlowError
from pipedag_core.plan.model import Plan, StepKind
from pipedag_core.plan.selection import contract
from pipedag_core.plan.specification import Place, places_of


def supply(flow: Flow, whole: Plan, chosen: Plan, supplied: Sequence[Place]) -> tuple[Plan, frozenset[str]]:
    """Return the plan, and which units are not committed, as something in them may be made from what is supplied.

    A unit (an outermost stage with all stages inside it) is one of these if a supplied task belongs to it, or if a task that runs in it takes anything
    from such a unit.

    Args:
        flow: The flow.
        whole: Its plan.
        chosen: The same plan, or the part of it that was selected.
        supplied: The outputs of tasks, and items of them, that are supplied. Where a task is not among those chosen, its step comes in addition.

    Returns:
        The plan, in which the step of a supplied task waits for no other task; and the units, by the names of their outermost stages.

    Raises:
        FlowError: Nothing that runs takes what is supplied; or stages were chosen, and one takes it through a task that does not run.
    """
    given = dict.fromkeys(place.task.full_id for place in supplied)
    taken = {task.full_id: places_of(task) for task in flow.tasks}
    tasks = {task.id: task for task in whole.tasks}
    unit_of = {stage.name: stage.unit for stage in whole.stages}
    runs = {f"{step.stage}.{step.task}" for step in chosen.steps if step.kind is StepKind.TASK} - given.keys()
    _refuse_unused(whole, taken, supplied, runs)
    if not chosen.scratch:
        _refuse_stale(whole, taken, supplied, runs)
    scratch = {unit_of[tasks[id].stage] for id in given}
    while True:
        reached = {
            unit_of[tasks[id].stage] for id in runs if any(unit_of[tasks[other].stage] in scratch for other in tasks[id].upstream)
        } - scratch
        if not reached:
            break
        scratch |= reached
    opened = {unit_of[tasks[id].stage] for id in given}
    kept = {step.id for step in chosen.steps if step.kind is not StepKind.COMMIT or unit_of[step.stage or ""] not in scratch}
    open_ids = {step.id for step in whole.steps if step.kind is StepKind.OPEN and step.stage in unit_of and unit_of[step.stage] in opened}
    steps = [
        replace(step, upstream=tuple(other for other in step.upstream if other in open_ids))
        if step.kind is StepKind.TASK and f"{step.stage}.{step.task}" in given
        else step
        for step in whole.steps
    ]
    kept |= open_ids | {step.id for step in steps if step.kind is StepKind.TASK and f"{step.stage}.{step.task}" in given}
    return replace(chosen, steps=contract(tuple(steps), kept)), frozenset(scratch)


def _refuse_unused(whole: Plan, taken: Mapping[str, Sequence[Place]], given: Sequence[Place], runs: set[str]) -> None:
    for place in given:
        if not any(_overlap(place, other) for id in runs for other in taken[id]):
            raise FlowError(
                f"inputs= supplies {place!r}, but no task that runs takes it. Choose a stage or task of flow {whole.flow!r} that does, or leave it out.",
                flow=whole.flow,
                task=place.task.full_id,
            )


def _refuse_stale(whole: Plan, taken: Mapping[str, Sequence[Place]], given: Sequence[Place], runs: set[str]) -> None:
    """Refuse stages that would mix what is supplied with what was made from its committed twin. Who names tasks has chosen each of them."""
    supplied = {place.task.full_id for place in given}
    # Wiring order: what comes before a task stands before it.
    made_from: dict[str, Place] = {}
    for task in whole.tasks:
        if task.id in supplied:
            continue
        sources = [place for other in taken[task.id] for place in given if _overlap(place, other)]
        sources += [made_from[other.task.full_id] for other in taken[task.id] if other.task.full_id in made_from]
        if sources:
            made_from[task.id] = sources[0]
    for id in sorted(runs):
        stale = next(
            (other.task.full_id for other in taken[id] if other.task.full_id in made_from and other.task.full_id not in runs), None
        )
        if stale is not None:
            raise FlowError(
                f"{id} takes {stale}, which is made from {made_from[stale]!r} that inputs= supplies, but {stale} is not among what runs. Choose it too, or "
                "supply what it gives.",
                flow=whole.flow,
                task=id,
            )


def _overlap(one: Place, other: Place) -> bool:
    """Return whether one is the other, or an item of it."""
    depth = min(len(one.path), len(other.path))
    return one.task is other.task and one.path[:depth] == other.path[:depth]
