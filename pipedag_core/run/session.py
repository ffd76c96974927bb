"""The opened parts that a step works with, and what it needs to know of its run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, final

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.errors import ObserverFailed
from pipedag_core.ports.catalogs import Catalog, GenerationKey, Retention, RunInfo
from pipedag_core.ports.events import Event, RunLeft, RunObserver, RunStarted
from pipedag_core.ports.hooks import HookRegistry
from pipedag_core.ports.stores import BlobStore, TableStore
from pipedag_core.run.memory import RunMemory

log = logging.getLogger(__name__)


def _open_none(config: Any, *, read_only: bool = False) -> AbstractContextManager[Session | None]:
    return nullcontext()


@final
@dataclass(frozen=True, slots=True)
class Session:
    """Everything that is open while steps run.

    Attributes:
        catalog, tables, blobs, hooks: The parts, opened.
        config: The instance's configuration; handed to tasks, otherwise opaque here.
        observers: Who is told what happens.
        retention: What clean-up keeps.
        content_hash_rows: Content hashes are made of tables in memory up to this many rows, where none is needed.
        auto_table, auto_blob: Names of types that may be returned bare (`pandas.Series`); empty auto_table means all types with a hook.
        ttl_s: Seconds for which leases and pins of this process's runs hold without being renewed.
        wait_s: Seconds for which a run in this process waits for a stage that another run writes.
        open_other: Opens another instance, by its configuration; gives None where nothing was ever stored. With `read_only` its catalog cannot be written.
    """

    catalog: Catalog
    tables: TableStore
    blobs: BlobStore
    hooks: HookRegistry
    config: Any
    observers: Sequence[RunObserver] = ()
    retention: Retention = field(default_factory=Retention)
    content_hash_rows: int = 1_000_000
    auto_table: Sequence[str] = ()
    auto_blob: Sequence[str] = ()
    ttl_s: float = 30.0
    wait_s: float = 3600.0
    open_other: Callable[..., AbstractContextManager[Session | None]] = _open_none

    def tell(self, event: Event) -> None:
        """Tell all observers; what they raise never disturbs the run.

        Raises:
            ObserverFailed: An observer that the run must not do without says so, before the run or after it.
        """
        fatal: ObserverFailed | None = None
        for observer in self.observers:
            try:
                observer.on_event(event)
            except Exception as error:
                if isinstance(error, ObserverFailed) and isinstance(event, (RunStarted, RunLeft)):
                    fatal = fatal or error
                else:
                    log.warning("observer %r failed at %s; the run goes on", observer, type(event).__name__, exc_info=True)
        if fatal is not None:
            raise fatal


@final
@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the caller of a run chose, the same for every step wherever it is executed."""

    mode: CacheValidationMode = CacheValidationMode.NORMAL
    disable_cache_function: bool = False
    ignore_task_version: bool = False
    ignore_position_hashes: bool = False

    def to_json(self) -> str:
        """Return the options as JSON text."""
        return json.dumps({**asdict(self), "mode": self.mode.value})

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        """Return the options that `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        mode = CacheValidationMode(raw.pop("mode"))
        return cls(mode=mode, **raw)


@final
class KeyedLocks:
    """One lock per key, kept while somebody holds or awaits it: equal work in one process is done once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    def hold(self, key: str) -> AbstractContextManager[None]:
        """Hold the lock of a key within a `with` block."""
        return _Hold(self, key)

    def take(self, key: str) -> None:
        """Take the lock of a key, waiting for it if need be."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            lock.acquire()
        except BaseException:
            self._leave(key)
            raise

    def give_back(self, key: str) -> None:
        """Give back what `take` took."""
        self._locks[key][0].release()
        self._leave(key)

    def _leave(self, key: str) -> None:
        with self._guard:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


@final
class _Hold(AbstractContextManager[None]):
    # A class, since `contextlib.contextmanager` sets the traceback of the exceptions that pass through, and users' exceptions may be frozen.

    def __init__(self, locks: KeyedLocks, key: str) -> None:
        self._locks, self._key = locks, key

    def __enter__(self) -> None:
        self._locks.take(self._key)

    def __exit__(self, *_: object) -> None:
        self._locks.give_back(self._key)


@final
@dataclass(frozen=True, slots=True)
class Supplied:
    """What the caller of a run supplies in place of what tasks would give.

    Attributes:
        values: (stage, task) -> nest, as the task would have returned it; see `pipedag_core.run.supplied`.
        scratch: Units that are not committed, by the names of their outermost stages, since something in them may be made from these values.
    """

    values: Mapping[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    scratch: frozenset[str] = frozenset()


@final
@dataclass(frozen=True, slots=True)
class Run:
    """A run as a step sees it.

    Attributes:
        info, options: How it was registered, and what was chosen.
        locks: Equal work in this process is done once.
        open: Generations that this process knows to be open for the run; a mere memory of what the catalog says, whose fences still decide.
        lookups: Tables for finding tasks by their ids, made by `pipedag_core.run.lookup`.
        memory: What the catalog knows, remembered, where this process carries out all steps of the run; see `pipedag_core.run.memory`.
        waiting: Step that waits for a lease -> when it began to wait, and whether that has been said aloud.
        supplied: What is given in place of what tasks would give; only where this process carries out all steps of the run.
        take_over: What this process opens is taken away from whoever holds its lease, alive or not.
    """

    info: RunInfo
    options: RunOptions
    locks: KeyedLocks = field(default_factory=KeyedLocks)
    open: dict[str, GenerationKey] = field(default_factory=dict[str, GenerationKey])
    lookups: dict[int, object] = field(default_factory=dict[int, object], repr=False, compare=False)
    memory: RunMemory | None = field(default=None, repr=False, compare=False)
    waiting: dict[str, tuple[float, bool]] = field(default_factory=dict[str, "tuple[float, bool]"], repr=False, compare=False)
    supplied: Supplied = field(default_factory=Supplied, repr=False, compare=False)
    take_over: bool = False

    @property
    def id(self) -> str:
        """The run's id."""
        return self.info.run_id

    def catalog(self, session: Session) -> RunMemory:
        """Return what answers this run's questions and records its results."""
        return self.memory or RunMemory(session.catalog, self.id, remembers=False)
