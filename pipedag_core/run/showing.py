"""Readable names in the stores: a refreshed, repairable copy of what the catalog says."""

from __future__ import annotations

from typing import Final

from pipedag_core.ports.data import StoredTable
from pipedag_core.run.session import Session

#: Times that names are refreshed while other runs commit; each of these runs refreshes them too.
_TRIES: Final = 10


def shown_tables(session: Session) -> dict[str, dict[str, StoredTable]]:
    """Return the tables of all current generations: stage -> readable name -> table."""
    return {
        stage: {name: item for name, item in entries.items() if isinstance(item, StoredTable)}
        for stage, entries in session.catalog.shown().items()
    }


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
