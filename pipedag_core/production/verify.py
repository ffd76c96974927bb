"""Replay of the training inputs: training/serving skew as a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.flows import load_flow
from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.flow import Flow
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.walk import is_plain
from pipedag_core.errors import FlowError, ProductionError, VerificationFailed
from pipedag_core.plan.production import cut
from pipedag_core.plan.specification import Place
from pipedag_core.ports.data import BatchSource, Form, StoredBlob, StoredTable, TableSource
from pipedag_core.ports.stores import StoreSession
from pipedag_core.production.comparing import compare_tables
from pipedag_core.production.flow import Origin, ProductionFlow
from pipedag_core.production.frozen import map_frozen
from pipedag_core.production.program import Program, build
from pipedag_core.production.shapes import listed
from pipedag_core.production.snapshot import Snapshot, open_snapshot
from pipedag_core.run.inputs import leaves
from pipedag_core.run.loading import read_blob


@final
@dataclass(frozen=True, slots=True)
class Verification:
    """What a replay found.

    Attributes:
        compared: (output, rows that were equal, or None for a value).
        changes: Which tasks change arguments in place. Harmless to others, as frames are kept apart; a blob is not.
        notes: What could not be compared, and why; and rows that training left out, where something is ignored.
    """

    compared: tuple[tuple[str, int | None], ...]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"equal: {name}" + (f" ({rows:,} rows)" if rows is not None else "") for name, rows in self.compared]
        return "\n".join([*lines, *(f"changed in place: {change}" for change in self.changes), *(f"note: {note}" for note in self.notes)])


def verify(
    prod: ProductionFlow,
    origin: Origin | None,
    config: PipedagConfig | ConfigContext | None,
    instance: str | None,
    flow: Flow | tuple[Flow, InOutSpecification] | None,
    tolerance: float,
    tolerances: Mapping[str, float],
) -> Verification:
    """Run the production flow on the training inputs and compare with the committed output; see `ProductionFlow.verify`.

    Tables with a primary key are compared by it, others after sorting. Where something is ignored, the production flow may give more rows than training:
    what is ignored may have said which rows to leave out.
    """
    found = _found(prod, origin, config, instance, flow)
    program, places = build(found.cut)
    with open_snapshot(found.flow, found.context) as snapshot:
        _same_generations(prod, snapshot)
        with snapshot.session.tables.session("ProductionFlow.verify") as access:
            inputs = _inputs(snapshot, access, program, places)
            stored = _expected(snapshot, found)
            keys = _keys(stored)
            expected = {name: _loaded(snapshot, access, value) for name, value in stored.items()}
        explained = prod.run(inputs, list(program.outputs), explain=True, debug=True)
    problems: list[str] = []
    notes: list[str] = []
    compared: list[tuple[str, int | None]] = []
    for name in program.outputs:
        if name not in expected:
            notes.append(f"{name}: training has committed no value for it")
            continue
        compared += _compare(name, expected[name], explained.output[name], keys, prod, tolerance, tolerances, problems, notes)
    if problems:
        changes = "".join(f"\n* {change} in place" for change in explained.changes)
        raise VerificationFailed(
            f"The production flow of {program.flow!r} does not give what training has committed on instance {found.context.instance_name!r}:\n"
            f"{listed(problems)}{changes}",
            problems=tuple(problems),
        )
    return Verification(tuple(compared), explained.changes, tuple(notes))


def training_inputs(
    prod: ProductionFlow,
    origin: Origin | None,
    config: PipedagConfig | ConfigContext | None,
    instance: str | None,
    flow: Flow | tuple[Flow, InOutSpecification] | None,
) -> dict[str, Any]:
    """Return the inputs that training has committed; see `ProductionFlow.training_inputs`."""
    found = _found(prod, origin, config, instance, flow)
    program, places = build(found.cut)
    with open_snapshot(found.flow, found.context) as snapshot:
        _same_generations(prod, snapshot)
        with snapshot.session.tables.session("ProductionFlow.training_inputs") as access:
            return _inputs(snapshot, access, program, places)


def _inputs(snapshot: Snapshot, access: StoreSession, program: Program, places: Mapping[int, Place]) -> dict[str, Any]:
    return {name: _loaded(snapshot, access, snapshot.value(places[slot])) for name, slot in program.inputs.items()}


def _found(
    prod: ProductionFlow,
    origin: Origin | None,
    config: PipedagConfig | ConfigContext | None,
    instance: str | None,
    flow: Flow | tuple[Flow, InOutSpecification] | None,
) -> Origin:
    """Return the training flow that a production flow was made of: the one given, or the one its provenance names."""
    if origin is not None and flow is None and config is None and instance is None:
        return origin
    provenance = prod.provenance
    name = prod.parts.program.flow
    context = configuration(config, instance or (provenance["instance"] if config is None else None), name)
    spec: Any = None
    if origin is not None and flow is None:
        return Origin(origin.flow, origin.cut, context)
    if flow is None:
        if provenance.get("source") is None:
            raise ProductionError(
                f"The flow {name!r} has no import reference, so the training flow cannot be found. Pass it, with its specification: "
                "prod.verify(flow=(flow, specification))."
            )
        flow, spec = load_flow(provenance["source"], context.attrs)
    elif isinstance(flow, tuple):
        flow, spec = flow
    if not isinstance(spec, InOutSpecification):
        raise ProductionError(
            f"{provenance.get('source') or 'What was passed'} gives a flow without its specification. Return (flow, specification) from the factory, or "
            "pass flow=(flow, specification)."
        )
    assert isinstance(flow, Flow)
    return Origin(flow, cut(flow, spec), context)


def _same_generations(prod: ProductionFlow, snapshot: Snapshot) -> None:
    known = prod.provenance["stages"]
    now = {task.stage.name: result.generation for task, result in snapshot.results.items()}
    moved = [
        f"{stage} (g{row['generation']} -> {f'g{now[stage]}' if stage in now else 'gone'})"
        for stage, row in known.items()
        if now.get(stage) != row["generation"]
    ]
    if moved:
        raise ProductionError(
            f"Training has gone on since this was extracted: {', '.join(moved)}. Extract again, or go back with `pipedag rollback`."
        )


def _loaded(snapshot: Snapshot, access: StoreSession, value: Any) -> Any:
    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, TableSource):
            source = access.read(item, Form.BATCHES)
            assert isinstance(source, BatchSource)
            return import_module("pyarrow").RecordBatchReader.from_stream(source.stream).read_all().replace_schema_metadata(None)
        return read_blob(snapshot.session, item) if isinstance(item, StoredBlob) else item

    return map_frozen(value, leaf)


def _expected(snapshot: Snapshot, found: Origin) -> dict[str, Any]:
    """Return what training has committed, as it is stored: name -> nest."""
    expected: dict[str, Any] = {}
    for name, nest in found.cut.outputs.items():
        try:
            expected[name] = evaluate(nest, snapshot.values.__getitem__)
        except (KeyError, FlowError):
            continue
    return expected


def _keys(expected: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the primary keys of all tables: path -> columns, none if none is declared."""
    found = [pair for name, value in expected.items() for pair in leaves(value, name)]
    return {
        path: leaf.options.primary_key if isinstance(leaf, StoredTable) else () for path, leaf in found if isinstance(leaf, TableSource)
    }


