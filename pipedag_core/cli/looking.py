"""`pipedag status`, `pipedag show`, `pipedag gc` and `pipedag rollback`: what there is, what can go, and what can come back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Annotated

import typer

from pipedag_core.catalogs.owner import is_gone
from pipedag_core.cli.parameters import ConfigFile, Instance, PerUser, settings
from pipedag_core.cli.tables import count, moment, print_table, span
from pipedag_core.config.context import ConfigContext
from pipedag_core.errors import ConfigError
from pipedag_core.ports.catalogs import Catalog, RunRow
from pipedag_core.ports.data import StoredTable


def status(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Show what this run did, task by task.")] = None,
    instance: Instance = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many runs.")] = 10,
    everything: Annotated[bool, typer.Option("--all", help="Show older generations too.")] = False,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Show the newest runs of an instance, what is current in its stages, and who writes them."""
    context = settings(config, instance, per_user)
    with _existing_catalog(context) as catalog:
        if run_id is not None:
            _show_run(catalog, run_id, context)
        else:
            _show_instance(catalog, limit, everything=everything)


def show(
    table: Annotated[str, typer.Argument(metavar="[STAGE.]TABLE", help="Readable name of a table.")],
    instance: Instance = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many rows.")] = 20,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Show the columns and the first rows of a committed table."""
    from pipedag_core.config.wire import open_table_store
    from pipedag_core.run.result import read_first_rows

    context = settings(config, instance, per_user)
    with _existing_catalog(context) as catalog:
        found = _find_table(catalog, table, context)
    typer.echo(
        f"{found.stage}.{found.name}: {count(found.rows, 'row') or 'rows not counted'} x {count(len(found.schema.columns), 'column')}, "
        f"written in generation {found.generation}"
    )
    print_table("", ["column", "type", "nulls"], [[c.name, c.type, "yes" if c.nullable else "no"] for c in found.schema.columns])
    store = open_table_store(context)
    try:
        with store.session("pipedag show") as access:
            rows = read_first_rows(access, found, limit)
    finally:
        store.close()
    typer.echo()
    print_table(f"first {count(len(rows), 'row')}", list(found.schema.names), rows)


def sql(
    table: Annotated[str, typer.Argument(metavar="[STAGE.]TABLE", help="Readable name of a table.")],
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Print the query that made a committed table, with readable names, ready to paste."""
    from pipedag_core.config.wire import open_table_store

    context = settings(config, instance, per_user)
    with _existing_catalog(context) as catalog:
        found = _find_table(catalog, table, context)
        stages = list(catalog.shown())
    if found.query is None:
        raise ConfigError(
            f"{found.stage}.{found.name} was not made by a query, but from rows that its task returned. `pipedag show {found.stage}.{found.name}` shows them.",
            table=table,
        )
    store = open_table_store(context)
    try:
        dialect = store.capabilities.dialect
    finally:
        store.close()
    from pipedag_core.stores.sqlpretty import pretty

    args = context.table_store.args
    prefix, suffix = (str(args.get(key) or "") for key in ("schema_prefix", "schema_suffix"))
    typer.echo(pretty(found.query, dialect, {stage: f"{prefix}{stage}{suffix}" for stage in stages if prefix or suffix}))


def gc(instance: Instance = None, config: ConfigFile = None, per_user: PerUser = False) -> None:
    """Remove what retention does not keep."""
    from pipedag_core.housekeeping import clean_up

    context = settings(config, instance, per_user)
    removed = clean_up(context)
    typer.echo(
        f"instance {context.instance_name}: {count(removed, 'table or blob') if removed == 1 else f'{removed:,} tables and blobs'} removed"
    )


def rollback(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of the stage.")],
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="G", help="Its generation (`pipedag status --all`); by default the one before the current one."),
    ] = None,
    instance: Instance = None,
    config: ConfigFile = None,
    per_user: PerUser = False,
) -> None:
    """Make an earlier generation of a stage current again, with all stages that were committed together with it."""
    from pipedag_core.housekeeping import roll_back

    context = settings(config, instance, per_user)
    refuse_without_catalog(context)
    done = roll_back(stage, to, context)
    for name, number in done.generations.items():
        what = f"is back, as generation {number}" if done.changed else f"is so already, in generation {number}"
        typer.echo(f"stage {name} {what}")


def refuse_without_catalog(context: ConfigContext) -> None:
    """Refuse an instance that has no catalog yet, so that looking at it does not make one.

    Raises:
        ConfigError: There is none.
    """
    from pipedag_core.config.catalog_place import catalog_place
    from pipedag_core.config.wire import has_catalog

    if not has_catalog(context):
        raise ConfigError(
            f"Nothing has run yet in instance {context.instance_name!r}: there is no catalog at {catalog_place(context)}.",
            instance=context.instance_name,
        )


@contextmanager
def _existing_catalog(context: ConfigContext) -> Iterator[Catalog]:
    from pipedag_core.config.catalog_place import catalog_place
    from pipedag_core.config.wire import open_catalog

    refuse_without_catalog(context)
    path = catalog_place(context).path
    # Looking works where others keep what this user may not write.
    catalog = open_catalog(context, read_only=path is None or not os.access(path.parent, os.W_OK))
    try:
        yield catalog
    finally:
        catalog.close()


def _state(row: RunRow) -> str:
    return "died" if row.state == "running" and is_gone(row.info.owner) else row.state


def _show_instance(catalog: Catalog, limit: int, *, everything: bool) -> None:
    runs = [
        [
            row.info.run_id,
            row.info.flow,
            _state(row),
            moment(row.started),
            span(None if row.ended is None else row.ended - row.started),
            row.info.owner.note,
        ]
        for row in catalog.runs(limit)
    ]
    print_table("runs, newest first", ["run", "flow", "state", "started", "took", "by"], runs)
    generations = [
        [row.stage, row.number, "current" if row.current else row.state, moment(row.committed or row.created), row.run_id]
        for row in catalog.generations()
        if everything or row.current or row.state == "open"
    ]
    typer.echo()
    title = "generations" if everything else "generations, current and open (--all for the rest)"
    print_table(title, ["stage", "generation", "state", "since", "run"], generations)
    leases = [
        [
            lease.stage,
            lease.run_id,
            lease.owner.note,
            f"{lease.owner.host}, {f'process {lease.owner.pid}' if lease.owner.pid else 'steps in many processes'}",
            span(max(lease.expires - time.time(), 0.0)),
        ]
        for lease in catalog.leases()
    ]
    if leases:
        typer.echo()
        print_table("leases", ["stage", "run", "by", "on", "expires in"], leases)


def _show_run(catalog: Catalog, wanted: str, context: ConfigContext) -> None:
    rows = catalog.runs(1000)
    found = [row for row in rows if row.info.run_id == wanted] or [row for row in rows if row.info.run_id.startswith(wanted)]
    if len(found) != 1:
        what = "There is no run" if not found else f"There are {len(found)} runs"
        raise ConfigError(f"{what} {wanted!r} in instance {context.instance_name!r}. `pipedag status` lists the newest.", run_id=wanted)
    row = found[0]
    again = f", attempt {row.attempt}" if row.attempt > 1 else ""
    typer.echo(f"run {row.info.run_id} of flow {row.info.flow}: {_state(row)}{again}, started {moment(row.started)}")
    log = [
        [f"{stage}.{result.task}", result.outcome, result.reason, result.rows, span(result.seconds)]
        for stage, result in catalog.task_log(row.info.run_id)
    ]
    print_table("", ["task", "outcome", "reason", "rows", "took"], log)


def _find_table(catalog: Catalog, wanted: str, context: ConfigContext) -> StoredTable:
    shown = catalog.shown()
    everything = {f"{stage}.{name}": item for stage, entries in shown.items() for name, item in entries.items()}
    key = wanted.casefold()
    found = {name: item for name, item in everything.items() if name == key} or {
        n: i for n, i in everything.items() if n.partition(".")[2] == key
    }
    if len(found) == 1:
        item = next(iter(found.values()))
        if not isinstance(item, StoredTable):
            raise ConfigError(f"{next(iter(found))!r} is a blob, not a table: it has no rows to show.", table=wanted)
        return item
    if found:
        raise ConfigError(f"{wanted!r} is in several stages. Name one of {', '.join(found)}.", table=wanted)
    near = get_close_matches(key, list(everything), n=3, cutoff=0.4)
    hint = f"Did you mean {', '.join(near)}?" if near else f"It has: {', '.join(list(everything)[:20]) or 'none'}."
    raise ConfigError(f"Instance {context.instance_name!r} has no table {wanted!r}. {hint}", table=wanted)
