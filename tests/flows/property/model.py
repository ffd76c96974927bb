"""The flow under test as plain data: stages, tasks, and how they are wired. Edits make new models of old ones; nothing here runs anything."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import TypeVar

MOST_STAGES = 4
MOST_TASKS = 8
STAGE_NAMES = ("raw", "mid", "mart", "out", "Extra")
TASK_NAMES = ("alpha", "beta", "gamma", "delta")
TABLE_NAMES = (None, "t_one", "t_two", "T_Three", "p_%%")
#: What a table declares beside its primary key.
OPTIONS = ({}, {"indexes": [["x"]]}, {"non_nullable": ["x"]})
COLUMNS = ("c", "C")
LETTERS = ("A", "a")
ITEMS = ("a", "b")
#: What arguments can be; the first four are told apart only by their types, or not at all by those who compare with ==.
ARGUMENTS = (0, 1, True, 1.0, "1", 2)

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Kind:
    """What sort of task.

    Attributes:
        mode: "version", "lazy", "auto" or "never": what decides on its validity.
        engine: In what it works: "pandas", "polars", "arrow", "scan" (a lazy frame), "select", "text", "script" or "pass" (an input as it came).
        shape: "table", "pair" (a dict of two tables), "value" or "blob".
    """

    mode: str
    engine: str
    shape: str = "table"

    @property
    def in_memory(self) -> bool:
        return self.engine in ("pandas", "polars", "arrow")

    @property
    def may_have_cache(self) -> bool:
        return self.mode in ("version", "lazy") and self.engine != "pass"

    @property
    def item_count(self) -> int:
        return 2 if self.shape == "pair" or self.engine == "script" else 1

    @property
    def choices(self) -> range:
        """What `Source.item` can be."""
        return range(3 if self.item_count == 2 else 1)

    @property
    def gives_table(self) -> bool:
        return self.shape in ("table", "pair")


KINDS = (
    Kind("version", "polars"),
    Kind("lazy", "select"),
    Kind("version", "pandas"),
    Kind("auto", "scan"),
    Kind("lazy", "text"),
    Kind("lazy", "polars"),
    Kind("never", "polars"),
    Kind("version", "scan"),
    Kind("lazy", "script"),
    Kind("version", "polars", "pair"),
    Kind("version", "polars", "value"),
    Kind("version", "arrow"),
    Kind("lazy", "select", "pair"),
    Kind("version", "polars", "blob"),
    Kind("never", "select"),
    Kind("version", "select"),
    Kind("lazy", "pass"),
    Kind("lazy", "polars", "value"),
    Kind("never", "polars", "value"),
    Kind("never", "scan"),
    Kind("lazy", "scan"),
    Kind("auto", "scan", "pair"),
)


class Failing(Enum):
    """Whether a task's function raises when it is called; BODY is an edit of the code, OUTSIDE has a reason that no version can know."""

    NO = "no"
    BODY = "body"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class Source:
    """An item of an earlier task's output, as an argument; item 2 is the whole output of a task that gives two tables."""

    task: int
    item: int = 0


@dataclass(frozen=True)
class Task:
    """One task. `argument` is a number of `ARGUMENTS`, `options` one of `OPTIONS`; `versioned` lazy tasks have a version too. All but `name`, `stage`, `inputs`, `argument`, `bump`, `world` and `fresh_allowed` is its body, so that a version stands for it."""

    uid: int
    kind: Kind
    stage: str
    name: str
    inputs: tuple[Source, ...] = ()
    constant: int = 0
    letter: str = "A"
    column: str = "c"
    rows: int = 2
    key: bool = False
    table_name: str | None = None
    cached: bool = False
    failing: Failing = Failing.NO
    argument: int = 0
    bump: int = 0
    world: int = 0
    fresh_allowed: bool = False
    options: int = 0
    versioned: bool = False

    @property
    def version(self) -> str:
        """A version text that changes with the body."""
        kind = self.kind
        failing = self.failing is Failing.BODY
        body = (
            kind.engine,
            kind.shape,
            self.constant,
            self.letter,
            self.column,
            self.rows,
            self.key,
            self.options,
            self.table_name,
            self.cached,
            failing,
        )
        return f"{self.bump} {body}"

    @property
    def given(self) -> object:
        """The argument itself."""
        return ARGUMENTS[self.argument % len(ARGUMENTS)]

    @property
    def amount(self) -> int:
        """What the argument adds."""
        return int(self.given)  # pyright: ignore[reportArgumentType]

    @property
    def script_name(self) -> str:
        """The table that a script creates first; the second one has `_n` behind it."""
        given = self.table_name if self.table_name and "%" not in self.table_name else None
        return (given or f"{self.name}_r").casefold()


