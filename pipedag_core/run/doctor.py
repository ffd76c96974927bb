"""What may be wrong with an instance after a process died or a file was lost, and what can be mended without running anything.

Nothing here hurts a run that is at work. What lies in the stores is listed first, then which generations are still being written, and which objects
are recorded last: so a file that is in none of them can never become a table, however busy the instance is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from pipedag_core.ports.catalogs import Catalog, LeaseRow, Owner, RunRow
from pipedag_core.ports.data import StoredBlob, StoredObject, StoredTable
from pipedag_core.ports.stores import Deposit
from pipedag_core.run.session import Session
from pipedag_core.run.showing import refresh_names, shown_tables

#: Seconds for which data that no catalog row knows is left alone.
GRACE_S: Final = 3600.0

#: Says whether an owner lives; None where that cannot be known from here.
Lives = Callable[[Owner], "bool | None"]


class Trouble(Enum):
    """What kind of thing is wrong."""

    DEAD_RUN = "dead run"
    LEFT_OPEN = "left open"
    MISSING = "missing"
    DAMAGED = "damaged"
    STRAY = "stray"
    NAMES = "readable names"


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        trouble: Its kind.
        subject: What it concerns: a run's id, `stage.table`, `stage g7`, a location.
        problem: What is wrong, in words.
        advice: What `mend` does about it, or what the user has to do.
        mendable: Whether `mend` puts it right.
    """

    trouble: Trouble
    subject: str
    problem: str
    advice: str
    mendable: bool = True


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held, and whether anybody is there to use it. `state` is held, expired or dead."""

    row: LeaseRow
    state: str


@final
@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        leases: All leases; those that nobody uses have their finding at the run that holds them.
        findings: What is wrong.
        dead_runs: Ids of runs that count as running though their owner is gone.
        strike: Ids of objects that are not struck yet though their data is gone.
        stray_tables, stray_blobs: Locations in the stores that no row knows.
        names_stale: The readable names are not those of the current generations.
    """

    leases: Sequence[Lease]
    findings: Sequence[Finding]
    dead_runs: Sequence[str]
    strike: Sequence[str]
    stray_tables: Sequence[str]
    stray_blobs: Sequence[str]
    names_stale: bool


def examine(session: Session, lives: Lives, *, grace_s: float = GRACE_S) -> Diagnosis:
    """Look for everything that may be wrong with an instance, and change nothing.

    Args:
        session: The instance, opened.
        lives: Says whether an owner lives.
        grace_s: Seconds for which data that no row knows is left alone.
    """
    now = time.time()
    tables, blobs = session.tables.deposits(), session.blobs.deposits()
    running = session.catalog.unfinished()
    dead = dead_runs(session.catalog, running, lives, now)
    # Of a run on another machine whose time is over, nobody knows whether it may still record.
    at_work = {row.info.run_id for row in running if row.info.run_id not in dead or lives(row.info.owner) is None}
    generations = session.catalog.generations()
    busy = {(row.stage, row.number) for row in generations if row.run_id in at_work and row.state in ("open", "scratch")}
    objects = session.catalog.objects()
    known_tables = {row.stored.location for row in objects if isinstance(row.stored, StoredTable)}
    known_blobs = {row.stored.location for row in objects if isinstance(row.stored, StoredBlob)}

    def strays(deposits: Sequence[Deposit], known: set[str]) -> list[Deposit]:
        return [
            item
            for item in deposits
            if item.location not in known
            and item.changed <= now - grace_s
            # Work files name no generation: they may be anybody's who is at work.
            and (not at_work if item.stage is None else (item.stage, item.generation) not in busy)
        ]

    stray_tables, stray_blobs = strays(tables, known_tables), strays(blobs, known_blobs)
    findings = [Finding(Trouble.DEAD_RUN, run_id, why, "the run counts as failed, its leases are free") for run_id, why in dead.items()]
    findings += [
        Finding(
            Trouble.LEFT_OPEN,
            f"{row.stage} g{row.number}",
            f"run {row.run_id} has left it open",
            "it counts as failed; what its tasks gave is found by the next run",
        )
        for row in generations
        if row.state == "open" and row.run_id in dead
    ]
    missing, strike = _missing(session, [row.stored for row in objects], {row.stored.id for row in objects if row.struck})
    findings += missing
    findings += [
        Finding(Trouble.STRAY, item.location, f"no row of the catalog knows it{_bytes(item)}", "it is removed")
        for item in (*stray_tables, *stray_blobs)
    ]
    stale = not session.tables.shows(shown_tables(session))
    if stale:
        findings.append(
            Finding(Trouble.NAMES, "readable names", "they are not there, or not those of the current generations", "they are refreshed")
        )
    return Diagnosis(
        [Lease(row, _state(row, lives, now)) for row in session.catalog.leases()],
        findings,
        tuple(dead),
        strike,
        [item.location for item in stray_tables],
        [item.location for item in stray_blobs],
        stale,
    )


