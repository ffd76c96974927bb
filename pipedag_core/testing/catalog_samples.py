"""Runs, results and stored objects for tests of catalogs, and a clock that stands still until it is told to go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

from pipedag_core.catalogs.owner import many_processes
from pipedag_core.ports.catalogs import Catalog, GenerationKey, NewObject, Opened, Owner, RunInfo, TaskResult
from pipedag_core.ports.data import Column, StoredBlob, StoredTable, TableOptions, TableSchema

#: Seconds for which leases and pins of sample runs hold.
TTL_S: Final = 60.0


@final
@dataclass(slots=True)
class Clock:
    """Unix seconds, moved by hand."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let seconds pass."""
        self.now += seconds


def run_info(run_id: str, *, owner: Owner | None = None, flow: str = "flights", digest: str = "d1", options: str = "{}") -> RunInfo:
    """Return a run whose leases end by expiry only, unless an owner is given."""
    return RunInfo(run_id, flow, "full", digest, options, owner or many_processes("contract"), TTL_S, f"orchestrator/{run_id}")


def table(id: str, key: GenerationKey, name: str, *, identity: str = "") -> StoredTable:
    """Return a stored table with every fact set."""
    schema = TableSchema((Column("id", "int64", nullable=False), Column("wann", "timestamp[us, tz=UTC]")), b"\x00arrow\xff")
    options = TableOptions(("id",), (("id", "wann"),), {"id": "BIGINT"}, None, ("id",), "wide")
    location = f"{key.stage}/g{key.number}/{id}"
    query = "SELECT 'Ä' AS \"x\""
    return StoredTable(
        id, key.stage, key.number, name, location, schema, identity or f"identity-{id}", 7, 1234, "arrow3:ab", options, query, "1-ab"
    )


def blob(id: str, key: GenerationKey, name: str) -> StoredBlob:
    """Return a stored blob."""
    return StoredBlob(id, key.stage, key.number, name, f"{key.stage}/g{key.number}/{id}.pickle", f"identity-{id}", 99, "pickle")


@final
@dataclass(slots=True)
class Worker:
    """A run at work on a catalog, with short words for what tests do again and again.

    Attributes:
        catalog, run_id: Where, and as which run.
        keys: Stage -> the generation that it opened last.
    """

    catalog: Catalog
    run_id: str
    keys: dict[str, GenerationKey] = field(default_factory=dict[str, GenerationKey])

    def begin(self, owner: Owner | None = None) -> Worker:
        """Register the run."""
        self.catalog.begin_run(run_info(self.run_id, owner=owner))
        return self

    def open(self, *stages: str, reads: tuple[str, ...] = (), scratch: bool = False, take_over: bool = False) -> GenerationKey:
        """Open a unit that must be free, and return the key of its outermost stage."""
        opened = self.catalog.open_stages(self.run_id, stages, reads, scratch=scratch, take_over=take_over)
        assert isinstance(opened, Opened), opened
        self.keys.update(opened.generations)
        return opened.generations[stages[0]]

    def record(
        self, stage: str, task: str, object_id: str, *, name: str | None = None, fingerprint: str | None = None, new: bool = True
    ) -> TaskResult:
        """Record a result with one table: a new one, or a pointer to one that is stored already."""
        name = task if name is None else name
        result = TaskResult(
            task=task,
            position=f"position-{task}",
            fingerprint=f"print-{object_id}" if fingerprint is None else fingerprint,
            base_fingerprint=f"base-{object_id}" if fingerprint is None else fingerprint,
            parts={"version": "1.0", "argument x": "ä"},
            output=f'{{"$":"object","id":"{object_id}"}}',
            entries={name: object_id},
            outcome="ran",
            reason="version 1.0 -> 1.1",
            rows=7,
            seconds=0.25,
        )
        stored = NewObject(table(object_id, self.keys[stage], name), f"key-{object_id}", f"base-key-{object_id}")
        self.catalog.record(self.run_id, self.keys[stage], result, [stored] if new else [])
        return result

    def commit(self, *stages: str) -> bool:
        """Commit a unit and return whether anything changed."""
        return self.catalog.commit(self.run_id, stages).changed

    def publish(self, stage: str, **tables: str) -> GenerationKey:
        """Open, record one task per keyword (task=object id) and commit."""
        key = self.open(stage)
        for task, object_id in tables.items():
            self.record(stage, task, object_id)
        self.commit(stage)
        return key


def names(catalog: Catalog) -> dict[str, dict[str, str]]:
    """Return what is shown: stage -> readable name -> object id."""
    return {stage: {name: item.id for name, item in entries.items()} for stage, entries in catalog.shown().items()}
