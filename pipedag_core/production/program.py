"""The production flow as data: slots for values, the tasks that fill them, and where each argument comes from.

It holds no task of a flow and no store, so it can be written down and read back in a process that never wires the flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from pipedag_core.define.options import TaskOptions
from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.task import Task, TaskFunction
from pipedag_core.define.values import View
from pipedag_core.define.walk import join, map_leaves, segment
from pipedag_core.plan.production import Cut
from pipedag_core.plan.specification import Place, Role, place_of
from pipedag_core.ports.data import Selection
from pipedag_core.run.views import selection_of


@final
@dataclass(frozen=True, slots=True)
class Use:
    """Stands in a nest for a value that is there when the flow runs.

    Attributes:
        slot: Number of the slot that holds it; None for a value that is ignored.
        path: (kind, key) of the items to take, from the outside in.
        over: Items of it that come from elsewhere: their path below, and what stands there.
    """

    slot: int | None
    path: tuple[tuple[str, Any], ...] = ()
    over: tuple[tuple[tuple[Any, ...], Use], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Merge:
    """Stands in a nest for `base` with the entries of `others` in place of its own, the last one first served."""

    base: Any
    others: tuple[Any, ...]


@final
@dataclass(frozen=True, slots=True)
class Picked:
    """Stands in a nest for items of something that is put together first."""

    value: Any
    path: tuple[tuple[str, Any], ...]


@final
@dataclass(frozen=True, slots=True)
class Selected:
    """Stands in a nest for a `View`.

    Attributes:
        source: Nest of what it selects from.
        selection: What is selected.
        where: Its place, for messages.
    """

    source: Any
    selection: Selection
    where: str


@final
@dataclass(frozen=True, slots=True)
class Node:
    """A task that runs.

    Attributes:
        slot: Where its output goes.
        stage, id: Where it was wired, and its id there.
        function: What it calls.
        parameters: Label -> nest of plain values, `Use`, `Merge`, `Picked` and `Selected`.
        names: Path of a table among the arguments -> (stage, name) that it had in training.
    """

    slot: int
    stage: str
    id: str
    function: TaskFunction
    parameters: Mapping[str, Any]
    names: Mapping[str, tuple[str, str]]

    @property
    def full_id(self) -> str:
        """`stage.id`."""
        return f"{self.stage}.{self.id}"

    @property
    def options(self) -> TaskOptions:
        """The options of the task."""
        return self.function.options


@final
@dataclass(frozen=True, slots=True)
class Program:
    """All of it.

    Attributes:
        flow: Name of the training flow.
        stages: Names of all stages of the training flow.
        inputs: Name -> slot.
        consts: Slot -> what it is called (`stage.task[key]`).
        nodes: The tasks, in the order in which they run.
        output: The nest that is returned.
        outputs: Name -> the nest that is one output.
        ignored: What is None, for people.
        cut: Full ids of the tasks of the training flow that make the inputs and consts, for people: slot -> id.
        size: Number of slots.
    """

    flow: str
    stages: tuple[str, ...]
    inputs: Mapping[str, int]
    consts: Mapping[int, str]
    nodes: tuple[Node, ...]
    output: Any
    outputs: Mapping[str, Any]
    ignored: tuple[str, ...]
    cut: Mapping[int, str]
    size: int


def build(cut: Cut) -> tuple[Program, Mapping[int, Place]]:
    """Return the program of a cut flow, and the places that its inputs and consts come from: slot -> place."""
    places: dict[Place, int] = {}
    inputs = {name: places.setdefault(place, len(places)) for name, place in cut.inputs.items()}
    consts = {places.setdefault(place, len(places)): repr(place) for place in cut.consts}
    tasks = {task: len(places) + number for number, task in enumerate(cut.tasks)}

    def convert(value: Any, where: str = "the output") -> Any:
        return map_leaves(value, leaf_of, where)

    def leaf_of(leaf: Any, path: str) -> Any:
        if isinstance(leaf, View):
            return Selected(convert(leaf.src, join(path, "src")), selection_of(leaf, path), path)
        if not isinstance(leaf, Reference):
            return leaf
        keys: list[tuple[str, Any]] = []
        root: Reference = leaf
        while isinstance(root, TaskGetItem):
            keys.append((root.kind, root.key))
            root = root.parent
        keys.reverse()
        if isinstance(root, Merged):
            merged = Merge(convert(root.base, path), tuple(convert(other, path) for other in root.others))
            return Picked(merged, tuple(keys)) if keys else merged
        return use_of(place_of(leaf), tuple(keys))

    def use_of(place: Place, keys: tuple[tuple[str, Any], ...]) -> Use:
        rule = cut.roles.rule_of(place)
        if rule is None:
            slot, rest = tasks[place.task], keys
        elif rule.role is Role.IGNORE:
            return Use(None)
        else:
            target = rule.target if isinstance(rule.target, Place) else Place(place.task)
            slot, rest = places[target], keys[len(target.path) :]
        over = [
            (inside.path[len(place.path) :], Use(None) if other.role is Role.IGNORE else Use(places[inside]))
            for inside, other in cut.roles.below(place)
        ]
        return Use(slot, rest, tuple(over))

    def arguments(task: Task) -> dict[str, Any]:
        return {label: convert(value, f"Task {task.full_id}, argument {segment(label)}") for label, value in task.parameters.items()}

    nodes = tuple(Node(tasks[task], task.stage.name, task.id, task.function, arguments(task), {}) for task in cut.tasks)
    program = Program(
        flow=cut.flow.name,
        stages=tuple(stage.name for stage in cut.flow.stages),
        inputs=inputs,
        consts=consts,
        nodes=nodes,
        output=convert(cut.output),
        outputs={name: convert(value) for name, value in cut.outputs.items()},
        ignored=tuple(repr(place) for place in cut.ignored),
        cut={slot: place.task.full_id for place, slot in places.items()},
        size=len(places) + len(tasks),
    )
    return program, {slot: place for place, slot in places.items()}


def uses(value: Any) -> Iterable[Use]:
    """Yield all uses in a nest, those inside of merges and of other uses included."""
    found: list[Use] = []

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, Use):
            found.append(item)
            for _, other in item.over:
                leaf(other, path)
        elif isinstance(item, Merge):
            for part in (item.base, *item.others):
                map_leaves(part, leaf)
        elif isinstance(item, Picked):
            map_leaves(item.value, leaf)
        elif isinstance(item, Selected):
            map_leaves(item.source, leaf)
        return item

    map_leaves(value, leaf)
    return found


def part(program: Program, wanted: Iterable[Any]) -> tuple[Node, ...]:
    """Return the tasks that are needed for some nests, in order."""
    needed = {use.slot for value in wanted for use in uses(value)}
    chosen: list[Node] = []
    for node in reversed(program.nodes):
        if node.slot in needed:
            chosen.append(node)
            needed |= {use.slot for value in node.parameters.values() for use in uses(value)}
    return tuple(reversed(chosen))