def mend(session: Session, lives: Lives, *, grace_s: float = GRACE_S) -> Diagnosis:
    """Put right what can be put right safely, and return what is wrong after that.

    Runs whose owner is gone count as failed and their leases are free; strays are removed; objects whose data is gone are struck, so that they
    stand in for nothing; readable names are refreshed. Data is never made: damaged tables come back with the next run.

    Args:
        session, lives, grace_s: As for `examine`.
    """
    for run_id in examine(session, lives, grace_s=grace_s).dead_runs:
        session.catalog.finish_run(run_id, "failed")
    # Only now can nobody record in their generations any more.
    found = examine(session, lives, grace_s=grace_s)
    session.catalog.forget_objects(found.strike)
    _remove(session, found)
    if found.names_stale:
        refresh_names(session)
    return examine(session, lives, grace_s=grace_s)


def remove_strays(session: Session, lives: Lives, *, grace_s: float = GRACE_S) -> int:
    """Remove data that no row of the catalog knows, and return how many there were."""
    found = examine(session, lives, grace_s=grace_s)
    _remove(session, found)
    return len(found.stray_tables) + len(found.stray_blobs)


def _remove(session: Session, found: Diagnosis) -> None:
    if found.stray_tables:
        session.tables.drop(found.stray_tables)
    if found.stray_blobs:
        session.blobs.drop(found.stray_blobs)


def dead_runs(catalog: Catalog, running: Sequence[RunRow], lives: Lives, now: float) -> Mapping[str, str]:
    """Return the ids of those among runs that count as running whose owner is gone, and how that is known."""
    dead = {row.info.run_id: why for row in running if (why := _why_dead(row, lives, now)) is not None}
    if dead:
        # A process that came to its end in between is gone too, but has ended its run.
        still = {row.info.run_id for row in catalog.unfinished()}
        dead = {run_id: why for run_id, why in dead.items() if run_id in still}
    return dead


def _why_dead(row: RunRow, lives: Lives, now: float) -> str | None:
    owner = row.info.owner
    alive = lives(owner)
    by = f"{owner.note or 'its owner'} on {owner.host}"
    if alive is False:
        return f"it counts as running, but its process {owner.pid} ({by}) is gone"
    if alive is None and row.expires <= now:
        return f"it counts as running, but {by} has not been heard of for more than {row.info.ttl_s:.0f} s"
    return None


def _state(row: LeaseRow, lives: Lives, now: float) -> str:
    return "dead" if lives(row.owner) is False else "expired" if row.expires <= now else "held"


def _missing(session: Session, objects: Sequence[StoredObject], struck: set[str]) -> tuple[list[Finding], list[str]]:
    gone = _gone(session, objects)
    if gone:
        # Clean-up may have come between reading the rows and looking for the data.
        still = {row.stored.id for row in session.catalog.objects()}
        gone = [item for item in gone if item.id in still]
    where: dict[str, list[str]] = {}
    for stage, entries in session.catalog.shown().items() if gone else ():
        for name, item in entries.items():
            where.setdefault(item.id, []).append(f"{stage}.{name}")
    findings: list[Finding] = []
    for item in gone:
        what = "blob" if isinstance(item, StoredBlob) else "table"
        problem = f"the {what} at {item.location} is gone or has another size"
        if item.id in where:
            told = f"{problem}; it is current"
            findings += [Finding(Trouble.DAMAGED, name, told, "the next run makes it again", mendable=False) for name in where[item.id]]
        elif item.id not in struck:
            findings.append(
                Finding(Trouble.MISSING, f"{item.stage}.{item.name} g{item.generation}", problem, "it no longer stands in for anything")
            )
    return findings, [item.id for item in gone if item.id not in struck]


def _gone(session: Session, objects: Iterable[StoredObject]) -> list[StoredTable | StoredBlob]:
    tables: list[StoredTable] = []
    blobs: dict[str, StoredBlob] = {}
    for item in objects:
        if isinstance(item, StoredBlob):
            blobs[item.location] = item
        elif isinstance(item, StoredTable):
            tables.append(item)
    found: list[StoredTable | StoredBlob] = [*session.tables.missing(tables)]
    return found + [blobs[location] for location in session.blobs.missing({location: blob.size for location, blob in blobs.items()})]


def _bytes(item: Deposit) -> str:
    return "" if item.size is None else f" ({item.size:,} bytes)"
