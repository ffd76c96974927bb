"""What `flow.run()` and `execute()` call: the place where a flow, its configuration and an engine come together."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from inspect import isclass, signature
from typing import Any, cast
from weakref import WeakKeyDictionary

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.catalogs.owner import many_processes, this_process
from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.flows import find_flow, load_flow
from pipedag_core.config.registry import ENGINES
from pipedag_core.config.settings import PartSettings
from pipedag_core.config.wire import open_engine, open_session
from pipedag_core.define.context import HAND_ON, at_work, by_hand, executing
from pipedag_core.define.flow import Flow, Stage
from pipedag_core.define.task import materialize
from pipedag_core.define.values import Blob, Table
from pipedag_core.errors import ConfigError, MaterializationError, ObserverFailed, PlanMismatch, UnsupportedByStore
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.model import Plan, Step
from pipedag_core.plan.selection import resolve, select
from pipedag_core.plan.specification import Place
from pipedag_core.plan.supplying import supply
from pipedag_core.ports.catalogs import Owner, RunInfo
from pipedag_core.ports.engines import Engine
from pipedag_core.ports.events import RunObserver, StageReport, StepReport
from pipedag_core.run import parts, steps, supplied
from pipedag_core.run.given import current_generations, given_by
from pipedag_core.run.keeping import keep_generations
from pipedag_core.run.memory import RunMemory
from pipedag_core.run.one_process import Units, heartbeat, step_runner, step_skipper, taking_part
from pipedag_core.run.result import Result
from pipedag_core.run.session import Run, RunOptions, Session, Supplied

#: Seconds for which a run holds its leases when each step is its own process and nobody beats between two of them.
ORCHESTRATED_TTL_S = 6 * 3600.0
#: What runs are called by which no flow, but `put_table`, writes a stage.
PUT = "put"

#: Flow -> digest of its wiring.
_SEEN: WeakKeyDictionary[Flow, str] = WeakKeyDictionary()
#: Flow -> its plan, by instance and reference.
_PLANS: WeakKeyDictionary[Flow, dict[tuple[str | None, str], Plan]] = WeakKeyDictionary()


def run_flow(
    flow: Flow,
    *components: Any,
    config: PipedagConfig | ConfigContext | None = None,
    instance: str | None = None,
    per_user: bool = False,
    orchestration_engine: Engine | str | None = None,
    fail_fast: bool | None = None,
    cache_validation_mode: CacheValidationMode | str | None = None,
    disable_cache_function: bool | None = None,
    ignore_task_version: bool | None = None,
    ignore_position_hashes: bool = False,
    inputs: Mapping[Any, Any] | None = None,
    take_over: bool = False,
    observers: Sequence[RunObserver] = (),
    **engine_options: Any,
) -> Result:
    """Run a flow, or stages or tasks of it.

    Args:
        flow: What to run.
        components: Stages (they run and are committed), or tasks (they always run, into a scratch generation, and nothing is committed); as
            objects or by name. None: the whole flow.
        config: A configuration, or one of its instances; by default the `pipedag.yaml` that is found, else the default store in `.pipedag/`.
        instance: Name of the instance.
        per_user: Use an instance of the user's own; see `PipedagConfig.get`.
        orchestration_engine: What carries out the steps: an engine, or its name as in the configuration; by default what that says, else threads.
        fail_fast: Start nothing more after the first failure, and raise it. By default as configured (no).
        cache_validation_mode: How strictly stored results are trusted; see `CacheValidationMode`.
        disable_cache_function: Do not call cache functions; their tasks count as never seen, unless the mode ignores fresh input.
        ignore_task_version: Run all tasks with a version string.
        ignore_position_hashes: Take results of tasks outside of the selection even if they were wired differently.
        inputs: Replaces what tasks give, for this run: output of a task, or item of one -> frame, `Table`, plain value, or nest of them. These tasks do
            not run. No stage that they are in, or that takes anything from such a stage, is committed: it runs into a scratch generation, which
            the result can be read from.
        take_over: Do not wait for another run that writes one of the stages: take the stage away from it. What it does with the stage from then on
            is refused, so that it fails.
        observers: Are told what happens.
        engine_options: Options of the engine, as under `orchestration: args:` of the configuration.

    Returns:
        The result. With `fail_fast=False` a failure is in it and is not raised.

    Raises:
        ConfigError, FlowError: What was asked for is not there.
        ObserverFailed: An observer without which the run is not wanted failed, before it (nothing was done) or after it (all was).
        Exception: With `fail_fast`, whatever the first failing task raised.
    """
    given = supplied.places(flow, inputs) if inputs else {}
    context = configuration(config, instance, flow.name, per_user=per_user)
    engine = choose_engine(context, orchestration_engine, engine_options)
    options = _options(
        context, cache_validation_mode, disable_cache_function, ignore_task_version, ignore_position_hashes, bool(components)
    )
    stop_early = context.fail_fast if fail_fast is None else fail_fast
    plan = whole = compile_flow(flow, context.instance_name, flow.source)
    if components:
        selection = resolve(plan, components)
        plan = select(plan, stages=selection.stages, tasks=selection.tasks)
        if selection.tasks and cache_validation_mode is None:
            options = replace(options, mode=CacheValidationMode.FORCE_CACHE_INVALID)
    scratch: frozenset[str] = frozenset()
    if given:
        plan, scratch = supply(flow, whole, plan, tuple(given))
    info = _info(plan, context, options, uuid.uuid4().hex, this_process(f"flow {flow.name}"), context.lease_ttl)
    with open_session(context, observers) as session:
        run = Run(info, options, memory=RunMemory(session.catalog, info.run_id, remembers=True), take_over=take_over)
        session.catalog.begin_run(info)
        if given:
            run = replace(run, supplied=Supplied(_supplied_values(session, run, plan, given), scratch))
        units = Units(session, run, plan)
        reports: Sequence[StepReport] = ()
        try:
            with taking_part(session, run, plan):
                with heartbeat(session, run):
                    reports = engine.run(
                        plan, step_runner(session, run, flow, plan, units), step_skipper(session, run, units), fail_fast=stop_early
                    )
                keep_generations(session, run, plan, lambda: open_session(context))
        except ObserverFailed:
            if not reports:
                session.catalog.finish_run(run.id, "failed")
            raise
    result = Result(flow, plan, run.id, reports, Run(info, options), lambda: open_session(context))
    if stop_early and result.exception is not None:
        raise result.exception
    return result


def execute(
    plan: Plan,
    step: Step | str,
    *,
    run_id: str,
    flow: Flow | None = None,
    config: PipedagConfig | ConfigContext | None = None,
    observers: Sequence[RunObserver] = (),
    cache_validation_mode: CacheValidationMode | str | None = None,
    note: str = "",
    external_id: str = "",
    take_over: bool = False,
) -> StepReport:
    """Carry out one step of a plan, in any process of any machine that reaches the catalog and the stores.

    Args:
        plan: The plan; its `source` says where the flow's code is.
        step: The step, or its id; or several steps in one call: `stage:<stage>` for all of a stage, `flow` for all; or `close:<stage>`, which gives
            back a stage that this run will not commit, and does nothing after its commit.
        run_id: Same for all steps of one run. The run registers itself with its first step, and the options of that call hold for all.
        flow: The flow, when it has no import reference (a notebook).
        config: As in `run_flow`.
        observers: Are told what happens.
        cache_validation_mode: As in `run_flow`.
        note: Who is at work, for those who wait for a lease.
        external_id: The orchestrator's own id of the run.
        take_over: As in `run_flow`, for what this call opens.

    Returns:
        How the step ended; WAITING if another run writes the stage (call again later).

    Raises:
        PlanMismatch: The plan has no such step, or the code is wired differently from the plan.
        ConfigError: The configuration cannot be used.
        RunError: The run id belongs to another plan.
    """
    context = configuration(config, plan.instance, plan.flow)
    code = _checked_code(plan, context, flow)
    return _carry_out(plan, step, code, context, run_id, observers, cache_validation_mode, note, external_id, take_over)


def execute_reference(
    reference: str,
    step: str,
    *,
    run_id: str,
    instance: str | None = None,
    stages: Sequence[str] = (),
    digest: str = "",
    known_steps: Sequence[str] = (),
    config: PipedagConfig | None = None,
    observers: Sequence[RunObserver] = (),
    cache_validation_mode: CacheValidationMode | str | None = None,
    note: str = "",
    external_id: str = "",
    take_over: bool = False,
) -> StepReport:
    """Carry out one step of a flow that is named by its import reference: as `execute`, with the plan made anew from the code.

    Args:
        reference: `package.module:flow_or_factory`, or `path/file.py:flow_or_factory`.
        step, run_id, observers, cache_validation_mode, note, external_id, take_over: As for `execute`.
        instance: Name of the instance.
        stages: Only these are part of the run; empty for all.
        digest: Digest of the plan that whoever calls has in mind; "" if it may be any.
        known_steps: Ids of the steps of that plan, for saying what has changed.
        config: By default the configuration that is found.

    Returns:
        As for `execute`.

    Raises:
        PlanMismatch: The code is wired differently from what `digest` says, or there is no such step.
        ConfigError, FlowError: The flow or the instance is not there.
        Exception: Whatever the user's code raises while it is imported.
    """
    flow, _, context = find_flow(reference, config, instance)
    # As for `execute`: a process that carries out many steps comes back with the same flow for each.
    plans = _PLANS.setdefault(flow, {})
    plan = plans.get((instance, reference))
    if plan is None:
        plan = plans[instance, reference] = compile_flow(flow, instance, reference)
    if digest:
        refuse_drift(plan, digest, known_steps)
    plan = select(plan, stages=stages)
    return _carry_out(plan, step, flow, context, run_id, observers, cache_validation_mode, note, external_id, take_over)


def refuse_drift(found: Plan, digest: str, known_steps: Sequence[str] = ()) -> None:
    """Refuse a flow that is wired differently from the plan that somebody goes by.

    Args:
        found: The plan of the code as it is.
        digest: Digest of the other plan.
        known_steps: Ids of the other plan's steps, if they are known.

    Raises:
        PlanMismatch: It is; with the steps that are new and gone.
    """
    if found.digest == digest:
        return
    now = [step.id for step in found.steps]
    new = tuple(id for id in now if id not in set(known_steps)) if known_steps else ()
    gone = tuple(id for id in known_steps if id not in set(now))
    changes = [f"{what}: {', '.join(some[:10])}{' ...' if len(some) > 10 else ''}" for what, some in (("new", new), ("gone", gone)) if some]
    told = f" ({'; '.join(changes)})" if changes else " (the same steps, connected differently)" if known_steps else ""
    raise PlanMismatch(
        f"The plan of flow {found.flow!r} was made from another wiring than the code has now{told}. Make it again with `pipedag plan`, and what was "
        "generated from it as its header says.",
        flow=found.flow,
        new=new,
        gone=gone,
    )


def _carry_out(
    plan: Plan,
    step: Step | str,
    flow: Flow,
    context: ConfigContext,
    run_id: str,
    observers: Sequence[RunObserver],
    cache_validation_mode: CacheValidationMode | str | None,
    note: str,
    external_id: str,
    take_over: bool,
) -> StepReport:
    part = step if isinstance(step, str) and parts.is_part(step) else None
    wanted: Step | None = None
    if part is not None:
        parts.check_part(plan, part)
    else:
        wanted = plan.step(step) if isinstance(step, str) else step
    taking = _orchestrated(
        plan, context, run_id, observers, cache_validation_mode, note or "pipedag step", external_id, take_over=take_over
    )
    with taking as (session, run):
        if wanted is None:
            assert part is not None
            return parts.execute_part(session, run, flow, plan, part, open_engine(context))
        before = current_generations(session, plan, [wanted])
        report = steps.execute_step(session, run, flow, plan, wanted)
        return replace(report, given=given_by(session, run, plan, wanted, before)) if report.outcome.is_good else report


@contextmanager
def _orchestrated(
    plan: Plan,
    context: ConfigContext,
    run_id: str,
    observers: Sequence[RunObserver],
    cache_validation_mode: CacheValidationMode | str | None,
    note: str,
    external_id: str,
    *,
    remembers: bool = False,
    take_over: bool = False,
) -> Generator[tuple[Session, Run]]:
    """Take part in a run whose steps are carried out by many processes, one call after the other; it is registered by the first."""
    options = _options(context, cache_validation_mode, None, None, False, plan.scratch)
    if plan.scratch and cache_validation_mode is None:
        options = replace(options, mode=CacheValidationMode.FORCE_CACHE_INVALID)
    info = _info(plan, context, options, run_id, many_processes(note), ORCHESTRATED_TTL_S)
    with open_session(context, observers) as session:
        row = session.catalog.begin_run(replace(info, external_id=external_id))
        memory = RunMemory(session.catalog, run_id, remembers=True) if remembers else None
        run = Run(row.info, RunOptions.from_json(row.info.options), memory=memory, take_over=take_over)
        with taking_part(session, run, plan), heartbeat(session, run):
            yield session, run


def execute_stage(
    plan: Plan,
    stage: str,
    *,
    run_id: str,
    tasks: Iterable[str] | None = None,
    flow: Flow | None = None,
    config: PipedagConfig | ConfigContext | None = None,
    observers: Sequence[RunObserver] = (),
    cache_validation_mode: CacheValidationMode | str | None = None,
    orchestration_engine: Engine | str | None = None,
    fail_fast: bool | None = None,
    note: str = "",
    external_id: str = "",
) -> StageReport:
    """Open a stage, run its tasks, those that do not need each other at the same time, and commit it with all that is committed with it.

    For orchestrators that know stages, or tables of them: all in one call, in this process, while other processes carry out other stages of the
    same run. The run is ended by `finish_run`.

    Args:
        plan: A plan of the whole flow.
        stage: The stage, or one that is committed with it.
        run_id: As in `execute`.
        tasks: Full ids (`stage.task`) of tasks of it. They and their dependents within the stage run, and the rest keeps the results that are
            committed; a task of which nothing is committed for the wiring as it is now runs too. None: all.
        flow, config, observers, cache_validation_mode, note: As in `execute`.
        orchestration_engine, fail_fast: As in `run_flow`.
        external_id: The orchestrator's own id of the run.

    Returns:
        What became of it. What failed is in its reports and is not raised.

    Raises:
        PlanMismatch, ConfigError, RunError: As `execute`.
    """
    context = configuration(config, plan.instance, plan.flow)
    code = _checked_code(plan, context, flow)
    engine = choose_engine(context, orchestration_engine, {})
    stop_early = context.fail_fast if fail_fast is None else fail_fast
    taking = _orchestrated(plan, context, run_id, observers, cache_validation_mode, note or "pipedag", external_id, remembers=True)
    with taking as (session, run):
        return parts.carry_out_stage(session, run, code, plan, stage, engine, tasks=tasks, fail_fast=stop_early)


def open_stage(
    plan: Plan,
    stage: str,
    *,
    run_id: str,
    tasks: Iterable[str] | None = None,
    flow: Flow | None = None,
    config: PipedagConfig | ConfigContext | None = None,
    observers: Sequence[RunObserver] = (),
    cache_validation_mode: CacheValidationMode | str | None = None,
    note: str = "",
    external_id: str = "",
) -> tuple[StepReport, frozenset[str]]:
    """Open a stage for its tasks, or some of them, which others carry out one by one with `execute`, in any process, until `commit_stage`.

    For orchestrators that spread the tasks of a stage over processes, and know which of them are wanted. Unlike `execute` with the open step it
    waits for another run that writes the stage, as long as the configuration allows.

    Args:
        plan, stage, run_id, tasks, flow, config, observers, cache_validation_mode, note, external_id: As for `execute_stage`.

    Returns:
        The report, and the full ids of the tasks that have to be carried out before the commit: all, or those that were named, their dependents
        within the stage, and those of which nothing is committed; without those whose version says that a stored result may stand in, which
        it does then. None of them if the report is that of a failure.

    Raises:
        PlanMismatch, ConfigError, RunError: As `execute`.
    """
    context = configuration(config, plan.instance, plan.flow)
    code = _checked_code(plan, context, flow)
    taking = _orchestrated(plan, context, run_id, observers, cache_validation_mode, note or "pipedag", external_id)
    with taking as (session, run):
        return parts.open_stage(session, run, code, plan, stage, open_engine(context), tasks=tasks)


def commit_stage(
    plan: Plan,
    stage: str,
    *,
    run_id: str,
    flow: Flow | None = None,
    config: PipedagConfig | ConfigContext | None = None,
    observers: Sequence[RunObserver] = (),
    note: str = "",
    external_id: str = "",
) -> StageReport:
    """Commit a stage that was opened by `open_stage`, once its tasks were carried out, with all that is committed with it.

    Args:
        plan, stage, run_id, flow, config, observers, note, external_id: As for `execute_stage`.

    Returns:
        What became of it, as from `execute_stage`, with the reports of the tasks that the run has carried out. After a failure the stage stays open;
        `execute` with `close:<stage>` gives it back.

    Raises:
        PlanMismatch, ConfigError, RunError: As `execute`.
    """
    context = configuration(config, plan.instance, plan.flow)
    code = _checked_code(plan, context, flow)
    with _orchestrated(plan, context, run_id, observers, None, note or "pipedag", external_id) as (session, run):
        return parts.commit_stage(session, run, code, plan, stage, open_engine(context))


def finish_run(
    plan: Plan,
    *,
    run_id: str,
    state: str | None = None,
    config: PipedagConfig | ConfigContext | None = None,
    observers: Sequence[RunObserver] = (),
) -> StepReport | None:
    """End a run whose steps were carried out one by one, or stage by stage; the flow's code is not needed for it.

    Args:
        plan: The plan, or a part of it: what had to be done.
        run_id: The run.
        state: How it ended ("succeeded", "failed", "aborted"), if the caller knows; else it follows from the catalog.
        config, observers: As in `execute`.

    Returns:
        The report of the finish step; None if there is no such run that is still at work.
    """
    context = configuration(config, plan.instance, plan.flow)
    with open_session(context, observers) as session:
        row = next((row for row in session.catalog.unfinished() if row.info.run_id == run_id), None)
        if row is None:
            return None
        run = Run(row.info, RunOptions.from_json(row.info.options))
        with taking_part(session, run, plan):
            return steps.execute_step(session, run, Flow(plan.flow), plan, plan.step("finish"), state=state)


def put_table(stage: str, name: str, value: Any, **options: Any) -> StageReport:
    """Write one table, or other object, that no flow makes, and commit its stage with it; see `put_tables`."""
    return put_tables(stage, {name: value}, **options)


def put_tables(
    stage: str,
    values: Mapping[str, Any],
    *,
    config: PipedagConfig | ConfigContext | None = None,
    instance: str | None = None,
    note: str = "",
    external_id: str = "",
    adjust: Callable[[str, Any], Any] | None = None,
) -> StageReport:
    """Write tables, or other objects, that no flow makes, and commit their stage with all of them; what else the stage holds stays.

    Args:
        stage: Name of the stage. A flow that has a stage of this name replaces all of it with its next commit.
        values: Readable name of a table -> a frame of any library, a query, a `Table`, or any other object, which is kept as a blob.
        config, instance: As in `run_flow`.
        note: Who is at work, for those who wait for a lease.
        external_id: The orchestrator's own id of what writes it.
        adjust: Called with name and value when no other run can write the stage any more, so that it may read what the table holds; what it returns is
            written.

    Returns:
        What became of it. What failed is in its reports and is not raised.
    """
    context = configuration(config, instance, None)
    with Flow(PUT) as flow, Stage(stage) as made:
        for name in values:

            @materialize(name=name)
            def put(name: str = name) -> Any:
                return _kept(context, values[name] if adjust is None else adjust(name, values[name]))

            put()
    plan = compile_flow(flow, context.instance_name)
    note = note or f"put {', '.join(f'{stage}.{name}' for name in values)}"
    info = _info(plan, context, RunOptions(), uuid.uuid4().hex, this_process(note), context.lease_ttl)
    with open_session(context) as session:
        session.catalog.begin_run(replace(info, external_id=external_id))
        run = Run(info, RunOptions(), memory=RunMemory(session.catalog, info.run_id, remembers=True))
        with heartbeat(session, run):
            engine = choose_engine(context, "sequential", {})
            tasks = [task.id for task in plan.tasks]
            report = parts.carry_out_stage(session, run, flow, plan, made.name, engine, tasks=tasks, fail_fast=True, keep_others=True)
            state = "succeeded" if report.is_committed else "failed"
            steps.execute_step(session, run, flow, plan, plan.step("finish"), state=state)
    return report


def _kept(context: ConfigContext, value: Any) -> Any:
    """Return a value as a task returns it: as it is where some library's hook takes it for a table, else as a blob."""
    if isinstance(value, (Table, Blob)):
        return value
    hooks = import_module("pipedag_core.hooks.registry").Hooks(args={}, extra=dict(context.table_hooks))
    # A text would be taken for a query.
    return Blob(value) if isinstance(value, str) or hooks.for_object(value) is None else Table(value)


