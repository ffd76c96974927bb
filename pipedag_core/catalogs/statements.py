"""The catalog's tables, and every statement that is said about them, in SQL that SQLite and PostgreSQL both understand.

Parameters are named (`:stage`). Lists come in as `{wanted}`, a VALUES list made by `expanded`. `{serial}` and `{bytes}` are the two words of
the table definitions that databases spell differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeVar

T = TypeVar("T")

#: Version of the tables. A catalog with a higher one was written by a newer pipedag.
SCHEMA_VERSION: Final = 3

#: Rows of one VALUES list; databases limit the parameters of a statement.
CHUNK: Final = 2000

SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)",
    # The fence belongs to the unit that is named after the stage; it outlives every lease.
    """CREATE TABLE stages (
        stage TEXT NOT NULL PRIMARY KEY, next_number INTEGER NOT NULL, current_number INTEGER, fence INTEGER NOT NULL)""",
    """CREATE TABLE runs (
        seq {serial}, run_id TEXT NOT NULL UNIQUE, flow TEXT NOT NULL, instance TEXT NOT NULL, plan_digest TEXT NOT NULL,
        options TEXT NOT NULL, external_id TEXT NOT NULL, host TEXT NOT NULL, boot TEXT NOT NULL, pid INTEGER NOT NULL,
        process_started TEXT NOT NULL, note TEXT NOT NULL, ttl_s DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL,
        attempt INTEGER NOT NULL, state TEXT NOT NULL, started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION)""",
    # Role: open, scratch, failed (what it had open when it ended), written (committed by it), unchanged (its commit found nothing new), pinned,
    # before (what was current before it wrote; 0 for nothing).
    """CREATE TABLE run_stages (
        run_id TEXT NOT NULL, stage TEXT NOT NULL, role TEXT NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (run_id, stage, role))""",
    "CREATE INDEX run_stages_by_generation ON run_stages (stage, generation)",
    """CREATE TABLE leases (
        unit TEXT NOT NULL PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (run_id), fence INTEGER NOT NULL)""",
    """CREATE TABLE generations (
        stage TEXT NOT NULL REFERENCES stages (stage), number INTEGER NOT NULL, unit TEXT NOT NULL, state TEXT NOT NULL, run_id TEXT NOT NULL,
        fence INTEGER NOT NULL, created DOUBLE PRECISION NOT NULL, committed DOUBLE PRECISION, ended DOUBLE PRECISION,
        PRIMARY KEY (stage, number))""",
    "CREATE INDEX generations_by_run ON generations (run_id, state)",
    """CREATE TABLE results (
        seq {serial}, stage TEXT NOT NULL, generation INTEGER NOT NULL, task TEXT NOT NULL, place TEXT NOT NULL, fingerprint TEXT NOT NULL,
        base_fingerprint TEXT NOT NULL, parts TEXT NOT NULL, output TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
        row_count BIGINT, seconds DOUBLE PRECISION NOT NULL, UNIQUE (stage, generation, task),
        FOREIGN KEY (stage, generation) REFERENCES generations (stage, number))""",
    "CREATE INDEX results_by_fingerprint ON results (stage, fingerprint)",
    "CREATE INDEX results_by_base_fingerprint ON results (stage, base_fingerprint)",
    """CREATE TABLE objects (
        id TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, stage TEXT NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
        location TEXT NOT NULL, identity TEXT NOT NULL, found_by TEXT NOT NULL, base_found_by TEXT NOT NULL, row_count BIGINT, size BIGINT, columns TEXT NOT NULL,
        arrow {bytes} NOT NULL, content_hash TEXT, options TEXT NOT NULL, query TEXT, format TEXT NOT NULL, gone INTEGER NOT NULL, seal TEXT)""",
    "CREATE INDEX objects_by_key ON objects (found_by)",
    "CREATE INDEX objects_by_base_key ON objects (base_found_by)",
    "CREATE INDEX objects_by_generation ON objects (stage, generation)",
    # Without a name: an object that a result points to but that has no readable name in the stage.
    """CREATE TABLE entries (
        stage TEXT NOT NULL, generation INTEGER NOT NULL, task TEXT NOT NULL, name TEXT, object_id TEXT NOT NULL REFERENCES objects (id),
        UNIQUE (stage, generation, name))""",
    "CREATE INDEX entries_by_task ON entries (stage, generation, task)",
    "CREATE INDEX entries_by_object ON entries (object_id, stage)",
    """CREATE TABLE task_log (
        seq {serial}, run_id TEXT NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, task TEXT NOT NULL, place TEXT NOT NULL,
        fingerprint TEXT NOT NULL, base_fingerprint TEXT NOT NULL, parts TEXT NOT NULL, entries TEXT NOT NULL, outcome TEXT NOT NULL,
        reason TEXT NOT NULL, row_count BIGINT, seconds DOUBLE PRECISION NOT NULL, recorded DOUBLE PRECISION NOT NULL)""",
    "CREATE INDEX task_log_by_run ON task_log (run_id)",
    "CREATE TABLE run_notes (run_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run_id, name))",
)

#: What leads from a version to the next.
MIGRATIONS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ALTER TABLE objects ADD COLUMN seal TEXT",),
    2: ("CREATE TABLE run_notes (run_id TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run_id, name))",),
}

READ_VERSION: Final = "SELECT value FROM meta WHERE key = 'schema_version'"
WRITE_VERSION: Final = "INSERT INTO meta (key, value) VALUES ('schema_version', :version)"
RAISE_VERSION: Final = "UPDATE meta SET value = :version WHERE key = 'schema_version'"

# --- runs

_RUN: Final = """r.run_id, r.flow, r.instance, r.plan_digest, r.options, r.host, r.boot, r.pid, r.process_started, r.note, r.ttl_s,
    r.external_id, r.attempt, r.state, r.started, r.ended, r.expires"""
RUN: Final = f"SELECT {_RUN} FROM runs r WHERE r.run_id = :run_id"
RUNS: Final = f"SELECT {_RUN} FROM runs r ORDER BY r.started DESC, r.seq DESC LIMIT :count"
UNFINISHED_RUNS: Final = f"SELECT {_RUN} FROM runs r WHERE r.state = 'running' ORDER BY r.started, r.seq"
ADD_RUN: Final = """INSERT INTO runs (run_id, flow, instance, plan_digest, options, host, boot, pid, process_started, note, ttl_s, external_id,
    attempt, state, started, ended, expires)
    VALUES (:run_id, :flow, :instance, :plan_digest, :options, :host, :boot, :pid, :process_started, :note, :ttl_s, :external_id,
    1, 'running', :now, NULL, :expires)"""
RENEW_RUN: Final = """UPDATE runs SET host = :host, boot = :boot, pid = :pid, process_started = :process_started, note = :note,
    ttl_s = :ttl_s, expires = :expires WHERE run_id = :run_id"""
REOPEN_RUN: Final = "UPDATE runs SET attempt = attempt + 1, state = 'running', started = :now, ended = NULL WHERE run_id = :run_id"
TOUCH_RUN: Final = "UPDATE runs SET expires = :now + ttl_s WHERE run_id = :run_id AND state = 'running'"
END_RUN: Final = "UPDATE runs SET state = :state, ended = :now WHERE run_id = :run_id"
#: A new attempt of a run that ended reads other stages afresh, but still knows what the run itself has made of its own.
FORGET_VIEW: Final = """DELETE FROM run_stages WHERE run_id = :run_id AND (role IN ('scratch', 'pinned', 'before') OR NOT EXISTS (
    SELECT 1 FROM generations g WHERE g.stage = run_stages.stage AND g.number = run_stages.generation AND g.state <> 'expired'))"""
OLD_RUNS: Final = """SELECT r.run_id FROM runs r WHERE r.state <> 'running' AND r.ended < :before
    AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.run_id = r.run_id)"""
ADD_NOTE: Final = """INSERT INTO run_notes (run_id, name, value) VALUES (:run_id, :name, :value) ON CONFLICT (run_id, name) DO NOTHING"""
NOTES: Final = "SELECT n.name, n.value FROM run_notes n WHERE n.run_id = :run_id ORDER BY n.name"
DROP_RUN: Final = (
    "DELETE FROM run_notes WHERE run_id = :run_id",
    "DELETE FROM task_log WHERE run_id = :run_id",
    "DELETE FROM run_stages WHERE run_id = :run_id",
    "DELETE FROM runs WHERE run_id = :run_id",
)

# --- what a run sees of its stages

VIEW: Final = "SELECT v.stage, v.role, v.generation FROM run_stages v WHERE v.run_id = :run_id"
VIEW_OF: Final = "WITH wanted (stage) AS ({wanted}) SELECT v.stage, v.role, v.generation FROM wanted w JOIN run_stages v ON v.run_id = :run_id AND v.stage = w.stage"
SET_ROLE: Final = """INSERT INTO run_stages (run_id, stage, role, generation) VALUES (:run_id, :stage, :role, :generation)
    ON CONFLICT (run_id, stage, role) DO UPDATE SET generation = excluded.generation"""
PIN: Final = """INSERT INTO run_stages (run_id, stage, role, generation) VALUES (:run_id, :stage, 'pinned', :generation)
    ON CONFLICT (run_id, stage, role) DO NOTHING"""
#: Whoever commits holds the lease from the opening on, so the highest number was committed last.
COMMITTED_BY_OTHERS: Final = """WITH wanted (stage) AS ({wanted}) SELECT w.stage, MAX(g.number) FROM wanted w
    JOIN generations g ON g.stage = w.stage AND g.state = 'committed' AND g.run_id <> :run_id GROUP BY w.stage"""
KEEP_BEFORE: Final = """INSERT INTO run_stages (run_id, stage, role, generation) VALUES (:run_id, :stage, 'before', :generation)
    ON CONFLICT (run_id, stage, role) DO NOTHING"""
DROP_BEFORE: Final = "DELETE FROM run_stages WHERE run_id = :run_id AND stage = :stage AND role = 'before'"
DROP_OWN_ROLES: Final = (
    "DELETE FROM run_stages WHERE run_id = :run_id AND stage = :stage AND role IN ('open', 'failed', 'written', 'unchanged')"
)
FAIL_ROLES: Final = (
    """DELETE FROM run_stages WHERE run_id = :run_id AND role = 'failed'
    AND stage IN (SELECT v.stage FROM run_stages v WHERE v.run_id = :run_id AND v.role = 'open')""",
    "UPDATE run_stages SET role = 'failed' WHERE run_id = :run_id AND role = 'open'",
)

#: For one stage of a run that goes on, if it has it open.
OPEN_ROLE: Final = "SELECT 1 FROM run_stages v WHERE v.run_id = :run_id AND v.stage = :stage AND v.role = 'open'"
FAIL_STAGE: Final = (
    "UPDATE generations SET state = 'failed', ended = :now WHERE run_id = :run_id AND stage = :stage AND state = 'open'",
    "DELETE FROM run_stages WHERE run_id = :run_id AND stage = :stage AND role = 'failed'",
    "UPDATE run_stages SET role = 'failed' WHERE run_id = :run_id AND stage = :stage AND role = 'open'",
)

# --- stages, leases, generations

ADD_STAGE: Final = (
    "INSERT INTO stages (stage, next_number, current_number, fence) VALUES (:stage, 1, NULL, 0) ON CONFLICT (stage) DO NOTHING"
)
STAGE: Final = "SELECT next_number, current_number, fence FROM stages WHERE stage = :stage"
CURRENT_OF: Final = """WITH wanted (stage) AS ({wanted}) SELECT s.stage, s.current_number FROM wanted w JOIN stages s ON s.stage = w.stage
    WHERE s.current_number IS NOT NULL"""
TAKE_NUMBER: Final = "UPDATE stages SET next_number = next_number + 1 WHERE stage = :stage"
RAISE_FENCE: Final = "UPDATE stages SET fence = fence + 1 WHERE stage = :stage"
SET_CURRENT: Final = "UPDATE stages SET current_number = :generation WHERE stage = :stage"
NO_CURRENT: Final = "UPDATE stages SET current_number = NULL WHERE stage = :stage"
LEASE: Final = f"SELECT l.fence, {_RUN} FROM leases l JOIN runs r ON r.run_id = l.run_id WHERE l.unit = :unit"
LEASES: Final = f"SELECT l.unit, l.fence, {_RUN} FROM leases l JOIN runs r ON r.run_id = l.run_id ORDER BY l.unit"
ADD_LEASE: Final = "INSERT INTO leases (unit, run_id, fence) VALUES (:unit, :run_id, :fence)"
DROP_LEASE: Final = "DELETE FROM leases WHERE unit = :unit"
DROP_OWN_LEASE: Final = "DELETE FROM leases WHERE unit = :unit AND run_id = :run_id"
DROP_LEASES_OF_RUN: Final = "DELETE FROM leases WHERE run_id = :run_id"
UNITS_OPEN_IN: Final = """WITH wanted (stage) AS ({wanted})
    SELECT DISTINCT g.unit FROM wanted w JOIN generations g ON g.stage = w.stage WHERE g.state = 'open'"""
ADD_GENERATION: Final = """INSERT INTO generations (stage, number, unit, state, run_id, fence, created, committed, ended)
    VALUES (:stage, :generation, :unit, :state, :run_id, :fence, :now, NULL, NULL)"""
OPEN_OF: Final = """SELECT v.stage, g.number, g.fence FROM run_stages v JOIN generations g ON g.stage = v.stage AND g.number = v.generation
    WHERE v.run_id = :run_id AND v.role = :role AND g.state = :role AND g.run_id = :run_id"""
WRITABLE: Final = """SELECT v.stage, v.role, v.generation, g.state, g.unit, g.fence, l.fence, l.run_id FROM run_stages v
    LEFT JOIN generations g ON g.stage = v.stage AND g.number = v.generation LEFT JOIN leases l ON l.unit = g.unit
    WHERE v.run_id = :run_id AND v.role IN ('open', 'written', 'unchanged')"""
GENERATION: Final = """SELECT g.state, g.run_id, g.fence, l.fence, l.run_id FROM generations g LEFT JOIN leases l ON l.unit = g.unit
    WHERE g.stage = :stage AND g.number = :generation"""
FAIL_UNIT: Final = "UPDATE generations SET state = 'failed', ended = :now WHERE unit = :unit AND state = 'open'"
FAIL_RUN: Final = "UPDATE generations SET state = 'failed', ended = :now WHERE run_id = :run_id AND state = 'open'"
COMMIT_GENERATION: Final = "UPDATE generations SET state = 'committed', committed = :now WHERE stage = :stage AND number = :generation"
DIFFERS: Final = """SELECT 1 WHERE
    EXISTS (SELECT name, object_id FROM entries WHERE stage = :stage AND generation = :old
            EXCEPT SELECT name, object_id FROM entries WHERE stage = :stage AND generation = :new)
    OR EXISTS (SELECT name, object_id FROM entries WHERE stage = :stage AND generation = :new
               EXCEPT SELECT name, object_id FROM entries WHERE stage = :stage AND generation = :old)
    OR EXISTS (SELECT task, fingerprint, output FROM results WHERE stage = :stage AND generation = :old
               EXCEPT SELECT task, fingerprint, output FROM results WHERE stage = :stage AND generation = :new)
    OR EXISTS (SELECT task, fingerprint, output FROM results WHERE stage = :stage AND generation = :new
               EXCEPT SELECT task, fingerprint, output FROM results WHERE stage = :stage AND generation = :old)"""
MOVE_PLACES: Final = """UPDATE results SET place = (
    SELECT n.place FROM results n WHERE n.stage = :stage AND n.generation = :new AND n.task = results.task)
    WHERE stage = :stage AND generation = :old"""
COMMITTED_OF: Final = "SELECT g.number FROM generations g WHERE g.stage = :stage AND g.state = 'committed' ORDER BY g.number DESC"
UNIT_OF: Final = "SELECT g.unit, g.fence FROM generations g WHERE g.stage = :stage AND g.number = :generation"
COMMITTED_TOGETHER: Final = """SELECT g.stage, g.number FROM generations g
    WHERE g.unit = :unit AND g.fence = :fence AND g.state = 'committed'"""
GONE_OBJECTS_OF: Final = """SELECT COALESCE(e.name, o.name) FROM entries e JOIN objects o ON o.id = e.object_id
    WHERE e.stage = :stage AND e.generation = :generation AND o.gone = 1"""
GENERATIONS: Final = """SELECT g.stage, g.number, g.state, g.run_id, g.created, g.committed,
    CASE WHEN s.current_number = g.number THEN 1 ELSE 0 END
    FROM generations g JOIN stages s ON s.stage = g.stage ORDER BY g.stage, g.number"""
FOR_RETENTION: Final = """SELECT g.stage, g.number, g.state, g.fence, g.created, g.committed, g.ended,
    CASE WHEN s.current_number = g.number THEN 1 ELSE 0 END,
    CASE WHEN EXISTS (SELECT 1 FROM run_stages v JOIN runs r ON r.run_id = v.run_id WHERE v.stage = g.stage AND v.generation = g.number
                      AND r.state = 'running' AND r.expires > :now) THEN 1 ELSE 0 END
    FROM generations g JOIN stages s ON s.stage = g.stage WHERE g.state <> 'expired' ORDER BY g.stage, g.number DESC"""
COPY_CONTENT: Final = (
    """INSERT INTO results (stage, generation, task, place, fingerprint, base_fingerprint, parts, output, outcome, reason, row_count, seconds)
    SELECT stage, :generation, task, place, fingerprint, base_fingerprint, parts, output, outcome, reason, row_count, seconds
    FROM results WHERE stage = :stage AND generation = :old ORDER BY seq""",
    """INSERT INTO entries (stage, generation, task, name, object_id)
    SELECT stage, :generation, task, name, object_id FROM entries WHERE stage = :stage AND generation = :old""",
)
DROP_CONTENT: Final = (
    "DELETE FROM entries WHERE stage = :stage AND generation = :generation",
    "DELETE FROM results WHERE stage = :stage AND generation = :generation",
)
DROP_GENERATION: Final = "DELETE FROM generations WHERE stage = :stage AND number = :generation"
EXPIRE_GENERATION: Final = "UPDATE generations SET state = 'expired', ended = :now WHERE stage = :stage AND number = :generation"
DROP_EXPIRED: Final = """DELETE FROM generations WHERE state = 'expired' AND NOT EXISTS (
    SELECT 1 FROM objects o WHERE o.stage = generations.stage AND o.generation = generations.number)"""

# --- results and objects

_OBJECT: Final = """o.id, o.kind, o.stage, o.generation, o.name, o.location, o.identity, o.row_count, o.size, o.columns, o.arrow,
    o.content_hash, o.options, o.query, o.format, o.seal"""
_RESULT: Final = """r.stage, r.generation, r.task, r.place, r.fingerprint, r.base_fingerprint, r.parts, r.output, r.outcome, r.reason,
    r.row_count, r.seconds"""
_ELIGIBLE: Final = "(g.state IN ('committed', 'failed', 'expired') OR (g.state = 'open' AND g.run_id = :run_id))"

RESULTS_OF: Final = f"""WITH wanted (stage, generation, task) AS ({{wanted}}) SELECT {_RESULT} FROM wanted w
    JOIN results r ON r.stage = w.stage AND r.generation = w.generation AND r.task = w.task"""
RESULTS: Final = f"SELECT {_RESULT} FROM results r WHERE r.stage = :stage AND r.generation = :generation ORDER BY r.seq"
ENTRIES_OF: Final = f"""WITH wanted (stage, generation, task) AS ({{wanted}}) SELECT e.stage, e.generation, e.task, e.name, {_OBJECT} FROM wanted w
    JOIN entries e ON e.stage = w.stage AND e.generation = w.generation AND e.task = w.task JOIN objects o ON o.id = e.object_id"""
ENTRY_IDS: Final = "SELECT e.task, e.name, e.object_id FROM entries e WHERE e.stage = :stage AND e.generation = :generation"
ENTRIES: Final = f"""SELECT e.name, {_OBJECT} FROM entries e JOIN objects o ON o.id = e.object_id
    WHERE e.stage = :stage AND e.generation = :generation AND e.name IS NOT NULL ORDER BY e.name"""
SHOWN: Final = f"""SELECT s.stage, e.name, {_OBJECT} FROM stages s
    LEFT JOIN entries e ON e.stage = s.stage AND e.generation = s.current_number AND e.name IS NOT NULL
    LEFT JOIN objects o ON o.id = e.object_id WHERE s.current_number IS NOT NULL ORDER BY s.stage, e.name"""


def _find_result(column: str) -> str:
    return f"""SELECT {_RESULT} FROM results r JOIN generations g ON g.stage = r.stage AND g.number = r.generation
    WHERE r.stage = :stage AND r.{column} = :fingerprint AND {_ELIGIBLE} AND NOT EXISTS (
        SELECT 1 FROM entries e JOIN objects o ON o.id = e.object_id
        WHERE e.stage = r.stage AND e.generation = r.generation AND e.task = r.task AND o.gone = 1)
    ORDER BY r.seq DESC LIMIT 1"""


def _find_objects(column: str) -> str:
    # The newest generation is asked for per object, since a stage has far more entries than a task has outputs; the plus sign keeps SQLite
    # from walking through the whole stage for the maximum.
    return f"""WITH wanted (found_by) AS ({{wanted}}), shown (found_by, object_id, newest) AS (
        SELECT w.found_by, f.id, (
            SELECT MAX(+e.generation) FROM entries e JOIN generations g ON g.stage = e.stage AND g.number = e.generation
            WHERE e.object_id = f.id AND e.stage = :stage AND {_ELIGIBLE})
        FROM wanted w JOIN objects f ON f.{column} = w.found_by AND f.gone = 0)
    SELECT s.found_by, {_OBJECT} FROM shown s JOIN objects o ON o.id = s.object_id WHERE s.newest IS NOT NULL
    ORDER BY s.newest, o.generation, o.id"""


FIND_RESULT: Final = _find_result("fingerprint")
FIND_BASE_RESULT: Final = _find_result("base_fingerprint")
FIND_OBJECTS: Final = _find_objects("found_by")
FIND_BASE_OBJECTS: Final = _find_objects("base_found_by")
_RECENT: Final = """g.state IN ('committed', 'failed', 'expired')
    AND g.number >= COALESCE((SELECT s.current_number FROM stages s WHERE s.stage = :stage), 0)"""
RECENT_RESULTS: Final = f"""SELECT {_RESULT} FROM generations g JOIN results r ON r.stage = g.stage AND r.generation = g.number
    WHERE g.stage = :stage AND {_RECENT} AND NOT EXISTS (
        SELECT 1 FROM entries e JOIN objects o ON o.id = e.object_id
        WHERE e.stage = r.stage AND e.generation = r.generation AND e.task = r.task AND o.gone = 1)
    ORDER BY r.seq DESC"""
RECENT_OBJECTS: Final = f"""WITH recent (id, newest, is_current) AS (
        SELECT e.object_id, MAX(e.generation), MAX(CASE WHEN e.generation = s.current_number THEN 1 ELSE 0 END)
        FROM generations g JOIN stages s ON s.stage = g.stage JOIN entries e ON e.stage = g.stage AND e.generation = g.number
        WHERE g.stage = :stage AND {_RECENT} GROUP BY e.object_id)
    SELECT o.found_by, o.base_found_by, n.is_current, {_OBJECT} FROM recent n JOIN objects o ON o.id = n.id WHERE o.gone = 0
    ORDER BY n.newest DESC, o.generation DESC, o.id DESC"""
PREVIOUS: Final = f"""SELECT {_RESULT} FROM results r JOIN stages s ON s.stage = r.stage
    WHERE r.task = :task AND (r.stage, r.generation) IN (
        SELECT g.stage, g.number FROM generations g WHERE g.stage = :stage AND g.state <> 'scratch')
    ORDER BY CASE WHEN s.current_number = r.generation THEN 0 ELSE 1 END, r.seq DESC LIMIT 1"""

DROP_RESULT: Final = (
    "DELETE FROM entries WHERE stage = :stage AND generation = :generation AND task = :task",
    "DELETE FROM results WHERE stage = :stage AND generation = :generation AND task = :task",
)
TAKEN_NAMES: Final = """WITH wanted (name) AS ({wanted}) SELECT e.name, e.task FROM wanted w
    JOIN entries e ON e.stage = :stage AND e.generation = :generation AND e.name = w.name ORDER BY e.name"""
PRESENT_OBJECTS: Final = "WITH wanted (id) AS ({wanted}) SELECT o.id FROM wanted w JOIN objects o ON o.id = w.id WHERE o.gone = 0"
ADD_OBJECT: Final = """INSERT INTO objects (id, kind, stage, generation, name, location, identity, found_by, base_found_by, row_count, size, columns, arrow,
    content_hash, options, query, format, gone, seal)
    VALUES (:id, :kind, :stage, :generation, :name, :location, :identity, :found_by, :base_found_by, :row_count, :size, :columns, :arrow,
    :content_hash, :options, :query, :format, 0, :seal) ON CONFLICT (id) DO NOTHING"""
ADD_RESULT: Final = """INSERT INTO results (stage, generation, task, place, fingerprint, base_fingerprint, parts, output, outcome, reason,
    row_count, seconds)
    VALUES (:stage, :generation, :task, :place, :fingerprint, :base_fingerprint, :parts, :output, :outcome, :reason, :row_count, :seconds)"""
ADD_ENTRY: Final = "INSERT INTO entries (stage, generation, task, name, object_id) VALUES (:stage, :generation, :task, :name, :object_id)"
LOG_TASK: Final = """INSERT INTO task_log (run_id, attempt, stage, task, place, fingerprint, base_fingerprint, parts, entries, outcome, reason,
    row_count, seconds, recorded)
    SELECT r.run_id, r.attempt, :stage, :task, :place, :fingerprint, :base_fingerprint, :parts, :entries, :outcome, :reason, :row_count,
    :seconds, :now FROM runs r WHERE r.run_id = :run_id"""
TASK_LOG: Final = """SELECT t.stage, t.task, t.place, t.fingerprint, t.base_fingerprint, t.parts, t.entries, t.outcome, t.reason, t.row_count,
    t.seconds FROM task_log t WHERE t.run_id = :run_id ORDER BY t.seq"""
STRIKE_OBJECT: Final = "UPDATE objects SET gone = 1 WHERE id = :id"
ORPHANS: Final = f"""SELECT {_OBJECT} FROM objects o WHERE NOT EXISTS (SELECT 1 FROM entries e WHERE e.object_id = o.id)
    ORDER BY o.stage, o.generation, o.name, o.id"""
OBJECTS: Final = f"SELECT o.gone, {_OBJECT} FROM objects o ORDER BY o.stage, o.generation, o.name, o.id"
DROP_OBJECT: Final = "DELETE FROM objects WHERE id = :id"

#: Everything but the counters of stages, so that no number of a generation and no fence is ever given twice.
CLEAR: Final = (
    *(
        f"DELETE FROM {table}"
        for table in ("entries", "results", "generations", "objects", "leases", "run_stages", "run_notes", "task_log", "runs")
    ),
    "UPDATE stages SET current_number = NULL",
)


@lru_cache(maxsize=256)
def expanded(sql: str, count: int, numbers: tuple[bool, ...]) -> str:
    """Return a statement with a VALUES list of named parameters (`v0_0`, `v0_1`, ...) in place of `{wanted}`.

    Args:
        sql: The statement.
        count: Rows of the list.
        numbers: Per column, whether it holds numbers; they are marked as such for databases that would take them for text.
    """
    cells = [[f"CAST(:v{i}_{j} AS INTEGER)" if number else f":v{i}_{j}" for j, number in enumerate(numbers)] for i in range(count)]
    return sql.format(wanted="VALUES " + ", ".join(f"({', '.join(row)})" for row in cells))


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces that fit into one VALUES list. Nothing comes of nothing."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def named(rows: Sequence[tuple[str, int]], **more: object) -> list[Mapping[str, object]]:
    """Return parameters that name generations, one mapping per (stage, generation)."""
    return [{"stage": stage, "generation": generation, **more} for stage, generation in rows]
