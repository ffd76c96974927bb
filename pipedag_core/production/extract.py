"""`flow.extract(...)`: carve the production flow out, and freeze what it needs from one snapshot of what training has committed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipedag_core.arrow_schema import to_arrow
from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.flow import Flow
from pipedag_core.define.inout import InOutSpecification
from pipedag_core.define.task import Task
from pipedag_core.define.walk import segment
from pipedag_core.errors import ExtractionRefused, FlowError, PipedagError
from pipedag_core.plan.production import Cut, cut, refused
from pipedag_core.plan.specification import Place
from pipedag_core.ports.catalogs import FoundResult
from pipedag_core.ports.data import BatchSource, FileSource, Form, StoredBlob, StoredTable, TableSource
from pipedag_core.ports.stores import StoreSession
from pipedag_core.production.flow import Origin, Parts, ProductionFlow
from pipedag_core.production.frozen import FrozenBlob, FrozenTable, map_frozen, parquet_of
from pipedag_core.production.program import build
from pipedag_core.production.shapes import shape_of
from pipedag_core.production.snapshot import Snapshot, command, open_snapshot
from pipedag_core.run.inputs import leaves
from pipedag_core.run.loading import read_blob
from pipedag_core.run.result import tasks_of
from pipedag_core.run.session import Session
from pipedag_core.run.today import why_stale


def extract_flow(
    flow: Flow, specification: InOutSpecification, config: PipedagConfig | ConfigContext | None = None, instance: str | None = None
) -> ProductionFlow:
    """Return the production flow of a flow: what `flow.extract(...)` calls.

    Args:
        flow: The training flow.
        specification: What comes in, what goes out, what is frozen and what is left out.
        config, instance: Where it was trained; as for `flow.run`.

    Raises:
        ExtractionRefused: It cannot be carved out or frozen; the message lists everything that is in the way.
    """
    if not isinstance(specification, InOutSpecification):
        raise ExtractionRefused(f"flow.extract takes an InOutSpecification, not {type(specification).__name__}: {specification!r:.80}.")
    carved = cut(flow, specification)
    try:
        program, places = build(carved)
    except PipedagError as error:
        raise refused(flow, [str(error)]) from error
    context = configuration(config, instance, flow.name)
    with open_snapshot(flow, context) as snapshot:
        problems = [*_absent(snapshot, carved, context), *_stale(snapshot, carved, context)]
        if problems:
            raise refused(flow, problems)
        program = replace(
            program,
            nodes=tuple(replace(node, names=_names(snapshot, task)) for node, task in zip(program.nodes, carved.tasks, strict=True)),
        )
        consts = _frozen(snapshot, {slot: places[slot] for slot in program.consts})
        parts = Parts(
            program=program,
            consts=consts,
            inputs={name: shape_of(snapshot.value(places[slot])) for name, slot in program.inputs.items()},
            outputs={name: shape for name, value in carved.outputs.items() if (shape := _output_shape(snapshot, value)) is not None},
            dialect=snapshot.session.tables.capabilities.dialect,
            hook_args={key: dict(value) for key, value in context.hook_args.items()},
            table_hooks=dict(context.table_hooks),
            provenance=_provenance(snapshot, carved, context),
        )
        made = ProductionFlow(parts, Origin(flow, carved, context))
        problems = _unable(
            snapshot, made, {**places, **{node.slot: Place(task) for node, task in zip(program.nodes, carved.tasks, strict=True)}}
        )
        if problems:
            raise refused(flow, problems)
    return made


# --- what is in the way ---------------------------------------------------------------------------------------------------------------


def _absent(snapshot: Snapshot, carved: Cut, context: ConfigContext) -> list[str]:
    problems: list[str] = []
    wanted = [*((place, "const") for place in carved.consts), *((place, "input") for place in carved.inputs.values())]
    for place, role in wanted:
        if place.task not in snapshot.values:
            other = snapshot.session.catalog.previous(place.task.stage.name, place.task.id)
            why = "was never computed" if other is None else "has no committed value for the flow as it is wired now"
            what = "its value is frozen" if role == "const" else "its schema is what inputs are checked against"
            problems.append(
                f"the {role} {place!r} {why} on instance {context.instance_name!r}; {what}. Compute it: {command(snapshot.flow, context)}"
            )
            continue
        try:
            snapshot.value(place)
        except FlowError as error:
            problems.append(f"the {role} {place!r}: {error}")
    return problems


def _stale(snapshot: Snapshot, carved: Cut, context: ConfigContext) -> list[str]:
    """Hold the consts, and all that they were made from, against what today's plan gives on the snapshot."""
    behind: dict[Task, set[str]] = {}
    for place in (place for place in carved.consts if place.task in snapshot.values):
        todo = [place.task]
        while todo:
            task = todo.pop()
            if repr(place) not in behind.setdefault(task, set()):
                behind[task].add(repr(place))
                todo += task.upstream
    problems: list[str] = []
    for task in sorted(behind, key=lambda item: item.number):
        consts = ", ".join(sorted(behind[task]))
        if task not in snapshot.results:
            # A const that is itself missing is told of elsewhere.
            if all(place.task is not task for place in carved.consts):
                problems.append(
                    f"the const{'s' if ',' in consts else ''} {consts} cannot be trusted: {task.full_id}, from which it was made, has no committed "
                    f"result for the flow as it is wired now. Run the flow: {command(snapshot.flow, context)}"
                )
            continue
        if any(up not in snapshot.results for up in task.upstream):
            continue
        try:
            reason = why_stale(snapshot.session, snapshot.run, snapshot.flow, snapshot.plan, task, snapshot.results[task].result)
        except Exception as error:  # noqa: BLE001 -- users' functions are asked for their queries here
            reason = f"its fingerprint cannot be made: {type(error).__name__}: {error}"
        if reason:
            problems.append(
                f"the const{'s' if ',' in consts else ''} {consts} would be stale: {task.full_id} is not what the code makes of the same inputs today "
                f"({reason}). Run the flow: {command(snapshot.flow, context)}, or go back to the code that it was trained with"
            )
    return problems


