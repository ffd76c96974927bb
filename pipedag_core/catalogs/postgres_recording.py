"""Recording in PostgreSQL in one way to the server and back, where nothing stands against it; else it is left to `pipedag_core.catalogs.recording`.

One statement looks whether the results may be recorded, and writes all their rows if so: what it would refuse, it leaves undone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipedag_core.catalogs import rows
from pipedag_core.ports.catalogs import Record

_RESULT: Final = "task text, place text, fingerprint text, base_fingerprint text, parts text, output text, outcome text, reason text, row_count bigint, seconds float8"
_OBJECT: Final = (
    "id text, kind text, stage text, generation int, name text, location text, identity text, found_by text, base_found_by text, row_count bigint, "
    "size bigint, columns text, arrow text, content_hash text, options text, query text, format text, seal text"
)
_ENTRY: Final = "task text, name text, object_id text"


def _names(columns: str, alias: str = "") -> str:
    return ", ".join(f"{alias}{column.split()[0]}" for column in columns.split(", "))


#: Run after the writers' lock was taken, in a statement of its own: what it sees includes what the last writer left. Returns whether it was done.
RECORD: Final = f"""
    WITH allowed AS MATERIALIZED (
        SELECT r.run_id, r.attempt FROM generations g JOIN runs r ON r.run_id = g.run_id LEFT JOIN leases l ON l.unit = g.unit
        WHERE g.stage = %(stage)s AND g.number = %(generation)s AND g.run_id = %(run_id)s AND g.fence = %(fence)s
            AND (g.state = 'scratch' OR (g.state = 'open' AND l.run_id = g.run_id AND l.fence = g.fence))
            AND NOT EXISTS (SELECT FROM results o WHERE o.stage = %(stage)s AND o.generation = %(generation)s AND o.task = ANY(%(tasks)s::text[]))
            AND NOT EXISTS (SELECT FROM entries o WHERE o.stage = %(stage)s AND o.generation = %(generation)s AND o.name = ANY(%(names)s::text[]))
            AND NOT EXISTS (
                SELECT FROM unnest(%(needed)s::text[]) AS n (id) LEFT JOIN objects o ON o.id = n.id AND o.gone = 0 WHERE o.id IS NULL)),
    objects_added AS (
        INSERT INTO objects ({_names(_OBJECT)}, gone)
        SELECT {_names(_OBJECT, "x.").replace("x.arrow", "pg_catalog.decode(x.arrow, 'base64')")}, 0
        FROM allowed, json_to_recordset(%(objects)s::json) AS x ({_OBJECT}) ON CONFLICT (id) DO NOTHING),
    results_added AS (
        INSERT INTO results (stage, generation, {_names(_RESULT)}) SELECT %(stage)s, %(generation)s, {_names(_RESULT, "x.")}
        FROM allowed, json_to_recordset(%(results)s::json) AS x (n int, {_RESULT}) ORDER BY x.n),
    entries_added AS (
        INSERT INTO entries (stage, generation, {_names(_ENTRY)}) SELECT %(stage)s, %(generation)s, {_names(_ENTRY, "x.")}
        FROM allowed, json_to_recordset(%(entries)s::json) AS x ({_ENTRY})),
    log_added AS (
        INSERT INTO task_log (run_id, attempt, stage, task, place, fingerprint, base_fingerprint, parts, entries, outcome, reason, row_count,
            seconds, recorded)
        SELECT a.run_id, a.attempt, %(stage)s, x.task, x.place, x.fingerprint, x.base_fingerprint, x.parts, x.entries, x.outcome, x.reason,
            x.row_count, x.seconds, %(now)s FROM allowed a, json_to_recordset(%(results)s::json) AS x (n int, entries text, {_RESULT}) ORDER BY x.n)
    SELECT EXISTS (SELECT FROM allowed)"""


def parameters(run_id: str, records: Sequence[Record], now: float) -> Mapping[str, Any] | None:
    """Return the parameters of `RECORD`; None where the records cannot be said in one statement."""
    key = records[0].generation
    names = [name for item in records for name in item.result.entries]
    tasks = [item.result.task for item in records]
    if any(item.generation != key for item in records) or len(set(names)) < len(names) or len(set(tasks)) < len(tasks):
        return None
    added = {new.stored.id: new for item in records for new in item.new}
    entries: list[tuple[str, str | None, str]] = []
    for item in records:
        named = item.result.entries
        entries += [(item.result.task, name, object_id) for name, object_id in named.items()]
        # What was written but has no readable name is kept for as long as its result.
        new = (new.stored.id for new in item.new if new.stored.id not in named.values())
        entries += [(item.result.task, None, object_id) for object_id in dict.fromkeys([*item.result.sources, *new])]
    objects: list[dict[str, Any]] = [rows.object_values(new) for new in added.values()]
    for values in objects:
        values["arrow"] = b64encode(values["arrow"]).decode()
    results = [{"n": number, **rows.result_values(item.result)} for number, item in enumerate(records)]
    texts = {
        "objects": rows.text_of(objects),
        "results": rows.text_of(results),
        "entries": rows.text_of([{"task": task, "name": name, "object_id": object_id} for task, name, object_id in entries]),
    }
    if any("\\u0000" in text for text in texts.values()):
        # The one character that PostgreSQL does not take.
        return None
    return {
        **texts,
        "stage": key.stage,
        "generation": key.number,
        "run_id": run_id,
        "fence": key.fence,
        "now": now,
        "tasks": tasks,
        "names": names,
        "needed": sorted({object_id for _, _, object_id in entries} - added.keys()),
    }
