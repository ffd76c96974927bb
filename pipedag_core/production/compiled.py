"""From a program to a flat list of closures, made once: what a call of the production flow does is a loop over them.

A run has a list of values, one per slot. A closure reads some, calls a task's function and writes one. Which frames have to be kept apart is known
beforehand: inputs and consts always, an output only where several tasks (or a task and the caller) can see the same part of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, final

from pipedag_core.define.structure import merge_values, pick
from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Table, View
from pipedag_core.define.walk import Kind, build, children, is_plain, kind_of, map_leaves
from pipedag_core.errors import ProductionError
from pipedag_core.production.frames import Frames
from pipedag_core.production.program import Merge, Node, Picked, Program, Selected, Use, part, uses
from pipedag_core.production.sql import Database, SqlTask
from pipedag_core.production.views import selected
from pipedag_core.run.inputs import RawTables, leaves
from pipedag_core.run.views import selection_of

#: Reads what it needs from the values of a run.
Reader = Callable[[list[Any]], Any]
#: Turns one value into another.
Change = Callable[[Any], Any]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One task, ready to be run.

    Attributes:
        node: The task.
        run: Reads arguments, calls the function, writes the output.
        arguments: Returns the arguments by label, as the function gets them.
        call: Calls the function with arguments by label and returns what becomes the output.
    """

    node: Node
    run: Callable[[list[Any]], None]
    arguments: Callable[[list[Any]], dict[str, Any]]
    call: Callable[[Mapping[str, Any]], Any]


@final
@dataclass(frozen=True, slots=True)
class Machine:
    """Some outputs of a program, ready to be computed."""

    steps: tuple[Step, ...]
    result: Reader


@final
class Converter:
    """Turns the frames in a nest into those of one library, in new containers.

    Args:
        frames: Converts.
        as_type: The type that is wanted; None leaves frames as they are.
        share: Whether somebody else can see the same frames.
        unwrap: Whether blobs become the objects in them.
    """

    def __init__(self, frames: Frames, as_type: Any, *, share: bool, unwrap: bool = True) -> None:
        self._frames = frames
        self._type = as_type
        self._share = share
        # None stands for what is handed over as it is.
        self._known: dict[type, Change | None] = dict.fromkeys((str, int, float, bool, bytes, type(None)))
        # A blob is handed over as it is, whatever is in it.
        self._known |= {dict: self._dict, list: self._list, tuple: self._tuple, Blob: _object if unwrap else None}

    def __call__(self, value: Any) -> Any:
        try:
            change = self._known[type(value)]
        except KeyError:
            change = self._learn(value)
        return value if change is None else change(value)

    def reader(self, slot: int, *, take: bool) -> Reader:
        """Return what converts the value of a slot.

        Args:
            slot: The slot.
            take: Whether nobody reads it after that, so that its memory is free once the task that got it has ended.
        """
        known, learn = self._known, self._learn

        # The lines of `__call__`: a call less for each argument, which shows where tasks take microseconds.
        def read(values: list[Any]) -> Any:
            value = values[slot]
            if take:
                values[slot] = None
            try:
                change = known[type(value)]
            except KeyError:
                change = learn(value)
            return value if change is None else change(value)

        return read

    def _dict(self, value: Any) -> Any:
        return {key: self(child) for key, child in value.items()}

    def _list(self, value: Any) -> Any:
        return [self(child) for child in value]

    def _tuple(self, value: Any) -> Any:
        return tuple([self(child) for child in value])

    def _container(self, value: Any) -> Any:
        kind = kind_of(value)
        return build(value, kind, [(key, self(child)) for key, child in children(value, kind)])

    def _learn(self, value: Any) -> Change | None:
        cls = type(value)
        found: Change | None = None
        if cls is RawTables:
            found = self._raw
        elif kind_of(value) is not Kind.LEAF:
            found = self._container
        elif self._frames.hook_of(cls, value) is not None:
            found = self._frame(cls, value)
        elif self._share and not is_plain(value) and cls.__module__ == "numpy":
            # An array has no copy on write, and is small beside a model.
            found = _copy
        self._known[cls] = found
        return found

    def _raw(self, value: Any) -> Any:
        return value.map(lambda table, _: self(table))

    def _frame(self, cls: type, value: Any) -> Change | None:
        frames, wanted = self._frames, self._type
        if wanted is not None and not issubclass(cls, wanted):
            return lambda frame: frames.convert(frame, wanted)
        return frames.sharer(cls, value) if self._share else None


