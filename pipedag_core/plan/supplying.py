"""A plan in which some tasks are not run, since the caller supplies what they would give: what `flow.run(inputs=...)` carries out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipedag_core.errors import FlowError
from pipedag_core.plan.model import Plan, StepKind
from pipedag_core.plan.selection import contract


def supply(whole: Plan, chosen: Plan, supplied: Iterable[str]) -> tuple[Plan, frozenset[str]]:
    """Return the plan, and which units are not committed, as something in them may be made from what is supplied.

    A unit (an outermost stage with all stages inside it) is one of these if a supplied task belongs to it, or if a task that runs in it takes anything
    from such a unit.

    Args:
        whole: The plan of the whole flow.
        chosen: The same plan, or the part of it that was selected.
        supplied: Full ids of the tasks whose values are supplied. Where one is not among those chosen, its step comes in addition.

    Returns:
        The plan, in which the step of a supplied task waits for no other task; and the units, by the names of their outermost stages.

    Raises:
        FlowError: Nothing that runs takes what is supplied; or stages were chosen, and one takes it through a task that does not run.
    """
    given = dict.fromkeys(supplied)
    tasks = {task.id: task for task in whole.tasks}
    unit_of = {stage.name: stage.unit for stage in whole.stages}
    runs = {f"{step.stage}.{step.task}" for step in chosen.steps if step.kind is StepKind.TASK} - given.keys()
    _refuse_unused(whole, given, runs)
    if not chosen.scratch:
        _refuse_stale(whole, given, runs)
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


def _refuse_unused(whole: Plan, given: Iterable[str], runs: set[str]) -> None:
    upstream = {task.id: task.upstream for task in whole.tasks}
    taken = {other for id in runs for other in upstream[id]}
    for id in given:
        if id not in taken:
            raise FlowError(
                f"inputs= supplies what {id} gives, but no task that runs takes it. Choose a stage or task of flow {whole.flow!r} that does, or leave it out.",
                flow=whole.flow,
                task=id,
            )


def _refuse_stale(whole: Plan, given: Iterable[str], runs: set[str]) -> None:
    """Refuse stages that would mix what is supplied with what was made from its committed twin. Who names tasks has chosen each of them."""
    upstream = {task.id: task.upstream for task in whole.tasks}
    wanted = set(given)
    # Wiring order: what comes before a task stands before it.
    made_from: dict[str, str] = {}
    for task in whole.tasks:
        source = next(
            (other if other in wanted else made_from[other] for other in task.upstream if other in wanted or other in made_from), None
        )
        if source is not None and task.id not in wanted:
            made_from[task.id] = source
    for id in sorted(runs):
        stale = next((other for other in upstream[id] if other in made_from and other not in runs), None)
        if stale is not None:
            raise FlowError(
                f"{id} takes {stale}, which is made from {made_from[stale]} that inputs= supplies, but {stale} is not among what runs. Choose it too, or "
                "supply what it gives.",
                flow=whole.flow,
                task=id,
            )
