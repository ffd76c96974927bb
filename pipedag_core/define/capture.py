"""What a task call takes as arguments: captured as it is at that moment, and checked with the path of whatever cannot be passed on."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, final

from pipedag_core.define.lazydict import LazyDict, Placeholder
from pipedag_core.define.options import Declared
from pipedag_core.define.refs import Merged, Reference, TaskGetItem, settled
from pipedag_core.define.stage import Stage
from pipedag_core.define.values import ExternalTableReference, RawSql, View
from pipedag_core.define.walk import is_plain, map_leaves
from pipedag_core.errors import FlowError, UnsupportedValue

if TYPE_CHECKING:
    from pipedag_core.define.flow import Flow
    from pipedag_core.define.task import Task

#: By far the most common leaves, told by a look-up.
_COMMON: Final = frozenset({NoneType, bool, int, float, str, bytes, date, datetime})


@final
class Capture:
    """Captures the arguments of one task.

    Args:
        flow: The flow being declared.
        stage: Name of the task's stage.
        task: The task's name, for messages.

    Attributes:
        tasks: The tasks that the arguments captured so far depend on.
        stages: The stages among the arguments.
        waiting: Something among them is known only at the end of the wiring.
    """

    __slots__ = ("flow", "stage", "stages", "task", "tasks", "waiting")

    def __init__(self, flow: Flow, stage: str, task: str) -> None:
        self.flow = flow
        self.stage = stage
        self.task = task
        self.tasks: dict[Task, None] = {}
        self.stages: dict[Stage, None] = {}
        self.waiting = False

    def take(self, value: Any, label: str) -> Any:
        """Return an argument in new containers, with all references settled.

        Raises:
            UnsupportedValue: Something inside cannot be passed on; the message holds its path.
            FlowError: A reference or stage belongs to another flow.
        """
        if type(value) in _COMMON:
            return value
        return map_leaves(value, self._take_leaf, label, enter_bags=False)

    def look(self, value: Any, label: str) -> Any:
        """Return an argument that is raw already, checked like one that is taken; a View's sources are checked too."""
        return map_leaves(value, self._look_leaf, label, enter_bags=False)

    def _take_leaf(self, leaf: Any, path: str) -> Any:
        if isinstance(leaf, Reference):
            return self.look(settled(leaf), path)
        if isinstance(leaf, View):
            leaf = replace(leaf, src=map_leaves(leaf.src, self._take_leaf, f"{path}.src", enter_bags=False))
        return self._look_leaf(leaf, path)

    def _look_leaf(self, leaf: Any, path: str) -> Any:
        if type(leaf) in _COMMON:
            return leaf
        if isinstance(leaf, Reference):
            self._reference(leaf, path)
        elif isinstance(leaf, View):
            map_leaves(leaf.src, self._source, f"{path}.src", enter_bags=False)
        elif isinstance(leaf, LazyDict):
            self.waiting = True
        elif isinstance(leaf, Stage):
            if leaf.flow is not self.flow:
                raise FlowError(f"{self._say(path)} the stage {leaf.name!r}, which is not part of this flow.", **self._facts(path))
            self.stages[leaf] = None
        elif not is_plain(leaf) and not isinstance(leaf, ExternalTableReference) and getattr(leaf, "__pipedag_config__", False) is not True:
            raise self._unsupported(leaf, path)
        return leaf

    def _source(self, leaf: Any, path: str) -> Any:
        if not isinstance(leaf, (Reference, View, ExternalTableReference, LazyDict)):
            raise UnsupportedValue(
                f"{self._say(path)} a {type(leaf).__name__} as the source of a View. A View stands for tables of other tasks: give it references.",
                **self._facts(path),
            )
        return self._look_leaf(leaf, path)

    def _reference(self, reference: Reference, path: str) -> None:
        if isinstance(reference, Placeholder):
            self.waiting = True
        elif isinstance(reference, TaskGetItem):
            self._reference(reference.parent, path)
        elif isinstance(reference, Merged):
            for part in (reference.base, *reference.others):
                self.look(part, path)
        else:
            task = reference.tasks[0]
            if task.flow is not self.flow:
                raise FlowError(
                    f"{self._say(path)} a reference to {task!r} of another flow ({task.flow.name!r}). "
                    "Wire both tasks in one flow, or read the table as an ExternalTableReference.",
                    **self._facts(path),
                )
            self.tasks[task] = None

    # --- messages

    def _facts(self, path: str) -> dict[str, str]:
        return {"flow": self.flow.name, "stage": self.stage, "task": self.task, "path": path}

    def _say(self, path: str) -> str:
        return f"Task {self.task!r} (stage {self.stage!r}, flow {self.flow.name!r}) got, as argument {path!r},"

    def _unsupported(self, leaf: Any, path: str) -> UnsupportedValue:
        if isinstance(leaf, Declared):
            return UnsupportedValue(
                f"{self._say(path)} the task {leaf.options.name!r} itself instead of its output. Call it: {leaf.options.name}(...).",
                **self._facts(path),
            )
        if isinstance(leaf, RawSql):
            hint = "Return the RawSql from a task, and pass that task's output."
        elif callable(leaf):
            hint = "Import it in the task's module and use it there, or pass the name of what to do."
        else:
            hint = "Make it in a task of its own and pass that task's output, or pass plain values (text, numbers, dates, lists, dicts, dataclasses)."
        return UnsupportedValue(
            f"{self._say(path)} an object of type {_type_name(leaf)}, which cannot be passed on. {hint}", **self._facts(path)
        )


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
