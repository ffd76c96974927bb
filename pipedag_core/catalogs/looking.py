"""What can be seen in the catalog: by a run, by a task that looks for a stored result, and by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipedag_core.catalogs import rows, runs
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Row, Transaction, first, rows_for
from pipedag_core.ports.catalogs import FoundResult, GenerationRow, KnownObject, LeaseRow, TaskKey, TaskResult
from pipedag_core.ports.data import StoredObject

#: Roles of a stage in a run, the first that has a task's result counts. What the run pins comes last, and only where it writes nothing itself.
_OWN_ROLES = ("open", "failed", "scratch", "written", "unchanged")

_Where = tuple[str, int, str]


class View:
    """The generations that a run sees: per stage its own ones, then perhaps the pinned one.

    Args:
        seen: (stage, role, generation) of all stages in question.
    """

    def __init__(self, seen: Sequence[Row]) -> None:
        roles: dict[str, dict[str, int]] = {}
        for stage, role, generation in seen:
            # What was there before the run is kept for it, but it is not what the run reads.
            if role != "before":
                roles.setdefault(stage, {})[role] = generation
        self._own = {stage: [found[role] for role in _OWN_ROLES if role in found] for stage, found in roles.items()}
        self._pinned = {
            stage: found["pinned"] for stage, found in roles.items() if "pinned" in found and found.keys() <= {"pinned", "scratch"}
        }
        self._pinnable = {stage for stage, found in roles.items() if found.keys() <= {"scratch"}}

    def lacks_pin(self, stage: str) -> bool:
        """Return whether the run neither writes the stage nor pins it."""
        return stage not in self._own or stage in self._pinnable

    def places(self, key: TaskKey) -> list[tuple[_Where, bool]]:
        """Return where a task's result may be, best first, and whether that generation is the run's own."""
        found = [((key.stage, number, key.task), True) for number in self._own.get(key.stage, ())]
        if key.stage in self._pinned:
            found.append(((key.stage, self._pinned[key.stage], key.task), False))
        return found


def view(tx: Transaction, run_id: str, stages: Sequence[str]) -> View:
    """Return what a run sees of these stages."""
    return View(rows_for(tx, sql.VIEW_OF, [(stage,) for stage in stages], {"run_id": run_id}))


def to_pin(tx: Transaction, run_id: str, stages: Sequence[str], seen: View) -> Mapping[str, int]:
    """Return the generations that a running run should pin before it reads these stages; an ended run pins nothing.

    Raises:
        RunError: No such run was begun.
    """
    lacking = [stage for stage in stages if seen.lacks_pin(stage)]
    if not lacking or rows.run_row(runs.known_row(tx, run_id)).state != "running":
        return {}
    return current_of(tx, lacking)


def current_of(tx: Transaction, stages: Sequence[str]) -> Mapping[str, int]:
    """Return stage -> current generation, for those of the stages that have one."""
    return dict(rows_for(tx, sql.CURRENT_OF, [(stage,) for stage in stages], {}))


def pin(tx: Transaction, run_id: str, generations: Mapping[str, int]) -> None:
    """Pin generations for a run, where it pins none of that stage yet."""
    tx.run_many(sql.PIN, sql.named(list(generations.items()), run_id=run_id))


def before(tx: Transaction, run_id: str, stages: Sequence[str]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return the generations that were current before a run wrote stages, and those of them that it does not keep yet; 0 for none.

    Args:
        stages: Which stages.
    """
    roles: dict[str, dict[str, int]] = {}
    for stage, role, generation in rows_for(tx, sql.VIEW_OF, [(stage,) for stage in stages], {"run_id": run_id}):
        roles.setdefault(stage, {})[role] = generation
    kept = {stage: found["before"] for stage, found in roles.items() if "before" in found}
    # What the run only reads is the same before and after.
    read = {stage: found["pinned"] for stage, found in roles.items() if "pinned" in found and found.keys() <= {"pinned", "scratch"}}
    left = [stage for stage in stages if stage not in kept and stage not in read]
    found = dict(rows_for(tx, sql.COMMITTED_BY_OTHERS, [(stage,) for stage in left], {"run_id": run_id}))
    new = {stage: int(found.get(stage) or 0) for stage in left}
    return {**kept, **read, **new}, new


def inputs(tx: Transaction, tasks: Sequence[TaskKey], seen: View) -> Mapping[TaskKey, FoundResult]:
    """Return the results of tasks as a run sees them."""
    places = {key: seen.places(key) for key in tasks}
    results = {(row[0], row[1], row[2]): row for row in rows_for(tx, sql.RESULTS_OF, _unique(places), {})}
    chosen: dict[TaskKey, Row] = {}
    for key, candidates in places.items():
        for place, own in candidates:
            row = results.get(place)
            if row is not None and (own or key.position in ("", row[3])):
                chosen[key] = row
                break
    found = {(item.stage, item.generation, item.result.task): item for item in _with_objects(tx, list(chosen.values()))}
    return {key: found[row[0], row[1], row[2]] for key, row in chosen.items()}