# --- comparing ------------------------------------------------------------------------------------------------------------------------


def _compare(
    name: str,
    expected: Any,
    got: Any,
    keys: Mapping[str, Sequence[str]],
    prod: ProductionFlow,
    tolerance: float,
    tolerances: Mapping[str, float],
    problems: list[str],
    notes: list[str],
) -> Iterator[tuple[str, int | None]]:
    left, right = dict(leaves(expected, name)), dict(leaves(got, name))
    if list(left) != list(right):
        missing, extra = [path for path in left if path not in right], [path for path in right if path not in left]
        problems.append(f"{name}: missing: {', '.join(missing) or 'nothing'}; not in training: {', '.join(extra) or 'nothing'}")
        return
    # What is ignored may be what told training to leave rows out.
    may_have_more = bool(prod.parts.program.ignored)
    for path, before in left.items():
        after = right[path]
        if path in keys:
            if not prod.is_frame(after):
                problems.append(f"{path}: expected a table, got {type(after).__name__}")
                continue
            first, second = prod.to_arrow(before), prod.to_arrow(after)
            found = compare_tables(first, second, tolerance, tolerances, keys[path], may_have_more=may_have_more)
            if found.problem:
                problems.append(f"{path}: {found.problem}")
                continue
            if found.extra:
                notes.append(f"{path}: {found.extra:,} rows that training left out, as something is ignored")
            yield path, found.rows
        elif _equal_values(before, after, tolerance):
            yield path, None
        else:
            problems.append(f"{path}: expected {before!r:.80}, got {after!r:.80}")


def _equal_values(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, float) and isinstance(after, (int, float)):
        return before == after or abs(before - after) <= tolerance * max(1.0, abs(before)) or (before != before and after != after)  # noqa: PLR0124 -- NaN
    if is_plain(before):
        return bool(before == after)
    import pickle

    # Objects without an order of their own are compared by what they are made of.
    return pickle.dumps(before) == pickle.dumps(after)
