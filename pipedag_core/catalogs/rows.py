"""Rows of the catalog's tables as the objects of its port, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipedag_core.catalogs.transaction import Row
from pipedag_core.ports.catalogs import NewObject, Owner, RunInfo, RunRow, TaskResult
from pipedag_core.ports.data import Column, ExternalTable, StoredBlob, StoredObject, StoredTable, TableOptions, TableSchema


def text_of(value: Any) -> str:
    """Return plain JSON values as text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def run_row(row: Row) -> RunRow:
    """Return a run from its columns, in the order of `statements.RUN`."""
    run_id, flow, instance, digest, options, host, boot, pid, process_started, note, ttl_s, external_id = row[:12]
    attempt, state, started, ended, expires = row[12:17]
    owner = Owner(host, boot, pid, process_started, note)
    return RunRow(RunInfo(run_id, flow, instance, digest, options, owner, ttl_s, external_id), attempt, state, started, ended, expires)


def result(row: Row, entries: Mapping[str, str], sources: tuple[str, ...]) -> TaskResult:
    """Return a task's result from its columns, in the order of `statements.RESULTS`."""
    _, _, task, place, fingerprint, base, parts, output, outcome, reason, rows, seconds = row
    return TaskResult(task, place, fingerprint, base, json.loads(parts), output, entries, outcome, reason, rows, seconds, sources)


def logged(row: Row) -> tuple[str, TaskResult]:
    """Return (stage, result without output) from the columns of the task log."""
    stage, task, place, fingerprint, base, parts, entries, outcome, reason, rows, seconds = row
    return stage, TaskResult(task, place, fingerprint, base, json.loads(parts), "", json.loads(entries), outcome, reason, rows, seconds)


def result_values(recorded: TaskResult) -> dict[str, object]:
    """Return the parameters with which a result is inserted."""
    return {
        "task": recorded.task,
        "place": recorded.position,
        "fingerprint": recorded.fingerprint,
        "base_fingerprint": recorded.base_fingerprint,
        "parts": text_of(dict(recorded.parts)),
        "output": recorded.output,
        "entries": text_of(dict(recorded.entries)),
        "outcome": recorded.outcome,
        "reason": recorded.reason,
        "row_count": recorded.rows,
        "seconds": recorded.seconds,
    }


def stored(row: Row) -> StoredObject:
    """Return a stored object from its columns, in the order in which every statement names them."""
    id_, kind, stage, generation, name, location, identity, rows, size, columns, arrow, content_hash, options, query, format_, seal = row
    if kind == "blob":
        return StoredBlob(id_, stage, generation, name, location, identity, size, format_)
    if kind == "external":
        return ExternalTable(id_, stage, generation, location, name, identity)
    schema = _schema(columns, bytes(arrow))
    return StoredTable(id_, stage, generation, name, location, schema, identity, rows, size, content_hash, _options(options), query, seal)


def object_values(new: NewObject) -> dict[str, object]:
    """Return the parameters with which a stored object is inserted."""
    item = new.stored
    location, size = (item.owner, None) if isinstance(item, ExternalTable) else (item.location, item.size)
    common: dict[str, object] = {
        "id": item.id,
        "stage": item.stage,
        "generation": item.generation,
        "name": item.name,
        "location": location,
        "identity": item.identity,
        "found_by": new.key,
        "base_found_by": new.base_key,
        "size": size,
    }
    empty = {"row_count": None, "columns": "[]", "arrow": b"", "content_hash": None, "options": "{}", "query": None, "seal": None}
    if isinstance(item, StoredBlob):
        return {**common, **empty, "kind": "blob", "format": item.format}
    if isinstance(item, ExternalTable):
        return {**common, **empty, "kind": "external", "format": ""}
    return {
        **common,
        "kind": "table",
        "row_count": item.rows,
        "columns": text_of([[column.name, column.type, column.nullable] for column in item.schema.columns]),
        "arrow": item.schema.arrow,
        "content_hash": item.content_hash,
        "options": _options_text(item.options),
        "query": item.query,
        "seal": item.seal,
        "format": "",
    }


def _options_text(options: TableOptions) -> str:
    if options == TableOptions():
        return "{}"
    raw = {name: getattr(options, name) for name in TableOptions.__slots__}
    return text_of({**raw, "type_map": dict(options.type_map)})


# The same wide schema is read again and again, once per consumer of a table; what it is made of never changes.
@lru_cache(maxsize=512)
def _schema(columns: str, arrow: bytes) -> TableSchema:
    return TableSchema(tuple(Column(name, type_, nullable) for name, type_, nullable in json.loads(columns)), arrow)


@lru_cache(maxsize=512)
def _options(text: str) -> TableOptions:
    raw: dict[str, Any] = json.loads(text)
    if not raw:
        return TableOptions()
    return TableOptions(
        primary_key=tuple(raw["primary_key"]),
        indexes=tuple(tuple(index) for index in raw["indexes"]),
        type_map=raw["type_map"],
        nullable=None if raw["nullable"] is None else tuple(raw["nullable"]),
        non_nullable=None if raw["non_nullable"] is None else tuple(raw["non_nullable"]),
        materialization_details=raw["materialization_details"],
        # Rows that were written before there were contracts have none.
        contract=raw.get("contract", ""),
    )
