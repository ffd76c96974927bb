"""`pipedag delete-schemas` and `pipedag clear-metadata`: what an instance keeps goes for good, once somebody has said yes to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipedag_core.cli.looking import refuse_without_catalog
from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, settings
from pipedag_core.cli.tables import count, print_table

if TYPE_CHECKING:
    from pipedag_core.run.removing import Kept

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def delete_schemas(
    stages: Annotated[list[str] | None, typer.Argument(metavar="[STAGE]...", help="Only these; by default all stages.")] = None,
    yes: Yes = False,
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Remove stages of an instance for good: readable names, all generations, and the tables and blobs in them.

    Refused while a run at work uses one of them. What others have put beside it, and what other stages point to, stays.
    """
    from pipedag_core import housekeeping

    context = settings(config, instance, per_user)
    refuse_without_catalog(context)
    there = housekeeping.kept(context)
    names = [housekeeping.known_stage(stage, [item.stage for item in there], context.instance_name) for stage in stages or ()]
    chosen = [item for item in there if not names or item.stage in names]
    if not chosen:
        typer.echo(f"instance {context.instance_name}: no stage is kept, there is nothing to remove")
        return
    _show(f"this would go from instance {context.instance_name}", chosen)
    _ask("Remove it for good?", yes=yes)
    gone = housekeeping.delete_stages([item.stage for item in chosen], context)
    typer.echo(f"{count(len(chosen), 'stage')} removed, with {count(gone, 'table or blob') if gone == 1 else f'{gone:,} tables and blobs'}")


def clear_metadata(yes: Yes = False, instance: Instance = None, config: ConfigFile = None, per_user: PerUser = False) -> None:
    """Let the catalog of an instance forget all runs, generations and results, so that the next run makes everything anew.

    Tables are not touched: they can be read under their names until the next run, and `pipedag gc` removes them. Refused while a run is at work.
    """
    from pipedag_core import housekeeping
    from pipedag_core.config.catalog_place import catalog_place

    context = settings(config, instance, per_user)
    refuse_without_catalog(context)
    there = housekeeping.kept(context)
    _show(f"the catalog of instance {context.instance_name} ({catalog_place(context)}) would forget this, and all runs", there)
    _ask("Forget it for good?", yes=yes)
    housekeeping.clear_catalog(context)
    typer.echo(
        f"instance {context.instance_name}: the catalog has forgotten everything; `pipedag gc` removes the tables that nobody knows any more"
    )


def _show(title: str, there: Sequence[Kept]) -> None:
    headers = ["stage", "current", "generations", "tables", "blobs", "bytes"]
    rows = [
        [
            item.stage,
            "" if item.current is None else f"g{item.current}",
            item.generations,
            item.tables,
            item.blobs,
            "" if item.size is None else f"{item.size:,}",
        ]
        for item in there
    ]
    print_table(title, headers, rows)


def _ask(question: str, *, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)
