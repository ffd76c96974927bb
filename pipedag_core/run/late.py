"""Late values on their way to a task: made when its function is about to be called, remembered with its result, found again by others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipedag_core.cache.fingerprint import REMEMBERED
from pipedag_core.define.context import TaskContext
from pipedag_core.define.late import LateValue, make_late
from pipedag_core.define.walk import map_leaves
from pipedag_core.plan.model import Plan, PlanTask
from pipedag_core.ports.catalogs import TaskKey
from pipedag_core.run.inputs import leaves
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.session import Run, Session

#: What a function gets that is only asked what it would do.
UNMADE: Final = "<made when the task runs>"


def has_late(parameters: Mapping[str, Any]) -> bool:
    """Return whether there is a late value among resolved arguments."""
    return any(isinstance(leaf, LateValue) for value in parameters.values() for _, leaf in leaves(value, ""))


def supply(parameters: Mapping[str, Any], context: TaskContext | None) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return loaded arguments with texts in place of late values, and what is to be remembered: part -> text.

    Args:
        parameters: The arguments.
        context: The task that takes them; None: it is only asked what it would do, and nothing is made.
    """
    made: dict[str, str] = {}

    def leaf(item: Any, _path: str) -> Any:
        if not isinstance(item, LateValue):
            return item
        if context is None:
            return UNMADE
        part = f"{REMEMBERED}{item.source}"
        if part not in made:
            made[part] = make_late(item, context)
        return made[part]

    return {name: map_leaves(value, leaf, name) for name, value in parameters.items()}, made


def earlier(session: Session, run: Run, plan: Plan, asking: PlanTask, source: str) -> tuple[str, ...]:
    """Return the texts that a late value had for tasks that took it, as their results in this run's eyes remember them; in wiring order, each once.

    Only tasks that were wired before the one that asks count: those after it may not be decided yet. Whoever must be sure that those before are, asks
    from another stage, or from behind an ordering barrier.
    """
    lookup = plan_lookup(run, plan)
    keys: list[TaskKey] = []
    for task in plan.tasks:
        if task.id == asking.id:
            break
        if source in task.upstream:
            from_outside = (task.stage, task.task) not in lookup.running and not run.options.ignore_position_hashes
            keys.append(TaskKey(task.stage, task.task, task.position if from_outside else ""))
    if not keys:
        return ()
    found = run.catalog(session).inputs(keys)
    texts = (found[key].result.parts.get(f"{REMEMBERED}{source}") for key in keys if key in found)
    return tuple(dict.fromkeys(text for text in texts if text))
