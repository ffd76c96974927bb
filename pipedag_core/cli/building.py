"""`pipedag plan` and `pipedag graph`: what a flow would do, without doing it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, Reference, configuration, flow_and_settings
from pipedag_core.cli.tables import print_table
from pipedag_core.errors import ConfigError
from pipedag_core.plan.model import Plan, StepKind


class Format(StrEnum):
    """Languages in which graphs are drawn."""

    MERMAID = "mermaid"
    DOT = "dot"


def plan(
    reference: Reference,
    instance: Instance = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the plan as JSON, for `pipedag step`.")] = False,
    learn: Annotated[
        str | None, typer.Option("--learn", metavar="INSTANCE", help="Take names of tables from the last run of an instance.")
    ] = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Show the steps of a flow, and the tables that are known before they run."""
    made = _compile(reference, instance, config, per_user)
    if learn is not None:
        made = learn_outputs(made, learn, config, per_user)
    if as_json:
        typer.echo(made.to_json(), nl=False)
        return
    tasks = {(task.stage, task.task): task for task in made.tasks}
    rows: list[list[str]] = []
    for step in made.steps:
        task = tasks[step.stage or "", step.task or ""] if step.kind is StepKind.TASK else None
        cached_by = "" if task is None else f"{task.cached_by} {task.version}" if task.cached_by == "version" else task.cached_by
        outputs = "" if task is None else "?" if task.outputs is None else ", ".join(task.outputs)
        rows.append([step.id, cached_by, outputs, ", ".join(step.upstream)])
    print_table(f"flow {made.flow}", ["step", "cached by", "tables", "after"], rows)


def graph(
    reference: Reference,
    form: Annotated[Format, typer.Option("--format", "-f", help="Language of the drawing.")] = Format.MERMAID,
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Draw a flow as text."""
    from pipedag_core.plan.draw import dot, mermaid

    made = _compile(reference, instance, config, per_user)
    typer.echo((mermaid if form is Format.MERMAID else dot)(made).rstrip())


def _compile(reference: str, instance: str | None, config: Path | None, per_user: bool) -> Plan:
    from pipedag_core.plan.compile import compile_flow

    flow, _ = flow_and_settings(reference, config, instance, per_user)
    return compile_flow(flow, instance, reference)


def learn_outputs(made: Plan, instance: str, file: Path | None = None, per_user: bool = False) -> Plan:
    """Return the plan with the names of tables that tasks, wired as they are now, gave in an instance, and the tables of others that they returned.

    Args:
        made: The plan.
        instance: The instance whose catalog is asked.
        file, per_user: Which configuration, and whether the user's own instance is meant.

    Raises:
        ConfigError: It has not run yet.
    """
    from pipedag_core.config.wire import has_catalog, open_catalog
    from pipedag_core.ports.data import ExternalTable

    context = configuration(file).get(instance, made.flow, per_user=per_user)
    if not has_catalog(context):
        raise ConfigError(f"There is nothing to learn from instance {instance!r} of flow {made.flow!r}: it has not run yet. Run it first.")
    positions = {task.id: task.position for task in made.tasks}
    outputs: dict[str, tuple[str, ...]] = {}
    external: dict[str, tuple[str, ...]] = {}
    catalog = open_catalog(context)
    try:
        others = {row.stored.id: row.stored.told for row in catalog.objects() if isinstance(row.stored, ExternalTable)}
        for stage in made.stages:
            current = catalog.current(stage.name)
            for result in [] if current is None else catalog.results(stage.name, current):
                task = f"{stage.name}.{result.task}"
                if positions.get(task) == result.position:
                    outputs[task] = tuple(result.entries)
                    external[task] = tuple(others[id] for id in result.sources if id in others)
    finally:
        catalog.close()
    return made.with_outputs(outputs, external)
