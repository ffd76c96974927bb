"""The roles of an `InOutSpecification`: which one holds for a task's output, or for an item of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, final

from pipedag_core.define.flow import Flow
from pipedag_core.define.hints import nearest
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.lazydict import resolve
from pipedag_core.define.options import Declared
from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.define.values import View
from pipedag_core.define.walk import iter_leaves, join, map_leaves
from pipedag_core.errors import FlowError


class Role(Enum):
    """What is to be done with a value at the edge of the production flow."""

    INPUT = "input"
    CONST = "const"
    IGNORE = "ignore"
    OUTPUT = "output"


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A task's output, or an item of it.

    Attributes:
        task: The task.
        path: Keys and field names from the outside in; empty for the whole output.
    """

    task: Task
    path: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return self.task.full_id + "".join(f"[{key!r}]" for key in self.path)


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a specification.

    Attributes:
        role: What it says.
        target: About what.
        where: Its path in the specification (`const.tables.rates`), for messages.
        label: What the specification calls it: the keys of dicts around it; None where a list or nothing is around it.
    """

    role: Role
    target: Place | Stage
    where: str
    label: str | None = None

    def __repr__(self) -> str:
        what = f"stage {self.target.name}" if isinstance(self.target, Stage) else repr(self.target)
        return f"{what} ({self.where})"


def place_of(reference: Reference) -> Place:
    """Return what a task or an item of one refers to."""
    keys: list[Any] = []
    while isinstance(reference, TaskGetItem):
        keys.append(reference.key)
        reference = reference.parent
    assert isinstance(reference, Task)
    nout = reference.options.nout
    if keys and nout is not None and type(keys[-1]) is int and keys[-1] < 0:
        keys[-1] += nout
    return Place(reference, tuple(reversed(keys)))


def places_of(task: Task) -> list[Place]:
    """Return everything that a task takes of others, where it takes all of a stage included."""
    return [
        *(place for _, place in places_in(dict(task.parameters))),
        *(Place(other) for other in task.upstream if other.stage in task.whole),
    ]


def places_in(value: Any, path: str = "") -> Iterator[tuple[str, Place]]:
    """Yield (path, place) of every reference in a nest of raw references, with all parts of merges and the sources of views."""
    for where, leaf in iter_leaves(value, path):
        yield from _places_of(leaf, where)


def _places_of(leaf: Any, where: str) -> Iterator[tuple[str, Place]]:
    if isinstance(leaf, View):
        yield from places_in(leaf.src, join(where, "src"))
    elif isinstance(leaf, Reference):
        root: Reference = leaf
        while isinstance(root, TaskGetItem):
            root = root.parent
        if isinstance(root, Merged):
            for part in (root.base, *root.others):
                yield from places_in(part, where)
        else:
            yield where, place_of(leaf)


@final
@dataclass(frozen=True)
class Roles:
    """All rules of a specification, by what they are about.

    Attributes:
        cuts: Place -> its rule, of the roles input, const and ignore.
        stages: Stage -> its rule, of the same.
        outputs: The rules of the role output, in order.
        output: The specification's output as a raw nest; stages stand in it as they are.
        problems: What is wrong with the specification, each as a sentence.
    """

    flow: Flow
    cuts: dict[Place, Rule] = field(default_factory=dict[Place, Rule])
    stages: dict[Stage, Rule] = field(default_factory=dict[Stage, Rule])
    outputs: list[Rule] = field(default_factory=list[Rule])
    output: Any = None
    problems: list[str] = field(default_factory=list[str])

    def rule_of(self, place: Place) -> Rule | None:
        """Return the rule that holds for a place: of the longest item around it, else of its task, else of the innermost stage with one."""
        for end in range(len(place.path), -1, -1):
            rule = self.cuts.get(Place(place.task, place.path[:end]))
            if rule is not None:
                return rule
        stage: Stage | None = place.task.stage
        while stage is not None:
            if stage in self.stages:
                return self.stages[stage]
            stage = stage.parent
        return None

    def below(self, place: Place) -> list[tuple[Place, Rule]]:
        """Return the rules for items inside of a place, outer ones first."""
        depth = len(place.path)
        inside = [
            (other, rule)
            for other, rule in self.cuts.items()
            if other.task is place.task and len(other.path) > depth and other.path[:depth] == place.path
        ]
        return sorted(inside, key=lambda pair: len(pair[0].path))


def read(flow: Flow, specification: InOutSpecification) -> Roles:
    """Return the roles that a specification gives; what is wrong with it is collected in `problems`."""
    roles = Roles(flow)
    wired: Any = None
    for role in Role:
        given: Any = getattr(specification, role.value)
        if given is None and role is not Role.OUTPUT:
            continue
        try:
            raw = resolve(given)
        except FlowError as error:
            roles.problems.append(f"{role.value}: {error}")
            continue
        rules = list(_rules(roles, role, raw))
        if role is Role.OUTPUT:
            wired = map_leaves(raw, lambda leaf, _: named(flow, leaf) if isinstance(leaf, str) else leaf)
            roles.outputs.extend(rules)
            if not rules and not roles.problems:
                roles.problems.append(
                    "output: nothing is to be computed. Name at least one task's output: InOutSpecification(..., output=predictions)."
                )
        else:
            for rule in rules:
                _enter(roles, rule)
    for rule in roles.outputs:
        _check_output(roles, rule)
    return Roles(flow, roles.cuts, roles.stages, roles.outputs, wired, roles.problems)


def _rules(roles: Roles, role: Role, raw: Any) -> Iterator[Rule]:
    for where, leaf in iter_leaves(raw, role.value):
        label = _label(raw, where, role.value)
        if isinstance(leaf, str):
            text = leaf
            leaf = named(roles.flow, text)  # noqa: PLW2901 -- a name stands for what it names
            if leaf is None:
                roles.problems.append(_unknown(roles.flow, text, where))
                continue
        if isinstance(leaf, Stage):
            if leaf.flow is not roles.flow:
                roles.problems.append(
                    f"{where}: the stage {leaf.name!r} is not part of flow {roles.flow.name!r}. Name a stage of this flow."
                )
            elif role is Role.OUTPUT and not _tasks_of(leaf):
                roles.problems.append(f"{where}: the stage {leaf.name!r} has no tasks, so it has no output.")
            else:
                yield Rule(role, leaf, where, label)
        elif isinstance(leaf, Reference):
            for _, place in _places_of(leaf, where):
                if place.task.flow is not roles.flow:
                    roles.problems.append(
                        f"{where}: {place!r} belongs to flow {place.task.flow.name!r}, not to {roles.flow.name!r}, so it cannot be reached. "
                        "Name an output of this flow."
                    )
                else:
                    yield Rule(role, place, where, label)
        elif leaf is not None or role is Role.OUTPUT:
            roles.problems.append(f"{where}: {_what(leaf)} is no part of a flow. Name a task's output, an item of it, or a stage.")


def _what(leaf: Any) -> str:
    if isinstance(leaf, Declared):
        return f"the function {leaf.options.name!r}, which a flow may call several times,"
    return "None" if leaf is None else f"a {type(leaf).__name__} ({leaf!r:.60})"


def _label(raw: Any, where: str, role: str) -> str | None:
    """Return the keys of dicts that lead to a leaf, as one text; None if there are none, or a list is among what leads to it."""
    rest = where.removeprefix(role).removeprefix(".")
    if not rest or any(part.isdigit() for part in rest.split(".")):
        return None
    return rest


def named(flow: Flow, text: str) -> Stage | Task | None:
    """Return the stage, or the task (`stage.task`), with this name; None if there is none."""
    wanted = text.casefold().strip()
    for stage in flow.stages:
        if stage.name == wanted:
            return stage
    return next((task for task in flow.tasks if task.full_id == wanted), None)


def _unknown(flow: Flow, text: str, where: str) -> str:
    known = [*(stage.name for stage in flow.stages), *(task.full_id for task in flow.tasks)]
    return f"{where}: there is no stage or task {text!r} in flow {flow.name!r}. {nearest(text.casefold(), known)}"


def _tasks_of(stage: Stage) -> list[Task]:
    assert stage.flow is not None
    result: list[Task] = []
    for task in stage.flow.tasks:
        around: Stage | None = task.stage
        while around is not None and around is not stage:
            around = around.parent
        if around is stage:
            result.append(task)
    return result


def _enter(roles: Roles, rule: Rule) -> None:
    table: dict[Any, Rule] = roles.stages if isinstance(rule.target, Stage) else roles.cuts
    other = table.setdefault(rule.target, rule)
    if other.role is not rule.role:
        what = f"the stage {rule.target.name}" if isinstance(rule.target, Stage) else repr(rule.target)
        roles.problems.append(
            f"{what} has two roles: {other.role.value} (at {other.where}) and {rule.role.value} (at {rule.where}). Give it one of them."
        )


def _check_output(roles: Roles, rule: Rule) -> None:
    if isinstance(rule.target, Stage):
        same = roles.stages.get(rule.target)
        if same is not None and same.role is Role.IGNORE:
            roles.problems.append(f"{rule!r} cannot be reached: the same stage is ignored (at {same.where}). Take it out of one of them.")
        return
    found = roles.rule_of(rule.target)
    if found is not None and found.role is Role.IGNORE:
        roles.problems.append(
            f"the output {rule!r} cannot be reached: {found!r} is ignored, so it would always be None. Take it out of one of them."
        )


def output_tasks(roles: Roles, stage: Stage) -> list[Task]:
    """Return the tasks that a stage in the role output stands for: all in it, but those that are ignored."""
    return [task for task in _tasks_of(stage) if (rule := roles.rule_of(Place(task))) is None or rule.role is not Role.IGNORE]