def materialize_table(table: Table[Any], *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
    """Write a table at once, inside a task; see `Table.materialize`.

    Raises:
        MaterializationError: It is not known for which task: this thread runs none, while others of this process do.
    """
    context = executing.get()
    if context is not None:
        return context.materialize(table, return_as_type=return_as_type, config_context=config_context, schema=schema)
    others = () if by_hand.get() else at_work()
    if others:
        raise MaterializationError(
            f"Table.materialize() was called in thread {threading.current_thread().name!r}, in which no task runs, while tasks are at work in this process: "
            f"{', '.join(dict.fromkeys(f'{task.stage}.{task.task} of flow {task.flow!r}' for task in others))}. Nothing was written. {HAND_ON}",
            table=table.name,
        )
    if config_context is not None or schema is not None:
        raise UnsupportedByStore(
            "Table.materialize() writes nothing outside of a run. Run the task in a flow, or leave out config_context and schema."
        )
    return tuple(table.obj for _ in return_as_type) if isinstance(return_as_type, (tuple, list)) else table.obj


def choose_engine(context: ConfigContext, wanted: Engine | str | None, options: Mapping[str, Any]) -> Engine:
    """Return the engine that was asked for, else the one that the configuration names.

    Args:
        context: The instance's configuration.
        wanted: An engine, or its name.
        options: What `flow.run` got beyond its own options.

    Raises:
        ConfigError: It is no engine, or there is no such option.
    """
    name = context.orchestration.kind if wanted is None else wanted
    known = list(ENGINES[name].args or ()) if isinstance(name, str) and name in ENGINES else []
    for option in options:
        near = get_close_matches(option, [*_option_names(), *known], n=1)
        # What an engine of the user's own takes is not known here.
        if option not in known and (near or known or (isinstance(name, str) and name in ENGINES)):
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join([*_option_names(), *known])}."
            raise ConfigError(f"flow.run has no option {option!r}. {hint}", option=option)
    if wanted is None:
        return open_engine(context, **options)
    if isinstance(wanted, str):
        if wanted not in ENGINES and "." not in wanted:
            near = get_close_matches(wanted, list(ENGINES), n=1)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else f"There are: {', '.join(name for name, entry in ENGINES.items() if entry.target)}."
            )
            raise ConfigError(f"There is no engine {wanted!r}. {hint}")
        if wanted != context.orchestration.kind:
            context = context.evolve(orchestration=PartSettings(wanted))
        return open_engine(context, **options)
    given = cast("object", wanted)
    if isclass(given) or isinstance(given, Flow) or not callable(getattr(given, "run", None)):
        what = f"the class {given.__name__}. Write {given.__name__}()" if isclass(given) else type(given).__name__
        raise ConfigError(f"orchestration_engine takes an engine, such as SequentialEngine(), or its name, not {what}.")
    if options:
        raise ConfigError(f"Options {sorted(options)} belong to the engine; give them to the engine object that you pass.")
    return wanted


