"""From a plan to what a DAG is made of: groups, operators and edges, in an order that never changes by chance. Knows no Airflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, final

from pipedag_airflow.names import Ids, asset_uri, external_uri
from pipedag_airflow.options import Options
from pipedag_core.plan.model import Plan, PlanTask, Step, StepKind


class Granularity(StrEnum):
    """How much of a flow one operator carries out."""

    TASK = "task"
    STAGE = "stage"
    FLOW = "flow"


class Role(StrEnum):
    """What an operator is to its neighbours."""

    SETUP = "setup"
    WORK = "work"
    TEARDOWN = "teardown"


@final
@dataclass(frozen=True, slots=True)
class Group:
    """A TaskGroup: a stage.

    Attributes:
        path: Its id below those of the groups around it, outermost first; it is made of the last one.
        stage: The stage's name.
    """

    path: tuple[str, ...]
    stage: str

    @property
    def id(self) -> str:
        """Its own id."""
        return self.path[-1]


@final
@dataclass(frozen=True, slots=True)
class Node:
    """An operator.

    Attributes:
        task_id: Its id within its group.
        group: Path of its group; empty for none.
        step: What it carries out: a step of the plan, or a part of it (`stage:features`, `close:features`, `flow`).
        role: What it is to its neighbours.
        display: What people read; "" for the id.
        doc: What its task does, from the docstring.
        arguments: What else it is given.
        outlets: URIs of the Assets that it changes.
        inlets: URIs of the Assets that it reads and no flow of ours makes.
        setups: Ids (`full_id`) of the setups that it tears down.
    """

    task_id: str
    group: tuple[str, ...]
    step: str
    role: Role = Role.WORK
    display: str = ""
    doc: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    outlets: tuple[str, ...] = ()
    inlets: tuple[str, ...] = ()
    setups: tuple[str, ...] = ()

    @property
    def full_id(self) -> str:
        """Its id with those of its groups: the operator's `task_id`."""
        return ".".join((*self.group, self.task_id))


