"""Parameters that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipedag_core.cli.tracebacks import trimmed
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.flows import find_flow
from pipedag_core.define.flow import Flow
from pipedag_core.errors import PipedagError

Reference = Annotated[str, typer.Argument(metavar="MODULE:FLOW", help="package.module:flow_or_factory, or path/file.py:flow_or_factory")]
Instance = Annotated[str | None, typer.Option("--instance", "-i", help="Instance of the pipeline.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration; by default the pipedag.yaml that is found.")
]
PerUser = Annotated[bool, typer.Option("--per-user", help="Use an instance of your own.")]
Mode = Annotated[str | None, typer.Option("--mode", help="Cache validation mode, such as force_cache_invalid.")]


def configuration(file: Path | None) -> PipedagConfig:
    """Return the configuration that the command line names, else the one that is found."""
    return PipedagConfig(file) if file is not None else PipedagConfig.default


def settings(file: Path | None, instance: str | None, per_user: bool) -> ConfigContext:
    """Return the settings of an instance, for no flow in particular."""
    return configuration(file).get(instance, per_user=per_user)


def flow_and_settings(reference: str, file: Path | None, instance: str | None, per_user: bool) -> tuple[Flow, ConfigContext]:
    """Return the flow that the command line names, with the settings that hold for it.

    An error of the user's own code is shown as such, and ends the command.
    """
    flow, _, context = flow_spec_and_settings(reference, file, instance, per_user)
    return flow, context


def flow_spec_and_settings(reference: str, file: Path | None, instance: str | None, per_user: bool) -> tuple[Flow, Any, ConfigContext]:
    """Return the same with the specification that the factory returned beside the flow, else None."""
    found = configuration(file)
    try:
        return find_flow(reference, found, instance, per_user=per_user)
    except PipedagError:
        raise
    except Exception as error:
        typer.echo(trimmed(error), err=True)
        typer.echo(f"{reference} could not be loaded, because its code raised the error above.", err=True)
        raise typer.Exit(1) from error
