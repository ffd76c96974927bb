"""The catalog in SQL tables, whatever database holds them: each method of the port is one transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from pipedag_core.catalogs import forgetting, looking, recording, rows, runs
from pipedag_core.catalogs import retention as _retention
from pipedag_core.catalogs import rollback as _rollback
from pipedag_core.catalogs import stages as _stages
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Transaction
from pipedag_core.ports import catalogs as port
from pipedag_core.ports.data import StoredObject


class SqlCatalog(ABC):
    """A `Catalog` over a database that offers transactions; the rules are the same for all of them.

    Args:
        clock: Returns Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction that sees one state of the database."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction that no other writing one overlaps with; an exception undoes it."""

    def _writing_later(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction that keeps others from writing from `exclude` on, or at once."""
        return self._writing()

    @abstractmethod
    def close(self) -> None:
        """Give back all connections."""

    # --- a run and its stages

    def begin_run(self, run: port.RunInfo) -> port.RunRow:
        """See `Catalog.begin_run`. Renewing is put off until a tenth of `ttl_s` has passed since the last time."""
        with self._reading() as tx:
            fresh = runs.is_fresh(tx, self._clock(), run)
        if fresh is not None:
            return fresh
        with self._writing() as tx:
            return runs.begin(tx, self._clock(), run)

    def open_stages(
        self, run_id: str, stages: Sequence[str], reads: Sequence[str], *, scratch: bool, take_over: bool = False
    ) -> port.Opened | port.Held:
        """See `Catalog.open_stages`.

        Raises:
            RunError: The run was not begun, or has ended.
        """
        with self._writing() as tx:
            return _stages.open_stages(tx, self._clock(), run_id, stages, reads, scratch=scratch, take_over=take_over)

    def renew(self, run_id: str) -> None:
        """See `Catalog.renew`."""
        with self._writing() as tx:
            tx.run(sql.TOUCH_RUN, {"run_id": run_id, "now": self._clock()})

    def commit(self, run_id: str, stages: Sequence[str], publication: port.Publication | None = None) -> port.CommitResult:
        """See `Catalog.commit`. Repeated, it gives the answer of the first time, `changed` included, and publishes nothing again."""
        with self._writing_later() as tx:
            if publication is not None:
                # Waiting for readers must not keep others from writing.
                _stages.prepare(tx, run_id, stages, publication)
            tx.exclude()
            return _stages.commit(tx, self._clock(), run_id, stages, publication)

    def give_up(self, run_id: str, stages: Sequence[str]) -> None:
        """See `Catalog.give_up`."""
        with self._writing() as tx:
            _stages.give_up(tx, self._clock(), run_id, stages)

    def rollback(
        self,
        run_id: str,
        stage: str,
        generation: int | None = None,
        check: _rollback.Check | None = None,
        publication: port.Publication | None = None,
    ) -> port.CommitResult | port.Held:
        """See `Catalog.rollback`."""
        with self._writing() as tx:
            return _rollback.roll_back(tx, self._clock(), run_id, stage, generation, check, publication)

    def finish_run(self, run_id: str, state: str) -> Mapping[str, int]:
        """See `Catalog.finish_run`. A run that has ended keeps the state that it ended with.

        Raises:
            RunError: There is no such run, or no such state.
        """
        with self._writing() as tx:
            return runs.finish(tx, self._clock(), run_id, state)

    def note(self, run_id: str, name: str, value: str) -> str:
        """See `Catalog.note`."""
        with self._writing() as tx:
            return runs.note(tx, run_id, name, value)

    def notes(self, run_id: str) -> Mapping[str, str]:
        """See `Catalog.notes`."""
        with self._reading() as tx:
            return runs.notes(tx, run_id)

    # --- tasks

    def inputs(self, run_id: str, tasks: Sequence[port.TaskKey]) -> Mapping[port.TaskKey, port.FoundResult]:
        """See `Catalog.inputs`.

        Raises:
            RunError: No such run was begun.
        """
        names = list(dict.fromkeys(key.stage for key in tasks))
        with self._reading() as tx:
            seen = looking.view(tx, run_id, names)
            if not looking.to_pin(tx, run_id, names, seen):
                return looking.inputs(tx, tasks, seen)
        with self._writing() as tx:
            looking.pin(tx, run_id, looking.to_pin(tx, run_id, names, looking.view(tx, run_id, names)))
            return looking.inputs(tx, tasks, looking.view(tx, run_id, names))

    def before(self, run_id: str, stages: Sequence[str]) -> Mapping[str, int]:
        """See `Catalog.before`.

        Raises:
            RunError: The run was not begun, or has ended.
        """
        with self._reading() as tx:
            found, new = looking.before(tx, run_id, stages)
        if new:
            with self._writing() as tx:
                runs.require_running(tx, run_id)
                found, new = looking.before(tx, run_id, stages)
                tx.run_many(sql.KEEP_BEFORE, sql.named(list(new.items()), run_id=run_id))
        return {stage: number for stage, number in found.items() if number}

    def find_result(self, run_id: str, stage: str, fingerprint: str, *, base: bool = False) -> port.FoundResult | None:
        """See `Catalog.find_result`."""
        with self._reading() as tx:
            return looking.find_result(tx, run_id, stage, fingerprint, base=base)

    def find_objects(self, run_id: str, stage: str, keys: Sequence[str], *, base: bool = False) -> Mapping[str, StoredObject]:
        """See `Catalog.find_objects`."""
        with self._reading() as tx:
            return looking.find_objects(tx, run_id, stage, keys, base=base)

    def recent_results(self, run_id: str, stage: str) -> Sequence[port.FoundResult]:
        """See `Catalog.recent_results`."""
        with self._reading() as tx:
            return looking.recent_results(tx, stage)

    def recent_objects(self, run_id: str, stage: str) -> Sequence[port.KnownObject]:
        """See `Catalog.recent_objects`."""
        with self._reading() as tx:
            return looking.recent_objects(tx, stage)

    def previous(self, stage: str, task: str) -> port.TaskResult | None:
        """See `Catalog.previous`."""
        with self._reading() as tx:
            return looking.previous(tx, stage, task)

    def record(self, run_id: str, generation: port.GenerationKey, result: port.TaskResult, new: Sequence[port.NewObject]) -> None:
        """See `Catalog.record`.

        Raises:
            StoredDataMissing: The result points to an object that clean-up has removed, or that was struck, since it was found.
        """
        self.record_all(run_id, (port.Record(generation, result, new),))

    def record_all(self, run_id: str, records: Sequence[port.Record]) -> None:
        """See `Catalog.record_all`."""
        with self._writing() as tx:
            recording.record(tx, run_id, records, now=self._clock())

    def log_task(self, run_id: str, stage: str, result: port.TaskResult) -> None:
        """See `Catalog.log_task`."""
        with self._writing() as tx:
            tx.run(sql.LOG_TASK, {**rows.result_values(result), "run_id": run_id, "stage": stage, "now": self._clock()})

    def forget_objects(self, ids: Sequence[str]) -> None:
        """See `Catalog.forget_objects`."""
        with self._writing() as tx:
            tx.run_many(sql.STRIKE_OBJECT, [{"id": object_id} for object_id in ids])

    # --- looking

    def current(self, stage: str) -> int | None:
        """See `Catalog.current`."""
        with self._reading() as tx:
            return looking.current(tx, stage)

    def shown(self) -> Mapping[str, Mapping[str, StoredObject]]:
        """See `Catalog.shown`."""
        with self._reading() as tx:
            return looking.shown(tx)

    def entries(self, stage: str, generation: int) -> Mapping[str, StoredObject]:
        """See `Catalog.entries`."""
        with self._reading() as tx:
            return looking.entries(tx, stage, generation)

    def results(self, stage: str, generation: int) -> Sequence[port.TaskResult]:
        """See `Catalog.results`."""
        with self._reading() as tx:
            return looking.results(tx, stage, generation)

    def runs(self, limit: int = 20) -> Sequence[port.RunRow]:
        """See `Catalog.runs`."""
        with self._reading() as tx:
            return [rows.run_row(row) for row in tx.rows(sql.RUNS, {"count": limit})]

    def unfinished(self) -> Sequence[port.RunRow]:
        """See `Catalog.unfinished`."""
        with self._reading() as tx:
            return [rows.run_row(row) for row in tx.rows(sql.UNFINISHED_RUNS, {})]

    def task_log(self, run_id: str) -> Sequence[tuple[str, port.TaskResult]]:
        """See `Catalog.task_log`. A task that was recorded twice, by a retry, is there twice."""
        with self._reading() as tx:
            return [rows.logged(row) for row in tx.rows(sql.TASK_LOG, {"run_id": run_id})]

    def generations(self) -> Sequence[port.GenerationRow]:
        """See `Catalog.generations`."""
        with self._reading() as tx:
            return looking.generations(tx)

    def leases(self) -> Sequence[port.LeaseRow]:
        """See `Catalog.leases`."""
        with self._reading() as tx:
            return looking.leases(tx)

    def objects(self) -> Sequence[port.ObjectRow]:
        """See `Catalog.objects`."""
        with self._reading() as tx:
            return [port.ObjectRow(rows.stored(row[1:]), struck=bool(row[0])) for row in tx.rows(sql.OBJECTS, {})]

    # --- clean-up

    def expire(self, retention: port.Retention) -> port.Garbage:
        """See `Catalog.expire`."""
        with self._writing() as tx:
            return _retention.expire(tx, self._clock(), retention)

    def forget_stages(self, stages: Sequence[str]) -> port.Garbage | port.Held:
        """See `Catalog.forget_stages`."""
        with self._writing() as tx:
            return forgetting.forget_stages(tx, self._clock(), stages)

    def clear(self) -> port.Held | None:
        """See `Catalog.clear`."""
        with self._writing() as tx:
            return forgetting.clear(tx, self._clock())
