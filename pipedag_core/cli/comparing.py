"""`pipedag diff`: what differs between two generations, or two instances."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipedag_core.cli.looking import refuse_without_catalog
from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, configuration, settings
from pipedag_core.cli.tables import count, print_table

if TYPE_CHECKING:
    from pipedag_core.run.differing import ColumnDifference, Difference, TableDifference


def diff(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STAGE[.TABLE]]...", help="Compare only these.")] = None,
    before: Annotated[
        int | None,
        typer.Option("--from", metavar="G", help="Earlier generation of the stage; by default the committed one before the other."),
    ] = None,
    after: Annotated[int | None, typer.Option("--to", metavar="G", help="Later generation; by default the current one.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="I", help="Compare with what this instance has committed, instead of with earlier.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows/--no-rows", help="Count how rows differ; without, no table is read.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Show what differs between two generations of a stage, or between two instances.

    Ends with 0 when nothing differs, 1 when something does.
    """
    from pipedag_core.comparing import compare_generations, compare_instances

    context = settings(config, instance, per_user)
    refuse_without_catalog(context)
    sides = "before", "after"
    if against is None:
        found = compare_generations(names or (), before=before, after=after, rows=rows, config=context)
    else:
        if before is not None or after is not None:
            raise typer.BadParameter("instances are compared by what is current; leave --from and --to out", param_hint="--against")
        other = configuration(config).get(against)
        refuse_without_catalog(other)
        sides = other.instance_name, context.instance_name
        found = compare_instances(other, context, names or (), rows=rows)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
    else:
        _show(found, sides)
    if not found.is_empty:
        raise typer.Exit(1)


def _show(found: Difference, sides: tuple[str, str]) -> None:
    generations = [[stage, *("none" if number is None else number for number in pair)] for stage, pair in found.generations.items()]
    print_table("generations", ["stage", *sides], generations)
    if found.tasks:
        typer.echo()
        print_table("tasks that differ", ["task", "change", "why"], [[f"{t.stage}.{t.task}", t.change, t.why] for t in found.tasks])
    if found.tables:
        typer.echo()
        headers = ["table", "change", "rows", "added", "removed", "changed", "told apart by", "notes"]
        print_table("tables that differ", headers, [_table(table) for table in found.tables])
    columns = [row for table in found.tables for row in _columns(table)]
    if columns:
        typer.echo()
        print_table("columns that differ", ["column", "difference"], columns)
    typer.echo()
    told = f"{count(found.same, 'table or blob') if found.same == 1 else f'{found.same:,} tables and blobs'} the same"
    typer.echo(f"nothing differs; {told}" if found.is_empty else told)


def _table(table: TableDifference) -> Sequence[object]:
    rows = table.rows
    counts = ["", "", ""] if rows is None else [rows.added, rows.removed, "" if rows.changed is None else rows.changed]
    by = "" if rows is None else ", ".join(table.key) or "whole rows"
    notes = "; ".join(text for text in (*table.options, table.note) if text)
    old, new = table.count
    if old is None or new is None:
        size = "" if old is None and new is None else f"{old if new is None else new:,}"
    else:
        size = f"{old:,}" if old == new else f"{old:,} -> {new:,}"
    return [f"{table.stage}.{table.name}", table.change, size, *(f"{n:,}" if isinstance(n, int) else n for n in counts), by, notes]


def _columns(table: TableDifference) -> list[list[object]]:
    place = f"{table.stage}.{table.name}"
    told: list[list[object]] = [[f"{place}.{item.name}", _shape(item)] for item in table.columns]
    for name, number in (table.rows.columns if table.rows is not None else {}).items():
        told.append([f"{place}.{name}", f"other values in {count(number, 'row')}"])
    return told


def _shape(item: ColumnDifference) -> str:
    if not item.before:
        return f"new, {item.after}"
    return f"gone, was {item.before}" if not item.after else f"{item.before} -> {item.after}"