def _unable(snapshot: Snapshot, made: ProductionFlow, places: Mapping[int, Place]) -> list[str]:
    """Let every SQL task make its queries on tables without rows, so that what needs a database is found now and not when it serves."""
    known = {slot: map_frozen(snapshot.value(place), _without_rows) for slot, place in places.items() if place.task in snapshot.values}
    problems: list[str] = []
    for node, reason in made.try_sql(known):
        told = str(reason) if isinstance(reason, PipedagError) else f"{type(reason).__name__}: {reason}"
        problems.append(f"{node} cannot run without a database: {told}")
    return problems


def _without_rows(item: Any, path: str) -> Any:
    return to_arrow(item.schema).empty_table() if isinstance(item, TableSource) else item


# --- freezing -------------------------------------------------------------------------------------------------------------------------


def _frozen(snapshot: Snapshot, places: Mapping[int, Place]) -> dict[int, Any]:
    session = snapshot.session
    with session.tables.session("flow.extract") as access:

        def leaf(item: Any, path: str) -> Any:
            if isinstance(item, TableSource):
                return FrozenTable(_parquet(access, item, session), item.told)
            if isinstance(item, StoredBlob):
                return FrozenBlob(read_blob(session, item), f"{item.stage}.{item.name}")
            return item

        return {slot: map_frozen(snapshot.value(place), leaf) for slot, place in places.items()}


def _parquet(access: StoreSession, table: TableSource, session: Session) -> bytes:
    if isinstance(table, StoredTable) and Form.FILES in session.tables.capabilities.reads:
        source = access.read(table, Form.FILES)
        if isinstance(source, FileSource) and len(source.paths) == 1 and "://" not in source.paths[0]:
            return Path(source.paths[0]).read_bytes()
    source = access.read(table, Form.BATCHES)
    assert isinstance(source, BatchSource)
    return parquet_of(import_module("pyarrow").RecordBatchReader.from_stream(source.stream).read_all())


def _names(snapshot: Snapshot, task: Task) -> dict[str, tuple[str, str]]:
    """Return what the tables among a task's arguments were called in training, as far as they are there."""
    if any(up not in snapshot.values for up in task.upstream):
        return {}
    try:
        arguments = {label: evaluate(value, snapshot.values.__getitem__) for label, value in task.parameters.items()}
    except FlowError:
        return {}
    found = [pair for label, value in arguments.items() for pair in leaves(value, segment(label))]
    return {path: (leaf.stage, leaf.name) for path, leaf in found if isinstance(leaf, StoredTable)}


def _output_shape(snapshot: Snapshot, value: Any) -> Any:
    if any(task not in snapshot.values for task in tasks_of(value)):
        return None
    try:
        return shape_of(evaluate(value, snapshot.values.__getitem__))
    except FlowError:
        return None


def _provenance(snapshot: Snapshot, carved: Cut, context: ConfigContext) -> dict[str, Any]:
    generations = {task.stage.name: result.generation for task, result in snapshot.results.items()}
    made_by = {(row.stage, row.number): row.run_id for row in snapshot.session.catalog.generations()}
    tasks = sorted({place.task for place in (*carved.consts, *carved.inputs.values())}, key=lambda task: task.number)
    return {
        "flow": snapshot.flow.name,
        "source": snapshot.flow.source,
        "instance": context.instance_name,
        "wiring": snapshot.plan.digest,
        "stages": {stage: {"generation": number, "run": made_by.get((stage, number), "")} for stage, number in sorted(generations.items())},
        "tasks": {task.full_id: _told(snapshot.results[task]) for task in tasks},
        "git": _git(carved.tasks or snapshot.flow.tasks),
        "python": platform.python_version(),
        "pipedag-core": version("pipedag-core"),
    }


def _told(found: FoundResult) -> dict[str, Any]:
    return {
        "fingerprint": found.result.fingerprint,
        "parts": dict(found.result.parts),
        "identities": {name: found.objects[id].identity for name, id in found.result.entries.items() if id in found.objects},
    }


def _git(tasks: Iterable[Task]) -> dict[str, Any] | None:
    """Return the commit of the code, and whether it was changed since; None where there is no repository."""
    for task in tasks:
        file = getattr(getattr(task.fn, "__code__", None), "co_filename", "")
        if Path(file).is_file():
            folder = Path(file).parent
            with suppress(OSError, subprocess.SubprocessError):
                told = [
                    subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603, S607 -- constant words
                    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
                ]
                return {"commit": told[0], "changed": bool(told[1])}
            return None
    return None
