"""What a run of a part of a flow takes from outside: results as they are committed, which may be those of another state of the code.

A committed result is taken for a task of the same id and place in the wiring. What its code was like is not known any more, but where it breaks what the
task declares now, that is an error, and where a task fails that took such results, it is said which they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

from pipedag_core.define.task import Task
from pipedag_core.errors import PipedagError, RunError
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import FoundResult, TaskKey
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.session import Run, Session


def is_outside(run: Run, plan: Plan, task: Task) -> bool:
    """Return whether a run takes the result of a task as it is committed: it neither runs the task nor is given a value in its place."""
    place = (task.stage.name, task.id)
    return place not in plan_lookup(run, plan).running and place not in run.supplied.values


def refuse_unfit(plan: Plan, task: Task, found: FoundResult, value: Any, who: str) -> None:
    """Refuse a committed result that breaks what its task declares now.

    Args:
        plan: For messages.
        task: The task, as it is declared now.
        found: What is committed.
        value: The same, decoded.
        who: Who needs it, for messages.

    Raises:
        RunError: It has another number of items than `nout`, or other tables than `outputs`.
    """
    options = task.options
    problem = ""
    if options.nout is not None:
        count = len(cast("Sequence[Any]", value)) if isinstance(value, (tuple, list)) else None
        if count != options.nout:
            problem = f"it is declared with nout={options.nout}, and committed is {'one value' if count is None else f'a result of {count} items'}"
    if not problem and options.outputs is not None and set(options.outputs) != set(found.result.entries):
        problem = f"it is declared with outputs={', '.join(options.outputs) or 'none'}, and committed are {', '.join(sorted(found.result.entries)) or 'none'}"
    if problem:
        raise RunError(
            f"{who} of flow {plan.flow!r} takes the result of {task.full_id} from outside of this run, from generation {found.generation} of stage "
            f"{found.stage}, which does not fit the task as it is now: {problem}. The task was changed, renamed or reordered since. {advice([task])}",
            flow=plan.flow,
            stage=found.stage,
            task=task.id,
            generation=found.generation,
        )


def advice(tasks: Sequence[Task]) -> str:
    """Return what to do where committed results are not those of the code as it is."""
    stages = sorted({task.stage.name for task in tasks})
    return f"Run {'stage' if len(stages) == 1 else 'stages'} {', '.join(stages)} first, or the whole flow."


def committed_instead(session: Session, plan: Plan, absent: Sequence[Task]) -> str:
    """Return a sentence about what is committed in place of tasks that have no result; "" if that is nothing.

    A task that was renamed, or a repeated call that has another number now, is there under another id.
    """
    told: list[str] = []
    for stage in dict.fromkeys(task.stage.name for task in absent):
        number = session.catalog.current(stage)
        ids = [] if number is None else [result.task for result in session.catalog.results(stage, number)]
        lost = [task.id for task in absent if task.stage.name == stage]
        declared = {task.task for task in plan.tasks if task.stage == stage}
        gone = [id for id in ids if id not in declared]
        parts: list[str] = []
        rewired = [id for id in lost if id in ids]
        if rewired:
            parts.append(f"{', '.join(rewired)} with other arguments, or in another order")
        if gone:
            renamed = next((id for id in lost if id not in ids and get_close_matches(id, gone, n=1)), None)
            parts.append(
                f"{', '.join(gone[:10])}, which the flow does not have any more{f' (renamed to {renamed}?)' if renamed is not None else ''}"
            )
        if parts:
            told.append(f"Generation {number} of stage {stage} has {' and '.join(parts)}. ")
    return "".join(told)


def told_of(session: Session, run: Run, plan: Plan, task: Task) -> str:
    """Return a note about what a task that failed took from outside; "" if that is nothing."""
    outside = [item for item in task.upstream if is_outside(run, plan, item)]
    if not outside:
        return ""
    lookup = plan_lookup(run, plan)
    keys = {
        item: TaskKey(
            item.stage.name, item.id, "" if run.options.ignore_position_hashes else lookup.tasks[item.stage.name, item.id].position
        )
        for item in outside
    }
    try:
        found = run.catalog(session).inputs(tuple(keys.values()))
    except PipedagError:
        # Whatever is wrong with the catalog is told elsewhere.
        return ""
    there = [(item, found[key]) for item, key in keys.items() if key in found]
    if not there:
        return ""
    names = ", ".join(f"{item.full_id} (generation {result.generation}{_version(item, result)})" for item, result in there[:10])
    more = f" and {len(there) - 10} more" if len(there) > 10 else ""
    return (
        f"it took results from outside of this run as they are committed: {names}{more}. If these tasks were changed, renamed or reordered since: "
        f"{advice([item for item, _ in there])}"
    )


def _version(task: Task, found: FoundResult) -> str:
    now, then = task.options.version, found.result.parts.get("version")
    return f", of version {then or 'none'} where it is {now} now" if isinstance(now, str) and now != then else ""
