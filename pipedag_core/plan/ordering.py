"""What must come before what: through arguments, through stages that are read, and through ordering barriers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar, final

from pipedag_core.define.flow import Flow
from pipedag_core.define.group import Container, GroupNode
from pipedag_core.define.order import Loop, stable_order
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.errors import FlowError

T = TypeVar("T", Task, Stage)


@final
class Ordering:
    """The order of a flow's units (outermost stages), and of the tasks inside each.

    Attributes:
        units: In an order in which each comes after those that it needs; otherwise in wiring order.
        tasks: Unit -> its tasks, those of nested stages too, in such an order.
        unit_needs: Unit -> units that must be committed before it opens -> why.
        task_needs: Task -> tasks of the same unit that must have ended before it starts, in wiring order.

    Raises:
        FlowError: Units or tasks need each other; the message holds the circle.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        units = [stage for stage in flow.stages if stage.parent is None]
        members: dict[Stage, list[Task]] = {unit: [] for unit in units}
        unit_of = {stage: stage.unit for stage in flow.stages}
        self.unit_needs: dict[Stage, dict[Stage, str]] = {unit: {} for unit in units}
        self._task_needs: dict[Task, dict[Task, None]] = {}
        for task in flow.tasks:
            unit = unit_of[task.stage]
            members[unit].append(task)
            needs: dict[Task, None] = {}
            for other in task.upstream:
                other_unit = unit_of[other.stage]
                if other_unit is unit:
                    needs[other] = None
                else:
                    self.unit_needs[unit].setdefault(other_unit, f"task {task.full_id} reads {other.full_id}")
            for stage in task.reads:
                if unit_of[stage] is not unit:
                    self.unit_needs[unit].setdefault(unit_of[stage], f"task {task.full_id} gets the stage {stage.name}")
                elif not _around(stage, task):
                    needs.update(dict.fromkeys(other for other in stage.tasks if other.number < task.number))
            self._task_needs[task] = needs
        self._barriers(flow, within=None)
        self.task_needs = {
            task: tuple(sorted(needs, key=lambda other: other.number)) if len(needs) > 1 else tuple(needs)
            for task, needs in self._task_needs.items()
        }
        self.units = self._in_order(units, self.unit_needs)
        self.tasks = {unit: self._in_order(members[unit], self.task_needs) for unit in self.units}

    def _barriers(self, container: Container, within: Stage | None) -> None:
        for node in container.nodes:
            if isinstance(node, Container):
                self._barriers(node, node if isinstance(node, Stage) else within)
        if not any(_is_barrier(node) for node in container.nodes):
            return
        sections: list[list[Any]] = [[]]
        for node in container.nodes:
            if _is_barrier(node):
                sections += [[node], []]
            else:
                sections[-1].append(node)
        if within is not None:
            for before, after in _neighbours([_tasks_in(section) for section in sections]):
                for last in _lasts(before, self._task_needs):
                    for first in _firsts(after, self._task_needs):
                        self._task_needs[first][last] = None
        else:
            for before, after in _neighbours([_units_in(section) for section in sections]):
                for last in _lasts(before, self.unit_needs):
                    for first in _firsts(after, self.unit_needs):
                        self.unit_needs[first].setdefault(last, f"{first.name} is held back by an ordering barrier")

    def _in_order(self, items: Sequence[T], needs: Any) -> list[T]:
        try:
            return stable_order(items, needs)
        except Loop as loop:
            path: list[Any] = loop.path
            if isinstance(path[0], Stage):
                reasons = "; ".join(self.unit_needs[second][first] for first, second in pairwise(path))
                text = f"stages {' -> '.join(stage.name for stage in path)} ({reasons}). Nest them in one stage, or move the tasks apart"
            else:
                text = f"tasks {' -> '.join(task.full_id for task in path)} (through arguments and ordering barriers). Move the barrier or the task"
            raise FlowError(f"Parts of flow {self._flow.name!r} need each other: {text}.", flow=self._flow.name) from None


def _around(stage: Stage, task: Task) -> bool:
    around: Stage | None = task.stage
    while around is not None:
        if around is stage:
            return True
        around = around.parent
    return False


def _is_barrier(node: object) -> bool:
    return (isinstance(node, GroupNode) and node.ordering_barrier) or (isinstance(node, Task) and node.options.ordering_barrier)


def _tasks_in(nodes: Iterable[Any]) -> list[Task]:
    found: list[Task] = []
    for node in nodes:
        if isinstance(node, Task):
            found.append(node)
        else:
            found += _tasks_in(node.nodes)
    return found


def _units_in(nodes: Iterable[Any]) -> list[Stage]:
    found: list[Stage] = []
    for node in nodes:
        if isinstance(node, Stage):
            found.append(node)
        else:
            found += _units_in(node.nodes)
    return found


def _neighbours(sections: list[list[T]]) -> list[tuple[list[T], list[T]]]:
    filled = [section for section in sections if section]
    return list(pairwise(filled))


def _lasts(section: list[T], needs: dict[T, Any]) -> list[T]:
    # Whoever waits for these waits for all of the section.
    needed = {other for item in section for other in needs[item]}
    return [item for item in section if item not in needed]


def _firsts(section: list[T], needs: dict[T, Any]) -> list[T]:
    # If these wait, all of the section waits.
    own = set(section)
    return [item for item in section if own.isdisjoint(needs[item])]