def _unique(places: Mapping[TaskKey, list[tuple[_Where, bool]]]) -> list[_Where]:
    return list(dict.fromkeys(place for candidates in places.values() for place, _ in candidates))


def _with_objects(tx: Transaction, found: Sequence[Row]) -> list[FoundResult]:
    wanted = list(dict.fromkeys((row[0], row[1], row[2]) for row in found))
    objects: dict[_Where, dict[str, StoredObject]] = {}
    entries: dict[_Where, dict[str, str]] = {}
    sources: dict[_Where, list[str]] = {}
    for row in rows_for(tx, sql.ENTRIES_OF, wanted, {}):
        where = (row[0], row[1], row[2])
        item = rows.stored(row[4:])
        objects.setdefault(where, {})[item.id] = item
        if row[3] is None:
            sources.setdefault(where, []).append(item.id)
        else:
            entries.setdefault(where, {})[row[3]] = item.id
    answer: list[FoundResult] = []
    for row in found:
        where = (row[0], row[1], row[2])
        result = rows.result(row, entries.get(where, {}), tuple(sources.get(where, ())))
        answer.append(FoundResult(row[0], row[1], result, objects.get(where, {})))
    return answer


def find_result(tx: Transaction, run_id: str, stage: str, fingerprint: str, *, base: bool) -> FoundResult | None:
    """Return the newest stored result with a fingerprint; nothing has the empty one."""
    if not fingerprint:
        return None
    statement = sql.FIND_BASE_RESULT if base else sql.FIND_RESULT
    row = first(tx, statement, {"run_id": run_id, "stage": stage, "fingerprint": fingerprint})
    return None if row is None else _with_objects(tx, [row])[0]


def find_objects(tx: Transaction, run_id: str, stage: str, keys: Sequence[str], *, base: bool) -> Mapping[str, StoredObject]:
    """Return key -> newest stored object with it."""
    statement = sql.FIND_BASE_OBJECTS if base else sql.FIND_OBJECTS
    wanted = [(key,) for key in dict.fromkeys(keys) if key]
    return {row[0]: rows.stored(row[1:]) for row in rows_for(tx, statement, wanted, {"run_id": run_id, "stage": stage})}


def recent_results(tx: Transaction, stage: str) -> Sequence[FoundResult]:
    """Return the results of the current generation and of newer ones that are over, newest first; without those that lack an object."""
    return _with_objects(tx, tx.rows(sql.RECENT_RESULTS, {"stage": stage}))


def recent_objects(tx: Transaction, stage: str) -> Sequence[KnownObject]:
    """Return the objects that the current generation, or a newer one that is over, points to, newest first."""
    return [KnownObject(rows.stored(row[3:]), row[0], row[1], bool(row[2])) for row in tx.rows(sql.RECENT_OBJECTS, {"stage": stage})]


def previous(tx: Transaction, stage: str, task: str) -> TaskResult | None:
    """Return the task's result in the current generation, else in the newest one that is not scratch."""
    row = first(tx, sql.PREVIOUS, {"stage": stage, "task": task})
    return None if row is None else _with_objects(tx, [row])[0].result


def current(tx: Transaction, stage: str) -> int | None:
    """Return the number of the stage's current generation."""
    return current_of(tx, [stage]).get(stage)


def shown(tx: Transaction) -> Mapping[str, Mapping[str, StoredObject]]:
    """Return for every committed stage the readable names of its current generation."""
    stages: dict[str, dict[str, StoredObject]] = {}
    for row in tx.rows(sql.SHOWN, {}):
        names = stages.setdefault(row[0], {})
        if row[1] is not None:
            names[row[1]] = rows.stored(row[2:])
    return stages


def entries(tx: Transaction, stage: str, generation: int) -> Mapping[str, StoredObject]:
    """Return the readable names of one generation."""
    return {row[0]: rows.stored(row[1:]) for row in tx.rows(sql.ENTRIES, {"stage": stage, "generation": generation})}


def results(tx: Transaction, stage: str, generation: int) -> Sequence[TaskResult]:
    """Return the results in one generation, in the order in which they were recorded."""
    place = {"stage": stage, "generation": generation}
    named: dict[str, dict[str, str]] = {}
    sources: dict[str, list[str]] = {}
    for task, name, object_id in tx.rows(sql.ENTRY_IDS, place):
        if name is None:
            sources.setdefault(task, []).append(object_id)
        else:
            named.setdefault(task, {})[name] = object_id
    return [rows.result(row, named.get(row[2], {}), tuple(sources.get(row[2], ()))) for row in tx.rows(sql.RESULTS, place)]


def generations(tx: Transaction) -> Sequence[GenerationRow]:
    """Return all generations that have rows."""
    return [GenerationRow(*row[:6], current=bool(row[6])) for row in tx.rows(sql.GENERATIONS, {})]


def leases(tx: Transaction) -> Sequence[LeaseRow]:
    """Return all leases that are held."""
    held: list[LeaseRow] = []
    for row in tx.rows(sql.LEASES, {}):
        run = rows.run_row(row[2:])
        held.append(LeaseRow(row[0], run.info.run_id, run.info.owner, row[1], row[18]))
    return held