# --- inside -------------------------------------------------------------------------------------------------------------------------


def _options(
    context: ConfigContext,
    mode: CacheValidationMode | str | None,
    disable_cache_function: bool | None,
    ignore_task_version: bool | None,
    ignore_position_hashes: bool,
    partial: bool,
) -> RunOptions:
    settings = context.cache_validation
    chosen = settings.mode if mode is None else mode if isinstance(mode, CacheValidationMode) else _mode(mode)
    disabled = settings.disable_cache_function if disable_cache_function is None else disable_cache_function
    if disabled and chosen is CacheValidationMode.NORMAL:
        raise ConfigError(
            "disable_cache_function cannot be used with cache validation mode NORMAL, since then all tasks with a cache function would run again "
            "and so would the next run. Use FORCE_FRESH_INPUT, or IGNORE_FRESH_INPUT."
        )
    ignored = settings.ignore_task_version if ignore_task_version is None else ignore_task_version
    if ignore_position_hashes and not partial:
        raise ConfigError("ignore_position_hashes only makes sense with a selection of stages or tasks.")
    return RunOptions(chosen, disabled, ignored, ignore_position_hashes)


def _supplied_values(session: Session, run: Run, plan: Plan, given: Mapping[Place, Any]) -> Mapping[tuple[str, str], Any]:
    """Return what `pipedag_core.run.supplied.values` returns; a run that cannot begin is ended."""
    try:
        return supplied.values(session, run, plan, given)
    except BaseException:
        session.catalog.finish_run(run.id, "failed")
        raise