def _copy(value: Any) -> Any:
    return value.copy()


@final
class Compiler:
    """Makes machines of a program.

    Args:
        program: The program.
        consts: Slot -> frozen value, its tables as `pyarrow.Table`, its blobs as `Blob`.
        frames, database: What converts, and what runs SQL.
    """

    def __init__(self, program: Program, consts: Mapping[int, Any], frames: Frames, database: Database) -> None:
        self._program = program
        self._consts = consts
        self._frames = frames
        self._database = database
        self._outside = {*program.inputs.values(), *consts}
        self.sql: dict[int, SqlTask] = {}
        for node in program.nodes:
            hook = None if node.options.input_type is None else frames.hook_for(node.options.input_type)
            if hook is not None and hook.by_reference:
                self.sql[node.slot] = SqlTask(database, frames, node, hook)

    def machine(self, wanted: Any, as_type: Any = None) -> Machine:
        """Return what computes a nest.

        Args:
            wanted: Nest of uses.
            as_type: The type of its tables; None for that of the tasks that made them.
        """
        nodes = part(self._program, [wanted])
        several, overlapping = _seen([wanted, *(value for node in nodes for value in node.parameters.values())])
        steps = tuple(self._step(node, several, settle=node.slot in overlapping) for node in nodes)
        settle = _Settle(self._frames)
        read = self._reader(wanted, as_type, several)
        return Machine(steps, lambda values: settle(read(values)))

    # --- one task

    def _step(self, node: Node, several: set[int], *, settle: bool) -> Step:
        sql = self.sql.get(node.slot)
        wanted = node.options.input_type
        if sql is not None:
            from importlib import import_module

            wanted = import_module("pyarrow").Table
        readers = {label: self._reader(value, wanted, several) for label, value in node.parameters.items()}
        slot, finish = node.slot, _Outcome(self._frames, self._database, f"Task {node.full_id} in production", settle=settle)
        call = _caller(node)

        def arguments(values: list[Any]) -> dict[str, Any]:
            return {label: read(values) for label, read in readers.items()}

        if sql is not None:

            def run_sql(values: list[Any]) -> None:
                values[slot] = sql({label: read(values) for label, read in readers.items()}, call)

            return Step(node, run_sql, arguments, lambda given: sql(given, call))
        return Step(node, _runner(node, readers, slot, finish), arguments, lambda given: finish(call(given)))

    def _reader(self, nest: Any, as_type: Any, several: set[int]) -> Reader:
        """Return what builds a nest from the values of a run, with tables in a type."""
        if isinstance(nest, Use) and not nest.path and not nest.over and nest.slot is not None:
            slot = nest.slot
            if slot in self._consts:
                return self._const(self._consts[slot], as_type)
            shared = slot in several or slot in self._outside
            return Converter(self._frames, as_type, share=shared).reader(slot, take=not shared)
        if isinstance(nest, (Use, Merge, Picked)):
            apart = any(use.slot in several or use.slot in self._outside for use in uses(nest))
            convert = Converter(self._frames, as_type, share=apart)
            raw = self._raw(nest)
            return lambda values: convert(raw(values))
        if isinstance(nest, Selected):
            convert = Converter(self._frames, as_type, share=False)
            raw = self._raw(nest)
            return lambda values: convert(raw(values))
        kind = kind_of(nest)
        if kind is Kind.LEAF:
            return lambda _: nest
        parts = [(key, self._reader(child, as_type, several)) for key, child in children(nest, kind)]
        if kind is Kind.DICT:
            return lambda values: {key: read(values) for key, read in parts}
        return lambda values: build(nest, kind, [(key, read(values)) for key, read in parts])

    def _const(self, value: Any, as_type: Any) -> Reader:
        # Frames are converted once; what a task gets of them is its own.
        ready = Converter(self._frames, as_type, share=False, unwrap=False)(value)
        fresh = Converter(self._frames, None, share=True)
        return lambda _: fresh(ready)

    def _raw(self, nest: Any) -> Reader:
        if isinstance(nest, Use):
            return self._raw_use(nest)
        if isinstance(nest, Picked):
            inner, path = self._raw(nest.value), nest.path
            return lambda values: _pick(inner(values), path)
        if isinstance(nest, Selected):
            source, selection, where = self._raw(nest.source), nest.selection, nest.where
            return lambda values: selected(selection, source(values), self._frames, self._database, where)
        if isinstance(nest, Merge):
            base, others = self._raw(nest.base), [self._raw(other) for other in nest.others]

            def merged(values: list[Any]) -> Any:
                result = base(values)
                for other in others:
                    new = other(values)
                    # What is ignored changes nothing.
                    if new is not None and result is not None:
                        result = merge_values(result, new, "a value of the production flow")
                return result

            return merged
        kind = kind_of(nest)
        if kind is Kind.LEAF:
            return lambda _: nest
        parts = [(key, self._raw(child)) for key, child in children(nest, kind)]
        return lambda values: build(nest, kind, [(key, read(values)) for key, read in parts])

    def _raw_use(self, use: Use) -> Reader:
        if use.slot is None:
            return lambda _: None
        slot, path = use.slot, use.path
        over = [(where, self._raw_use(other)) for where, other in use.over]
        const = self._consts.get(slot)
        is_const = slot in self._consts

        def read(values: list[Any]) -> Any:
            value = _pick(const if is_const else values[slot], path)
            for where, other in over:
                value = _put(value, where, other(values))
            return value

        return read


