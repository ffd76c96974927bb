"""The production subgraph: which tasks run, which values come from where, and everything that is in the way."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from pipedag_core.define.flow import Flow
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.order import stable_order
from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.define.values import ExternalTableReference, View
from pipedag_core.define.walk import iter_leaves, map_leaves, segment
from pipedag_core.errors import ExtractionRefused
from pipedag_core.plan.specification import Place, Role, Roles, Rule, output_tasks, place_of, places_in, read

_COMMAND: Final = "The production flow of flow {flow!r} cannot be carved out:"


@final
@dataclass(frozen=True)
class Cut:
    """A flow, cut to what runs in production.

    Attributes:
        flow: The whole flow.
        tasks: The tasks that run, in the order in which they can.
        inputs: Name -> what is supplied under it.
        consts, ignored: What is frozen, and what is None; only what is needed.
        output: The nest that is returned, of raw references; stages are replaced by dicts of their tasks.
        outputs: Name -> the raw reference (or nest of them) that is an output of its own.
        roles: Which rule holds where.
    """

    flow: Flow
    tasks: tuple[Task, ...]
    inputs: Mapping[str, Place]
    consts: tuple[Place, ...]
    ignored: tuple[Place, ...]
    output: Any
    outputs: Mapping[str, Any]
    roles: Roles


@final
@dataclass
class _Walk:
    """What is found on the way from the outputs to the cuts: consumers by task, and the places at which the flow is cut."""

    roles: Roles
    problems: list[str]
    running: dict[Task, Task | None] = field(default_factory=dict[Task, "Task | None"])
    cuts: dict[Place, Rule] = field(default_factory=dict[Place, Rule])

    def trail(self, task: Task) -> str:
        """Return the way from a task to the output for which it is needed."""
        names = [task.full_id]
        following = self.running.get(task)
        while following is not None:
            names.append(following.full_id)
            following = self.running[following]
        return " -> ".join([*names, "output"])

    def visit(self, value: Any, consumer: Task | None) -> list[Task]:
        """Note what a nest needs, and return the tasks that were not seen before."""
        new: list[Task] = []
        for _, place in places_in(value):
            rule = self.roles.rule_of(place)
            if rule is None:
                if place.task not in self.running:
                    self.running[place.task] = consumer
                    new.append(place.task)
            else:
                # A stage stands for its tasks, each of them whole.
                target = rule.target if isinstance(rule.target, Place) else Place(place.task)
                self.cuts.setdefault(target, rule)
            if rule is None or rule.role is not Role.IGNORE:
                for inside, other in self.roles.below(place):
                    self.cuts.setdefault(inside, other)
        return new


def cut(flow: Flow, specification: InOutSpecification) -> Cut:
    """Carve the production flow out of a flow.

    Args:
        flow: A flow whose declaration has ended.
        specification: What comes in, what goes out, what is frozen and what is left out.

    Raises:
        ExtractionRefused: It cannot be carved out; the message lists everything that is in the way, and `problems` holds the same.
    """
    flow.require_declared()
    roles = read(flow, specification)
    problems = list(roles.problems)
    walk = _Walk(roles, problems)
    output = _with_stages(roles)
    todo = walk.visit(output, None)
    while todo:
        task = todo.pop()
        todo += walk.visit(dict(task.parameters), task)
    for task in sorted(walk.running, key=lambda item: item.number):
        problems += _in_the_way(walk, task)
    problems += _unused(walk)
    if not specification.force:
        problems += _supplied_and_computed(walk)
    order = {rule: number for number, rule in enumerate([*roles.cuts.values(), *roles.stages.values()])}
    walk.cuts = dict(sorted(walk.cuts.items(), key=lambda pair: (order[pair[1]], pair[0].task.number)))
    inputs = _names(walk, problems)
    outputs = _output_names(roles, problems)
    if problems:
        raise refused(flow, problems)
    return Cut(
        flow=flow,
        tasks=tuple(stable_order(sorted(walk.running, key=lambda item: item.number), {task: task.upstream for task in walk.running})),
        inputs=inputs,
        consts=tuple(place for place, rule in walk.cuts.items() if rule.role is Role.CONST),
        ignored=tuple(place for place, rule in walk.cuts.items() if rule.role is Role.IGNORE),
        output=output,
        outputs=outputs,
        roles=roles,
    )


def refused(flow: Flow | str, problems: Iterable[str]) -> ExtractionRefused:
    """Return the error that lists problems."""
    found = tuple(dict.fromkeys(problems))
    name = flow if isinstance(flow, str) else flow.name
    return ExtractionRefused("\n".join([_COMMAND.format(flow=name), *(f"* {problem}" for problem in found)]), flow=name, problems=found)


def _with_stages(roles: Roles) -> Any:
    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, Stage):
            return {task.id: task for task in output_tasks(roles, item)} if item.flow is roles.flow else None
        return item if isinstance(item, Reference) and all(task.flow is roles.flow for task in item.tasks) else None

    return map_leaves(roles.output, leaf)


# --- what is in the way ---------------------------------------------------------------------------------------------------------------


def _in_the_way(walk: _Walk, task: Task) -> list[str]:
    trail = walk.trail(task)
    problems: list[str] = []
    partly = [place for place, _ in walk.roles.below(Place(task))]
    hint = f" Items of it have a role ({', '.join(map(repr, partly))}), but more of it is needed." if partly else ""
    if task.options.versions is not None:
        problems.append(
            f"{task.full_id} would run in production, but compares two versions of tables (@input_stage_versions), and there is only one there.{hint} Leave "
            f"what it gives out of the output, or give it a role: const or ignore ({trail})."
        )
        return problems
    if task.options.add_input_source:
        problems.append(
            f"{task.full_id} would run in production, but asks where its inputs are stored (add_input_source=True), and nothing is stored there.{hint} "
            f"Leave add_input_source out, or give the task a role: input, const or ignore ({trail})."
        )
        return problems
    if task.options.cache is not None:
        problems.append(
            f"{task.full_id} would run in production, but has a cache function, so it reads from outside.{hint} Give it a role: input or const "
            f"({trail})."
        )
    elif not task.upstream:
        problems.append(
            f"{task.full_id} would run in production, but is a source: it has no inputs.{hint} Give it a role: input, const or ignore ({trail})."
        )
    for label, value in task.parameters.items():
        for path, leaf in iter_leaves(value, segment(label)):
            problems += _argument(walk, task, path, leaf, trail)
        problems += _ignored(walk, task, label, value, trail)
    return problems


def _argument(walk: _Walk, task: Task, path: str, leaf: Any, trail: str) -> list[str]:
    externals = [leaf] if isinstance(leaf, ExternalTableReference) else []
    if isinstance(leaf, View):
        externals = [item for _, item in iter_leaves(leaf.src) if isinstance(item, ExternalTableReference)]
    found = [
        f"{task.full_id} would run in production, but reads the external table {item.schema}.{item.name} as argument {path!r}. Give {task.full_id} "
        f"a role, or pass the table as an input ({trail})."
        for item in externals
    ]
    if isinstance(leaf, Stage):
        found.append(
            f"{task.full_id} would run in production, but gets the stage {leaf.name} as argument {path!r}, and there are no schemas there. Give "
            f"{task.full_id} the role const or input ({trail})."
        )
    if getattr(leaf, "__pipedag_config__", False) is True:
        found.append(
            f"{task.full_id} would run in production, but gets the configuration as argument {path!r}. Pass the values that it needs ({trail})."
        )
    return found


def _ignored(walk: _Walk, task: Task, label: str, value: Any, trail: str) -> list[str]:
    if not isinstance(value, Reference) or isinstance(value, Merged):
        return []
    root: Reference = value
    while isinstance(root, TaskGetItem):
        root = root.parent
    rule = None if isinstance(root, Merged) else walk.roles.rule_of(place_of(value))
    if rule is None or rule.role is not Role.IGNORE or _takes_none(task, label):
        return []
    told = (
        f"{task.full_id} needs its argument {label!r}, but {rule!r} is ignored, so it would get None. Declare `{label}: ... | None`, "
        f"give it a default, or take it out of ignore ({trail})."
    )
    return [told]


def _takes_none(task: Task, label: str) -> bool:
    """Return whether a parameter may be None: it has a default, or its annotation does not exclude None as far as can be told."""
    parameter = task.function.signature.parameters.get(label)
    if parameter is None or parameter.default is not inspect.Parameter.empty or parameter.annotation is inspect.Parameter.empty:
        return True
    annotation = parameter.annotation
    if isinstance(annotation, str):
        if any(word in annotation for word in ("None", "Optional", "Any", "object")):
            return True
        try:
            annotation = typing.get_type_hints(task.fn).get(label, annotation)
        except Exception:  # noqa: BLE001 -- evaluating text that users wrote can raise anything; then the text is all that is known
            return False
    return annotation in (None, type(None), Any, object) or type(None) in typing.get_args(annotation)


def _ancestors(task: Task) -> set[Task]:
    found: set[Task] = set()
    todo = list(task.upstream)
    while todo:
        item = todo.pop()
        if item not in found:
            found.add(item)
            todo += item.upstream
    return found


def _unused(walk: _Walk) -> list[str]:
    problems: list[str] = []
    used = set(walk.cuts.values())
    rules: list[Rule] = [*walk.roles.cuts.values(), *walk.roles.stages.values()]
    for rule in rules:
        if rule in used or rule.role is Role.IGNORE:
            continue
        inside = rule.target
        hidden = [
            repr(place)
            for place in walk.cuts
            if (
                inside.task in _ancestors(place.task)
                if isinstance(inside, Place)
                else any(_is_in(t, inside) for t in _ancestors(place.task))
            )
        ]
        behind = f" All paths from it end at {', '.join(hidden)}." if hidden else ""
        problems.append(f"no output depends on the {rule.role.value} {rule!r}.{behind} Take it out, or name the output that needs it.")
    return problems


def _is_in(task: Task, stage: Stage) -> bool:
    around: Stage | None = task.stage
    while around is not None and around is not stage:
        around = around.parent
    return around is stage


def _supplied_and_computed(walk: _Walk) -> list[str]:
    problems: list[str] = []
    for place, rule in walk.cuts.items():
        if rule.role is not Role.INPUT:
            continue
        both = sorted((task for task in _ancestors(place.task) if task in walk.running), key=lambda task: task.number)
        if both:
            problems.append(
                f"the input {rule!r} is made, in training, from {', '.join(task.full_id for task in both)}, which would run in production too, so the "
                f"same facts are supplied and computed ({walk.trail(both[0])}). Cut further up, make it an output instead of an input, or allow it "
                "with InOutSpecification(..., force=True)."
            )
    return problems


# --- names ----------------------------------------------------------------------------------------------------------------------------


def _own_name(place: Place) -> str:
    return ".".join([place.task.id, *(str(key) for key in place.path)])


def _names(walk: _Walk, problems: list[str]) -> dict[str, Place]:
    names: dict[str, Place] = {}
    many: dict[str, int] = {}
    for rule in walk.cuts.values():
        if rule.role is Role.INPUT and rule.label is not None:
            many[rule.where] = many.get(rule.where, 0) + 1
    for place, rule in walk.cuts.items():
        if rule.role is not Role.INPUT:
            continue
        name = rule.label or _own_name(place)
        if rule.label is not None and (isinstance(rule.target, Stage) or many[rule.where] > 1):
            name = f"{rule.label}.{_own_name(place)}"
        if name in names:
            problems.append(
                f"two inputs are called {name!r}: {names[name]!r} and {place!r}. Name them with a dict: input={{'first': ..., 'second': ...}}."
            )
        names[name] = place
    return names


def _output_names(roles: Roles, problems: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}

    def enter(name: str, value: Any, what: object) -> None:
        if name in names and names[name] is not value:
            problems.append(
                f"two outputs are called {name!r}, the second is {what!r}. Name them with a dict: output={{'first': ..., 'second': ...}}."
            )
        names[name] = value

    for where, leaf in iter_leaves(roles.output):
        parts = where.split(".")
        label = where if where and not any(part.isdigit() for part in parts) else None
        if isinstance(leaf, Stage):
            if leaf.flow is roles.flow:
                for task in output_tasks(roles, leaf):
                    enter(f"{label}.{task.id}" if label else task.id, task, task)
        elif isinstance(leaf, Reference):
            enter(label or _reference_name(leaf), leaf, leaf)
    return names


def _reference_name(reference: Reference) -> str:
    keys: list[str] = []
    while isinstance(reference, TaskGetItem):
        keys.append(str(reference.key))
        reference = reference.parent
    task = reference.tasks[0] if reference.tasks else None
    return ".".join([task.id if task is not None else "output", *reversed(keys)])