def _option_names() -> list[str]:
    """Return the names of the options of `flow.run`, without those of the engine."""
    return [item.name for item in signature(run_flow).parameters.values() if item.kind is item.KEYWORD_ONLY]


def _mode(text: str) -> CacheValidationMode:
    try:
        return CacheValidationMode(text.casefold())
    except ValueError:
        known = ", ".join(mode.value for mode in CacheValidationMode)
        raise ConfigError(f"There is no cache validation mode {text!r}. The modes are: {known}.") from None


def _info(plan: Plan, context: ConfigContext, options: RunOptions, run_id: str, owner: Owner, ttl_s: float) -> RunInfo:
    return RunInfo(run_id, plan.flow, context.instance_name, plan.digest, options.to_json(), owner, ttl_s)


def _checked_code(plan: Plan, context: ConfigContext, flow: Flow | None) -> Flow:
    """Return the flow's code, wired as the plan says.

    Raises:
        PlanMismatch: It is wired differently.
    """
    code = flow or _load(plan, context)
    # A flow cannot be changed once it is declared, and orchestrators come back with it for every stage.
    if _SEEN.get(code) != plan.digest:
        found = compile_flow(code, plan.instance, plan.source)
        refuse_drift(found, plan.digest, [step.id for step in plan.steps])
        _SEEN[code] = found.digest
    return code


def _load(plan: Plan, context: ConfigContext) -> Flow:
    if plan.source is None:
        raise PlanMismatch(
            f"The plan of flow {plan.flow!r} does not say where its code is. Make it with `pipedag plan MODULE:FLOW`, or pass flow= to execute.",
            flow=plan.flow,
        )
    return load_flow(plan.source, context.attrs)[0]
