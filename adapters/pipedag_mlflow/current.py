"""Where the runs of this process are tracked, for tasks that ask while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from pipedag_mlflow.tracked import Target


@final
@dataclass(frozen=True, slots=True)
class Tracking:
    """A run is tracked by an observer.

    Attributes:
        owner: The observer.
        target: Where.
        begin: Waits until the MLflow run is there; raises what was in the way.
    """

    owner: object
    target: Target
    begin: Callable[[], None]


_lock = threading.Lock()
_runs: dict[str, list[Tracking]] = {}


def begin(run_id: str, tracking: Tracking) -> None:
    """Note that a run is tracked somewhere."""
    with _lock:
        _runs.setdefault(run_id, []).append(tracking)


def end(run_id: str, owner: object) -> None:
    """Note that an observer is told no more of a run, as often as `begin` was called for it."""
    with _lock:
        found = _runs.get(run_id, [])
        for item in found:
            if item.owner is owner:
                found.remove(item)
                break
        if not found:
            _runs.pop(run_id, None)


def tracking_of(run_id: str) -> Tracking | None:
    """Return how a run of this process is tracked: by the first of its observers; None if by none."""
    with _lock:
        found = _runs.get(run_id)
        return found[0] if found else None
