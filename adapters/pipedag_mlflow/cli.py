"""`pipedag mlflow compare`: two runs beside each other."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, settings
from pipedag_core.cli.tables import print_table
from pipedag_core.config.context import ConfigContext
from pipedag_core.config.settings import reveal
from pipedag_core.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Runs in MLflow.")

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of an MLflow run, or of a run as `pipedag status` lists it, or how that begins.")
]


@app.callback()
def _group() -> None:
    """Runs in MLflow."""


@app.command("compare")
def compare_command(
    one: Run,
    other: Run,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", help="Server or database; by default that of the observer in the configuration, else what MLflow is set to."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Show which tasks of two runs differed and why, beside their metrics."""
    from pipedag_mlflow import library
    from pipedag_mlflow.compare import compare, lines

    uri = tracking_uri or _configured(settings(config, instance, per_user))
    try:
        client = library.client(uri or library.default_uri())
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed. Install it: pip install 'pipedag-core[mlflow]'.") from error
    found = compare(client, one, other)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=True))
        return
    for number, (title, headers, rows) in enumerate(lines(found)):
        if number:
            typer.echo()
        if rows:
            print_table(title, headers, rows)
        else:
            typer.echo(f"{title}: none")


def _configured(context: ConfigContext) -> str | None:
    """Return where the configuration's first observer of ours logs to; None if there is none, or it leaves that to MLflow."""
    from pipedag_mlflow import library

    for part in context.observers:
        if part.kind.rpartition(".")[2] == "MlflowObserver":
            return library.absolute(reveal(part.args).get("tracking_uri"), context.base_dir)
    return None
