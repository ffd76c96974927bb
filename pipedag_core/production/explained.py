"""What `prod.run(..., explain=True)` gives, and how a task that changes its arguments in place is found."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, final

from pipedag_core.define.walk import is_plain, segment
from pipedag_core.production.compiled import Step
from pipedag_core.production.frames import Frames
from pipedag_core.run.inputs import leaves


@final
@dataclass(frozen=True, slots=True)
class Timed:
    """One task of an explained run: its full id, its seconds, and what it gave."""

    task: str
    seconds: float
    value: Any = field(repr=False)


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """What a run gave, and how.

    Attributes:
        output: What `run` returns.
        tasks: In the order in which they ran. Lazy frames that one task alone reads are computed there, and their time counts there.
        changes: Which task changed which argument in place; found with `debug=True`.
    """

    output: Any
    tasks: tuple[Timed, ...]
    changes: tuple[str, ...] = ()

    def __getitem__(self, task: str) -> Any:
        """Return what a task gave, by `stage.task` or `task`."""
        for item in self.tasks:
            if task in (item.task, item.task.rpartition(".")[2]):
                return item.value
        raise KeyError(f"{task!r} is none of {', '.join(item.task for item in self.tasks)}")

    def __str__(self) -> str:
        width = max((len(item.task) for item in self.tasks), default=0)
        lines = [f"{item.task:<{width}}  {item.seconds * 1e3:10.3f} ms" for item in self.tasks]
        return "\n".join([*lines, *(f"changed in place: {change}" for change in self.changes)])


@final
class Watch:
    """Calls tasks and looks whether their arguments are afterwards what they were before.

    Args:
        frames: Converts.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.changes: list[str] = []

    def call(self, step: Step, values: list[Any], unset: object) -> Any:
        """Run one task and return its output."""
        arguments = step.arguments(values)
        seen = self._look(arguments)
        others = {slot: self._look({"": value}) for slot, value in enumerate(values) if value is not unset}
        output = step.call(arguments)
        told: set[str] = set()
        for path, (obj, before) in seen.items():
            # Containers are the task's own; what is in them is looked at as it was handed over.
            if self._state(obj) != before:
                told.add(path)
                self.changes.append(f"{step.node.full_id} changes its argument {path!r} ({type(obj).__name__})")
        for slot, looked in others.items():
            for path, (obj, before) in looked.items():
                if self._state(obj) != before and not told:
                    self.changes.append(f"{step.node.full_id} changes a value that others see ({type(obj).__name__} of slot {slot}{path})")
        return output

    def _look(self, nest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        found = {path: leaf for label, value in nest.items() for path, leaf in leaves(value, segment(label)) if not is_plain(leaf)}
        return {path: (leaf, self._state(leaf)) for path, leaf in found.items()}

    def _state(self, obj: Any) -> Any:
        if self._frames.is_frame(obj):
            if self._frames.is_lazy(type(obj)):
                return None
            return self._frame_state(obj)
        try:
            return pickle.dumps(obj, protocol=5)
        except Exception:  # noqa: BLE001 -- whatever the object's own methods raise; then it cannot be looked at
            return None

    def _frame_state(self, obj: Any) -> Any:
        try:
            table = self._frames.to_arrow(obj)
        except Exception as error:  # noqa: BLE001 -- a change may be such that it is no table any more
            return type(error).__name__
        pa = import_module("pyarrow")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        return sink.getvalue().to_pybytes()


__all__ = ["Explanation", "Timed", "Watch"]