@final
@dataclass(frozen=True, slots=True)
class Edge:
    """Operators that come after others: `before >> after`, each by its full id. One of the two sides has one member, or both have several."""

    before: tuple[str, ...]
    after: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """What a DAG, or a group in one, is made of.

    Attributes:
        plan: The plan.
        granularity: How much one operator does.
        groups: All groups, each after the one around it, in wiring order.
        nodes: All operators, in the plan's order.
        edges: What comes after what.
    """

    plan: Plan
    granularity: Granularity
    groups: tuple[Group, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def node(self, full_id: str) -> Node:
        """Return an operator by its full id."""
        return next(node for node in self.nodes if node.full_id == full_id)


def lay_out(plan: Plan, granularity: Granularity = Granularity.TASK, options: Options | None = None) -> Layout:
    """Return what a DAG for a plan is made of.

    With one operator per task, a stage is a group of: its opening (a setup), its tasks, its commit, and its closing (a teardown, which gives the stage
    back if it was not committed; it waits for all tasks, since one may be at work when another has failed). After all stages the run is finished,
    whatever happened (a teardown).

    Args:
        plan: A plan of the whole flow.
        granularity: How much one operator does.
        options: What operators are given beyond their step.
    """
    chosen = options or Options()
    match granularity:
        case Granularity.TASK:
            return _ByTask(plan, chosen).layout()
        case Granularity.STAGE:
            return _by_stage(plan, chosen)
        case Granularity.FLOW:
            outlets = tuple(uri for step in plan.steps if step.kind is StepKind.COMMIT for uri in outlets_of(plan, step))
            node = Node(
                Ids().give(plan.flow),
                (),
                "flow",
                display=f"flow {plan.flow}",
                arguments=chosen.of(None, None, None),
                outlets=outlets,
                inlets=inlets_of(plan, plan.tasks, chosen),
            )
            return Layout(plan, granularity, (), (node,), ())


def outlets_of(plan: Plan, commit: Step) -> tuple[str, ...]:
    """Return the URIs of all tables that a commit makes visible: by their names where the plan knows them, else the task stands for its tables."""
    assert commit.stage is not None
    unit = set(plan.unit(commit.stage))
    return tuple(
        dict.fromkeys(
            asset_uri(plan.flow, plan.instance, task.stage, name)
            for task in plan.tasks
            if task.stage in unit
            for name in (task.outputs if task.outputs is not None else (task.task,))
        )
    )


def inlets_of(plan: Plan, tasks: Sequence[PlanTask], options: Options) -> tuple[str, ...]:
    """Return the URIs of all tables of others that tasks are known to read."""
    tables = dict.fromkeys(table for task in tasks for table in task.external)
    return tuple(dict.fromkeys(options.external.get(table) or external_uri(plan.instance, table) for table in tables))


def _after_others(opening: Step) -> dict[str, Any]:
    # Stages that were not chosen for a run are skipped; those after them run all the same.
    return {"trigger_rule": "none_failed"} if opening.upstream else {}


def _by_stage(plan: Plan, options: Options) -> Layout:
    ids = Ids()
    nodes: list[Node] = []
    edges: list[Edge] = []
    of_commit: dict[str, str] = {}
    for step in plan.steps:
        if step.kind is StepKind.OPEN:
            assert step.stage is not None
            commit = plan.step(f"commit:{step.stage}")
            node = Node(
                ids.give(step.stage),
                (),
                f"stage:{step.stage}",
                display=f"stage {step.stage}",
                arguments={**_after_others(step), **options.of(None, None, step.stage)},
                outlets=outlets_of(plan, commit),
                inlets=inlets_of(plan, [task for task in plan.tasks if task.stage in plan.unit(step.stage)], options),
            )
            nodes.append(node)
            before = tuple(of_commit[other] for other in step.upstream)
            if before:
                edges.append(Edge(before, (node.full_id,)))
            of_commit[commit.id] = node.full_id
    finish = Node(
        ids.give("finish_run"), (), "finish", Role.TEARDOWN, "finish the run", arguments=options.of(plan.step("finish"), None, None)
    )
    edges.append(Edge(tuple(node.full_id for node in nodes), (finish.full_id,)))
    return Layout(plan, Granularity.STAGE, (), (*nodes, finish), tuple(edges))


@final
class _ByTask:
    """Lays out a plan with one operator per step."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self._plan = plan
        self._options = options
        self._tasks = {task.id: task for task in plan.tasks}
        self._groups = _groups(plan)
        self._path = {group.stage: group.path for group in self._groups}
        # Ids of groups and tasks share the group's space of names; groups come first, so that a stage is called what it is called.
        self._ids: dict[tuple[str, ...], Ids] = {}
        for group in self._groups:
            self._space(group.path[:-1]).give(group.id)
        self._of_step: dict[str, str] = {}
        self._nodes: list[Node] = []
        self._edges: list[Edge] = []

    def layout(self) -> Layout:
        """Return the layout."""
        # Tasks choose their ids before the steps around them, which nobody has named.
        given: dict[str, str] = {}
        for step in self._plan.steps:
            if step.kind is StepKind.TASK:
                assert step.stage is not None
                assert step.task is not None
                given[step.id] = self._space(self._path[step.stage]).give(step.task)
        closes: list[Node] = []
        for unit in [step for step in self._plan.steps if step.kind is StepKind.OPEN]:
            assert unit.stage is not None
            closes.append(self._unit(unit, unit.stage, given))
        # Not the teardown of every opening: clearing a task would then open all stages before it again, and skipping one would skip all after it.
        finish = Node(
            self._space(()).give("finish_run"),
            (),
            "finish",
            Role.TEARDOWN,
            "finish the run",
            arguments=self._options.of(self._plan.step("finish"), None, None),
        )
        self._nodes.append(finish)
        self._edges.append(Edge(tuple(node.full_id for node in closes), (finish.full_id,)))
        return Layout(self._plan, Granularity.TASK, self._groups, tuple(self._nodes), tuple(self._edges))

    def _space(self, path: tuple[str, ...]) -> Ids:
        return self._ids.setdefault(path, Ids())

    def _unit(self, step: Step, stage: str, given: Mapping[str, str]) -> Node:
        path = self._path[stage]
        ids = self._space(path)
        commit_step = self._plan.step(f"commit:{stage}")
        own = [item for item in self._plan.steps if item.kind is StepKind.TASK and item.stage in self._plan.unit(stage)]
        opened = Node(
            ids.give("open_stage"),
            path,
            step.id,
            Role.SETUP,
            f"open {stage}",
            arguments={**_after_others(step), **self._options.of(step, None, stage)},
        )
        self._add(step.id, opened)
        for item in own:
            task = self._tasks[f"{item.stage}.{item.task}"]
            self._add(item.id, self._task(item, task, given[item.id]))
        commit = Node(
            ids.give("commit_stage"),
            path,
            commit_step.id,
            display=f"commit {stage}",
            arguments=self._options.of(commit_step, None, stage),
            outlets=outlets_of(self._plan, commit_step),
        )
        self._add(commit_step.id, commit)
        closed = Node(
            ids.give("close_stage"),
            path,
            f"close:{stage}",
            Role.TEARDOWN,
            f"close {stage}",
            arguments=self._options.of(None, None, stage),
            setups=(opened.full_id,),
        )
        self._nodes.append(closed)
        self._connect(step, own, commit_step, closed)
        return closed

    def _task(self, step: Step, task: PlanTask, id: str) -> Node:
        display = "" if task.task == id else task.task
        return Node(
            id,
            self._path[task.stage],
            step.id,
            display=display,
            doc=task.description,
            arguments=self._options.of(step, task, task.stage),
            inlets=inlets_of(self._plan, [task], self._options),
        )

    def _add(self, step: str, node: Node) -> None:
        self._nodes.append(node)
        self._of_step[step] = node.full_id

    def _connect(self, opening: Step, own: Sequence[Step], commit: Step, closed: Node) -> None:
        """Add the edges of a unit; what follows from others is left out, but for the closing, which has to wait for every task itself."""
        name = self._of_step
        if opening.upstream:
            self._edges.append(Edge(tuple(name[other] for other in opening.upstream), (name[opening.id],)))
        first = [step for step in own if set(step.upstream) == {opening.id}]
        if first:
            self._edges.append(Edge((name[opening.id],), tuple(name[step.id] for step in first)))
        for step in own:
            before = tuple(name[other] for other in step.upstream if other != opening.id)
            if before:
                self._edges.append(Edge(before, (name[step.id],)))
        followed = {other for step in own for other in step.upstream}
        last = tuple(name[step.id] for step in own if step.id not in followed) or (name[opening.id],)
        self._edges.append(Edge(last, (name[commit.id],)))
        self._edges.append(Edge((*(name[step.id] for step in own), name[commit.id]), (closed.full_id,)))


def _groups(plan: Plan) -> tuple[Group, ...]:
    spaces: dict[tuple[str, ...], Ids] = {}
    paths: dict[str, tuple[str, ...]] = {}
    groups: list[Group] = []
    for stage in plan.stages:
        around = paths[stage.parent] if stage.parent is not None else ()
        paths[stage.name] = (*around, spaces.setdefault(around, Ids()).give(stage.name))
        groups.append(Group(paths[stage.name], stage.name))
    return tuple(groups)
