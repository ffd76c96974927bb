"""Going back to an earlier generation of a stage, with all that follows from it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from pipedag_core.errors import LeaseHeld, StoredDataMissing
from pipedag_core.ports.catalogs import CommitResult, Held, Owner, RunInfo
from pipedag_core.ports.data import StoredBlob, StoredObject, StoredTable
from pipedag_core.run.session import Session
from pipedag_core.run.showing import refresh_names, settle_names, show_generation


def roll_back(session: Session, stage: str, generation: int | None, instance: str, owner: Owner) -> CommitResult:
    """Make an earlier generation of a stage current again; see `Catalog.rollback`. It is a run of its own, and shows as one.

    Args:
        session: The opened parts.
        stage: The stage, by its normalised name.
        generation: Where to go; None for the generation before the current one.
        instance: Name of the instance.
        owner: Who does it.

    Raises:
        LeaseHeld: A run is writing the stage.
        RunError: There is no such generation.
        StoredDataMissing: Data that it points to is gone. It counts as gone from now on, so that the next run makes it again.
    """
    info = RunInfo(uuid.uuid4().hex, f"rollback of {stage}", instance, "", "{}", owner, session.ttl_s)
    session.catalog.begin_run(info)
    gone: list[str] = []

    def check(entries: Mapping[str, Mapping[str, StoredObject]]) -> None:
        lost = {f"{place}.{name}": item.id for place, found in entries.items() for name, item in _lost(session, found).items()}
        if lost:
            gone.extend(lost.values())
            raise StoredDataMissing(
                f"Stage {stage!r} cannot go back: the data of {', '.join(sorted(lost))} is gone or damaged. Nothing was changed. Run the flow as it was "
                "then, which makes it again.",
                stage=stage,
                tables=tuple(sorted(lost)),
            )

    state = "failed"
    try:
        publication = session.tables.publication({})
        done = session.catalog.rollback(info.run_id, stage, generation, check, publication)
        if isinstance(done, Held):
            raise LeaseHeld(
                f"Stage {stage!r} cannot go back now: stage {done.stage!r} is being written by {done.owner.note or 'a run'} (run {done.run_id}, "
                f"{f'process {done.owner.pid}' if done.owner.pid else 'steps in many processes, begun'} on {done.owner.host}). Nothing was changed. "
                "Try again when that run has ended.",
                stage=done.stage,
                run_id=done.run_id,
            )
        state = "succeeded"
    finally:
        if gone:
            session.catalog.forget_objects(tuple(dict.fromkeys(gone)))
        session.catalog.finish_run(info.run_id, state)
    if done.changed:
        if publication is not None:
            settle_names(session, info.run_id, tuple(done.generations), publication)
        if session.tables.capabilities.live_names:
            for name, number in done.generations.items():
                show_generation(session, name, number)
        refresh_names(session)
    return done


def _lost(session: Session, entries: Mapping[str, StoredObject]) -> Mapping[str, StoredObject]:
    tables = [item for item in entries.values() if isinstance(item, StoredTable)]
    blobs = {item.location: item.size for item in entries.values() if isinstance(item, StoredBlob)}
    gone = {item.id for item in session.tables.missing(tables)}
    places = set(session.blobs.missing(blobs)) if blobs else set[str]()
    return {name: item for name, item in entries.items() if item.id in gone or (isinstance(item, StoredBlob) and item.location in places)}