def _pick(value: Any, path: Sequence[tuple[str, Any]]) -> Any:
    for kind, key in path:
        if value is None:
            return None
        value = value[key] if type(value) is dict and key in value else pick(value, kind, key, "a value of the production flow")
    return value


def _put(value: Any, path: Sequence[Any], new: Any) -> Any:
    if not path or value is None:
        return new if value is not None else None
    key, rest = path[0], path[1:]
    if rest:
        kind = "attr" if kind_of(value) is Kind.DATACLASS else "item"
        new = _put(pick(value, kind, key, "a value of the production flow"), rest, new)
    return merge_values(value, {key: new}, "a value of the production flow")


def _seen(nests: Sequence[Any]) -> tuple[set[int], set[int]]:
    """Return the slots that are seen in several places, and those of which some part is."""
    seen: dict[int, list[tuple[Any, ...]]] = {}
    overlapping: set[int] = set()
    for nest in nests:
        for use in uses(nest):
            if use.slot is None:
                continue
            path = tuple(key for _, key in use.path)
            others = seen.setdefault(use.slot, [])
            if any(path[: len(other)] == other[: len(path)] for other in others):
                overlapping.add(use.slot)
            others.append(path)
    # Two items may be one object, so they are kept apart as well.
    return {slot for slot, paths in seen.items() if len(paths) > 1}, overlapping


# --- calls --------------------------------------------------------------------------------------------------------------------------------


def _caller(node: Node) -> Callable[[Mapping[str, Any]], Any]:
    """Return what calls a task's function with arguments by label."""
    fn, around = node.function.fn, node.options.call_context
    parameters = node.function.signature.parameters

    def plain(given: Mapping[str, Any]) -> Any:
        args: list[Any] = []
        kwargs = dict(given)
        for label, parameter in parameters.items():
            if parameter.kind in _POSITIONAL and label in kwargs:
                args.append(kwargs.pop(label))
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(kwargs.pop(label, ()))
        return fn(*args, **kwargs)

    return plain if around is None else _within(plain, around)


def _within(
    plain: Callable[[Mapping[str, Any]], Any], around: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Mapping[str, Any]], Any]:
    def called(given: Mapping[str, Any]) -> Any:
        with around():
            return plain(given)

    return called


def _runner(node: Node, readers: Mapping[str, Reader], slot: int, finish: _Outcome) -> Callable[[list[Any]], None]:
    """Return the closure of a plain task: as few calls of Python as can be."""
    fn = node.function.fn
    parameters = node.function.signature.parameters
    simple = node.options.call_context is None and all(
        label in parameters and parameters[label].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for label in readers
    )
    if not simple:
        call, pairs = _caller(node), tuple(readers.items())

        def general(values: list[Any]) -> None:
            values[slot] = finish(call({label: read(values) for label, read in pairs}))

        return general
    # Plain values need no reading.
    fixed = {label: node.parameters[label] for label in readers if is_plain(node.parameters[label])}
    moving = [(label, readers[label]) for label in readers if label not in fixed]
    if len(moving) == 1 and not fixed:
        [(label, only)] = moving
        if parameters[label].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and next(iter(parameters)) == label:
            known = finish.known

            def one(values: list[Any]) -> None:
                made = fn(only(values))
                # What most tasks return is handed on as it is, or after one look.
                change = known.get(type(made), finish)
                values[slot] = made if change is None else change(made)

            return one

    def several(values: list[Any]) -> None:
        values[slot] = finish(fn(**fixed, **{label: read(values) for label, read in moving}))

    return several


