"""`pipedag doctor`: what is wrong with an instance, and mending it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from pipedag_core.catalogs.owner import lives
from pipedag_core.cli.looking import refuse_without_catalog
from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, settings
from pipedag_core.cli.tables import count, moment, print_table, span
from pipedag_core.config.settings import parse_duration
from pipedag_core.run import doctor as medicine


def doctor(
    instance: Instance = None,
    mend: Annotated[bool, typer.Option("--mend", help="Put right what can be put right safely.")] = False,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="Leave files alone that nobody knows and that are younger (30s, 1h).")
    ] = "1h",
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Look for what dead processes, lost files and other mishaps have left behind in an instance.

    Ends with 0 when nothing is wrong (after mending, with --mend), 1 otherwise.
    """
    from pipedag_core.config.wire import open_session

    grace_s = parse_duration(grace)
    if grace_s is None:
        raise typer.BadParameter(f"{grace!r} is not a duration such as 0s, 30m or 1h", param_hint="--grace")
    context = settings(config, instance, per_user)
    refuse_without_catalog(context)
    with open_session(context) as session:
        found = medicine.examine(session, lives, grace_s=grace_s)
        _show_leases(found.leases)
        _show(f"instance {context.instance_name}", found.findings, advice="mended" if mend else "with --mend")
        if mend and found.findings:
            found = medicine.mend(session, lives, grace_s=grace_s)
            typer.echo()
            _show("after mending", found.findings, advice="what to do")
    if found.findings:
        raise typer.Exit(1)


def _show_leases(leases: Sequence[medicine.Lease]) -> None:
    rows: list[list[object]] = []
    for lease in leases:
        row, owner = lease.row, lease.row.owner
        left_s = row.expires - time.time()
        ends = f"in {span(left_s)}" if left_s > 0 else moment(row.expires)
        rows.append([row.stage, row.run_id, owner.note, f"{owner.host}, process {owner.pid or '(many)'}", lease.state, ends])
    if rows:
        print_table("leases", ["stage", "run", "by", "on", "state", "expires"], rows)
        typer.echo()


def _show(title: str, findings: Sequence[medicine.Finding], *, advice: str) -> None:
    if not findings:
        typer.echo(f"{title}: nothing is wrong")
        return
    rows = [[finding.trouble.value, finding.subject, finding.problem, finding.advice] for finding in findings]
    print_table(f"{title}: {count(len(rows), 'thing')} wrong", ["kind", "what", "problem", advice], rows)
