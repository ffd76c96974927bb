"""What can be had of an instance without running anything: values of tasks and tables, first rows, and which runs are dead."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pipedag_core.catalogs.owner import lives, this_process
from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.wire import open_catalog, open_session
from pipedag_core.define.refs import Reference
from pipedag_core.errors import ConfigError, StoredDataMissing
from pipedag_core.naming import normalize
from pipedag_core.plan.compile import compile_flow
from pipedag_core.ports.catalogs import RunInfo
from pipedag_core.ports.data import StoredTable
from pipedag_core.run import doctor
from pipedag_core.run.result import fetch, load_value, read_first_rows
from pipedag_core.run.session import Run, RunOptions


def output_from_store(
    reference: Reference, as_type: Any = None, config: Any = None, instance: str | None = None, ignore_position_hashes: bool = False
) -> Any:
    """Return the last committed output of a task, or of an item of it, without running anything; see `Reference.get_output_from_store`."""
    flow = reference.tasks[0].flow
    context = configuration(config, instance, flow.name)
    plan = replace(compile_flow(flow, context.instance_name, flow.source), steps=())
    options = RunOptions(ignore_position_hashes=ignore_position_hashes)
    owner = this_process("get_output_from_store")
    run_id = f"look-{uuid.uuid4().hex}"
    info = RunInfo(run_id, plan.flow, context.instance_name, plan.digest, options.to_json(), owner, context.lease_ttl)
    with open_session(context) as session:
        session.catalog.begin_run(info)
        try:
            return fetch(session, Run(info, options), plan, reference, as_type, "get_output_from_store")
        finally:
            session.catalog.finish_run(info.run_id, "succeeded")


def stored_value(
    stage: str, name: str, as_type: Any = None, *, config: PipedagConfig | ConfigContext | None = None, instance: str | None = None
) -> Any:
    """Return a committed table, as the type asked for (by default `pyarrow.Table`), or what a committed blob holds.

    Raises:
        ConfigError: There is no such table; or tables cannot be had as `as_type`.
        StoredDataMissing: Its data is gone.
    """
    context = configuration(config, instance, None)
    where, wanted = normalize(stage, "stage name"), normalize(name, "table name")
    with open_session(context) as session:
        entries = session.catalog.shown().get(where, {})
        if wanted not in entries:
            near = get_close_matches(wanted, list(entries), n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"It has: {', '.join(list(entries)[:20]) or 'none'}."
            raise ConfigError(
                f"Stage {where!r} of instance {context.instance_name!r} has no committed table {wanted!r}. {hint}", table=wanted
            )
        return load_value(session, entries[wanted], as_type, None)


def first_rows(config: PipedagConfig | ConfigContext | None, tables: Sequence[StoredTable], limit: int) -> Mapping[str, list[list[Any]]]:
    """Return id -> first rows of stored tables, as Python values and in no order in particular; a table whose data is gone is left out."""
    found: dict[str, list[list[Any]]] = {}
    with open_session(configuration(config, None, None)) as session, session.tables.session("first rows") as access:
        for table in tables:
            try:
                found[table.id] = read_first_rows(access, table, limit)
            except StoredDataMissing:
                continue
    return found


def column_lineage(
    config: PipedagConfig | ConfigContext | None, tables: Sequence[StoredTable]
) -> Mapping[str, Mapping[str, Sequence[tuple[str, str, str]]]]:
    """Return id -> column -> the columns (stage, table, column) that it is computed from, of stored tables that a query made.

    What the query's text does not tell is left out. Tables that it reads are looked at as they are committed now.
    """
    made = [(table, table.query) for table in tables if table.query is not None]
    if not made:
        return {}
    from pipedag_core.stores.column_lineage import column_sources

    with open_session(configuration(config, None, None)) as session:
        dialect = session.tables.capabilities.dialect
        known = {
            stage: {name: item.schema.names for name, item in entries.items() if isinstance(item, StoredTable)}
            for stage, entries in session.catalog.shown().items()
        }
    return {table.id: column_sources(query, dialect, table.schema.names, known) for table, query in made}


def dead_runs(config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> Mapping[str, str]:
    """Return the ids of an instance's runs that count as running though their process is gone, and how that is known; changes nothing."""
    catalog = open_catalog(configuration(config, instance, None))
    try:
        return doctor.dead_runs(catalog, catalog.unfinished(), lives, time.time())
    finally:
        catalog.close()
