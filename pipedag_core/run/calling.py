"""Calls the user's code for a task step: the function on its arguments, on empty ones, and the cache function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from pipedag_core.cache import codec, fingerprint
from pipedag_core.define import context
from pipedag_core.define.context import TaskContext
from pipedag_core.define.values import Table
from pipedag_core.errors import MaterializationError, TracingRefused, UnsupportedByStore, UnsupportedValue
from pipedag_core.plan.outputs import beside_path
from pipedag_core.ports.catalogs import NewObject
from pipedag_core.ports.hooks import TracingHook
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run import late
from pipedag_core.run.inputs import INPUTS, map_inputs
from pipedag_core.run.job import Job, refuse_fresh_input
from pipedag_core.run.loading import Loaded, load, load_empty
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.midway import Midway, check_options, put_beside
from pipedag_core.run.notes import add_note
from pipedag_core.run.slots import Mark, Place, Policy, Slot, collect, marked_text, refuse_opaque, table_slot


def call_task(
    job: Job, access: StoreSession, policy: Policy, early: list[NewObject], *, writes: bool = True
) -> tuple[Place, Any, list[Slot]]:
    """Load the arguments and call the function. The arguments are let go of before anything of its output is written.

    `early`: gets what the function writes itself, by `Table.materialize()`.
    """
    loaded = load(job.session, access, job.task, job.inputs)
    if not job.task.options.takes_late and late.has_late(job.inputs.parameters):
        parameters, made = late.supply(loaded.parameters, _task_context(job))
        job.remembered.update(made)
        loaded = replace(loaded, parameters=parameters)

    def before_query() -> None:
        if policy.kind == "lazy" and policy.lookup:
            refuse_fresh_input(job, lazy=True)

    midway = Midway(place_of(job, access, loaded), job.generation.number, policy, early, before_query, writes=writes)
    try:
        value = _call(job, loaded, midway.materialize)
    finally:
        midway.end()
    _check_count(job, value)
    marked, slots = midway.beside(*collect(midway.place, value))
    return midway.place, marked, slots


def trace_task(job: Job) -> str:
    """Return what an AUTO_VERSION task would do, as canonical text."""
    with job.session.tables.session(f"{job.plan.flow}: {job.planned.id} (tracing)") as access:
        loaded = load_empty(job.session, access, job.task, job.inputs)
        if not job.task.options.takes_late and late.has_late(job.inputs.parameters):
            loaded = replace(loaded, parameters=late.supply(loaded.parameters, None)[0])
        place = place_of(job, access, loaded)
        midway: list[Table[Any]] = []

        def note(table: Table[Any], *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
            check_options(job.who, config_context, schema)
            midway.append(table)
            return (table.obj,) * len(cast("Sequence[Any]", return_as_type)) if isinstance(return_as_type, (tuple, list)) else table.obj

        try:
            value = _call(job, loaded, note)
        except BaseException as error:
            add_note(error, f"while AUTO_VERSION called task {job.planned.id} on empty inputs to see what it would do")
            raise
        more = [table_slot(place, table, beside_path(number)) for number, table in enumerate(midway)]
        marked, slots = put_beside(*collect(place, value), more)
        refuse_opaque(place, slots)
        if not slots:
            raise TracingRefused(
                f"{job.who} has version=AUTO_VERSION but returned no table, so there is no expression to make a version of. "
                "Give it a version such as version='1.0'.",
                stage=job.planned.stage,
                task=job.planned.task,
            )

        def leaf(item: Mark) -> Mapping[str, Any]:
            slot = slots[item.index]
            options = [slot.declared, fingerprint.options_text(slot.options)]
            if slot.stored is not None:
                return {"$": "input", "identity": slot.stored.identity, "options": options}
            if not isinstance(slot.hook, TracingHook):
                raise TracingRefused(
                    f"{job.who} has version=AUTO_VERSION and returned a {type(slot.obj).__name__} at {slot.path or 'the top'}, which cannot be seen into. "
                    "Return a lazy frame or a DuckDB relation, or give the task a version such as version='1.0'.",
                    stage=job.planned.stage,
                    task=job.planned.task,
                )
            return {"$": "trace", "text": slot.hook.trace(slot.obj), "options": options}

        return marked_text(marked, leaf)


def call_cache_function(job: Job) -> str | None:
    """Return the cache function's value as canonical JSON; None without one."""
    cache = job.task.options.cache
    if cache is None:
        return None
    if job.run.options.disable_cache_function:
        return codec.dumps({"disabled": fingerprint.nonce()})
    parameters = {name: map_inputs(value, lambda leaf, _: leaf, name) for name, value in job.inputs.parameters.items()}
    if not job.task.options.takes_late and late.has_late(job.inputs.parameters):
        parameters, _ = late.supply(parameters, None)
    args, kwargs = job.task.bind(parameters)

    def leaf(item: Any, _path: str) -> Mapping[str, Any] | None:
        return {"$": "input", "identity": item.identity} if isinstance(item, INPUTS) else None

    with _context(job):
        try:
            value = map_inputs(cache(*args, **kwargs), lambda item, _: item, "")
        except BaseException as error:
            add_note(error, f"in the cache function of task {job.planned.id} of flow {job.plan.flow!r}, run {job.run.id}")
            raise
    try:
        return codec.dumps(codec.encode(value, leaf))
    except UnsupportedValue as error:
        raise UnsupportedValue(
            f"The cache function of task {job.planned.id} (flow {job.plan.flow!r}) returned a value of type {error.__dict__.get('type')}, which cannot be "
            "compared with that of an earlier run. Return text, numbers, dates or nests of them, such as a date, an ETag, or a file's size and time.",
            stage=job.planned.stage,
            task=job.planned.task,
            path=error.__dict__.get("path", ""),
        ) from error