@final
class _Settle:
    """Computes the lazy frames of a nest, so that what a caller gets is there."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._known: dict[type, bool] = dict.fromkeys((str, int, float, bool, bytes, type(None)), False)

    def __call__(self, value: Any) -> Any:
        cls = type(value)
        if cls not in self._known:
            lazy = kind_of(value) is not Kind.LEAF or cls is RawTables or (self._frames.is_frame(value) and self._frames.is_lazy(cls))
            self._known[cls] = lazy
        if not self._known[cls]:
            return value
        return map_leaves(value, self._leaf)

    def _leaf(self, leaf: Any, path: str) -> Any:
        if type(leaf) is RawTables:
            return leaf
        return self._frames.settled(leaf) if self._frames.is_frame(leaf) and self._frames.is_lazy(type(leaf)) else leaf


@final
class _Outcome:
    """Turns what a function returned into a value: frames without the wishes around them, queries as their rows.

    Args:
        frames, database: What converts, and what runs SQL.
        who: The task, for messages.
        settle: Lazy frames are computed at once, because several will read them.

    Attributes:
        known: Type -> what turns values of it into what is handed on; None if they are handed on as they are.
    """

    def __init__(self, frames: Frames, database: Database, who: str, *, settle: bool) -> None:
        self._who = who
        self._frames = frames
        self._database = database
        self._settle = settle
        self.known: dict[type, Change | None] = dict.fromkeys((str, int, float, bool, bytes, type(None)))
        self.known |= {dict: self._dict, list: self._list, tuple: self._tuple, Table: self._table}

    def __call__(self, value: Any) -> Any:
        try:
            change = self.known[type(value)]
        except KeyError:
            change = self._learn(value)
        return value if change is None else change(value)

    def _dict(self, value: Any) -> Any:
        return {key: self(child) for key, child in value.items()}

    def _list(self, value: Any) -> Any:
        return [self(child) for child in value]

    def _tuple(self, value: Any) -> Any:
        return tuple([self(child) for child in value])

    def _container(self, value: Any) -> Any:
        kind = kind_of(value)
        return build(value, kind, [(key, self(child)) for key, child in children(value, kind)])

    def _table(self, value: Any) -> Any:
        made = self._database.rows(value.obj) if isinstance(value.obj, str) else self(value.obj)
        if not value.type_map:
            return made
        types = self._database.arrow_types(self._frames.sql_types(value.type_map), self._who)
        return self._frames.retyped(made, types, self._who)

    def _view(self, value: Any) -> Any:
        frames = self._frames
        sources = [self(leaf) for _, leaf in leaves(value.src, "")]
        made = selected(selection_of(value, self._who), sources, frames, self._database, self._who)
        if made is None:
            raise ProductionError(f"{self._who}: the View has no source. Give it a table, or a list of tables.")
        # A frame of the library that the task works with.
        return made if frames.is_lazy(type(sources[0])) else frames.convert(made, type(sources[0]))

    def _query(self, value: Any) -> Any:
        return self._database.rows(self._frames.query_text(value))

    def _learn(self, value: Any) -> Change | None:
        cls = type(value)
        found: Change | None = None
        if kind_of(value) is not Kind.LEAF:
            found = self._container
        elif cls is RawSql:
            found = self._database.refuse_script
        elif cls is View:
            found = self._view
        elif cls is ExternalTableReference:
            found = self._refuse
        elif (hook := self._frames.hook_of(cls, value)) is not None:
            if hook.by_reference:
                found = self._query
            # Relations and streams can be read where they were made, and once; lazy frames of polars anywhere.
            elif self._frames.is_lazy(cls) and (self._settle or not hasattr(value, "collect")):
                found = self._frames.settled
            else:
                found = self._frames.storing(cls, value, self._who)
        self.known[cls] = found
        return found

    def _refuse(self, value: Any) -> Any:
        raise ProductionError(f"{self._who} returned a {type(value).__name__}, which it cannot do there. Return the table itself.")


def _object(value: Any) -> Any:
    return value.obj
