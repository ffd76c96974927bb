"""`pipedag extract`: from what training has committed to a bundle that serves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, flow_spec_and_settings
from pipedag_core.errors import ConfigError


class Code(StrEnum):
    """Ways to keep the code of a flow."""

    REFERENCE = "reference"
    PACKAGE = "package"


def extract(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY", help="A function that returns (flow, InOutSpecification), or two such objects in a tuple."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the bundle.")],
    instance: Instance = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="First replay the training inputs and compare with what training has committed.")
    ] = False,
    code: Annotated[Code, typer.Option("--code", help="Name the flow's modules, or put their source into the bundle.")] = Code.REFERENCE,
    pickle: Annotated[bool, typer.Option("--pickle", help="Pickle blobs for which there is no safe format.")] = False,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Carve the production flow out of a flow, freeze what training has left behind, and write both as a bundle."""
    flow, spec, context = flow_spec_and_settings(reference, config, instance, per_user)
    if spec is None:
        raise ConfigError(
            f"{reference!r} gives a flow, and not what of it is the production flow. Return both from the factory: "
            "return flow, InOutSpecification(input=..., const=..., output=...).",
            reference=reference,
        )
    made = flow.extract(spec, config=context)
    typer.echo(made.describe())
    if verify:
        typer.echo(f"verified on instance {context.instance_name}:")
        typer.echo("\n".join(f"  {line}" for line in str(made.verify()).splitlines()))
    written = made.save(output, code=code.value, pickle=pickle)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    typer.echo(f"written: {written} ({size:,} bytes)")
