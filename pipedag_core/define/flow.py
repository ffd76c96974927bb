"""Flow: a graph of tasks in stages, declared by calling the tasks inside `with Flow(...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token
from enum import Enum
from html import escape
from types import TracebackType
from typing import Any, Self, final

from pipedag_core import naming
from pipedag_core.define import doors
from pipedag_core.define.context import TaskContext, declaring, executing
from pipedag_core.define.group import Container, GroupNode
from pipedag_core.define.hints import nearest
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.lazydict import LazyDict, unwritten_error
from pipedag_core.define.order import Loop, stable_order
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.errors import DuplicateName, FlowError


class _Phase(Enum):
    """The life of a flow."""

    NEW = "new"
    OPEN = "open"
    DECLARED = "declared"
    BROKEN = "broken"


@final
class Flow(Container):
    """A graph of tasks in stages. Used as `with Flow("name") as flow:`, once; the calls inside are recorded, and nothing runs.

    Args:
        name: What configuration, logs and catalog call it.

    Attributes:
        name: As given.
        stages, tasks: All of them, in wiring order.
        nodes: The stages and groups directly in it, in wiring order.
        source: Import reference (`package.module:flow_or_factory`) under which other processes find this flow, or None.

    Raises:
        FlowError: The name is not legal.
    """

    def __init__(self, name: str = "default") -> None:
        super().__init__()
        naming.normalize(name, "flow name")
        self.name = name
        self.stages: list[Stage] = []
        self.tasks: list[Task] = []
        self.source: str | None = None
        self._phase = _Phase.NEW
        self._token: Token[Any] | None = None

    # --- declaring

    def __enter__(self) -> Self:
        outer: Declaration | None = declaring.get()
        if outer is not None and outer.executing is executing.get():
            raise FlowError(f"Flow {self.name!r} is declared inside flow {outer.flow.name!r}. Declare one after the other.", flow=self.name)
        if self._phase is not _Phase.NEW:
            raise FlowError(f"Flow {self.name!r} is declared a second time. Make a new Flow, for example in a function.", flow=self.name)
        self._phase = _Phase.OPEN
        self._token = declaring.set(Declaration(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        declaration: Declaration = declaring.get()
        self._phase = _Phase.BROKEN
        try:
            if error is None:
                declaration.complete()
                self._phase = _Phase.DECLARED
        finally:
            if self._token is not None:
                declaring.reset(self._token)
                self._token = None

    def require_declared(self) -> None:
        """Make sure that the flow is declared completely.

        Raises:
            FlowError: Its `with` block was never entered, has not ended, or ended with an error.
        """
        reasons = {
            _Phase.NEW: "has no tasks yet. Declare them inside `with flow:`",
            _Phase.OPEN: "is still being declared. Do this after its `with` block",
            _Phase.BROKEN: "cannot be used: its declaration ended with an error. Mend that, and declare it again",
        }
        if self._phase in reasons:
            raise FlowError(f"Flow {self.name!r} {reasons[self._phase]}.", flow=self.name)

    # --- looking

    def get_stage(self, name: str) -> Stage:
        """Return the stage with this name, however deeply it is nested.

        Raises:
            FlowError: There is none; the message shows the nearest names.
        """
        wanted = naming.normalize(name, "stage name")
        for stage in self.stages:
            if stage.name == wanted:
                return stage
        hint = nearest(wanted, (stage.name for stage in self.stages))
        raise FlowError(f"There is no stage {name!r} in flow {self.name!r}. {hint}", flow=self.name, stage=name)

    def __getitem__(self, name: str) -> Stage:
        """Return the stage with this name; see `get_stage`."""
        return self.get_stage(name)

    # --- verbs of higher floors

    def run(
        self,
        *components: Any,
        config: Any = None,
        instance: str | None = None,
        per_user: bool = False,
        orchestration_engine: Any = None,
        fail_fast: bool | None = None,
        cache_validation_mode: Any = None,
        disable_cache_function: bool | None = None,
        ignore_task_version: bool | None = None,
        ignore_position_hashes: bool = False,
        inputs: Mapping[Any, Any] | None = None,
        take_over: bool = False,
        observers: Sequence[Any] = (),
        **engine_options: Any,
    ) -> Any:
        """Run this flow, or stages or tasks of it.

        Args:
            components: Stages (they run and are committed), or tasks (they always run, into a scratch generation, and nothing is committed); as
                objects or by name. None: the whole flow.
            config: A `PipedagConfig`, or one of its instances (`ConfigContext`); by default the `pipedag.yaml` that is found, else the default
                store in `.pipedag/`.
            instance: Name of the instance; by default `default`.
            per_user: Use an instance of your own; see `PipedagConfig.get`.
            orchestration_engine: What carries out the steps: an engine, or its name as in the configuration ("sequential", "threads"). By default
                what the configuration says, else threads.
            fail_fast: Start nothing more after the first failure, and raise it. By default as configured (no).
            cache_validation_mode: How strictly stored results are trusted: a `CacheValidationMode`, or its name.
            disable_cache_function: Do not call cache functions; their tasks count as never seen, unless the mode ignores fresh input.
            ignore_task_version: Run all tasks with a version string.
            ignore_position_hashes: Take results of tasks outside of the selection even if they were wired differently.
            inputs: Replaces what tasks give, for this run: output of a task, or item of one -> frame, `Table`, plain value, or nest of them. These tasks do
                not run. No stage that they are in, or that takes anything from such a stage, is committed: it runs into a scratch generation,
                which the result can be read from.
            take_over: Do not wait for another run that writes one of the stages: take the stage away from it. What it does with the stage from then
                on is refused, so that it fails.
            observers: Are told what happens; see `RunObserver`.
            engine_options: Options of the engine, such as `max_workers`, as under `orchestration: args:` of the configuration.

        Returns:
            The `Result`. With `fail_fast=False` a failure is in it and is not raised.

        Raises:
            ConfigError, FlowError: What was asked for is not there.
            Exception: With `fail_fast`, whatever the first failing task raised.
        """
        self.require_declared()
        return doors.run_flow(
            self,
            *components,
            config=config,
            instance=instance,
            per_user=per_user,
            orchestration_engine=orchestration_engine,
            fail_fast=fail_fast,
            cache_validation_mode=cache_validation_mode,
            disable_cache_function=disable_cache_function,
            ignore_task_version=ignore_task_version,
            ignore_position_hashes=ignore_position_hashes,
            inputs=inputs,
            take_over=take_over,
            observers=observers,
            **engine_options,
        )

    def plan(self, instance: str | None = None, source: str | None = None) -> Any:
        """Return the plan of this flow; see `pipedag_core.plan.compile.compile_flow`."""
        self.require_declared()
        return doors.plan_flow(self, instance=instance, source=source)

    def extract(self, specification: InOutSpecification, config: Any = None, instance: str | None = None) -> Any:
        """Return the production flow: the part of this flow that a specification carves out, with what training has left behind frozen into it.

        Args:
            specification: What comes in, what goes out, what is frozen and what is left out.
            config, instance: Where it was trained, as for `run`.

        Returns:
            A `ProductionFlow`.

        Raises:
            ExtractionRefused: It cannot be carved out or frozen; everything that is in the way is listed.
        """
        self.require_declared()
        return doors.extract_flow(self, specification, config=config, instance=instance)

    def get_subflow(self, *components: Any) -> Any:
        """Return a part of this flow that can be planned and run; see `pipedag_core.plan.selection.subflow`."""
        self.require_declared()
        return doors.subflow(self, *components)

    def graph(self, format: str = "mermaid") -> str:
        """Return the graph as text in this format ("mermaid" or "dot"); see `pipedag_core.plan.draw.draw_flow`."""
        self.require_declared()
        return doors.draw_flow(self, format=format)

    def visualize(self, format: str = "mermaid") -> str:
        """Return the graph as text, as `graph` does."""
        return self.graph(format)

    def visualize_url(self) -> str:
        """Return the address of a picture of the graph; opening it sends the names of stages and tasks to the picture service."""
        self.require_declared()
        return doors.draw_flow(self, format="url")

    def visualize_pydot(self) -> Any:
        """Return the graph as an object of the library pydot, which has to be installed."""
        self.require_declared()
        return doors.draw_flow(self, format="pydot")

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction] -- notebooks call it
        return doors.draw_flow(self, format="outline") if self._phase is _Phase.DECLARED else escape(repr(self))

    def __repr__(self) -> str:
        return f"<flow {self.name}: {len(self.stages)} stages, {len(self.tasks)} tasks>"


@final
class Declaration:
    """What is known while a flow is being declared: the containers that are open, and what has to be looked at in the end.

    Attributes:
        flow: The flow.
        stage: The innermost stage that is open, or None.
        executing: The running task in which the flow is declared, or None.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.stage: Stage | None = None
        self.executing: TaskContext | None = executing.get()
        self._open: list[Container] = [flow]
        self._ids: dict[str, Task] = {}
        self._repeats: dict[tuple[str, str], int] = {}
        self._lazy: dict[int, LazyDict] = {}

    def enter(self, node: Stage | GroupNode) -> None:
        """Open a stage or group inside what is open.

        Raises:
            DuplicateName: The flow has a stage of this name.
        """
        if isinstance(node, Stage):
            for other in self.flow.stages:
                if other.name == node.name:
                    raise DuplicateName(
                        f"Flow {self.flow.name!r} has two stages with one name: {other.display_name!r} and {node.display_name!r} (names are "
                        "case-insensitive). Rename one of them, or wire all of its tasks inside one `with Stage(...)`.",
                        flow=self.flow.name,
                        stage=node.name,
                    )
            node.flow = self.flow
            node.parent = self.stage
            self.flow.stages.append(node)
            self.stage = node
        self._open[-1].nodes.append(node)
        self._open.append(node)

    def leave(self, node: Stage | GroupNode) -> None:
        """Close the innermost stage or group."""
        self._open.pop()
        if isinstance(node, Stage):
            self.stage = node.parent

    def add(self, task: Task) -> tuple[str, int]:
        """Add a task to the innermost container, and return its id within the stage and its number in the flow.

        Raises:
            DuplicateName: Its full id, `stage.task`, is that of a task of another stage.
        """
        stage = task.stage
        base, name = task.id, task.id
        repeat = self._repeats.get((stage.name, base), 1)
        if repeat > 1:
            name = f"{base}_{repeat}"
        while (other := self._ids.get(f"{stage.name}.{name}")) is not None:
            if other.stage is not stage:
                raise DuplicateName(
                    f"Task {task.name!r} of stage {stage.name!r} and task {other.name!r} of stage {other.stage.name!r} have one full id, "
                    f"'{stage.name}.{name}'. Rename one of them, without a dot.",
                    flow=self.flow.name,
                    stage=stage.name,
                    task=name,
                )
            repeat += 1
            name = f"{base}_{repeat}"
        # The next call begins its search behind this one, so that many calls of one function take no longer each.
        self._repeats[stage.name, base] = repeat
        self._ids[f"{stage.name}.{name}"] = task
        stage.tasks.append(task)
        self.flow.tasks.append(task)
        self._open[-1].nodes.append(task)
        return name, len(self.flow.tasks) - 1

    def watch(self, lazy: LazyDict) -> None:
        """Remember a LazyDict that was read before it was written."""
        self._lazy[id(lazy)] = lazy

    def complete(self) -> None:
        """Put what was written into LazyDicts in the place of what was read from them.

        Raises:
            UnknownItem: An entry was read and never written.
            FlowError: Tasks or entries need each other.
        """
        for lazy in self._lazy.values():
            for asked in lazy.unwritten().values():
                raise unwritten_error(asked)
        if not any(task.waiting for task in self.flow.tasks):
            return
        for task in self.flow.tasks:
            task.complete()
        try:
            stable_order(self.flow.tasks, {task: task.upstream for task in self.flow.tasks})
        except Loop as loop:
            path = " -> ".join(task.full_id for task in loop.path if isinstance(task, Task))
            raise FlowError(
                f"Tasks of flow {self.flow.name!r} need each other through a LazyDict: {path}. Break the circle.", flow=self.flow.name
            ) from None
