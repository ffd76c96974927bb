"""What Dagster is told of a committed table: its data version, and what people want to know about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, final

import dagster as dg

from pipedag_core.config.wire import open_catalog
from pipedag_core.hashing import digest
from pipedag_core.looking import column_lineage, first_rows
from pipedag_core.plan.model import PlanTask
from pipedag_core.ports.catalogs import TaskResult
from pipedag_core.ports.data import ExternalTable, StoredBlob, StoredObject, StoredTable
from pipedag_core.ports.events import StageReport, StepReport
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.places import address, schema_of
from pipedag_dagster.props import TableProps

#: Characters of a query that are shown; events are kept in a database.
_LONGEST_QUERY = 20_000
#: Columns of a preview, and characters of one of its cells.
_PREVIEW_COLUMNS, _PREVIEW_CELL = 30, 80


@final
@dataclass(frozen=True)
class Told:
    """What is told of one asset.

    Attributes:
        task: Full id of the task that made it.
        data_version: Equal for equal tables, whether they were made again or found valid.
        metadata: By key.
    """

    task: str
    data_version: dg.DataVersion
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


def told(job: FlowJob, report: StageReport, done: Mapping[str, StepReport]) -> Iterator[tuple[dg.AssetKey, Told]]:
    """Yield what to tell of all assets of a committed unit, in wiring order.

    Args:
        job: The flow.
        report: What became of the unit.
        done: Full task id -> how its step ended, of tasks that were carried out.
    """
    keys = {(table.task.id, table.name): key for key, table in job.tables.items()}
    previews = _previews(job, report)
    lineage = _lineage(job, report)
    for task in job.plan.tasks:
        result = report.results.get(task.id)
        if result is None:
            continue
        entries = report.entries[task.stage]
        common = _common(job, task, result, report, done.get(task.id))
        if not task.outputs and (task.id, task.task) in keys:
            yield keys[task.id, task.task], _of_task(job, task, result, entries, {**common, **_only(lineage, result, entries)})
            continue
        for name in result.entries:
            stored = entries[name]
            key = keys.get((task.id, name)) or job.translator.get_asset_key(_props(job, task, name, stored))
            facts = {**_of_object(job, stored, name, task.stage), **lineage.get(stored.id, {}), **common}
            if (preview := previews.get(stored.id)) is not None:
                facts["preview"] = dg.MetadataValue.md(preview)
            yield key, Told(task.id, dg.DataVersion(stored.identity), facts)


def provenance(
    instance: dg.DagsterInstance, job: FlowJob, key: dg.AssetKey, versions: dict[dg.AssetKey, str], run_id: str
) -> dict[str, str]:
    """Return what Dagster itself notes with materializations that it asked for: the version of the data, of the code, and of what it was made from.

    Args:
        instance: Where the versions of tables of other stages are looked up.
        job, key: The flow, and the asset.
        versions: Data versions that are known, that of the asset among them; what is looked up is added.
        run_id: Stands for the version of code that has none.
    """
    tags = {"dagster/data_version": versions[key], "dagster/data_version_is_user_provided": "true"}
    table = job.tables.get(key)
    if table is not None:
        tags["dagster/code_version"] = job.translator.get_code_version(table) or run_id
    for other in job.deps.get(key, ()):
        if other not in versions:
            versions[other] = known_version(instance, other) or "INITIAL"
        tags[f"dagster/input_data_version/{other.to_user_string()}"] = versions[other]
        # Which event that was is told apart for partitions only.
        tags[f"dagster/input_event_pointer/{other.to_user_string()}"] = "NULL"
    return tags


def known_version(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """Return the data version of an asset as Dagster has it; None if it was never materialized."""
    records = instance.fetch_materializations(key, limit=1).records
    known = records[0].asset_materialization if records else None
    return None if known is None else (known.tags or {}).get("dagster/data_version")


def _props(job: FlowJob, task: PlanTask, name: str, stored: StoredObject) -> TableProps:
    """Return the properties of a table that the plan does not name."""
    unit = next(stage.unit for stage in job.plan.stages if stage.name == task.stage)
    kind = "table" if isinstance(stored, StoredTable) else "blob"
    uri = f"{address(job.context)}/{schema_of(job.context, task.stage)}/{name}"
    return TableProps(job.plan.flow, job.context.instance_name, task.stage, unit, name, task, kind, "", uri)


def _common(job: FlowJob, task: PlanTask, result: TaskResult, report: StageReport, step: StepReport | None) -> dict[str, Any]:
    found: dict[str, Any] = {"generation": report.generations[task.stage], "pipedag/commit": "committed" if report.changed else "unchanged"}
    if step is not None:
        found |= {"outcome": step.outcome.value, "reason": step.reason, "seconds": round(step.seconds, 3)}
    else:
        found |= {"outcome": result.outcome, "reason": result.reason}
    return found


def _of_task(job: FlowJob, task: PlanTask, result: TaskResult, entries: Mapping[str, StoredObject], common: Mapping[str, Any]) -> Told:
    """Return what to tell of an asset that stands for all that a task returns."""
    tables = {name: entries[name] for name in result.entries}
    if len(tables) == 1:
        [(name, stored)] = tables.items()
        return Told(task.id, dg.DataVersion(stored.identity), {**_of_object(job, stored, name, task.stage), **common})
    version = (
        digest(*(part for name, stored in sorted(tables.items()) for part in (name, stored.identity))) if tables else digest(result.output)
    )
    rows = [stored.rows for stored in tables.values() if isinstance(stored, StoredTable) and stored.rows is not None]
    facts: dict[str, Any] = {"tables": list(tables)} if tables else {}
    if rows:
        facts["rows"] = sum(rows)
    return Told(task.id, dg.DataVersion(version), {**facts, **common})


def _of_object(job: FlowJob, stored: StoredObject, name: str, stage: str) -> dict[str, Any]:
    base = f"{address(job.context)}/{schema_of(job.context, stage)}/{name}"
    if isinstance(stored, StoredBlob):
        return {"format": stored.format, "size": stored.size, "dagster/uri": base}
    if isinstance(stored, ExternalTable):
        return {"dagster/table_name": stored.told}
    facts: dict[str, Any] = {
        "dagster/column_schema": column_schema(stored),
        "dagster/table_name": f"{schema_of(job.context, stage)}.{name}",
        "dagster/uri": base,
    }
    if stored.rows is not None:
        facts["dagster/row_count"] = stored.rows
    if stored.size is not None:
        facts["size"] = stored.size
    if stored.query is not None:
        facts["SQL"] = dg.MetadataValue.md(f"```sql\n{stored.query[:_LONGEST_QUERY]}\n```")
    return facts


def column_schema(table: StoredTable) -> dg.TableSchema:
    """Return the columns of a stored table, with what it promises about them."""
    key = table.options.primary_key
    promised = {*(table.options.non_nullable or ()), *key}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                column.type,
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable and column.name not in promised, unique=key == (column.name,)
                ),
            )
            for column in table.schema.columns
        ],
        constraints=dg.TableConstraints([f"primary key ({', '.join(key)})"]) if key else None,
    )


def schema_of_columns(columns: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """Return columns of which only name and type are known."""
    return dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in columns])


# --- column lineage -----------------------------------------------------------------------------------------------------------------


def _lineage(job: FlowJob, report: StageReport) -> dict[str, dict[str, Any]]:
    """Return id -> what its columns are computed from, of tables made by queries, as metadata; as far as they come from tables that are assets."""
    tables = [item for entries in report.entries.values() for item in entries.values() if isinstance(item, StoredTable)]
    traced = column_lineage(job.context, tables)
    read = {(stage, table) for columns in traced.values() for sources in columns.values() for stage, table, _ in sources}
    keys = _keys_of(job, read)
    found: dict[str, dict[str, Any]] = {}
    for id, columns in traced.items():
        deps = {
            column: [dg.TableColumnDep(keys[stage, table], source) for stage, table, source in sources if (stage, table) in keys]
            for column, sources in columns.items()
        }
        if any(deps.values()):
            told = {column: some for column, some in deps.items() if some}
            found[id] = {"dagster/column_lineage": dg.TableColumnLineage(told)}
    return found


def _keys_of(job: FlowJob, tables: AbstractSet[tuple[str, str]]) -> dict[tuple[str, str], dg.AssetKey]:
    """Return stage and name of tables -> their assets; the asset stands for the task where a plan does not know the name of its only table."""
    keys = {(table.stage, table.name): key for key, table in job.tables.items() if table.kind != "task"}
    stages = {stage for stage, name in tables if (stage, name) not in keys}
    of_task = {table.task.id: key for key, table in job.tables.items() if table.kind == "task" and table.stage in stages}
    if not of_task:
        return keys
    catalog = open_catalog(job.context, read_only=True)
    try:
        for stage in stages:
            number = catalog.current(stage)
            for result in () if number is None else catalog.results(stage, number):
                if len(result.entries) == 1 and (key := of_task.get(f"{stage}.{result.task}")) is not None:
                    [name] = result.entries
                    keys.setdefault((stage, name), key)
    finally:
        catalog.close()
    return keys


def _only(lineage: Mapping[str, dict[str, Any]], result: TaskResult, entries: Mapping[str, StoredObject]) -> dict[str, Any]:
    """Return the lineage of the only table of a task, if it has one only."""
    if len(result.entries) != 1:
        return {}
    [name] = result.entries
    return lineage.get(entries[name].id, {})


# --- previews -----------------------------------------------------------------------------------------------------------------------


def _previews(job: FlowJob, report: StageReport) -> dict[str, str]:
    """Return id -> first rows as Markdown, where these are wanted."""
    if job.preview_rows <= 0:
        return {}
    tables = [item for entries in report.entries.values() for item in entries.values() if isinstance(item, StoredTable)]
    rows = first_rows(job.context, tables, job.preview_rows)
    return {table.id: markdown(table.schema.names, rows[table.id]) for table in tables if table.id in rows}


def markdown(names: tuple[str, ...], rows: list[list[Any]]) -> str:
    """Return rows as a Markdown table."""

    def line(cells: list[Any]) -> str:
        shown = [str("" if cell is None else cell)[:_PREVIEW_CELL].replace("|", "\\|").replace("\n", " ") for cell in cells]
        return f"| {' | '.join(shown[:_PREVIEW_COLUMNS])} |"

    return "\n".join([line(list(names)), line(["---"] * len(names)), *map(line, rows)])
