"""Stage: what a reader sees as one schema."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, final

from pipedag_core import naming
from pipedag_core.define.context import declaring
from pipedag_core.define.group import Container
from pipedag_core.define.hints import nearest
from pipedag_core.errors import FlowError

if TYPE_CHECKING:
    from pipedag_core.define.flow import Flow
    from pipedag_core.define.task import Task

#: Schemas that begin so are ours: a query's inputs stand in one of them until they are bound.
_OURS: Final = "pipedag__"


@final
class Stage(Container):
    """A part of a flow whose tables become visible together. Used as `with Stage("features"):`, once, inside a flow; may be nested.

    Args:
        name: Case-insensitive and unique in the flow.
        materialization_details: Label of a set of store-specific details from the configuration, for all tables of the stage.
        group_node_tag: Label of a style from the configuration.

    Attributes:
        name: The normalised name. `display_name` is as it was written.
        parent: The stage around it, or None.
        tasks: The tasks wired directly in it, in wiring order.
        flow: The flow that it belongs to; None before it is entered.

    Raises:
        FlowError: The name is not legal.
    """

    def __init__(self, name: str, materialization_details: str | None = None, group_node_tag: str | None = None) -> None:
        super().__init__()
        self.name = naming.normalize(name, "stage name")
        if self.name.startswith(_OURS):
            raise FlowError(f"The stage name {name!r} begins with {_OURS!r}, as schemas of pipedag do. Choose another one.", stage=name)
        self.display_name = name
        self.materialization_details = materialization_details
        self.group_node_tag = group_node_tag
        self.parent: Stage | None = None
        self.flow: Flow | None = None
        self.tasks: list[Task] = []

    @property
    def unit(self) -> Stage:
        """The outermost stage around it, with which it is committed."""
        return self if self.parent is None else self.parent.unit

    @property
    def transaction_name(self) -> str:
        """The name under which a running task writes to this stage."""
        return self.name

    @property
    def current_name(self) -> str:
        """The name under which the stage's data is read."""
        return self.name

    def __enter__(self) -> Self:
        declaration = declaring.get()
        if declaration is None:
            raise FlowError(f"The stage {self.display_name!r} is used outside a flow. Put it inside `with Flow(...):`.", stage=self.name)
        if self.flow is not None:
            raise FlowError(
                f"The stage {self.display_name!r} is used twice (flow {self.flow.name!r}). Wire all of its tasks inside one `with` block.",
                flow=self.flow.name,
                stage=self.name,
            )
        declaration.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        declaring.get().leave(self)

    def get_task(self, name: str, index: int | None = None) -> Task:
        """Return a task of this stage.

        Args:
            name: Name of its function, or its id within the stage (`join_tables_2`).
            index: Which call of the function, from 0 in wiring order (negative ones count from the last); needed if there are several.

        Raises:
            FlowError: There is no such task, or there are several and no index is given.
        """
        wanted = naming.normalize(name, "task name")
        found = [task for task in self.tasks if naming.normalize(task.name) == wanted]
        if not found or (index is None and len(found) > 1):
            found = [task for task in self.tasks if task.id == wanted and task.id != naming.normalize(task.name)] or found
        if not found:
            hint = nearest(wanted, (task.id for task in self.tasks))
            raise FlowError(f"There is no task {name!r} in stage {self.name!r}. {hint}", stage=self.name, task=name)
        if index is None and len(found) > 1:
            raise FlowError(
                f"The task {name!r} is called {len(found)} times in stage {self.name!r}. Say which: get_task({name!r}, index=0).",
                stage=self.name,
                task=name,
            )
        if not -len(found) <= (index or 0) < len(found):
            raise FlowError(
                f"The task {name!r} is called {len(found)} times in stage {self.name!r}; there is no call {index}.",
                stage=self.name,
                task=name,
            )
        return found[index or 0]

    def __getitem__(self, name: str) -> Task:
        """Return the task with this name or id; see `get_task`."""
        return self.get_task(name)

    def __repr__(self) -> str:
        return f"<stage {self.name}>"
