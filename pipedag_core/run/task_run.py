"""The life of a task step: resolve, decide, and if need be load, call, write; then record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pipedag_core.cache import fingerprint
from pipedag_core.cache.fingerprint import Fingerprint
from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.define.flow import Flow
from pipedag_core.define.task import Task
from pipedag_core.errors import FreshInput, StoredDataMissing, UnsupportedValue
from pipedag_core.plan.model import Plan, PlanTask
from pipedag_core.ports.catalogs import FoundResult, GenerationKey, NewObject, TaskResult
from pipedag_core.ports.events import Outcome, PointReached, StepReport
from pipedag_core.run import outputs
from pipedag_core.run.calling import call_cache_function, call_task, place_of, trace_task
from pipedag_core.run.inputs import INPUTS, TaskInputs, decode_output, leaves, resolve
from pipedag_core.run.job import Job, refuse_fresh_input
from pipedag_core.run.loading import Loaded
from pipedag_core.run.pointing import point
from pipedag_core.run.session import Run, Session
from pipedag_core.run.slots import (
    Policy,
    Slot,
    collect,
    has_rows,
    marked_text,
    missing,
    prepare,
    query_parts,
    reuse,
)
from pipedag_core.run.versions import resolve_versions

log = logging.getLogger(__name__)

#: Times that a task is decided, where clean-up by other runs removes what was found.
_TRIES = 3


def run_task(
    session: Session,
    run: Run,
    flow: Flow,
    plan: Plan,
    planned: PlanTask,
    task: Task,
    generation: GenerationKey,
    computed: Callable[[], None] | None = None,
) -> StepReport:
    """Carry out a task step whose stage is open, and record its result.

    Returns:
        The report: CACHED if a stored result stands in, RAN otherwise.

    Raises:
        PipedagError, or whatever the task's function raises.
    """
    for _ in range(_TRIES - 1):
        try:
            return _run_once(session, run, flow, plan, planned, task, generation, computed)
        except StoredDataMissing as error:
            # Recording names what it missed: clean-up by another run came between finding stored data and pointing to it.
            if not getattr(error, "ids", ()):
                raise
            run.catalog(session).forget_all()
            log.info("Task %s is decided again, since clean-up by another run removed what it was to point to", planned.id)
    return _run_once(session, run, flow, plan, planned, task, generation, computed)


def _run_once(
    session: Session,
    run: Run,
    flow: Flow,
    plan: Plan,
    planned: PlanTask,
    task: Task,
    generation: GenerationKey,
    computed: Callable[[], None] | None,
) -> StepReport:
    started = time.monotonic()
    if task.options.versions is None:
        inputs = resolve(session, run, plan, task)
        return _decide(Job(session, run, flow, plan, planned, task, generation, inputs, started, computed))
    with ExitStack() as stack:
        inputs = resolve_versions(session, run, plan, task, stack)
        return _decide(Job(session, run, flow, plan, planned, task, generation, inputs, started, computed))


def _decide(job: Job) -> StepReport:
    run, planned, task = job.run, job.planned, job.task
    kind = planned.cached_by
    forced = _is_forced(job)
    if kind == "lazy":
        return _run_lazy(job, forced)
    if kind == "never":
        return _execute(
            job,
            Policy("never", forced, False, False, call_cache_function(job), None),
            job.inputs.parts(),
            _why_forced(job) or "no version, always runs",
        )
    token = str(task.options.version) if kind == "version" else trace_task(job)
    cache_value = call_cache_function(job)
    found, parts = _fingerprint(job, token, cache_value)
    # Equal work in one process is done once; whoever comes second finds the first one's result.
    with run.locks.hold(found.full):
        if not forced:
            report = _take_hit(job, found)
            if report is not None:
                return report
            refuse_fresh_input(job, lazy=False)
        return _execute(job, Policy(kind, forced, False, False, cache_value, found), parts, _why_forced(job) or _why(job, parts))


def _fingerprint(job: Job, token: str, cache_value: str | None) -> tuple[Fingerprint, dict[str, str]]:
    """Return the fingerprint of a task with a version, and what went into it."""
    kind = job.planned.cached_by
    parts = {
        ("version" if kind == "version" else "expression"): token if kind == "version" else fingerprint.short(token),
        **job.inputs.parts(),
    }
    if cache_value is not None:
        parts["cache function's value"] = fingerprint.short(cache_value)
    found = fingerprint.task_fingerprint(
        stage=job.planned.stage,
        task=job.task.name,
        kind=kind,
        token=token,
        arguments=job.inputs.hashed(),
        cache_value=cache_value,
        parts=parts,
    )
    return found, parts


def take_valid(
    session: Session, run: Run, flow: Flow, plan: Plan, planned: PlanTask, task: Task, generation: GenerationKey
) -> StepReport | None:
    """Let a stored result stand in for a task if its version says that it may, and record that; no code of the user's is called.

    Returns:
        The report; None if the task has to be carried out, if only to find that out.

    Raises:
        PipedagError: What it takes is not there.
    """
    options = task.options
    if planned.cached_by != "version" or options.cache is not None or options.versions is not None:
        return None
    job = Job(session, run, flow, plan, planned, task, generation, resolve(session, run, plan, task), time.monotonic(), None)
    return None if _is_forced(job) else _take_hit(job, _fingerprint(job, str(options.version), None)[0])


def take_supplied(
    session: Session, run: Run, flow: Flow, plan: Plan, planned: PlanTask, task: Task, generation: GenerationKey, value: Any
) -> StepReport:
    """Record what the caller of the run supplies as what a task gives; its function is not called.

    The result has no fingerprint, so it stands in for nothing in any other run; equal rows have the identity that they would have anyway.
    """
    job = Job(session, run, flow, plan, planned, task, generation, TaskInputs({}, {}, {}), time.monotonic(), None)
    policy = Policy("never", False, False, False, None, None)
    kept: dict[int, tuple[Any, Any]] = {id(leaf): (leaf, leaf) for _, leaf in leaves(value, "") if isinstance(leaf, INPUTS)}
    with session.tables.session(f"{plan.flow}: {planned.id} (supplied)") as access:
        place = place_of(job, access, Loaded(job.inputs, {}, kept))
        marked, slots = collect(place, value)
        prepare(place, slots, policy)
        reuse(place, slots, policy)
        output = outputs.write(place, marked, slots, generation.number, policy)
    return _record(job, _result(job, output, {}, Outcome.CACHED, "supplied for this run"), output)


# --- deciding -----------------------------------------------------------------------------------------------------------------------


def _is_forced(job: Job) -> bool:
    return bool(_why_forced(job))


def _why_forced(job: Job) -> str:
    mode = job.run.options.mode
    if mode is CacheValidationMode.FORCE_CACHE_INVALID:
        return "forced to run"
    if mode is CacheValidationMode.FORCE_FRESH_INPUT and job.task.options.cache is not None:
        return "forced to read fresh input"
    # Recorded like every forced run, so that the next run finds this result and not the older one of the same version.
    ignored = job.run.options.ignore_task_version and job.planned.version and job.planned.cached_by != "auto"
    return "task version ignored" if ignored else ""


def _why(job: Job, parts: Mapping[str, str]) -> str:
    before = job.catalog.previous(job.planned.stage, job.planned.task)
    reason = fingerprint.explain(before.parts if before is not None else None, parts)
    return reason or "stored result is gone, or has other tables than outputs= declares"


def _find(job: Job, wanted: Fingerprint) -> FoundResult | None:
    base = _by_base(job)
    hit = job.catalog.find_result(job.planned.stage, wanted.base if base else wanted.full, base=base)
    if hit is None:
        return None
    gone = missing(job.session, job.run, list(hit.objects.values()))
    if gone:
        names = sorted(item.name for item in hit.objects.values() if item.id in gone)
        log.warning("%s: stored %s is gone or damaged; the task runs again", job.who, ", ".join(names))
        return None
    return hit if _is_declared(job, hit) and _is_readable(job, hit) else None


def _is_readable(job: Job, hit: FoundResult) -> bool:
    """Return whether the classes of stored values are still there, and as they were; looked into only where there may be any."""
    if '"type":' not in hit.result.output:
        return True
    try:
        decode_output(hit)
    except UnsupportedValue as error:
        log.warning("%s runs again, since its stored result cannot be read any more. %s", job.who, error)
        return False
    return True


def _is_declared(job: Job, hit: FoundResult) -> bool:
    """Return whether a stored result has the tables that the task declares today."""
    declared = job.task.options.outputs
    return declared is None or set(declared) == set(_entries_of(job, hit))


def _entries_of(job: Job, hit: FoundResult) -> dict[str, str]:
    same_place = hit.result.task == job.planned.task and hit.result.position == job.planned.position
    return point(job.task, job.planned.position, json.loads(hit.result.output), hit.result.entries if same_place else None)


def _take_hit(job: Job, wanted: Fingerprint) -> StepReport | None:
    """Let a stored result stand in, if there is one; None if the task has to run."""
    hit = _find(job, wanted)
    if hit is None:
        return None
    try:
        return _record_hit(job, hit)
    except StoredDataMissing:
        # Clean-up by another run came between finding and recording.
        return None


def _by_base(job: Job) -> bool:
    return job.run.options.mode is CacheValidationMode.IGNORE_FRESH_INPUT and job.task.options.cache is not None


# --- carrying out -------------------------------------------------------------------------------------------------------------------


def _execute(job: Job, policy: Policy, parts: Mapping[str, str], reason: str) -> StepReport:
    with _removed_on_failure(job) as early, job.session.tables.session(f"{job.plan.flow}: {job.planned.id}") as access:
        place, marked, slots = call_task(job, access, policy, early)
        prepare(place, slots, policy)
        reuse(place, slots, policy)
        _tell_computed(job, slots)
        output = outputs.write(place, marked, slots, job.generation.number, policy)
    output.new += early
    key = policy.fingerprint
    result = _result(job, output, parts, Outcome.RAN, reason)
    return _record(job, replace(result, fingerprint=key.full if key else "", base_fingerprint=key.base if key else ""), output)


def _run_lazy(job: Job, forced: bool) -> StepReport:
    cache_value = call_cache_function(job)
    policy = Policy("lazy", forced, not forced, _by_base(job), cache_value, None)
    with _removed_on_failure(job) as early, job.session.tables.session(f"{job.plan.flow}: {job.planned.id}") as access:
        place, marked, slots = call_task(job, access, policy, early)
        prepare(place, slots, policy)
        parts = {**query_parts(slots, place.inputs), **job.inputs.parts()}
        if job.task.options.version is not None:
            parts = {"version": str(job.task.options.version), **parts}
        if cache_value is not None:
            parts["cache function's value"] = fingerprint.short(cache_value)
        # Names of a script's tables are known only when it has run, so its result is found as a whole.
        script = None
        token = _script_token(marked, slots)
        if token is not None:
            script = fingerprint.task_fingerprint(
                stage=job.planned.stage,
                task=job.task.name,
                kind="lazy",
                token=token,
                arguments=job.inputs.hashed(),
                cache_value=cache_value,
                parts=parts,
            )
        keys = [slot.key for slot in slots if slot.key is not None]
        # What has no key can be equal to nothing, so it need not wait for anything either.
        lock = script.full if script else fingerprint.short("lazy" + "".join(keys)) if keys else fingerprint.nonce()
        with job.run.locks.hold(lock):
            if script is not None and policy.lookup:
                report = _take_hit(job, script)
                if report is not None:
                    return report
            reuse(place, slots, policy)
            left = [slot for slot in slots if slot.stored is None]
            if any(slot.key is not None for slot in left):
                refuse_fresh_input(job, lazy=True)
            _tell_computed(job, slots)
            output = outputs.write(place, marked, slots, job.generation.number, policy)
            output.new += early
            # Rows that are known only when they are written may turn out to be stored already.
            if not slots:
                outcome, reason = Outcome.RAN, "returns no table, always runs"
            elif not output.new and not (left and (forced or any(slot.is_script for slot in left))):
                outcome, reason = Outcome.CACHED, "cache valid"
            else:
                try:
                    refuse_fresh_input(job, lazy=True)
                except FreshInput:
                    outputs.discard(job.session, [item.stored for item in output.new])
                    raise
                outcome, reason = Outcome.RAN, _why_forced(job) or _why(job, parts)
            result = _result(job, output, parts, outcome, reason)
            if script is not None:
                result = replace(result, fingerprint=script.full, base_fingerprint=script.base)
            return _record(job, result, output)


def _tell_computed(job: Job, slots: Sequence[Slot]) -> None:
    """Tell the engine that others may compute now, if what is to be written is in memory; queries and lazy frames still have to be executed."""
    left = [slot for slot in slots if slot.stored is None]
    if job.computed is not None and left and all(has_rows(slot) for slot in left):
        job.computed()


def _script_token(marked: Any, slots: Sequence[Slot]) -> str | None:
    """Return all that a lazy task with scripts returned, as text: values, names, and the keys of what is stored.

    Returns:
        None if there is no script, or if something that is stored has no key yet (rows that are known only when they are written).
    """
    known = [slot.stored.identity if slot.stored is not None else slot.base_key for slot in slots]
    if None in known or not any(slot.is_script for slot in slots):
        return None

    return marked_text(marked, lambda mark: {"$": "stored", "key": known[mark.index], "declared": slots[mark.index].declared})


class _removed_on_failure:  # noqa: N801 -- a context manager reads as a verb
    """Gives a list of what is written; it is removed if the block fails, after all that it has opened is closed."""

    # A generator would set the traceback of the user's exception, which some exceptions do not let anybody do.
    def __init__(self, job: Job) -> None:
        self._session = job.session
        self._written: list[NewObject] = []

    def __enter__(self) -> list[NewObject]:
        return self._written

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            outputs.discard(self._session, [item.stored for item in self._written])


# --- recording ----------------------------------------------------------------------------------------------------------------------


def _result(job: Job, output: outputs.Output, parts: Mapping[str, str], outcome: Outcome, reason: str) -> TaskResult:
    return TaskResult(
        task=job.planned.task,
        position=job.planned.position,
        fingerprint="",
        base_fingerprint="",
        parts={**parts, **job.remembered},
        output=output.text,
        entries=output.entries,
        outcome=outcome.value,
        reason=reason,
        rows=output.rows,
        seconds=time.monotonic() - job.started,
        sources=output.sources,
    )


def _record(job: Job, result: TaskResult, output: outputs.Output) -> StepReport:
    try:
        job.session.tell(PointReached(job.run.id, "before_record"))
        job.catalog.record(job.generation, result, output.new, output.objects)
    except BaseException:
        outputs.discard(job.session, [item.stored for item in output.new])
        raise
    job.session.tell(PointReached(job.run.id, "after_record"))
    return _report(job, result)


def _record_hit(job: Job, hit: FoundResult) -> StepReport:
    result = replace(
        hit.result,
        task=job.planned.task,
        position=job.planned.position,
        entries=_entries_of(job, hit),
        outcome=Outcome.CACHED.value,
        reason="cache valid",
        seconds=time.monotonic() - job.started,
    )
    job.catalog.record(job.generation, result, (), tuple(hit.objects.values()))
    return _report(job, result)


def _report(job: Job, result: TaskResult) -> StepReport:
    return StepReport(
        step=f"task:{job.planned.id}",
        outcome=Outcome(result.outcome),
        reason=result.reason,
        stage=job.planned.stage,
        task=job.planned.task,
        tables=tuple(result.entries),
        rows=result.rows,
        seconds=result.seconds,
    )
