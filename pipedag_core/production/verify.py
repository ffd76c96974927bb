"""Replay of the training inputs: training/serving skew as a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.flows import load_flow
from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.flow import Flow
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.walk import is_plain
from pipedag_core.errors import FlowError, ProductionError, VerificationFailed
from pipedag_core.plan.production import cut
from pipedag_core.ports.data import BatchSource, Form, StoredBlob, StoredTable
from pipedag_core.ports.stores import StoreSession
from pipedag_core.production.flow import Origin, ProductionFlow
from pipedag_core.production.frozen import map_frozen
from pipedag_core.production.program import build
from pipedag_core.production.shapes import listed
from pipedag_core.production.snapshot import Snapshot, open_snapshot
from pipedag_core.run.inputs import leaves
from pipedag_core.run.loading import read_blob
from pipedag_core.runner import configuration

#: Rows that are shown of a difference.
_SHOWN = 5


@final
@dataclass(frozen=True, slots=True)
class Verification:
    """What a replay found.

    Attributes:
        compared: (output, rows that were equal, or None for a value).
        changes: Which tasks change arguments in place. Harmless to others, as frames are kept apart; a blob is not.
        notes: What could not be compared, and why.
    """

    compared: tuple[tuple[str, int | None], ...]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"equal: {name}" + (f" ({rows:,} rows)" if rows is not None else "") for name, rows in self.compared]
        return "\n".join(
            [*lines, *(f"changed in place: {change}" for change in self.changes), *(f"not compared: {note}" for note in self.notes)]
        )


def verify(
    prod: ProductionFlow,
    origin: Origin | None,
    config: PipedagConfig | ConfigContext | None,
    instance: str | None,
    flow: Flow | tuple[Flow, InOutSpecification] | None,
    tolerance: float,
    tolerances: Mapping[str, float],
) -> Verification:
    """Run the production flow on the training inputs and compare with the committed output; see `ProductionFlow.verify`."""
    found = (
        origin
        if origin is not None and flow is None and config is None and instance is None
        else _found(prod, origin, config, instance, flow)
    )
    program, places = build(found.cut)
    with open_snapshot(found.flow, found.context) as snapshot:
        _same_generations(prod, snapshot)
        with snapshot.session.tables.session("ProductionFlow.verify") as access:
            inputs = {name: _loaded(snapshot, access, snapshot.value(places[slot])) for name, slot in program.inputs.items()}
            expected = _expected(snapshot, access, found)
        explained = prod.run(inputs, list(program.outputs), explain=True, debug=True)
    problems: list[str] = []
    notes: list[str] = []
    compared: list[tuple[str, int | None]] = []
    for name in program.outputs:
        if name not in expected:
            notes.append(f"{name}: training has committed no value for it")
            continue
        compared += _compare(name, expected[name], explained.output[name], prod, tolerance, tolerances, problems)
    if problems:
        changes = "".join(f"\n* {change} in place" for change in explained.changes)
        raise VerificationFailed(
            f"The production flow of {program.flow!r} does not give what training has committed on instance {found.context.instance_name!r}:\n"
            f"{listed(problems)}{changes}",
            problems=tuple(problems),
        )
    return Verification(tuple(compared), explained.changes, tuple(notes))


def _found(
    prod: ProductionFlow,
    origin: Origin | None,
    config: PipedagConfig | ConfigContext | None,
    instance: str | None,
    flow: Flow | tuple[Flow, InOutSpecification] | None,
) -> Origin:
    """Return the training flow that a production flow was made of: the one given, or the one its provenance names."""
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
        if isinstance(item, StoredTable):
            source = access.read(item, Form.BATCHES)
            assert isinstance(source, BatchSource)
            return import_module("pyarrow").RecordBatchReader.from_stream(source.stream).read_all().replace_schema_metadata(None)
        return read_blob(snapshot.session, item) if isinstance(item, StoredBlob) else item

    return map_frozen(value, leaf)


def _expected(snapshot: Snapshot, access: StoreSession, found: Origin) -> dict[str, Any]:
    expected: dict[str, Any] = {}
    for name, nest in found.cut.outputs.items():
        try:
            expected[name] = _loaded(snapshot, access, evaluate(nest, snapshot.values.__getitem__))
        except (KeyError, FlowError):
            continue
    return expected


# --- comparing ------------------------------------------------------------------------------------------------------------------------


def _compare(
    name: str, expected: Any, got: Any, prod: ProductionFlow, tolerance: float, tolerances: Mapping[str, float], problems: list[str]
) -> Iterator[tuple[str, int | None]]:
    left, right = dict(leaves(expected, name)), dict(leaves(got, name))
    if list(left) != list(right):
        missing, extra = [path for path in left if path not in right], [path for path in right if path not in left]
        problems.append(f"{name}: missing: {', '.join(missing) or 'nothing'}; not in training: {', '.join(extra) or 'nothing'}")
        return
    for path, before in left.items():
        after = right[path]
        if prod.is_frame(before):
            if not prod.is_frame(after):
                problems.append(f"{path}: expected a table, got {type(after).__name__}")
                continue
            first, second = prod.to_arrow(before), prod.to_arrow(after)
            problem = compare_tables(first, second, tolerance, tolerances)
            if problem:
                problems.append(f"{path}: {problem}")
            else:
                yield path, first.num_rows
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


def compare_tables(before: Any, after: Any, tolerance: float, tolerances: Mapping[str, float]) -> str:
    """Say how two Arrow tables differ, whatever the order of their rows; "" if they do not.

    Args:
        before, after: What is expected, and what there is.
        tolerance: Relative and absolute difference that numbers with a fraction may have.
        tolerances: The same by column.
    """
    if sorted(before.schema.names) != sorted(after.schema.names):
        missing = [name for name in before.schema.names if name not in after.schema.names]
        extra = [name for name in after.schema.names if name not in before.schema.names]
        return f"columns differ; missing: {', '.join(missing) or 'none'}; not in training: {', '.join(extra) or 'none'}"
    if before.num_rows != after.num_rows:
        return f"expected {before.num_rows:,} rows, got {after.num_rows:,}"
    after = after.select(before.schema.names)
    pa, pc = import_module("pyarrow"), import_module("pyarrow.compute")
    columns: list[Any] = []
    for item in before.schema:
        column = after.column(item.name)
        if column.type != item.type:
            try:
                column = column.cast(item.type)
            except pa.ArrowException:
                return f"column {item.name!r}: expected {item.type}, got {column.type}"
        columns.append(column)
    after = pa.Table.from_arrays(columns, schema=pa.schema([pa.field(item.name, item.type) for item in before.schema]))
    return _different_rows(pa, pc, before, after, tolerance, tolerances)


def _different_rows(pa: Any, pc: Any, before: Any, after: Any, tolerance: float, tolerances: Mapping[str, float]) -> str:
    """Sort both by all columns that are compared exactly, then by the others, and compare row by row."""
    inexact = [item.name for item in before.schema if pa.types.is_floating(item.type) or pa.types.is_decimal(item.type)]
    exact = [name for name in before.schema.names if name not in inexact]
    try:
        sides = [
            table.take(pc.sort_indices(_sortable(pa, pc, table), sort_keys=[(name, "ascending") for name in (*exact, *inexact)]))
            for table in (before, after)
        ]
    except (pa.ArrowException, TypeError):
        sides = [before, after]
    wrong: list[tuple[str, Any]] = []
    for name in before.schema.names:
        first, second = (side.column(name).combine_chunks() for side in sides)
        same = _same(pa, pc, first, second, tolerances.get(name, tolerance) if name in inexact else None)
        if not all(same):
            wrong.append((name, [number for number, equal in enumerate(same) if not equal]))
    if not wrong:
        return ""
    rows = sorted({number for _, numbers in wrong for number in numbers})
    shown = [
        "  expected " + str(sides[0].slice(number, 1).to_pylist()[0]) + "\n  got      " + str(sides[1].slice(number, 1).to_pylist()[0])
        for number in rows[:_SHOWN]
    ]
    names = ", ".join(f"{name!r} ({len(numbers):,} rows)" for name, numbers in wrong)
    return f"{len(rows):,} of {before.num_rows:,} rows differ, in {names}; the first:\n" + "\n".join(shown)


def _sortable(pa: Any, pc: Any, table: Any) -> Any:
    """Return a table whose numbers are rounded, so that noise does not change the order of rows."""
    columns: list[Any] = []
    for item, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_floating(item.type):
            # Single precision keeps seven digits.
            columns.append(pc.cast(column, pa.float32(), safe=False))
        elif pa.types.is_dictionary(item.type):
            columns.append(column.cast(item.type.value_type))
        else:
            columns.append(column)
    return pa.table(columns, names=table.schema.names)


def _same(pa: Any, pc: Any, first: Any, second: Any, tolerance: float | None) -> list[bool]:
    if tolerance is None or not pa.types.is_floating(first.type):
        if first.equals(second):
            return []
        return [one == two for one, two in zip(first.to_pylist(), second.to_pylist(), strict=True)]
    both_null = pc.and_(pc.is_null(first, nan_is_null=True), pc.is_null(second, nan_is_null=True))
    # Equal infinities have no difference.
    near = pc.less_equal(
        pc.abs(pc.subtract(first, second)), pc.add(pc.multiply(pc.abs(first), tolerance), pa.scalar(tolerance, first.type))
    )
    equal = pc.or_kleene(pc.equal(first, second), near)
    return pc.or_(both_null, pc.fill_null(equal, False)).to_pylist()
