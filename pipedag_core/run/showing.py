"""Readable names in the stores: a refreshed, repairable copy of what the catalog says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final, final

from pipedag_core.errors import PipedagError
from pipedag_core.ports.catalogs import Publication
from pipedag_core.ports.data import StoredTable
from pipedag_core.ports.events import NamesSwitchedEarly
from pipedag_core.run.session import Session

log = logging.getLogger("pipedag_core.run")

#: Times that names are refreshed while other runs commit; each of these runs refreshes them too.
_TRIES: Final = 10


def shown_tables(session: Session) -> dict[str, dict[str, StoredTable]]:
    """Return the tables of all current generations: stage -> readable name -> table."""
    return {
        stage: {name: item for name, item in entries.items() if isinstance(item, StoredTable)}
        for stage, entries in session.catalog.shown().items()
    }


def show_generation(session: Session, stage: str, number: int) -> None:
    """Let people see a generation as a whole, though some of its tables were written for others."""
    entries = session.catalog.entries(stage, number)
    session.tables.show_generation(stage, number, {name: item for name, item in entries.items() if isinstance(item, StoredTable)})


def show_failed(session: Session, stage: str, number: int) -> None:
    """Let people look into a generation that will not be committed; that this fails must not hide why."""
    try:
        show_generation(session, stage, number)
    except PipedagError as error:
        log.warning("The tables of generation %s of stage %s could not be shown together: %s", number, stage, error)


def settle_names(session: Session, run_id: str, unit: Sequence[str], publication: Publication) -> None:
    """Let go of what readers saw before a commit, and say so if they were not waited for."""
    publication.committed()
    if not publication.exact:
        log.warning(
            "Stage %s was committed without waiting any longer (%.1f s) for those who read it: a statement of theirs that named several of its tables "
            "at this very moment may have seen old and new ones",
            ", ".join(unit),
            publication.waited_s,
        )
        session.tell(NamesSwitchedEarly(run_id, tuple(unit), publication.waited_s))


def refresh_names(session: Session) -> None:
    """Make the table store show the current generations, those of runs that commit meanwhile included."""
    shown: dict[str, dict[str, StoredTable]] | None = None
    # Another run may commit, and show what it committed, between our look at the catalog and our showing what was seen there.
    for _ in range(_TRIES):
        wanted = shown_tables(session)
        if wanted == shown or session.tables.shows(wanted):
            return
        session.tables.show(wanted)
        shown = wanted


@final
class NamesBeside:
    """Refreshes the readable names after each commit of a run, in a thread beside it, so that people see a stage before the run is over.

    Where commits switch the names themselves, there is nothing to do.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._needed = session.tables.publication({}) is None
        self._lock = threading.Lock()
        self._wanted = False
        self._thread: threading.Thread | None = None

    def refresh(self) -> None:
        """Have the names refreshed soon; what is wanted meanwhile is done in one go."""
        if not self._needed:
            return
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pipedag-names", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Wait until nothing is at work any more, for so many seconds at most."""
        with self._lock:
            self._wanted = False
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _work(self) -> None:
        while self._take():
            try:
                refresh_names(self._session)
            except PipedagError as error:
                # The end of the run does it again, and says what is wrong then.
                log.debug("Readable names could not be refreshed before the end of the run: %s", error)

    def _take(self) -> bool:
        with self._lock:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return wanted