def _check_count(job: Job, value: Any) -> None:
    """A task that is declared to return n things returns n things."""
    wanted = job.task.options.nout
    if wanted is None or (isinstance(value, (tuple, list)) and len(cast("Sequence[Any]", value)) == wanted):
        return
    count = f"{len(cast('Sequence[Any]', value))} items" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    raise MaterializationError(
        f"{job.who} is declared with nout={wanted}, but returned {count}. Change nout, or what the task returns.",
        flow=job.plan.flow,
        stage=job.planned.stage,
        task=job.planned.task,
    )


def place_of(job: Job, access: StoreSession, loaded: Loaded) -> Place:
    """Return where the outputs of a task go."""
    stages = plan_lookup(job.run, job.plan).stages
    return Place(job.session, access, job.run, job.task, job.planned.stage, job.planned.position, stages, loaded.inputs, loaded.references)


def _task_context(job: Job, materialize: Callable[..., Any] | None = None) -> TaskContext:
    def earlier(source: str) -> tuple[str, ...]:
        return late.earlier(job.session, job.run, job.plan, job.planned, source)

    return TaskContext(job.plan.flow, job.planned.stage, job.planned.task, job.run.id, job.session.config, materialize or _refuse, earlier)


class _context:  # noqa: N801 -- a context manager reads as a verb
    """Marks the task as the one that is executed in this thread."""

    def __init__(self, job: Job, materialize: Callable[..., Any] | None = None) -> None:
        self._value = _task_context(job, materialize)

    def __enter__(self) -> None:
        self._token = context.begin(self._value)

    def __exit__(self, *_: object) -> None:
        context.end(self._value, self._token)


def _refuse(*_: Any, **__: Any) -> Any:
    raise UnsupportedByStore("Only a task's own function can write a table with materialize(), not its cache function.")


def _call(job: Job, loaded: Loaded, materialize: Callable[..., Any]) -> Any:
    args, kwargs = job.task.bind(loaded.parameters)
    around = job.task.options.call_context or nullcontext
    with _context(job, materialize):
        try:
            with around():
                return job.task.fn(*args, **kwargs)
        except BaseException as error:
            add_note(error, f"in task {job.planned.id} of flow {job.plan.flow!r}, run {job.run.id}")
            raise