@dataclass(frozen=True)
class Stage:
    """A stage, perhaps inside another one (not deeper)."""

    name: str
    parent: str | None = None


class InvalidModel(Exception):
    """The model is no flow that can be declared; the edit that led here is not made."""


@dataclass(frozen=True)
class Model:
    """A whole flow. Inputs are tasks that stand earlier in `tasks`."""

    stages: tuple[Stage, ...] = ()
    tasks: tuple[Task, ...] = ()

    def task(self, uid: int) -> Task:
        return next(task for task in self.tasks if task.uid == uid)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def unit(self, stage: str) -> str:
        """The outermost stage with which this one is committed."""
        return self.stage(stage).parent or stage

    def units(self) -> dict[str, tuple[str, ...]]:
        """Unit -> all its stages, itself first, in order of dependence where possible."""
        roots = [stage.name for stage in self.stages if stage.parent is None]
        return {root: (root, *(stage.name for stage in self.stages if stage.parent == root)) for root in roots}

    def with_task(self, uid: int, **changes: object) -> Model:
        """The model with one task changed."""
        return replace(self, tasks=tuple(replace(task, **changes) if task.uid == uid else task for task in self.tasks))

    @cached_property
    def unit_order(self) -> tuple[str, ...]:
        """Units in an order in which they can be declared."""
        needs: dict[str, set[str]] = {root: set() for root in self.units()}
        for task in self.tasks:
            own = self.unit(task.stage)
            needs[own] |= {self.unit(self.task(source.task).stage) for source in task.inputs} - {own}
        return tuple(in_order(needs))

    def wiring(self, unit: str) -> list[Task | str]:
        """A unit's own tasks and the names of its inner stages, in an order in which they can be declared."""
        node = {task.uid: task.uid if task.stage == unit else task.stage for task in self.tasks if self.unit(task.stage) == unit}
        needs: dict[int | str, set[int | str]] = {}
        for task in self.tasks:
            if task.uid in node:
                own = node[task.uid]
                needs.setdefault(own, set()).update(node[source.task] for source in task.inputs if source.task in node)
                needs[own].discard(own)
        for stage in self.stages:
            if stage.parent == unit:
                needs.setdefault(stage.name, set())
        return [self.task(found) if isinstance(found, int) else found for found in in_order(needs)]

    @cached_property
    def in_wiring_order(self) -> tuple[Task, ...]:
        """All tasks as they are declared."""
        found: list[Task] = []
        for unit in self.unit_order:
            for item in self.wiring(unit):
                found += [item] if isinstance(item, Task) else [task for task in self.tasks if task.stage == item]
        return tuple(found)

    @cached_property
    def ids(self) -> Mapping[int, str]:
        """uid -> id within the stage."""
        counts: dict[tuple[str, str], int] = {}
        ids: dict[int, str] = {}
        for task in self.in_wiring_order:
            count = counts[task.stage, task.name] = counts.get((task.stage, task.name), 0) + 1
            ids[task.uid] = task.name if count == 1 else f"{task.name}_{count}"
        return ids

    def full_id(self, task: Task) -> str:
        return f"{task.stage.casefold()}.{self.ids[task.uid]}"

    def names(self, task: Task) -> tuple[str, ...]:
        """Readable names of the tables and blobs that a task makes, item by item."""
        if task.kind.shape == "value":
            return ()
        if task.kind.engine == "script":
            return (task.script_name, f"{task.script_name}_n")
        id = self.ids[task.uid]
        first = task.table_name.casefold() if task.table_name else None
        if first is not None and first.endswith("%%"):
            # Stands for the real name, which is a hash of the same: place, and where in the nest the table is. `Instance` translates.
            place = hashlib.sha256(repr((self.positions[task.uid], task.kind.shape == "pair")).encode()).hexdigest()
            first = f"{first.removesuffix('%%')}{place[:12]}"
        if task.kind.shape == "pair":
            return (first or f"{id}_{ITEMS[0]}", f"{id}_{ITEMS[1]}")
        return (first or id,)

    @cached_property
    def positions(self) -> Mapping[int, Hashable]:
        """uid -> what tells its place in the wiring: no versions, no bodies."""
        plain: dict[int, Hashable] = {}
        for task in self.tasks:
            sources = tuple((plain[source.task], self.item_key(source)) for source in task.inputs)
            shapes = tuple(self.task(source.task).kind.gives_table for source in task.inputs)
            plain[task.uid] = (task.name, task.stage.casefold(), sources, shapes, task.argument % len(ARGUMENTS))
        counts: dict[Hashable, int] = {}
        positions: dict[int, Hashable] = {}
        for task in self.in_wiring_order:
            count = counts[plain[task.uid]] = counts.get(plain[task.uid], 0) + 1
            positions[task.uid] = (plain[task.uid], count)
        return positions

    def item_key(self, source: Source) -> str | None:
        """The key by which a consumer takes an item; None if it takes all that the task gives."""
        taken = self.taken(source)
        return self.keys(source)[taken[0]] if len(taken) == 1 and self.task(source.task).kind.item_count == 2 else None

    def keys(self, source: Source) -> tuple[str, ...]:
        """The keys of all items of a task that gives two."""
        task = self.task(source.task)
        return (task.script_name, f"{task.script_name}_n") if task.kind.engine == "script" else ITEMS

    def taken(self, source: Source) -> tuple[int, ...]:
        """The numbers of the items that a consumer takes."""
        chosen = source.item % len(self.task(source.task).kind.choices)
        return (0, 1) if chosen == 2 else (chosen,)

    def check(self) -> Model:
        """Return the model itself.

        Raises:
            InvalidModel: It cannot be declared as a flow, or a stage has a name twice.
        """
        if len(self.tasks) > MOST_TASKS or len(self.stages) > MOST_STAGES:
            raise InvalidModel("too large")
        if len({stage.name.casefold() for stage in self.stages}) < len(self.stages):
            raise InvalidModel("two stages of one name")
        parents = {stage.name: stage.parent for stage in self.stages}
        if any(parent is not None and parents.get(parent, "") is not None for parent in parents.values()):
            raise InvalidModel("stages are nested one deep")
        before: set[int] = set()
        for task in self.tasks:
            if not {source.task for source in task.inputs} <= before:
                raise InvalidModel("an input stands later")
            if task.kind.engine == "pass" and not any(self.task(source.task).kind.gives_table for source in task.inputs):
                raise InvalidModel("nothing to pass on")
            before.add(task.uid)
        taken: set[tuple[str, str]] = set()
        for task in self.in_wiring_order:
            for name in self.names(task):
                if (task.stage, name) in taken:
                    raise InvalidModel("a name is taken")
                taken.add((task.stage, name))
        return self


def in_order(needs: Mapping[T, Iterable[T]]) -> list[T]:
    """Return the keys, each after those that it needs, else as they came.

    Raises:
        InvalidModel: They need each other.
    """
    left = {item: set(some) for item, some in needs.items()}
    found: list[T] = []
    while left:
        ready = next((item for item, some in left.items() if not some & left.keys()), None)
        if ready is None:
            raise InvalidModel("a circle")
        found.append(ready)
        del left[ready]
    return found
