"""What every table of a flow holds, worked out from the model alone, in plain Python: no cache, no history, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.flows.property.model import Model, Task

Row = tuple[int, str]


@dataclass(frozen=True)
class Frame:
    """A table: columns `x` (int64) and one of text, rows in order, whether `x` is its primary key, and what else it declares (a number of `OPTIONS`)."""

    column: str
    rows: tuple[Row, ...]
    key: bool = False
    options: int = 0

    @property
    def unordered(self) -> Frame:
        return Frame(self.column, tuple(sorted(self.rows)), self.key, self.options)


@dataclass(frozen=True)
class BlobContent:
    """What a blob holds."""

    number: int


@dataclass(frozen=True)
class Lost:
    """Stands for a table or a blob whose file was taken away by hand."""


Content = Frame | BlobContent | Lost
Output = tuple[Frame, ...] | BlobContent | int

#: Name of the text column of second items, and the number that stands there for the task's constant.
SECOND_COLUMN = "n"
SECOND_CONSTANT = 500


def compute(task: Task, tables: Sequence[Frame], values: Sequence[int], world: int) -> Output:
    """Return what a task gives for its inputs.

    Args:
        task: The task; its inputs are not looked at.
        tables, values: Its inputs.
        world: What it finds outside.
    """
    if task.kind.engine == "pass":
        return (tables[0],)
    rows = tables[0].rows if tables else tuple((task.constant + number, task.letter) for number in range(task.rows))
    extra = task.amount + world + sum(values) + sum(x for table in tables[1:] for x, _ in table.rows)

    def frame(constant: int, column: str, key: bool, options: int) -> Frame:
        made = [((x * 3 + constant + extra + (10 if text == task.letter else 0)) % 1000, task.letter) for x, text in rows]
        return Frame(column, tuple(made), key, options)

    declares = task.kind.engine != "script"
    first = frame(task.constant, task.column, task.key and declares, task.options if declares else 0)
    if task.kind.item_count == 2:
        return (first, frame(SECOND_CONSTANT, SECOND_COLUMN, False, 0))
    total = sum(x for x, _ in first.rows)
    match task.kind.shape:
        case "value":
            return total
        case "blob":
            return BlobContent(total)
        case _:
            return (first,)


def number_of(output: BlobContent | int) -> int:
    """Return a value or a blob as the number that its consumers add."""
    return output.number if isinstance(output, BlobContent) else output


def seen_world(task: Task) -> int:
    """Return what a task finds outside: only tasks with a cache function look there."""
    return task.world if task.cached else 0


def evaluate(model: Model) -> Mapping[str, Mapping[str, Content]]:
    """Return stage -> readable name -> content, as a run from scratch would show it."""
    outputs: dict[int, Output] = {}
    shown: dict[str, dict[str, Content]] = {stage.name.casefold(): {} for stage in model.stages}
    for task in model.tasks:
        tables: list[Frame] = []
        values: list[int] = []
        for source in task.inputs:
            output = outputs[source.task]
            if isinstance(output, tuple):
                tables += [output[item] for item in model.taken(source)]
            else:
                values.append(number_of(output))
        output = outputs[task.uid] = compute(task, tables, values, seen_world(task))
        parts: Sequence[Content] = output if isinstance(output, tuple) else [output] if isinstance(output, BlobContent) else []
        for name, part in zip(model.names(task), parts, strict=True):
            shown[task.stage.casefold()][name] = part.unordered if isinstance(part, Frame) else part
    return shown
