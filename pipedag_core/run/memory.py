"""What the catalog knows, remembered by a run whose steps are all carried out by this process.

Such a run asks the catalog once per stage and not once per task, and records results in batches where little is lost if the process dies. What the
catalog promises stays as it is:

* While the run holds a stage's lease nobody else changes the stage, so what was read ahead stays true; what is not among it is asked for. That
  includes that the tables of its current generation are there, which clean-up leaves alone.
* A result that waits to be recorded points to what its task has just written, and to objects of the current generation, which clean-up leaves
  alone. If the process dies before it is recorded, the next run finds the same objects again, and makes anew what was written: work of a moment.
* What waits in a stage is recorded in one transaction: when it stands for more than a moment's work, or has waited for long, and before the stage is
  committed or given up. The lease's fencing number decides then, as always.

A run without a memory (each step in a process of its own) asks and records one by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import final

from pipedag_core.errors import DuplicateName
from pipedag_core.ports.catalogs import Catalog, FoundResult, GenerationKey, KnownObject, NewObject, Record, TaskKey, TaskResult
from pipedag_core.ports.data import StoredObject, StoredTable

#: Seconds for which a result may wait to be recorded, so that others can see how far the run is.
PATIENCE_S = 0.2

#: Seconds of work that may wait to be recorded, and are done again if the process dies before. One task that took longer is recorded at once.
MOMENT_S = 0.05


@final
@dataclass(slots=True)
class StageMemory:
    """What is known of one stage that the run has open.

    Attributes:
        results: Fingerprint -> newest result; likewise by base fingerprint. None until first asked for.
        objects: Key -> newest object; likewise by base key. None until first asked for.
        number: The current generation.
        previous: Task -> its result in the current generation.
        is_new: The stage was never committed, so that all that is stored of it is recent.
        is_untouched: Nor is there any result of a run that failed.
        current: Ids of objects that the current generation points to.
        names: Readable name -> task, of what this run has given in this stage.
        is_looked_for: The table store was asked whether the tables of the current generation are there.
    """

    results: dict[str, FoundResult] | None = None
    base_results: dict[str, FoundResult] = field(default_factory=dict[str, FoundResult])
    objects: dict[str, StoredObject] | None = None
    base_objects: dict[str, StoredObject] = field(default_factory=dict[str, StoredObject])
    number: int | None = None
    previous: dict[str, TaskResult] = field(default_factory=dict[str, TaskResult])
    is_new: bool = False
    is_untouched: bool = False
    current: set[str] = field(default_factory=set[str])
    names: dict[str, str] = field(default_factory=dict[str, str])
    is_looked_for: bool = False


@final
@dataclass(slots=True)
class Batch:
    """What waits to be recorded in one generation, since when (`time.monotonic`), and how many seconds of work would be lost with it."""

    records: list[Record] = field(default_factory=list[Record])
    since: float = field(default_factory=time.monotonic)
    work_s: float = 0.0


@final
class RunMemory:
    """Asks the catalog for one run, and remembers. Safe to use from several threads.

    Args:
        catalog: The catalog.
        run_id: The run.
        remembers: Whether this process carries out all steps of the run. If not, everything goes to the catalog at once.
    """

    def __init__(self, catalog: Catalog, run_id: str, *, remembers: bool) -> None:
        self._catalog = catalog
        self._run_id = run_id
        self._remembers = remembers
        self._lock = threading.RLock()
        self._stages: dict[str, StageMemory] = {}
        self._given: dict[tuple[str, str], FoundResult] = {}
        self._there: set[str] = set()
        self._waiting: dict[GenerationKey, Batch] = {}

    # --- asking -------------------------------------------------------------------------------------------------------------------

    def has_given(self, stage: str, task: str) -> bool:
        """Return whether this process knows of a result of the task in this run."""
        return (stage, task) in self._given

    def inputs(self, tasks: Sequence[TaskKey]) -> Mapping[TaskKey, FoundResult]:
        """As `Catalog.inputs`."""
        with self._lock:
            known = {key: self._given[key.stage, key.task] for key in tasks if (key.stage, key.task) in self._given}
        left = [key for key in tasks if key not in known]
        return {**known, **self._catalog.inputs(self._run_id, left)} if left else known

    def find_result(self, stage: str, fingerprint: str, *, base: bool = False) -> FoundResult | None:
        """As `Catalog.find_result`."""
        if self._remembers:
            with self._lock:
                memory = self._stage(stage)
                if memory.results is None:
                    self._read_results(stage, memory)
                known = (memory.base_results if base else memory.results or {}).get(fingerprint)
                if known is not None and fingerprint:
                    return known
        return self._catalog.find_result(self._run_id, stage, fingerprint, base=base)

    def find_objects(self, stage: str, keys: Sequence[str], *, base: bool = False) -> Mapping[str, StoredObject]:
        """As `Catalog.find_objects`."""
        known: dict[str, StoredObject] = {}
        if self._remembers:
            with self._lock:
                memory = self._stage(stage)
                if memory.objects is None:
                    self._read_objects(stage, memory)
                index = memory.base_objects if base else memory.objects or {}
                known = {key: index[key] for key in keys if key and key in index}
            if memory.is_new:
                return known
        left = [key for key in keys if key not in known]
        return {**known, **self._catalog.find_objects(self._run_id, stage, left, base=base)} if left else known

    def previous(self, stage: str, task: str) -> TaskResult | None:
        """As `Catalog.previous`."""
        if self._remembers:
            with self._lock:
                memory = self._stage(stage)
                if memory.results is None:
                    self._read_results(stage, memory)
                if task in memory.previous:
                    return memory.previous[task]
                if memory.is_untouched:
                    return None
        return self._catalog.previous(stage, task)

    def to_look_for(self, tables: Sequence[StoredTable]) -> Sequence[StoredTable]:
        """Return those of the tables of which the store has yet to say whether they are there.

        If there is one, all others that tasks of open stages may find are with it: the store is asked once per stage, and not once per task.
        """
        if not self._remembers:
            return tables
        with self._lock:
            wanted = {table.id: table for table in tables if table.id not in self._there}
            for memory in self._stages.values() if wanted else ():
                if memory.objects is not None and not memory.is_looked_for:
                    memory.is_looked_for = True
                    known = (item for item in memory.objects.values() if isinstance(item, StoredTable))
                    wanted.update({item.id: item for item in known if item.id in memory.current})
            return list(wanted.values())

    def note_there(self, ids: Iterable[str]) -> None:
        """Note that the store has these tables."""
        with self._lock:
            self._there.update(ids)

    def forget_objects(self, ids: Sequence[str]) -> None:
        """As `Catalog.forget_objects`."""
        self._catalog.forget_objects(ids)
        self.forget_all()

    # --- recording ----------------------------------------------------------------------------------------------------------------

    def record(self, generation: GenerationKey, result: TaskResult, new: Sequence[NewObject], objects: Sequence[StoredObject]) -> None:
        """As `Catalog.record`; a result that cost little may be recorded a little later.

        Args:
            generation, result, new: As there.
            objects: All that the result points to.
        """
        record = Record(generation, result, new)
        if not self._remembers:
            self._catalog.record_all(self._run_id, (record,))
            return
        with self._lock:
            memory = self._stage(generation.stage)
            self._refuse_taken(memory, generation.stage, result)
            batch = self._waiting.get(generation) or Batch()
            work_s = batch.work_s + (result.seconds if new else 0.0)
            others = {item.id for item in objects} - {item.stored.id for item in new} - memory.current
            self._flush_makers(others, but=generation)
            # What is neither new nor current may be removed by clean-up, and it is this task that has to be done again then.
            if work_s > MOMENT_S or others:
                # What waits is not lost if this one is refused: it is tried again with the next one.
                self._flush(generation, record)
            else:
                batch.records.append(record)
                batch.work_s = work_s
                self._waiting[generation] = batch
            self._remember(memory, record, objects)
            if time.monotonic() - batch.since > PATIENCE_S:
                self._flush(generation)

    def flush(self) -> None:
        """Record everything that waits. What one stage refuses does not keep what waits in others from being recorded."""
        with self._lock, ExitStack() as stack:
            for generation in self._waiting:
                stack.callback(self._flush, generation)

    def _flush_makers(self, objects: set[str], *, but: GenerationKey) -> None:
        """Record what waits in other stages, committed with this one, that has written one of these objects."""
        for generation, batch in list(self._waiting.items()):
            if generation != but and any(new.stored.id in objects for record in batch.records for new in record.new):
                self._flush(generation)

    def _flush_stage(self, stage: str) -> None:
        for generation in [key for key in self._waiting if key.stage == stage]:
            self._flush(generation)

    def _flush(self, generation: GenerationKey, *more: Record) -> None:
        batch = self._waiting.get(generation)
        records = (*(batch.records if batch is not None else ()), *more)
        if records:
            self._catalog.record_all(self._run_id, records)
        self._waiting.pop(generation, None)

    def leave(self, stages: Sequence[str]) -> None:
        """Forget what was read ahead of stages that the run does not have open any more, and what waited to be recorded there."""
        with self._lock:
            for stage in stages:
                self._stages.pop(stage, None)
            self._waiting = {key: batch for key, batch in self._waiting.items() if key.stage not in stages}
            self._there.clear()

    def forget_all(self) -> None:
        """Forget what was read ahead, so that the catalog is asked again."""
        with self._lock:
            for stage, memory in self._stages.items():
                self._stages[stage] = StageMemory(names=memory.names)
            self._there.clear()

    # --- inside -------------------------------------------------------------------------------------------------------------------

    def _stage(self, stage: str) -> StageMemory:
        if stage not in self._stages:
            self._stages[stage] = StageMemory()
        return self._stages[stage]

    def _read_results(self, stage: str, memory: StageMemory) -> None:
        self._flush_stage(stage)
        memory.results = {}
        recent = self._catalog.recent_results(self._run_id, stage)
        # The newest comes first and is to stay.
        for found in reversed(recent):
            memory.results[found.result.fingerprint] = memory.base_results[found.result.base_fingerprint] = found
        if memory.objects is None:
            self._read_objects(stage, memory)
        memory.previous = {found.result.task: found.result for found in recent if found.generation == memory.number}
        memory.is_untouched = memory.is_new and not recent

    def _read_objects(self, stage: str, memory: StageMemory) -> None:
        self._flush_stage(stage)
        memory.objects = {}
        known: Sequence[KnownObject] = self._catalog.recent_objects(self._run_id, stage)
        for item in reversed(known):
            memory.objects[item.key] = memory.base_objects[item.base_key] = item.stored
        memory.number = self._catalog.current(stage)
        memory.is_new = memory.number is None
        memory.current = {item.stored.id for item in known if item.is_current}

    def _refuse_taken(self, memory: StageMemory, stage: str, result: TaskResult) -> None:
        for name in result.entries:
            other = memory.names.get(name, result.task)
            if other != result.task:
                raise DuplicateName.of_tasks(stage, name, other, result.task)

    def _remember(self, memory: StageMemory, record: Record, objects: Sequence[StoredObject]) -> None:
        result = record.result
        place = (record.generation.stage, result.task)
        if place in self._given:
            memory.names = {name: task for name, task in memory.names.items() if task != result.task}
        memory.names.update(dict.fromkeys(result.entries, result.task))
        found = FoundResult(record.generation.stage, record.generation.number, result, {item.id: item for item in objects})
        self._given[place] = found
        if memory.results is not None and result.fingerprint:
            memory.results[result.fingerprint] = memory.base_results[result.base_fingerprint] = found
        if memory.objects is not None:
            for item in record.new:
                memory.objects[item.key] = memory.base_objects[item.base_key] = item.stored
