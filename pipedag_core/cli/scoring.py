"""`pipedag score`: a bundle, run from files or tables to files or tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipedag_core.cli.parameters import ConfigFile, Instance, settings
from pipedag_core.config.flows import make_importable
from pipedag_core.errors import ConfigError

Places = list[str] | None


def score(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `pipedag extract` wrote.", exists=True, file_okay=False)],
    input: Annotated[
        Places,
        typer.Option("--input", metavar="NAME=PLACE", help="Input and its file, or table:STAGE.TABLE of an instance; may be repeated."),
    ] = None,
    output: Annotated[
        Places, typer.Option("--output", metavar="NAME=PLACE", help="Output and its file, or table:STAGE.TABLE; may be repeated.")
    ] = None,
    slice: Annotated[
        str | None,
        typer.Option(
            "--slice", metavar="COLUMN=VALUE", help="Replace only the rows of a table that have this value, such as day=2026-01-31."
        ),
    ] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read pickles in the bundle, which can run any code.")] = False,
    instance: Instance = None,
    config: ConfigFile = None,
) -> None:
    """Run a production flow from files or committed tables to files or tables; print the rows of each output as one line of JSON.

    Files are Parquet, CSV or Arrow IPC by their ending. When all outputs have been computed, tables, which are all in one stage, are committed together,
    beside what else it holds; then each file is replaced at once.
    """
    from pipedag_core.production.flow import ProductionFlow
    from pipedag_core.production.into_tables import Slice
    from pipedag_core.production.places import score as run

    inputs, outputs = _pairs(input, "--input"), _pairs(output, "--output")
    if not outputs:
        raise ConfigError("Say where the outputs go: --output NAME=FILE or --output NAME=table:STAGE.TABLE.")
    # As for other commands: code that the bundle names may lie in the working directory.
    make_importable(Path.cwd())
    prod = ProductionFlow.load(bundle, trust_pickle=trust_pickle)
    column, equals, value = (slice or "").partition("=")
    if slice is not None and not (column and equals and value):
        raise ConfigError(f"--slice {slice!r}: write COLUMN=VALUE, such as day=2026-01-31.")
    part = Slice(column, value) if slice is not None else None
    done = run(prod, inputs, outputs, lambda: settings(config, instance, per_user=False), part=part)
    rows = {name: item.rows for name, item in done.items()}
    typer.echo(json.dumps({"flow": prod.parts.program.flow, "outcome": "scored", "outputs": rows}, ensure_ascii=False))


def _pairs(texts: Places, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise ConfigError(f"{option} {text!r}: write NAME=PLACE, such as clean.flights=flights.parquet.")
        found[name] = place
    return found
