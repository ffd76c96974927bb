"""Going back: the map of an earlier generation is committed again, with all stages that were committed together with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from pipedag_core.catalogs import looking, runs, stages
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Row, Transaction, first
from pipedag_core.errors import RunError, StoredDataMissing
from pipedag_core.ports.catalogs import CommitResult, Held, Publication
from pipedag_core.ports.data import StoredObject

Check = Callable[[Mapping[str, Mapping[str, StoredObject]]], None]


@final
@dataclass(frozen=True, slots=True)
class Commit:
    """What became current at once: the outermost stage, and stage -> generation of all stages of its unit."""

    unit: str
    generations: Mapping[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{stage} g{number}" for stage, number in self.generations.items())


def roll_back(
    tx: Transaction, now: float, run_id: str, stage: str, generation: int | None, check: Check | None, publication: Publication | None
) -> CommitResult | Held:
    """Commit an earlier generation's map again; see `Catalog.rollback`.

    Raises:
        RunError: There is no such generation, or it cannot be made current by itself.
        StoredDataMissing: Data that it points to is known to be gone.
    """
    runs.require_running(tx, run_id)
    tx.run(sql.TOUCH_RUN, {"run_id": run_id, "now": now})
    committed = tx.rows(sql.COMMITTED_OF, {"stage": stage})
    now_current = looking.current(tx, stage)
    if now_current is None:
        raise RunError(f"Stage {stage!r} was never committed, so there is nothing to go back to.", stage=stage)
    wanted = _chosen(stage, now_current, generation, committed)
    present = commit_of(tx, stage, now_current)
    target = commit_of(tx, stage, wanted)
    _refuse_other_unit(tx, stage, target, present)
    old = {name: present.generations[name] for name in target.generations}
    both = [{"stage": name, "old": old[name], "new": number} for name, number in target.generations.items()]
    if not any(tx.rows(sql.DIFFERS, values) for values in both):
        return CommitResult(old, changed=False)
    _refuse_missing(tx, target)
    if check is not None:
        check({name: looking.entries(tx, name, number) for name, number in target.generations.items()})
    names = [target.unit, *(name for name in target.generations if name != target.unit)]
    fence = stages.claim(tx, now, run_id, names, take_over=False)
    if isinstance(fence, Held):
        return fence
    made: dict[str, int] = {}
    for name in names:
        made[name] = stages.stage_row(tx, name)[0]
        values = {"run_id": run_id, "stage": name, "generation": made[name], "old": target.generations[name], "now": now}
        tx.run(sql.TAKE_NUMBER, values)
        tx.run(sql.ADD_GENERATION, {**values, "unit": target.unit, "state": "open", "fence": fence})
        for statement in (*sql.COPY_CONTENT, sql.COMMIT_GENERATION, sql.SET_CURRENT):
            tx.run(statement, values)
        tx.run(sql.SET_ROLE, {**values, "role": "written"})
    tx.run(sql.DROP_LEASE, {"unit": target.unit})
    if publication is not None:
        publication.publish(tx.native, {name: looking.entries(tx, name, number) for name, number in made.items()})
    return CommitResult(made, changed=True)


def _chosen(stage: str, current: int, wanted: int | None, committed: Sequence[Row]) -> int:
    kept = [row[0] for row in committed if row[0] != current]
    facts = {"stage": stage, "generation": wanted, "kept": tuple(kept)}
    there = f"Kept are: {', '.join(map(str, kept))}." if kept else "No earlier one is kept; `retention: committed:` says how many are."
    if wanted is None:
        earlier = [number for number in kept if number < current]
        if not earlier:
            raise RunError(f"Stage {stage!r} has no generation before its current one, {current}. {there}", **facts)
        return max(earlier)
    if wanted != current and wanted not in kept:
        raise RunError(
            f"Generation {wanted} of stage {stage!r} cannot be made current again: clean-up has removed it, or it was never committed. "
            f"Current is {current}. {there}",
            **facts,
        )
    return wanted


def commit_of(tx: Transaction, stage: str, number: int) -> Commit:
    """Return what became current together with a generation."""
    unit, fence = first(tx, sql.UNIT_OF, {"stage": stage, "generation": number}) or (stage, 0)
    # A lease is given back with the commit, so that unit and fence stand for one commit.
    together = dict(sorted(tx.rows(sql.COMMITTED_TOGETHER, {"unit": unit, "fence": fence})))
    return Commit(unit, together or {stage: number})


def _refuse_other_unit(tx: Transaction, stage: str, target: Commit, present: Commit) -> None:
    current = looking.current_of(tx, list(present.generations))
    still = {name for name, number in present.generations.items() if current.get(name) == number}
    if still == set(target.generations) and target.unit == present.unit:
        return
    raise RunError(
        f"Generation {target.generations[stage]} of stage {stage!r} cannot be made current by itself: of that commit there is {target}, while readers "
        f"see {', '.join(f'{name} g{current[name]}' for name in sorted(still))} of one commit now. Stages that are nested are committed together, and "
        "the nesting has changed since, or clean-up has removed a part. Run the flow as it was then; what is stored is not computed again.",
        stage=stage,
        generation=target.generations[stage],
    )


def _refuse_missing(tx: Transaction, target: Commit) -> None:
    gone = [
        row[0] for name, number in target.generations.items() for row in tx.rows(sql.GONE_OBJECTS_OF, {"stage": name, "generation": number})
    ]
    if gone:
        raise StoredDataMissing(
            f"{target} cannot be made current again: the data of {', '.join(sorted(set(gone)))} is gone or damaged. Run the flow as it was then, which "
            "makes it again.",
            generations=dict(target.generations),
        )
