"""From a flow's reference to the text of its DAG file. Imports the project, and no Airflow."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

from pipedag_airflow.layout import Granularity, lay_out
from pipedag_airflow.names import safe_id
from pipedag_airflow.options import Override, read_options
from pipedag_airflow.render import Code, File, literal, render
from pipedag_core.config.catalog_place import catalog_place
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.flows import find_flow
from pipedag_core.errors import ConfigError, FlowError
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.model import Plan

#: Executors whose workers share one machine, and its disks, with the scheduler.
_ONE_MACHINE: Final = ("LocalExecutor", "SequentialExecutor")
_CRON: Final = re.compile(r"@\w+|\S+(\s+\S+){4,5}")


@final
@dataclass(frozen=True)
class Request:
    """What somebody asked for on the command line.

    Attributes:
        flow: Import reference.
        instance: Name of the instance.
        folder: Where the file goes.
        dag_id: By default flow and instance; the file is named after it.
        granularity: How much one operator does.
        project: Folder of the code and the configuration, as it is from the working directory; by default that itself.
        config: The configuration, if it is not to be looked for.
        learn: Instance from whose catalog names of tables are learned.
        schedule: Cron text or preset.
        on_assets: URIs of Assets on whose change the DAG runs.
        start_date: For schedules.
        tags: Tags of the DAG.
        python, command, connections, environment: As for the operator.
        executor: Airflow's executor, if it is to be checked that the stores can be reached from its workers.
        events: "always" or "changed".
        allow_drift: Carry out what the code says when a step runs, though it is wired differently from the file.
        override: Reference of a function that changes arguments of operators.
        max_active_runs: Runs at the same time.
        words: The command's words after `pipedag`, for the header.
    """

    flow: str
    folder: Path
    instance: str | None = None
    dag_id: str | None = None
    granularity: Granularity = Granularity.TASK
    project: Path | None = None
    config: Path | None = None
    learn: str | None = None
    schedule: str | None = None
    on_assets: Sequence[str] = ()
    start_date: str | None = None
    tags: Sequence[str] = ()
    python: str | None = None
    command: str | None = None
    connections: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    executor: str | None = None
    events: str = "always"
    allow_drift: bool = False
    override: str | None = None
    max_active_runs: int | None = None
    words: Sequence[str] = ()


@final
@dataclass(frozen=True, slots=True)
class Generated:
    """A DAG file.

    Attributes:
        path: Where it belongs.
        text: What is in it.
        notes: What whoever deploys it should know.
    """

    path: Path
    text: str
    notes: tuple[str, ...] = ()

    @property
    def is_fresh(self) -> bool:
        """Whether the file is there and says just this."""
        return self.path.is_file() and self.path.read_text(encoding="utf-8") == self.text

    def write(self) -> bool:
        """Write the file if it is not fresh; return whether it was written."""
        if self.is_fresh:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text, encoding="utf-8")
        return True


def generate(request: Request) -> Generated:
    """Return the DAG file that somebody asked for.

    Raises:
        ConfigError: The flow or instance is not there, an option makes no sense, or the store cannot be reached from the executor's workers.
        FlowError: The flow cannot be imported by other processes.
    """
    plan, context = _plan(request)
    notes = _check_store(request, context)
    options = read_options(context.adapters.get("airflow") or {}, plan, _override(request.override))
    layout = lay_out(plan, request.granularity, options)
    dag_id = _dag_id(request, plan)
    path = request.folder / f"{dag_id}.py"
    instance = f", instance `{plan.instance}`" if plan.instance else ""
    file = File(
        dag_id=dag_id,
        title=f"Flow `{plan.flow}`{instance}, as an Airflow DAG. Generated: change the flow, the configuration or the command, not this file.",
        header=[
            f"Made by: pipedag-core {version('pipedag-core')}",
            f"Command: pipedag {shlex.join(request.words)}",
            f"Plan:    {plan.digest}",
        ],
        flow=_flow_arguments(request, plan),
        dag=_dag_arguments(request, plan, options.dag),
        default_args=options.default_args,
        stages=[stage.name for stage in plan.stages if stage.parent is None],
    )
    return Generated(path, render(layout, file), notes)


def _plan(request: Request) -> tuple[Plan, ConfigContext]:
    if request.flow.rpartition(":")[0] in ("__main__", ""):
        raise FlowError(
            f"{request.flow!r} cannot be imported by Airflow's workers. Put the flow into a module or file: package.module:flow, or path/file.py:flow.",
            reference=request.flow,
        )
    config = PipedagConfig(request.config) if request.config is not None else None
    flow, _, context = find_flow(request.flow, config, request.instance)
    plan = compile_flow(flow, request.instance, request.flow)
    if request.learn is not None:
        from pipedag_core.cli.building import learn_outputs

        plan = learn_outputs(plan, request.learn, request.config)
    return plan, context


def _check_store(request: Request, context: ConfigContext) -> tuple[str, ...]:
    """Refuse, or note, a store that workers on other machines cannot reach."""
    url = str(context.table_store.args.get("url", ""))
    what = (
        "the tables are in a DuckDB file, which only processes of one machine can share, one after the other"
        if url.startswith("duckdb")
        else "the catalog is a SQLite file, which only processes of one machine can share"
        if catalog_place(context).path is not None
        else ""
    )
    if not what:
        return ()
    if request.executor is not None and request.executor.rpartition(".")[2] not in _ONE_MACHINE:
        raise ConfigError(
            f"With {request.executor}, tasks run on many machines, but in instance {context.instance_name!r} {what}. Use a table_store, or a "
            f"metadata_store, in PostgreSQL, or one of {', '.join(_ONE_MACHINE)}.",
            executor=request.executor,
        )
    return (f"In instance {context.instance_name} {what}: all workers have to be on that machine.",)


def _override(reference: str | None) -> Override | None:
    if reference is None:
        return None
    from importlib import import_module

    module, _, name = reference.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--override {reference!r} is no function: {error}. Write package.module:function.") from error
    if not callable(found):
        raise ConfigError(f"--override {reference!r} is no function.")
    return found  # pyright: ignore[reportReturnType] -- what it returns is seen when it is called


def _dag_id(request: Request, plan: Plan) -> str:
    if request.dag_id is None:
        return safe_id(plan.flow if plan.instance is None else f"{plan.flow}_{plan.instance}")
    if safe_id(request.dag_id) != request.dag_id:
        raise ConfigError(f"--dag-id {request.dag_id!r}: use letters, digits, `_` and `-`; for example {safe_id(request.dag_id)!r}.")
    return request.dag_id


def _flow_arguments(request: Request, plan: Plan) -> dict[str, Any]:
    project = os.path.relpath((request.project or Path.cwd()).resolve(), request.folder.resolve())
    if re.search(r"\w\.py:", request.flow) and Path(request.flow.rpartition(":")[0]).is_absolute():
        raise ConfigError(f"{request.flow!r} is a path on this machine only. Name the file relative to the project's folder.")
    found: dict[str, Any] = {"flow": request.flow, "instance": plan.instance, "digest": plan.digest}
    # The file may be moved together with the project, as DAG bundles are, without being another version of the DAG to Airflow.
    found["project"] = Path(project).as_posix()
    if request.config is not None:
        found["config"] = Path(os.path.relpath(request.config.resolve(), (request.project or Path.cwd()).resolve())).as_posix()
    for name in ("python", "command", "connections", "environment"):
        value = getattr(request, name)
        if value:
            found[name] = dict(value) if isinstance(value, Mapping) else value
    if request.events != "always":
        found["events"] = request.events
    if request.allow_drift:
        found["allow_drift"] = True
    return found


def _dag_arguments(request: Request, plan: Plan, configured: Mapping[str, Any]) -> dict[str, Any]:
    schedule: Any = request.schedule if request.schedule is not None else configured.get("schedule")
    found: dict[str, Any] = {"schedule": schedule_of(schedule, request.on_assets)}
    start = request.start_date if request.start_date is not None else configured.get("start_date")
    if start is not None:
        found["start_date"] = moment_of(start)
    found["catchup"] = bool(configured.get("catchup", False))
    # Two runs of one instance would only wait for each other's stages.
    found["max_active_runs"] = request.max_active_runs or int(configured.get("max_active_runs", 1))
    rest = {key: value for key, value in configured.items() if key not in (*found, "schedule", "start_date", "tags")}
    tags = list(dict.fromkeys(["pipedag", *(configured.get("tags") or ()), *request.tags]))
    about = f"Stages: {', '.join(stage.name for stage in plan.stages if stage.parent is None)}."
    return {**found, **rest, "tags": tags, "doc_md": f"Flow `{plan.flow}` of `{plan.source}`. {about}"}


def schedule_of(schedule: Any, on_assets: Sequence[str]) -> Any:
    """Return what a DAG's `schedule` is: Assets, else a cron expression or preset, or None.

    Raises:
        ConfigError: It is none of these.
    """
    if on_assets:
        return [Code(f"Asset({literal(uri)})") for uri in on_assets]
    if schedule is not None and not (isinstance(schedule, str) and _CRON.fullmatch(schedule.strip())):
        raise ConfigError(f"The schedule {schedule!r} is neither a cron expression nor a preset such as @daily.")
    return schedule


def moment_of(value: Any) -> datetime:
    """Return a start date; one without a zone is meant in UTC.

    Raises:
        ConfigError: It is no date.
    """
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        found = datetime(value.year, value.month, value.day)  # noqa: DTZ001 -- as dates without a zone are read below
    else:
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            raise ConfigError(f"The start date {value!r} is none. Write it as 2026-01-31.") from None
    from datetime import UTC

    return replace_zone(found, UTC)


def replace_zone(moment: datetime, zone: Any) -> datetime:
    """Return a moment in a zone; one without a zone is meant to be in it."""
    return moment.replace(tzinfo=zone) if moment.tzinfo is None else moment.astimezone(zone)
