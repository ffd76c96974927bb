"""Keeps the generations that a result reads from being cleaned up."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Final, Self, final

from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import RunInfo
from pipedag_core.run.session import Run, Session

#: Seconds for which a context that is never left (its process was killed) keeps generations.
TTL_S: Final = 6 * 3600.0

_guard: Final = threading.Lock()
_entered: Final[list[StageLockContext]] = []


@final
class StageLockContext:
    """Keeps the tables that runs inside the `with` block have made or read, until the block ends.

    `Result.get` always reads the generations of its own run, whatever other runs commit meanwhile. What could come between is clean-up, if other
    runs commit often and `retention` is short. Inside this block it leaves these generations alone.

    It holds for all runs of this process that end while it is entered.
    """

    def __init__(self) -> None:
        self._releases: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        with _guard:
            _entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _guard:
            _entered.remove(self)
        while self._releases:
            self._releases.pop()()

    def keep(self, release: Callable[[], None]) -> None:
        """Call `release` when the block ends."""
        self._releases.append(release)


def keep_generations(session: Session, run: Run, plan: Plan, open_session: Callable[[], AbstractContextManager[Session]]) -> None:
    """Pin the current generations of all stages of a plan for every `StageLockContext` that is entered."""
    with _guard:
        contexts = tuple(_entered)
    for context in contexts:
        keeper = f"keep-{uuid.uuid4().hex}"
        session.catalog.begin_run(replace(run.info, run_id=keeper, ttl_s=TTL_S, owner=replace(run.info.owner, note="StageLockContext")))
        session.catalog.open_stages(keeper, (), tuple(stage.name for stage in plan.stages), scratch=True)
        context.keep(lambda keeper=keeper: _release(open_session, keeper))


@contextmanager
def hold(session: Session, like: RunInfo, stages: Sequence[str], note: str) -> Generator[Mapping[str, int]]:
    """Keep what is current of stages from clean-up within a `with` block, and give its generations: stage -> number.

    Args:
        session: Where the stages are; it may be another instance than the run's own.
        like: The run for which they are kept.
        stages: Their names.
        note: Who keeps them, for people.

    Raises:
        CatalogError: The catalog cannot be written.
    """
    keeper = f"keep-{uuid.uuid4().hex}"
    session.catalog.begin_run(replace(like, run_id=keeper, external_id="", ttl_s=TTL_S, owner=replace(like.owner, note=note)))
    try:
        yield session.catalog.before(keeper, stages)
    finally:
        session.catalog.finish_run(keeper, "succeeded")


def _release(open_session: Callable[[], AbstractContextManager[Session]], keeper: str) -> None:
    with open_session() as session:
        session.catalog.finish_run(keeper, "succeeded")
