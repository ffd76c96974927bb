"""The two context variables of this package: the flow being declared, and the task being executed.

Both are read only at the public edge (`Stage(...)`, a task's call, `ConfigContext.get()`, `Table.materialize()`). All else is passed along.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, final


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
