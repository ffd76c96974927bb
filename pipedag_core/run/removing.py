"""Removing what an instance keeps: stages with all of their data, or all that the catalog knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pipedag_core.errors import LeaseHeld
from pipedag_core.ports.catalogs import Garbage, Held
from pipedag_core.ports.data import StoredBlob, StoredTable
from pipedag_core.ports.stores import Deposit
from pipedag_core.run.outputs import discard
from pipedag_core.run.session import Session
from pipedag_core.run.showing import refresh_names


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """What an instance keeps of a stage.

    Attributes:
        stage: Its name.
        current: Its current generation.
        generations: How many there are.
        tables, blobs: How many of each were written for it.
        size: Their bytes; None where the stores do not know.
    """

    stage: str
    current: int | None
    generations: int
    tables: int
    blobs: int
    size: int | None


def kept(session: Session) -> Sequence[Kept]:
    """Return what is kept of each stage, by its name."""
    generations = [row for row in session.catalog.generations() if row.state != "expired"]
    objects = [row.stored for row in session.catalog.objects()]
    found: list[Kept] = []
    for stage in sorted({row.stage for row in generations} | {item.stage for item in objects}):
        own = [item for item in objects if item.stage == stage]
        sizes = [item.size for item in own if isinstance(item, (StoredTable, StoredBlob)) and item.size is not None]
        current = next((row.number for row in generations if row.stage == stage and row.current), None)
        found.append(
            Kept(
                stage,
                current,
                sum(row.stage == stage for row in generations),
                sum(isinstance(item, StoredTable) for item in own),
                sum(isinstance(item, StoredBlob) for item in own),
                sum(sizes) if sizes else None,
            )
        )
    return found


def delete_stages(session: Session, stages: Sequence[str]) -> int:
    """Remove stages with their readable names, tables and blobs; see `Catalog.forget_stages`.

    First they vanish for readers and runs. What comes after that can be broken off: what is left then is known to nobody, and clean-up removes it.

    Args:
        session: The instance, opened.
        stages: Their normalised names.

    Returns:
        How many tables and blobs went.

    Raises:
        LeaseHeld: A run at work uses one of them; nothing was changed.
        RunError: Another stage is current by the same commit; nothing was changed.
    """
    # What a run that begins from now on writes is of generations that are not among them.
    written = {stage: max((row.number for row in session.catalog.generations() if row.stage == stage), default=0) for stage in stages}
    garbage = _free(session.catalog.forget_stages(stages), "removed")
    refresh_names(session)
    session.tables.hide_generations(garbage.generations)
    discard(session, garbage.objects)
    known = {row.stored.location for row in session.catalog.objects() if isinstance(row.stored, (StoredTable, StoredBlob))}

    def unknown(deposits: Sequence[Deposit]) -> list[str]:
        return [
            item.location
            for item in deposits
            if item.stage in written and (item.generation or 0) <= written[item.stage] and item.location not in known
        ]

    left = unknown(session.tables.deposits()), unknown(session.blobs.deposits())
    if left[0]:
        session.tables.drop(left[0])
    if left[1]:
        session.blobs.drop(left[1])
    return sum(isinstance(item, (StoredTable, StoredBlob)) for item in garbage.objects) + len(left[0]) + len(left[1])


def clear_catalog(session: Session) -> None:
    """Forget all runs, generations and results; see `Catalog.clear`. Tables stay, with their readable names, until runs or clean-up replace them.

    Raises:
        LeaseHeld: A run is at work; nothing was changed.
    """
    held = session.catalog.clear()
    if held is not None:
        raise _in_use(held, "forgotten")


def _free(done: Garbage | Held, what: str) -> Garbage:
    if isinstance(done, Held):
        raise _in_use(done, what)
    return done


def _in_use(held: Held, what: str) -> LeaseHeld:
    by = f"{held.owner.note or 'a run'} (run {held.run_id}, {f'process {held.owner.pid}' if held.owner.pid else 'steps in many processes, begun'}"
    subject = f"stage {held.stage!r} is used" if held.stage else "the instance is used"
    return LeaseHeld(
        f"Nothing was {what}: {subject} by {by} on {held.owner.host}), which is still at work, or holds it for another {held.expires_in_s:.0f} s. Try again "
        "when it has ended; `pipedag status` lists runs and leases.",
        stage=held.stage,
        run_id=held.run_id,
    )
