"""The command's frame: its options, its exit codes, and the commands that adapters add to it.

What a command needs is imported when it is called, so that `pipedag --help` answers at once.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from pipedag_core.cli import building, comparing, doctor, extracting, logs, looking, removing, running, scoring
from pipedag_core.cli.tracebacks import message, trimmed
from pipedag_core.errors import ConfigError, FlowError, PipedagError

#: Entry-point group in which other packages offer commands: the name is the command's, the value a `typer.Typer`.
ENTRY_POINTS: Final = "pipedag.commands"


class Commands(TyperGroup):
    """The commands of this package, then those of adapters. Errors become messages and exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *_adapter_commands()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None or cmd_name not in _adapter_commands():
            return command
        try:
            added = _adapter_commands()[cmd_name].load()
        except ImportError as error:
            # One broken adapter must not take the help of all others with it.
            logs.LOG.warning("the command %r cannot be loaded: %s", cmd_name, error)
            return None
        command = typer.main.get_command(added) if isinstance(added, typer.Typer) else added
        command.name = cmd_name  # help lists commands by their own name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PipedagError as error:
            if logs.is_detailed():
                typer.echo(trimmed(error, everything=True), err=True)
            else:
                typer.echo(message(error), err=True)
            raise typer.Exit(2 if isinstance(error, (ConfigError, FlowError)) else 1) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(running.INTERRUPTED) from error


def _adapter_commands() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pipedag-core {version('pipedag-core')}, Python {sys.version.split()[0]}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)


@app.callback()
def options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Write the log to standard error; twice for more.", show_default=False)
    ] = 0,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Run flows of tasks over tables, and look at what they have made."""
    if verbose:
        logs.switch_on(verbose)


app.command()(running.run)
app.command()(running.step)
app.command()(building.plan)
app.command()(building.graph)
app.command()(looking.status)
app.command()(looking.show)
app.command()(looking.sql)
app.command()(looking.gc)
app.command()(extracting.extract)
app.command()(scoring.score)
app.command()(comparing.diff)
app.command()(looking.rollback)
app.command()(doctor.doctor)
app.command()(removing.delete_schemas)
app.command()(removing.clear_metadata)
