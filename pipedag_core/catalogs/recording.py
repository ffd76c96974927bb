"""Recording what a task gave: the one moment in which written bytes become tables."""

from __future__ import annotations

from collections.abc import Sequence

from pipedag_core.catalogs import rows, stages
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Transaction, first, rows_for
from pipedag_core.errors import DuplicateName, StoredDataMissing
from pipedag_core.ports.catalogs import GenerationKey, Record, TaskResult


def record(tx: Transaction, run_id: str, records: Sequence[Record], *, now: float) -> None:
    """Record results in open generations, in place of earlier ones of the same tasks; see `Catalog.record`.

    Raises:
        LeaseLost: A generation is not open any more, or the lease has another fencing number.
        DuplicateName: A readable name is taken by another task of the stage.
        StoredDataMissing: A result points to an object that clean-up has removed, or that was struck, since it was found.
    """
    by_generation: dict[GenerationKey, list[Record]] = {}
    for item in records:
        by_generation.setdefault(item.generation, []).append(item)
    for key, items in by_generation.items():
        _check_open(tx, run_id, key)
        places = [{"stage": key.stage, "generation": key.number, "task": item.result.task} for item in items]
        for statement in sql.DROP_RESULT:
            tx.run_many(statement, places)
        _check_names(tx, key, [item.result for item in items])
        _add(tx, run_id, key, items, now)


def _add(tx: Transaction, run_id: str, key: GenerationKey, items: Sequence[Record], now: float) -> None:
    added = {new.stored.id for item in items for new in item.new}
    # What was written but has no readable name is kept for as long as its result.
    nameless = [
        dict.fromkeys([*item.result.sources, *{new.stored.id for new in item.new} - set(item.result.entries.values())]) for item in items
    ]
    _check_objects(tx, key, items, [{*item.result.entries.values(), *more} - added for item, more in zip(items, nameless, strict=True)])
    tx.run_many(sql.ADD_OBJECT, [rows.object_values(new) for item in items for new in item.new])
    place = {"stage": key.stage, "generation": key.number}
    values = [{**place, **rows.result_values(item.result), "run_id": run_id, "now": now} for item in items]
    tx.run_many(sql.ADD_RESULT, values)
    tx.run_many(
        sql.ADD_ENTRY,
        [
            {**place, "task": item.result.task, "name": name, "object_id": object_id}
            for item, more in zip(items, nameless, strict=True)
            for name, object_id in (*item.result.entries.items(), *((None, object_id) for object_id in more))
        ],
    )
    tx.run_many(sql.LOG_TASK, values)


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


def _check_names(tx: Transaction, key: GenerationKey, results: Sequence[TaskResult]) -> None:
    values = {"stage": key.stage, "generation": key.number}
    wanted: dict[str, str] = {}
    for result in results:
        for name in result.entries:
            if name in wanted:
                raise DuplicateName.of_tasks(key.stage, name, wanted[name], result.task)
            wanted[name] = result.task
    taken = rows_for(tx, sql.TAKEN_NAMES, [(name,) for name in wanted], values)
    if taken:
        name, other = taken[0]
        raise DuplicateName.of_tasks(key.stage, name, other, wanted[name])


def _check_objects(tx: Transaction, key: GenerationKey, items: Sequence[Record], needed: Sequence[set[str]]) -> None:
    ids = sorted(set[str]().union(*needed))
    absent = set(ids) - {row[0] for row in rows_for(tx, sql.PRESENT_OBJECTS, [(object_id,) for object_id in ids], {})}
    for item, its in zip(items, needed, strict=True):
        lacking = sorted(its & absent)
        if lacking:
            raise StoredDataMissing(
                f"The result of task {item.result.task!r} in stage {key.stage!r} points to stored data that is not there any more "
                f"({', '.join(lacking)}). Run the task again; it was removed by clean-up, or found to be gone, after it was looked up.",
                stage=key.stage,
                task=item.result.task,
                ids=tuple(lacking),
            )
