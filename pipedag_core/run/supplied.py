"""What `flow.run(inputs=...)` supplies in place of what tasks would give: put into the form in which those tasks would have returned it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from pipedag_core.define.flow import Flow
from pipedag_core.define.lazydict import as_wired
from pipedag_core.define.options import Declared
from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.stage import Stage
from pipedag_core.define.structure import merge_values, pick
from pipedag_core.define.task import Task
from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Table, View
from pipedag_core.define.walk import Kind, is_plain, kind_of, map_leaves
from pipedag_core.errors import FlowError, PipedagError, RunError, UnsupportedValue
from pipedag_core.plan.model import Plan
from pipedag_core.plan.specification import Place, named, place_of
from pipedag_core.ports.catalogs import TaskKey
from pipedag_core.ports.data import StoredBlob, StoredTable
from pipedag_core.run.inputs import RawTables, decode_output
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.session import Run, Session

_NOTHING: Any = object()


def places(flow: Flow, inputs: Mapping[Any, Any]) -> dict[Place, Any]:
    """Return what is supplied by the place in the flow that it takes.

    Args:
        flow: The flow.
        inputs: Output of a task, an item of one, or a task's name (`stage.task`) -> value.

    Raises:
        FlowError: A key names no single output of the flow, or two name the same.
    """
    if not isinstance(inputs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] -- comes from users
        raise FlowError(f"inputs= takes a dict: {{flow['stage']['task']: frame}}, not a {type(inputs).__name__}.", flow=flow.name)
    found: dict[Place, Any] = {}
    for key, value in inputs.items():
        place = _place(flow, key)
        if place in found:
            raise FlowError(f"inputs= supplies {place!r} twice. Keep one of them.", flow=flow.name)
        found[place] = value
    return found


def _place(flow: Flow, key: Any) -> Place:
    hint = "Name a task's output or an item of it, as the call of the task returned it; or a task, as 'stage.task'."
    wired = named(flow, key) if isinstance(key, str) else as_wired(key) if isinstance(key, Reference) else key
    if isinstance(key, Reference) and _is_merged(wired):
        # The output of the task alone, without what was put into it afterwards.
        wired = key
    if not isinstance(wired, Reference) or _is_merged(wired):
        what = (
            f"there is no task {key!r}"
            if isinstance(key, str) and wired is None
            else f"{key!r:.80} is a stage"
            if isinstance(wired, Stage)
            else f"{key!r:.80} is a function"
            if isinstance(key, Declared)
            else f"{key!r:.80} is not what one task gives"
        )
        raise FlowError(f"inputs=: {what}. {hint}", flow=flow.name)
    place = place_of(wired)
    if place.task.flow is not flow:
        raise FlowError(f"inputs=: {place!r} is not part of flow {flow.name!r}. {hint}", flow=flow.name)
    return place


def _is_merged(value: Any) -> bool:
    while isinstance(value, TaskGetItem):
        value = value.parent
    return isinstance(value, Merged)


def values(session: Session, run: Run, plan: Plan, supplied: Mapping[Place, Any]) -> dict[tuple[str, str], Any]:
    """Return what each task is to give: (stage, task) -> nest, as the task would have returned it, with stored objects for items that stay.

    A frame without a name of its own takes name and options of the table that it stands for, as committed.

    Raises:
        RunError: Items of a task's output are supplied, but the others are not there.
        UnknownItem: The task's output has no such item.
        UnsupportedValue: Something that is supplied is neither a table nor a value.
    """
    tasks = dict.fromkeys(place.task for place in supplied)
    committed = _committed(session, run, plan, list(tasks))
    result: dict[tuple[str, str], Any] = {}
    for task in tasks:
        before = committed.get(task, _NOTHING)
        own = sorted((place for place in supplied if place.task is task), key=lambda place: len(place.path))
        value = before
        for place in own:
            if not place.path:
                value = _adopted(session, task, place, supplied[place], before)
                continue
            if value is _NOTHING:
                raise RunError(
                    f"inputs= supplies {place!r}, but the other items of {task.full_id} have no committed value for the flow as it is wired now. "
                    f"Run stage {task.stage.name} first, or supply all that {task.full_id} gives.",
                    flow=plan.flow,
                    stage=task.stage.name,
                    task=task.id,
                )
            there = _at(before, place.path)
            value = _put(_opened(value), place.path, _adopted(session, task, place, supplied[place], there), task)
        result[task.stage.name, task.id] = value
    return result


def _committed(session: Session, run: Run, plan: Plan, tasks: list[Task]) -> dict[Task, Any]:
    known = plan_lookup(run, plan).tasks
    keys = {task: TaskKey(task.stage.name, task.id, known[task.stage.name, task.id].position) for task in tasks}
    found = run.catalog(session).inputs(tuple(keys.values()))
    return {task: decode_output(found[key]) for task, key in keys.items() if key in found}


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    """Return what stands at a path, or _NOTHING."""
    for key in path:
        if value is _NOTHING:
            return value
        try:
            value = pick(value, "attr" if kind_of(value) is Kind.DATACLASS else "item", key, "")
        except PipedagError:
            return _NOTHING
    return value


def _opened(value: Any) -> Any:
    """Return a nest in which the tables of a script can be exchanged."""
    return map_leaves(value, lambda leaf, _: dict(leaf) if isinstance(leaf, RawTables) else leaf)


def _put(value: Any, path: tuple[Any, ...], new: Any, task: Task) -> Any:
    what = f"the output of task {task.full_id!r}"
    kind = "attr" if kind_of(value) is Kind.DATACLASS else "item"
    there = pick(value, kind, path[0], what)
    return merge_values(value, {path[0]: new if len(path) == 1 else _put(there, path[1:], new, task)}, what)


def _adopted(session: Session, task: Task, place: Place, value: Any, before: Any) -> Any:
    """Return a supplied value as its task would have returned it; `before` is what is committed there."""

    def leaf(item: Any, path: str) -> Any:
        where = f"{place!r}{f' at {path!r}' if path else ''}"
        if is_plain(item) or isinstance(item, (Blob, ExternalTableReference)):
            return cast("Any", item)
        if isinstance(item, (Reference, View, RawSql, Stage)):
            raise UnsupportedValue(f"inputs=: {where} cannot be a {type(item).__name__}. Supply a frame, a Table, or a plain value.")
        there = _leaf_at(before, path)
        table = cast("Table[Any]", item) if isinstance(item, Table) else None
        obj = cast("Any", item if table is None else table.obj)
        if session.hooks.for_object(obj) is None:
            if isinstance(there, StoredBlob) and table is None:
                return Blob(obj, there.name)
            raise UnsupportedValue(
                f"inputs=: {where} is a {type(obj).__module__}.{type(obj).__qualname__}, which no hook understands. Supply a frame, or Blob(...) for "
                "other objects."
            )
        name = _name(task, place, path, there)
        if table is None:
            return _as_table(item, name, there)
        return table if table.name is not None else replace(table, name=name)

    return map_leaves(value, leaf)


def _leaf_at(value: Any, path: str) -> Any:
    found: list[Any] = []
    if value is not _NOTHING:
        map_leaves(_opened(value), lambda leaf, where: found.append(leaf) if where == path else None)
    return found[0] if found else None


def _name(task: Task, place: Place, path: str, there: Any) -> str | None:
    if isinstance(there, StoredTable):
        return there.name
    declared = task.options.outputs or ()
    last = path.rpartition(".")[2] or (str(place.path[-1]) if place.path else "")
    return last if last in declared else declared[0] if len(declared) == 1 else None


def _as_table(frame: Any, name: str | None, there: Any) -> Table[Any]:
    if not isinstance(there, StoredTable):
        return Table(frame, name)
    options = there.options
    return Table(
        frame,
        name,
        primary_key=options.primary_key or None,
        indexes=options.indexes or None,
        type_map=options.type_map or None,
        nullable=options.nullable,
        non_nullable=options.non_nullable,
        materialization_details=options.materialization_details,
    )
