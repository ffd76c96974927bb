"""The kinds of edits. A new one is a function with `@edit`: it takes the model and the numbers that were drawn, and returns another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tests.flows.property.model import (
    COLUMNS,
    KINDS,
    LETTERS,
    OPTIONS,
    STAGE_NAMES,
    TABLE_NAMES,
    TASK_NAMES,
    Failing,
    InvalidModel,
    Model,
    Source,
    Stage,
    Task,
)

#: With fewer tasks than this, an edit that makes no sense adds one.
FEW = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """What an edit has to go by.

    Attributes:
        at: Chooses what is edited.
        value: Chooses what it becomes.
        uid: A number that no task has had.
        history: All models so far.
    """

    at: int
    value: int
    uid: int
    history: Sequence[Model]

    def one(self, items: Sequence[T]) -> T:
        """What is edited, of these."""
        return _pick(items, self.at)

    def become(self, items: Sequence[T]) -> T:
        """What it becomes, of these."""
        return _pick(items, self.value)


def _pick(items: Sequence[T], number: int) -> T:
    if not items:
        raise InvalidModel("there is none")
    return items[number % len(items)]


EDITS: dict[str, Callable[[Model, Drawn], Model]] = {}

#: These are drawn more often than the others.
COMMON = (
    "change_constant",
    "change_letter",
    "change_column",
    "change_world",
    "bump_version",
    "rename_task",
    "rename_table",
    "toggle_key",
    "change_options",
    "fail",
    "mend",
    "go_back",
    "nothing",
)


def edit(function: Callable[[Model, Drawn], Model]) -> Callable[[Model, Drawn], Model]:
    """Make a function a kind of edit."""
    EDITS[function.__name__] = function
    return function


def apply(kind: str, model: Model, drawn: Drawn) -> Model:
    """Return the edited model. Where the edit makes no sense it is the same, or has one more task if there are few."""
    for attempt in (kind, *(["add_task"] if len(model.tasks) < FEW else [])):
        try:
            return EDITS[attempt](model, drawn).check()
        except InvalidModel:
            pass
    return model


def sources(model: Model, drawn: Drawn, count: int) -> tuple[Source, ...]:
    """Choose inputs among the tasks, the later ones first."""
    found = [Source(task.uid, item) for task in reversed(model.tasks) for item in task.kind.choices]
    return tuple(_pick(found, drawn.at + number * (1 + drawn.value)) for number in range(count)) if found else ()


def unused_stage(model: Model, drawn: Drawn) -> str:
    return drawn.become([name for name in STAGE_NAMES if name not in {stage.name for stage in model.stages}])


def without(model: Model, gone: set[int]) -> Model:
    """Take tasks out; what has taken one as an input does without."""
    kept = [
        replace(task, inputs=tuple(item for item in task.inputs if item.task not in gone)) for task in model.tasks if task.uid not in gone
    ]
    return replace(model, tasks=tuple(kept))


# --- nothing, and the past


@edit
def nothing(model: Model, drawn: Drawn) -> Model:
    return model


@edit
def go_back(model: Model, drawn: Drawn) -> Model:
    return drawn.history[-1 - drawn.value % len(drawn.history)] if drawn.history else model


# --- tasks


@edit
def add_task(model: Model, drawn: Drawn) -> Model:
    stages = model.stages or (Stage(STAGE_NAMES[0]),)
    stage = stages[(drawn.at + drawn.value) % len(stages)].name
    kind = drawn.become(KINDS)
    inputs = sources(model, drawn, (0, 1, 2, 1, 2, 1)[drawn.at % 6])
    task = Task(drawn.uid, kind, stage, drawn.one(TASK_NAMES), inputs, constant=drawn.value % 7)
    return replace(model, stages=stages, tasks=(*model.tasks, task))


@edit
def duplicate_task(model: Model, drawn: Drawn) -> Model:
    return replace(model, tasks=(*model.tasks, replace(drawn.one(model.tasks), uid=drawn.uid)))


@edit
def remove_task(model: Model, drawn: Drawn) -> Model:
    return without(model, {drawn.one(model.tasks).uid})


@edit
def change_kind(model: Model, drawn: Drawn) -> Model:
    kind = drawn.become(KINDS)
    task = drawn.one(model.tasks)
    return model.with_task(task.uid, kind=kind, cached=task.cached and kind.may_have_cache)


@edit
def change_constant(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, constant=drawn.value)


@edit
def change_letter(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, letter=drawn.become(LETTERS))


@edit
def change_column(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, column=drawn.become(COLUMNS))


@edit
def change_rows(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, rows=drawn.value % 4)


@edit
def change_argument(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, argument=drawn.value)


@edit
def bump_version(model: Model, drawn: Drawn) -> Model:
    task = drawn.one(model.tasks)
    return model.with_task(task.uid, bump=task.bump + 1)


@edit
def rename_task(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, name=drawn.become(TASK_NAMES))


@edit
def swap_names(model: Model, drawn: Drawn) -> Model:
    one, other = drawn.one(model.tasks), drawn.become(model.tasks)
    return model.with_task(one.uid, name=other.name).with_task(other.uid, name=one.name)


@edit
def toggle_key(model: Model, drawn: Drawn) -> Model:
    task = drawn.one(model.tasks)
    return model.with_task(task.uid, key=not task.key)


@edit
def change_options(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, options=drawn.value % len(OPTIONS))


@edit
def toggle_version(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if task.kind.mode == "lazy"])
    return model.with_task(task.uid, versioned=not task.versioned)


@edit
def rename_table(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, table_name=drawn.become(TABLE_NAMES))


@edit
def swap_table_names(model: Model, drawn: Drawn) -> Model:
    one, other = drawn.one(model.tasks), drawn.become(model.tasks)
    return model.with_task(one.uid, table_name=other.table_name).with_task(other.uid, table_name=one.table_name)


@edit
def fail(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, failing=drawn.become((Failing.BODY, Failing.OUTSIDE)))


@edit
def mend(model: Model, drawn: Drawn) -> Model:
    return mended(model)


def mended(model: Model) -> Model:
    """The model without failing tasks."""
    return replace(model, tasks=tuple(replace(task, failing=Failing.NO) for task in model.tasks))


# --- cache functions


@edit
def toggle_cache(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if task.kind.may_have_cache])
    return model.with_task(task.uid, cached=not task.cached)


@edit
def change_world(model: Model, drawn: Drawn) -> Model:
    tasks = [task for task in model.tasks if task.cached] or [task for task in model.tasks if task.kind.may_have_cache]
    return model.with_task(drawn.one(tasks).uid, world=drawn.value, cached=True)


@edit
def toggle_fresh_allowed(model: Model, drawn: Drawn) -> Model:
    task = drawn.one(model.tasks)
    return model.with_task(task.uid, fresh_allowed=not task.fresh_allowed)


# --- wiring


@edit
def rewire(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if task.inputs])
    earlier = model.tasks[: model.tasks.index(task)]
    taken = drawn.become([Source(other.uid, item) for other in earlier for item in other.kind.choices])
    number = drawn.at % len(task.inputs)
    return model.with_task(task.uid, inputs=(*task.inputs[:number], taken, *task.inputs[number + 1 :]))


@edit
def add_input(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if len(task.inputs) < 3])
    earlier = model.tasks[: model.tasks.index(task)]
    taken = drawn.become([Source(other.uid, item) for other in earlier for item in other.kind.choices])
    return model.with_task(task.uid, inputs=(*task.inputs, taken))


@edit
def drop_input(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if task.inputs])
    number = drawn.value % len(task.inputs)
    return model.with_task(task.uid, inputs=(*task.inputs[:number], *task.inputs[number + 1 :]))


@edit
def turn_inputs(model: Model, drawn: Drawn) -> Model:
    task = drawn.one([task for task in model.tasks if len(task.inputs) > 1])
    return model.with_task(task.uid, inputs=task.inputs[::-1])


@edit
def reorder_tasks(model: Model, drawn: Drawn) -> Model:
    task = drawn.one(model.tasks)
    rest = [other for other in model.tasks if other is not task]
    place = drawn.value % len(model.tasks)
    return replace(model, tasks=(*rest[:place], task, *rest[place:]))


# --- stages


@edit
def add_stage(model: Model, drawn: Drawn) -> Model:
    return replace(model, stages=(*model.stages, Stage(unused_stage(model, drawn))))


@edit
def remove_stage(model: Model, drawn: Drawn) -> Model:
    gone = drawn.one(model.stages).name
    names = {stage.name for stage in model.stages if gone in (stage.name, stage.parent)}
    left = without(model, {task.uid for task in model.tasks if task.stage in names})
    return replace(left, stages=tuple(stage for stage in left.stages if stage.name not in names))


@edit
def rename_stage(model: Model, drawn: Drawn) -> Model:
    old, new = drawn.one(model.stages).name, unused_stage(model, drawn)

    def named(name: str | None) -> str | None:
        return new if name == old else name

    stages = tuple(Stage(named(stage.name) or "", named(stage.parent)) for stage in model.stages)
    return Model(stages, tuple(replace(task, stage=named(task.stage) or "") for task in model.tasks))


@edit
def swap_stage_names(model: Model, drawn: Drawn) -> Model:
    one, other = drawn.one(model.stages).name, drawn.become(model.stages).name
    names = {one: other, other: one}
    stages = tuple(Stage(names.get(stage.name, stage.name), names.get(stage.parent or "", stage.parent)) for stage in model.stages)
    return Model(stages, tuple(replace(task, stage=names.get(task.stage, task.stage)) for task in model.tasks))


@edit
def move_task(model: Model, drawn: Drawn) -> Model:
    return model.with_task(drawn.one(model.tasks).uid, stage=drawn.become(model.stages).name)


@edit
def reorder_stages(model: Model, drawn: Drawn) -> Model:
    stages = list(model.stages)
    stages.insert(drawn.value % len(stages) if stages else 0, stages.pop(drawn.at % len(stages)) if stages else Stage(STAGE_NAMES[0]))
    return replace(model, stages=tuple(stages))


@edit
def nest_stage(model: Model, drawn: Drawn) -> Model:
    inner, outer = drawn.one(model.stages), drawn.become(model.stages)
    if inner is outer:
        return replace(model, stages=tuple(replace(stage, parent=None) for stage in model.stages))
    return replace(model, stages=tuple(replace(stage, parent=outer.name) if stage is inner else stage for stage in model.stages))
