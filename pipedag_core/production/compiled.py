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
from pipedag_core.define.walk import Kind, build, children, is_plain, kind_of
from pipedag_core.production.frames import Frames
from pipedag_core.production.handing import Converter, Outcome, Settle
from pipedag_core.production.program import Merge, Node, Picked, Program, Selected, Use, part, uses
from pipedag_core.production.sql import Database, SqlTask
from pipedag_core.production.views import selected

#: Reads what it needs from the values of a run.
Reader = Callable[[list[Any]], Any]

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
        settle = Settle(self._frames)
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
        slot, finish = node.slot, Outcome(self._frames, self._database, f"Task {node.full_id} in production", settle=settle)
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
        if isinstance(nest, (Use, Merge, Picked, Selected)):
            # What is selected is made anew for whoever reads it.
            apart = not isinstance(nest, Selected) and any(use.slot in several or use.slot in self._outside for use in uses(nest))
            convert = Converter(self._frames, as_type, share=apart)
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


def _runner(node: Node, readers: Mapping[str, Reader], slot: int, finish: Outcome) -> Callable[[list[Any]], None]:
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
