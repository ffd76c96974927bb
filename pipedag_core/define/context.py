"""The context variables of this package: the flow being declared, the task being executed, and whether one is called by hand.

They are read only at the public edge (`Stage(...)`, a task's call, `ConfigContext.get()`, `Table.materialize()`). All else is passed along.

A thread that a task starts by itself does not inherit them. So that this is not taken for a call by hand, it is known which tasks are at work in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Final, final


@final
@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a running task can ask for.

    Attributes:
        flow, stage, task, run_id: Where it is.
        config: The instance's configuration.
        materialize: Writes a table at once and returns a reference to it.
        earlier: Full id of the task that returned a late value -> the texts that it had for those who took it, oldest first; see `define.late`.
    """

    flow: str
    stage: str
    task: str
    run_id: str
    config: Any
    materialize: Callable[..., Any]
    earlier: Callable[[str], tuple[str, ...]] = field(default=lambda _: (), repr=False, compare=False)


#: The `Declaration` (see `define.flow`) of the innermost `with Flow(...)`.
declaring: ContextVar[Any] = ContextVar("pipedag_declaring", default=None)

#: The task whose function runs in this thread.
executing: ContextVar[TaskContext | None] = ContextVar("pipedag_executing", default=None)

#: Whether a task's function was called by hand in this thread, outside of a run.
by_hand: ContextVar[bool] = ContextVar("pipedag_by_hand", default=False)

#: The tasks of this process whose functions run at this moment, by the ids of their contexts.
_at_work: Final[dict[int, TaskContext]] = {}


def begin(task: TaskContext) -> Token[TaskContext | None]:
    """Note that a task's function begins in this thread, until `end` is called with what is returned."""
    _at_work[id(task)] = task
    return executing.set(task)


def end(task: TaskContext, token: Token[TaskContext | None]) -> None:
    """Note that a task's function has come to its end."""
    executing.reset(token)
    _at_work.pop(id(task), None)


def at_work() -> tuple[TaskContext, ...]:
    """Return the tasks of this process whose functions run at this moment, in whatever thread."""
    return tuple(_at_work.values())


#: What to do where a thread does not know its task.
HAND_ON: Final = (
    "Threads that a task starts do not know of it by themselves. Hand its context on: Thread(target=contextvars.copy_context().run, args=(work,)), or "
    "pool.submit(contextvars.copy_context().run, work), with a copy for each."
)
