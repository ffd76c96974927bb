"""Clean-up: which generations are kept, and what can be deleted once the others have gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pipedag_core.catalogs import rows
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Transaction
from pipedag_core.ports.catalogs import Garbage, GenerationKey, Retention

#: Seconds after which an ended run that has no generation left goes from the log.
LOG_AGE_S = 30 * 24 * 3600.0


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A generation that may have to go.

    Attributes:
        key: Which one.
        state: open, committed, failed or scratch.
        touched: Unix seconds of when it was opened, committed or ended, whichever came last.
        guarded: It is current, or a run that goes on sees it.
    """

    key: GenerationKey
    state: str
    touched: float
    guarded: bool


def to_expire(candidates: Sequence[Candidate], retention: Retention, now: float) -> list[GenerationKey]:
    """Return which generations go.

    Args:
        candidates: All generations, the newest of each stage first.
        retention: What is kept.
        now: Unix seconds.
    """
    keep = {"committed": retention.committed, "failed": retention.failed}
    counts: dict[tuple[str, str], int] = {}
    gone: list[GenerationKey] = []
    for item in candidates:
        kind = (item.key.stage, item.state)
        counts[kind] = counts.get(kind, 0) + 1
        retained = item.guarded or item.state == "open" or counts[kind] <= keep.get(item.state, 0)
        if not retained and now - item.touched >= retention.minimum_age_s:
            gone.append(item.key)
    return gone


def expire(tx: Transaction, now: float, retention: Retention) -> Garbage:
    """Remove what retention does not keep, and return what can be deleted from the stores; see `Catalog.expire`."""
    candidates = [
        Candidate(GenerationKey(stage, number, fence), state, max(created, committed or 0.0, ended or 0.0), bool(current or pinned))
        for stage, number, state, fence, created, committed, ended, current, pinned in tx.rows(sql.FOR_RETENTION, {"now": now})
    ]
    garbage = remove(tx, now, to_expire(candidates, retention, now))
    old = [{"run_id": row[0]} for row in tx.rows(sql.OLD_RUNS, {"before": now - LOG_AGE_S})]
    for statement in sql.DROP_RUN:
        tx.run_many(statement, old)
    return garbage


def remove(tx: Transaction, now: float, gone: Sequence[GenerationKey]) -> Garbage:
    """Let generations expire, and forget the objects to which nothing points any more."""
    values = sql.named([(key.stage, key.number) for key in gone], now=now)
    for statement in (*sql.DROP_CONTENT, sql.EXPIRE_GENERATION):
        tx.run_many(statement, values)
    objects = [rows.stored(row) for row in tx.rows(sql.ORPHANS, {})]
    tx.run_many(sql.DROP_OBJECT, [{"id": item.id} for item in objects])
    tx.run(sql.DROP_EXPIRED, {})
    return Garbage(tuple(objects), tuple(gone))
