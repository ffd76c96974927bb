"""Forgetting stages with all of their generations, or everything: nobody who is at work may be using it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipedag_core.catalogs import looking, owner, retention, rows
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.rollback import commit_of
from pipedag_core.catalogs.transaction import Transaction
from pipedag_core.errors import RunError
from pipedag_core.ports.catalogs import Garbage, GenerationKey, Held, RunRow


def forget_stages(tx: Transaction, now: float, stages: Sequence[str]) -> Garbage | Held:
    """Forget all generations of stages; see `Catalog.forget_stages`.

    Raises:
        RunError: Another stage is current by the same commit.
    """
    wanted = set(stages)
    for run in _at_work(tx, now):
        used = sorted(wanted & _seen(tx, run))
        if used:
            return Held(used[0], run.info.run_id, run.info.owner, run.expires - now)
    for stage, number in looking.current_of(tx, stages).items():
        _refuse_half(tx, stage, number, wanted)
    found = [row for row in looking.generations(tx) if row.stage in wanted and row.state != "expired"]
    for stage in stages:
        # Who holds it was refused above, or is dead.
        tx.run(sql.DROP_LEASE, {"unit": stage})
        tx.run(sql.NO_CURRENT, {"stage": stage})
    return retention.remove(tx, now, [GenerationKey(row.stage, row.number) for row in found])


def clear(tx: Transaction, now: float) -> Held | None:
    """Forget everything but the numbers that were given; see `Catalog.clear`."""
    for run in _at_work(tx, now):
        return Held(next(iter(sorted(_seen(tx, run))), ""), run.info.run_id, run.info.owner, run.expires - now)
    for statement in sql.CLEAR:
        tx.run(statement, {})
    return None


def _at_work(tx: Transaction, now: float) -> Iterable[RunRow]:
    """Yield the runs that may still use what they see."""
    for row in tx.rows(sql.UNFINISHED_RUNS, {}):
        run = rows.run_row(row)
        if run.expires > now and not owner.is_gone(run.info.owner):
            yield run


def _seen(tx: Transaction, run: RunRow) -> set[str]:
    return {row[0] for row in tx.rows(sql.VIEW, {"run_id": run.info.run_id})}


def _refuse_half(tx: Transaction, stage: str, number: int, wanted: set[str]) -> None:
    together = commit_of(tx, stage, number).generations
    current = looking.current_of(tx, list(together))
    others = sorted(name for name, its in together.items() if current.get(name) == its and name not in wanted)
    if others:
        raise RunError(
            f"Stage {stage!r} cannot go alone: {', '.join(others)} became current with it in one commit, as nested stages do. Nothing was changed. Name "
            "all of them.",
            stage=stage,
            stages=tuple(others),
        )
