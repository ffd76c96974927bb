"""Recording what a task gave: the one moment in which written bytes become tables."""

from __future__ import annotations

from collections.abc import Sequence

from pipedag_core.catalogs import rows, stages
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Transaction, first, rows_for
from pipedag_core.errors import DuplicateName, StoredDataMissing
from pipedag_core.ports.catalogs import GenerationKey, NewObject, TaskResult


def record(tx: Transaction, run_id: str, key: GenerationKey, result: TaskResult, new: Sequence[NewObject], *, now: float) -> None:
    """Record a result in an open generation, in place of an earlier one of the same task; see `Catalog.record`.

    Raises:
        LeaseLost: The generation is not open any more, or the lease has another fencing number.
        DuplicateName: A readable name is taken by another task of the stage.
        StoredDataMissing: The result points to an object that clean-up has removed, or that was struck, since it was found.
    """
    place = {"stage": key.stage, "generation": key.number, "task": result.task}
    _check_open(tx, run_id, key)
    for statement in sql.DROP_RESULT:
        tx.run(statement, place)
    _check_names(tx, key, result)
    added = {item.stored.id for item in new}
    # What was written but has no readable name is kept for as long as its result.
    nameless = dict.fromkeys([*result.sources, *added - set(result.entries.values())])
    _check_objects(tx, key, result, {*result.entries.values(), *nameless} - added)
    tx.run_many(sql.ADD_OBJECT, [rows.object_values(item) for item in new])
    values = {**place, **rows.result_values(result), "run_id": run_id, "now": now}
    tx.run(sql.ADD_RESULT, values)
    pointers = [*result.entries.items(), *((None, object_id) for object_id in nameless)]
    tx.run_many(sql.ADD_ENTRY, [{**place, "name": name, "object_id": object_id} for name, object_id in pointers])
    tx.run(sql.LOG_TASK, values)


def _check_open(tx: Transaction, run_id: str, key: GenerationKey) -> None:
    row = first(tx, sql.GENERATION, {"stage": key.stage, "generation": key.number})
    if row is None:
        raise stages.lost(run_id, key.stage, key.number, None, None)
    state, opened_by, fence, lease_fence, holder = row
    if (
        opened_by == run_id
        and fence == key.fence
        and (state == "scratch" or (state == "open" and (holder, lease_fence) == (run_id, fence)))
    ):
        return
    raise stages.lost(run_id, key.stage, key.number, state, None if holder == run_id else holder)


def _check_names(tx: Transaction, key: GenerationKey, result: TaskResult) -> None:
    values = {"stage": key.stage, "generation": key.number}
    taken = rows_for(tx, sql.TAKEN_NAMES, [(name,) for name in result.entries], values)
    if taken:
        name, other = taken[0]
        raise DuplicateName(
            f"Tasks {other!r} and {result.task!r} of stage {key.stage!r} both want the name {name!r} for what they return. "
            "Give one of them another name; a name that ends in %% is made unique.",
            stage=key.stage,
            name=name,
            tasks=(other, result.task),
        )


def _check_objects(tx: Transaction, key: GenerationKey, result: TaskResult, ids: set[str]) -> None:
    present = {row[0] for row in rows_for(tx, sql.PRESENT_OBJECTS, [(object_id,) for object_id in sorted(ids)], {})}
    absent = sorted(ids - present)
    if absent:
        raise StoredDataMissing(
            f"The result of task {result.task!r} in stage {key.stage!r} points to stored data that is not there any more "
            f"({', '.join(absent)}). Run the task again; it was removed by clean-up, or found to be gone, after it was looked up.",
            stage=key.stage,
            task=result.task,
            ids=tuple(absent),
        )
