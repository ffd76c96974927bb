"""ProductionFlow: what `flow.extract(...)` gives; takes inputs, returns outputs, and touches nothing but memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, final

from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.settings import reveal
from pipedag_core.define.context import TaskContext, executing
from pipedag_core.define.flow import Flow
from pipedag_core.define.hints import nearest
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.values import Table
from pipedag_core.errors import InputMismatch, ProductionError
from pipedag_core.hooks.registry import Hooks
from pipedag_core.plan.model import Plan
from pipedag_core.plan.production import Cut
from pipedag_core.production import shapes
from pipedag_core.production.compiled import Compiler, Machine, Step
from pipedag_core.production.explained import Explanation, Timed, Watch
from pipedag_core.production.frames import Frames
from pipedag_core.production.frozen import thawed
from pipedag_core.production.program import Program, uses
from pipedag_core.production.sql import Database
from pipedag_core.run.notes import add_note

#: Stands in the values of a run for what is not there yet.
_UNSET: Final = object()


@final
@dataclass(frozen=True)
class Parts:
    """All that a production flow is made of.

    Attributes:
        program: What runs.
        consts: Slot -> frozen value.
        inputs, outputs: Name -> what it looks like; outputs as far as training has committed them.
        dialect: The SQL dialect of the store it was trained on.
        hook_args, table_hooks: Options of hooks, and hooks of the user's own, from the configuration.
        provenance: Where all this comes from.
    """

    program: Program
    consts: Mapping[int, Any]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    dialect: str
    hook_args: Mapping[str, Mapping[str, Any]]
    table_hooks: Mapping[str, str]
    provenance: Mapping[str, Any]

    def frames(self, place: Callable[[Any], tuple[str, Any]] | None = None) -> Frames:
        """Return what converts its frames; `place` as for `Frames`."""
        return Frames(Hooks(args=reveal(self.hook_args), extra=self.table_hooks), place)


@final
@dataclass(frozen=True)
class Origin:
    """The training flow that a production flow was just extracted from; a loaded one has none."""

    flow: Flow
    cut: Cut
    context: ConfigContext


@final
@dataclass(frozen=True, slots=True)
class _Ready:
    """A machine, and what it needs of the inputs.

    Attributes:
        run: The closures, in order.
        take: (name, slot, shape) of the inputs that it needs.
    """

    machine: Machine
    run: tuple[Callable[[list[Any]], None], ...]
    take: tuple[tuple[str, int, Any], ...]
    steps: tuple[Step, ...] = field(default=())


@final
class ProductionFlow:
    """The part of a flow that runs in production: frozen, in memory, safe to use from many threads at once.

    Made by `flow.extract(specification)` or `ProductionFlow.load(path)`.

    Attributes:
        parts: What it is made of.
    """

    def __init__(self, parts: Parts, origin: Origin | None = None) -> None:
        self.parts = parts
        self._origin = origin
        self._database = Database(parts.dialect, frozenset(parts.program.stages))
        self._frames = parts.frames(self._database.place)
        consts = {slot: thawed(value) for slot, value in parts.consts.items()}
        self._compiler = Compiler(parts.program, consts, self._frames, self._database)
        self._blank = [_UNSET] * parts.program.size
        for slot, value in consts.items():
            self._blank[slot] = value
        self._ready: dict[Any, _Ready] = {}
        self._lock = threading.Lock()
        self._context = TaskContext(parts.program.flow, "", "", "production", None, self._materialized)

    # --- looking

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> schema: a `pyarrow.Schema`, the name of a type, or a nest of them."""
        return {name: shapes.readable(shape) for name, shape in self.parts.inputs.items()}

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Name -> schema, as for `inputs`; None where training has committed no value."""
        return {
            name: shapes.readable(self.parts.outputs[name]) if name in self.parts.outputs else None for name in self.parts.program.outputs
        }

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it comes from: flow, instance, generations and runs, fingerprints of what is frozen, commit of the code, versions."""
        return self.parts.provenance

    def describe(self) -> str:
        """Return all of it as text: what comes in, what is frozen and ignored, what runs, what goes out, and where it comes from."""
        from pipedag_core.production.draw import describe

        return describe(self)

    def graph(self, format: str = "html") -> str:
        """Return a picture of what is cut, frozen, ignored and run.

        Args:
            format: "html" (one page, nothing is loaded from elsewhere), "mermaid" or "dot".

        Raises:
            ProductionError: The format is not known.
        """
        from pipedag_core.production.draw import draw

        return draw(self, format)

    def to_plan(self) -> Plan:
        """Return the tasks that run as a plan: for looking at, and for comparing two production flows."""
        from pipedag_core.production.draw import to_plan

        return to_plan(self.parts.program)

    def __repr__(self) -> str:
        program = self.parts.program
        return f"<production flow of {program.flow}: {', '.join(program.inputs)} -> {len(program.nodes)} tasks -> {', '.join(program.outputs)}>"

    # --- running

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        as_type: Any = None,
        explain: bool = False,
        debug: bool = False,
    ) -> Any:
        """Compute the outputs for some inputs.

        Args:
            inputs: Name -> value, shaped as in training; tables as frames of any supported library, with columns in any order. They are checked before
                any task runs, and never changed.
            outputs: Names of outputs, or of tasks that run (`task`, `stage.task`): only these are computed, and only the inputs that they need have to be there.
            as_type: The type of returned tables; by default that of the tasks that made them.
            explain: Return an `Explanation`: the output, and every task's value and time.
            debug: Find tasks that change their arguments in place; slow.

        Returns:
            The structure of the specification's output; with `outputs`, a dict name -> value.

        Raises:
            InputMismatch: The inputs are not like those in training; all differences are listed.
            ProductionError: There is no such output; or, with `debug`, a task changed an argument in place.
            Exception: Whatever a task raised, with a note that says which.
        """
        ready = self._ready.get((None if outputs is None else tuple(outputs), as_type)) or self._make_ready(outputs, as_type)
        values = self._blank.copy()
        self._take(inputs, ready, values)
        token = executing.set(self._context)
        try:
            if explain or debug:
                return self._watched(ready, values, explain=explain, debug=debug)
            for step in ready.run:
                step(values)
            return ready.machine.result(values)
        except Exception as error:
            self._note(error, ready, values)
            raise
        finally:
            executing.reset(token)
            self._database.release()

    def _materialized(self, table: Table[Any], *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
        """Return the rows of a table that a task wants to write at once: there is nowhere to write to."""
        if isinstance(return_as_type, (tuple, list)):
            return tuple(self._materialized(table, return_as_type=one) for one in return_as_type)
        obj: Any = table.obj
        is_query, is_text = hasattr(obj, "subquery"), isinstance(obj, str) or type(obj).__name__ == "TextClause"
        by_reference = return_as_type is not None and self._frames.hook_for(return_as_type).by_reference
        wrong = "SQL text" if is_text else "a table with type_map" if table.type_map else ""
        if return_as_type is not None and not wrong and is_query != by_reference:
            wrong = f"a {type(obj).__name__} as {getattr(return_as_type, '__name__', return_as_type)}"
        if wrong:
            raise ProductionError(
                f"Table.materialize() of {wrong} cannot run in production, where nothing is written. Return the table from a task of its own."
            )
        if is_query:
            # Read like a table.
            return cast("Any", obj).subquery(table.name)
        return obj if return_as_type is None or not self._frames.is_frame(obj) else self._frames.convert(obj, return_as_type)

    def run_batches(
        self, inputs: Any, rows: int = 100_000, outputs: Sequence[str] | None = None, *, as_type: Any = None, stream: str | None = None
    ) -> Iterator[Any]:
        """Compute the outputs for a large input, some rows at a time; see `pipedag_core.production.batches`.

        Args:
            inputs: As for `run`, with one table as a stream (anything with `__arrow_c_stream__`, such as a `pyarrow.RecordBatchReader`). Or just the
                stream, where there is one input that is a table.
            rows: Rows at a time; the last part may have fewer.
            outputs, as_type: As for `run`.
            stream: Which table is the stream (`clean.flights`); by default the only `RecordBatchReader` among the inputs.

        Yields:
            What `run` returns for each part.
        """
        from pipedag_core.production.batches import run_batches

        return run_batches(self, inputs, rows, outputs, as_type, stream)

    def verify(
        self,
        config: PipedagConfig | ConfigContext | None = None,
        instance: str | None = None,
        *,
        flow: Flow | tuple[Flow, InOutSpecification] | None = None,
        tolerance: float = 1e-9,
        tolerances: Mapping[str, float] | None = None,
    ) -> Any:
        """Replay the training inputs and compare with what training has committed, table by table; see `pipedag_core.production.verify`.

        Args:
            config, instance: Where it was trained; known where the flow was just extracted.
            flow: The training flow, or (flow, specification); known likewise.
            tolerance: Relative and absolute difference that numbers with a fraction may have.
            tolerances: The same for single columns, by name.

        Returns:
            A `Verification`: what was compared, and which tasks change arguments in place.

        Raises:
            VerificationFailed: Something differs; the first differing rows are shown.
            ProductionError: There is nothing to compare with.
        """
        from pipedag_core.production.verify import verify

        return verify(self, self._origin, config, instance, flow, tolerance, tolerances or {})

    def training_inputs(
        self,
        config: PipedagConfig | ConfigContext | None = None,
        instance: str | None = None,
        *,
        flow: Flow | tuple[Flow, InOutSpecification] | None = None,
    ) -> dict[str, Any]:
        """Return the inputs that training has committed, as `run` takes them; tables as `pyarrow.Table`.

        Args:
            config, instance, flow: As for `verify`.

        Raises:
            ProductionError: Training has gone on since, or is not to be found.
        """
        from pipedag_core.production.verify import training_inputs

        return training_inputs(self, self._origin, config, instance, flow)

    # --- keeping

    def save(self, path: str | Path, *, code: str = "reference", pickle: bool = False) -> Path:
        """Write a bundle: a folder with all that is needed to run elsewhere; see `pipedag_core.production.bundle`.

        Args:
            path: The folder; it must not exist, or be empty, or be a bundle, which is replaced.
            code: "reference": modules are imported where the bundle is loaded; "package": their source is put into the bundle.
            pickle: Whether blobs for which there is no safe format may be pickled.

        Raises:
            ProductionError: Something cannot be kept; all of it is listed.
        """
        from pipedag_core.production.bundle import save

        return save(self, Path(path), code, pickle)

    @classmethod
    def load(cls, path: str | Path, *, trust_pickle: bool = False) -> ProductionFlow:
        """Read a bundle. All hashes are compared before anything in it is used.

        Args:
            path: The folder.
            trust_pickle: Whether to unpickle what the bundle holds as pickles: that can run any code.

        Raises:
            BundleRefused: It is damaged, incomplete, foreign, newer, or holds pickles that are not trusted; the file is named.

        Warns:
            BundleWarning: Versions of Python, of packages or of the code are others than those it was made with.
        """
        from pipedag_core.production.bundle import load

        return load(Path(path), trust_pickle)

    # --- for the other modules of this room

    @property
    def frames(self) -> Frames:
        """What converts its frames."""
        return self._frames

    def is_frame(self, obj: Any) -> bool:
        """Return whether an object is a table."""
        return self._frames.is_frame(obj)

    def to_arrow(self, obj: Any) -> Any:
        """Return a frame as a `pyarrow.Table`."""
        return self._frames.to_arrow(self._frames.settled(obj) if self._frames.is_lazy(type(obj)) else obj)

    def try_sql(self, known: Mapping[int, Any]) -> list[tuple[str, Exception]]:
        """Let SQL tasks make their queries on given values: slot -> value; return (task, error) for those that cannot."""
        values = self._blank.copy()
        for slot, value in known.items():
            values[slot] = value
        failed: list[tuple[str, Exception]] = []
        token = executing.set(self._context)
        try:
            for step in self._compiler.machine(self.parts.program.output).steps:
                slots = [use.slot for value in step.node.parameters.values() for use in uses(value)]
                if step.node.slot in self._compiler.sql and all(slot is None or values[slot] is not _UNSET for slot in slots):
                    try:
                        step.call(step.arguments(values))
                    except Exception as error:  # noqa: BLE001 -- users' functions are called here
                        failed.append((step.node.full_id, error))
        finally:
            executing.reset(token)
            self._database.release()
        return failed

    def _make_ready(self, outputs: Sequence[str] | None, as_type: Any) -> _Ready:
        key = (None if outputs is None else tuple(outputs), as_type)
        program = self.parts.program
        with self._lock:
            if key not in self._ready:
                wanted: Any = program.output
                if isinstance(outputs, str):
                    raise ProductionError(f"outputs takes a list of names: outputs=[{outputs!r}].")
                if outputs is not None:
                    wanted = {name: self._named(name) for name in outputs}
                machine = self._compiler.machine(wanted, as_type)
                needed = {
                    use.slot
                    for value in [wanted, *(v for step in machine.steps for v in step.node.parameters.values())]
                    for use in uses(value)
                }
                take = tuple((name, slot, self.parts.inputs[name]) for name, slot in program.inputs.items() if slot in needed)
                self._ready[key] = _Ready(machine, tuple(step.run for step in machine.steps), take, machine.steps)
            return self._ready[key]

    def _named(self, name: str) -> Any:
        from pipedag_core.production.program import Use

        program = self.parts.program
        if name in program.outputs:
            return program.outputs[name]
        found = [node for node in program.nodes if name in (node.full_id, node.id)]
        if len(found) == 1:
            return Use(found[0].slot)
        known = [*program.outputs, *(node.full_id for node in program.nodes)]
        raise ProductionError(f"The production flow of {program.flow!r} has no output {name!r}. {nearest(name, known)}", output=name)

    def _take(self, inputs: Mapping[str, Any], ready: _Ready, values: list[Any]) -> None:
        problems: list[str] = []
        used = 0
        if not isinstance(inputs, Mapping):
            raise InputMismatch(
                f"Inputs are given by name: prod.run({{{', '.join(f'{name!r}: ...' for name in self.parts.inputs)}}}), not as {type(inputs).__name__}.",
                problems=(),
            )
        for name, slot, shape in ready.take:
            if name in inputs:
                value = inputs[name]
                used += 1
            else:
                value = _nested(inputs, name)
                if value is _UNSET:
                    problems.append(f"missing input {name!r}; got: {', '.join(map(str, inputs)) or 'nothing'}")
                    continue
                used = -len(inputs) - 1
            values[slot] = shapes.check(shape, value, self._frames, name, problems)
        if used != len(inputs):
            known = self.parts.program.inputs
            problems += [
                f"unknown input {key!r}. {nearest(str(key), known)}"
                for key in inputs
                if key not in known and not any(name.startswith(f"{key}.") for name in known)
            ]
        if problems:
            raise InputMismatch(
                f"The production flow of {self.parts.program.flow!r} cannot run on these inputs:\n{shapes.listed(problems)}",
                problems=tuple(problems),
            )

    def _watched(self, ready: _Ready, values: list[Any], *, explain: bool, debug: bool) -> Any:
        watch = Watch(self._frames)
        timed: list[Timed] = []
        for step in ready.steps:
            before = time.perf_counter()
            if debug:
                values[step.node.slot] = watch.call(step, values, _UNSET)
            else:
                step.run(values)
            timed.append(Timed(step.node.full_id, time.perf_counter() - before, values[step.node.slot]))
        result = ready.machine.result(values)
        if watch.changes and not explain:
            raise ProductionError(
                "Tasks change their arguments in place:\n"
                + "\n".join(f"* {change}" for change in watch.changes)
                + "\nCopy first, and change the copy.",
                changes=tuple(watch.changes),
            )
        return Explanation(result, tuple(timed), tuple(watch.changes)) if explain else result

    def _note(self, error: Exception, ready: _Ready, values: list[Any]) -> None:
        if isinstance(error, InputMismatch):
            return
        failed = next((step.node.full_id for step in ready.steps if values[step.node.slot] is _UNSET), None)
        if failed is not None:
            add_note(error, f"in task {failed} of the production flow of {self.parts.program.flow!r}")


def _nested(inputs: Mapping[str, Any], name: str) -> Any:
    """Return what nested dicts hold under a name with dots."""
    for key, value in inputs.items():
        if isinstance(key, str) and name.startswith(f"{key}.") and isinstance(value, Mapping):
            rest = name[len(key) + 1 :]
            return value[rest] if rest in value else _nested(value, rest)
    return _UNSET
