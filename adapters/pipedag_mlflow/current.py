"""Where the runs of this process are tracked, for tasks that ask while they run."""

from __future__ import annotations

import threading

from pipedag_mlflow.tracked import Target

_lock = threading.Lock()
_targets: dict[str, list[Target]] = {}


def begin(run_id: str, target: Target) -> None:
    """Note that a run is tracked somewhere."""
    with _lock:
        _targets.setdefault(run_id, []).append(target)


def end(run_id: str) -> None:
    """Note that this process has left the run."""
    with _lock:
        _targets.pop(run_id, None)


def target_of(run_id: str) -> Target | None:
    """Return where a run of this process is tracked: by the first of its observers; None if by none."""
    with _lock:
        found = _targets.get(run_id)
        return found[0] if found else None
