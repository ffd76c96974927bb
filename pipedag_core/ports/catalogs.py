"""What remembers runs, generations, results, stored objects and leases: all state between two steps.

How its words hang together:

* A *stage* has a current generation, and a counter that never gives a number twice.
* A *generation* holds one `TaskResult` per task and, derived from these, the map readable name -> stored object.
* A *stored object* (table or blob) is immutable and may be pointed to by many generations.
* A *run* opens generations (at most one open per stage), reads others (pinned), and ends.
* A *lease* on a unit (an outermost stage with all stages inside it) lets one run write it. Its fencing number grows with every taking;
  whatever is recorded names the number it was opened under and is refused when the lease has moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from pipedag_core.ports.data import StoredObject


@final
@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a run's leases.

    Attributes:
        host, boot: Machine and its boot id.
        pid, started: Process and its start time as the system counts it; pid 0 when steps run in many processes, so that no one process
            stands for the run and only expiry ends its leases.
        note: Who it is, for people ("pipedag run", "airflow dag flights").
    """

    host: str
    boot: str
    pid: int
    started: str
    note: str = ""


@final
@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as it registers itself.

    Attributes:
        run_id: Its id.
        flow, instance: What runs, and on which data.
        plan_digest: Digest of the plan's wiring.
        options: Options that every step needs (validation mode and the like) as JSON.
        owner: Who renews its leases.
        ttl_s: Seconds after which its leases and pins expire unless renewed.
        external_id: The orchestrator's own id for it.
    """

    run_id: str
    flow: str
    instance: str
    plan_digest: str
    options: str
    owner: Owner
    ttl_s: float
    external_id: str = ""


@final
@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the catalog knows it. `state` is running, succeeded, failed or aborted; times are Unix seconds.

    `expires` is when its leases and pins end, or ended, unless they are renewed.
    """

    info: RunInfo
    attempt: int
    state: str
    started: float
    ended: float | None
    expires: float


@final
@dataclass(frozen=True, slots=True)
class GenerationKey:
    """One generation of one stage, and the fencing number under which it was opened (0 for scratch: it needs no lease)."""

    stage: str
    number: int
    fence: int = 0


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """The stages are open for this run: stage -> generation."""

    generations: Mapping[str, GenerationKey]


@final
@dataclass(frozen=True, slots=True)
class Held:
    """Another run holds the lease."""

    stage: str
    run_id: str
    owner: Owner
    expires_in_s: float


@final
@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task gave in one generation, and what it was made from.

    Attributes:
        task: The task's id without its stage (`join_tables`, `join_tables_2`).
        position: Hash of its place in the wiring, without versions or data.
        fingerprint: Hash of what it did; "" for a task that is never looked up.
        base_fingerprint: The same without the cache function's value.
        parts: What went into the fingerprint, for saying why it changed: part -> short hash or text.
        output: The returned structure as canonical JSON of the value codec; stored objects appear in it by id.
        entries: Readable name -> id of the stored object.
        outcome, reason, rows, seconds: As in the step's report.
        sources: Ids of stored objects that the output points to without giving them a readable name here (what a view is made of).
    """

    task: str
    position: str
    fingerprint: str
    base_fingerprint: str
    parts: Mapping[str, str]
    output: str
    entries: Mapping[str, str]
    outcome: str
    reason: str
    rows: int | None = None
    seconds: float = 0.0
    sources: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class NewObject:
    """A stored object to be recorded, and the keys under which it is found again.

    Attributes:
        stored: The object.
        key: What made it: the key of its query, or its identity. Unlike the identity it stays the same when the same query is forced to run again.
        base_key: The same without the cache function's value.
    """

    stored: StoredObject
    key: str
    base_key: str


@final
@dataclass(frozen=True, slots=True)
class FoundResult:
    """A task's result with the objects that its output points to, by id."""

    stage: str
    generation: int
    result: TaskResult
    objects: Mapping[str, StoredObject]


@final
@dataclass(frozen=True, slots=True)
class KnownObject:
    """A stored object as `find_objects` finds it.

    Attributes:
        stored, key, base_key: As in `NewObject`.
        is_current: The current generation of the stage points to it, so clean-up leaves it alone for as long as that is so.
    """

    stored: StoredObject
    key: str
    base_key: str
    is_current: bool


@final
@dataclass(frozen=True, slots=True)
class Record:
    """One result to be recorded; see `Catalog.record`."""

    generation: GenerationKey
    result: TaskResult
    new: Sequence[NewObject] = ()


@final
@dataclass(frozen=True, slots=True)
class TaskKey:
    """Names a task's result in the eyes of a run.

    Attributes:
        stage, task: Where and which.
        position: Must equal the result's position when the result comes from outside this run; "" to accept any.
    """

    stage: str
    task: str
    position: str = ""


@final
@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did: stage -> generation that is current now, and whether anything changed."""

    generations: Mapping[str, int]
    changed: bool


@final
@dataclass(frozen=True, slots=True)
class GenerationRow:
    """A generation as the catalog knows it. `state` is open, committed, expired, failed or scratch; times are Unix seconds."""

    stage: str
    number: int
    state: str
    run_id: str
    created: float
    committed: float | None
    current: bool


@final
@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease that is held. `expires` is Unix seconds."""

    stage: str
    run_id: str
    owner: Owner
    fence: int
    expires: float


@final
@dataclass(frozen=True, slots=True)
class ObjectRow:
    """A stored object as the catalog knows it; `struck` once its data was found to be gone."""

    stored: StoredObject
    struck: bool


@final
@dataclass(frozen=True, slots=True)
class Retention:
    """What clean-up keeps: the newest generations of each stage by state, and everything younger than an age in seconds."""

    committed: int = 2
    failed: int = 1
    minimum_age_s: float = 3600.0


@final
@dataclass(frozen=True, slots=True)
class Garbage:
    """Stored objects that no retained generation and no pinned run points to; their rows are gone already."""

    objects: Sequence[StoredObject] = field(default_factory=tuple)
    generations: Sequence[GenerationKey] = field(default_factory=tuple)


class Publication(Protocol):
    """What else becomes visible with a commit: readable names that live in the same database as the catalog.

    Attributes:
        exact: No reader can have seen two states; False if they were not waited for any longer.
        waited_s: How long they were waited for.
    """

    exact: bool
    waited_s: float

    def prepare(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        """Do all that may take long or has to wait for readers. Called first in the transaction, while others can still write to the catalog.

        Args:
            connection: The native connection on which the transaction has begun.
            names: Stage of the unit -> (readable name -> stored object), as they will be if the commit succeeds.
        """
        ...

    def publish(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        """Switch. Called last in the transaction, and only if the commit changes anything; what it raises undoes the commit.

        Args:
            connection, names: As for `prepare`.
        """
        ...

    def committed(self) -> None:
        """Let go of what is not needed any more; called by whoever commits, once the transaction has succeeded. Does not fail for what is in use."""
        ...


class Catalog(Protocol):
    """Remembers everything between steps. Safe to use from several threads and processes; every method is one transaction."""

    # --- a run and its stages

    def begin_run(self, run: RunInfo) -> RunRow:
        """Register the run, or renew it: called by every step.

        A run that has ended is opened again as a new attempt. The options and the plan digest of the first call stay; another plan digest
        under the same id is refused.

        Raises:
            RunError: The id belongs to a run of another flow, instance or plan.
        """
        ...

    def open_stages(
        self, run_id: str, stages: Sequence[str], reads: Sequence[str], *, scratch: bool, take_over: bool = False
    ) -> Opened | Held:
        """Open a unit for writing, or return its open generations if this run has opened it already. Idempotent.

        Takes the lease on `stages[0]`, the outermost stage of the unit; a lease that has expired, or whose owner is a process of this machine
        that is gone, is taken over: what it had open becomes `failed`. Every stage of the unit gets a new generation with a number never used
        before. It is empty, but when this run had committed or failed the stage before (a step is executed again): then it starts with the
        results and entries of this run's newest generation of the stage, which itself is left as it is. Of every stage in `reads` that this run has not opened, and
        that it does not pin yet, it pins the current generation. `scratch` generations need no lease, and can never be committed.
        """
        ...

    def renew(self, run_id: str) -> None:
        """Move the expiry of the run's leases and pins to `ttl_s` seconds from now. Leases that were lost stay lost."""
        ...

    def commit(self, run_id: str, stages: Sequence[str], publication: Publication | None = None) -> CommitResult:
        """Make the open generations of a unit current, all at once, and give the lease back. Idempotent.

        If for all stages of the unit the entries, and every task's fingerprint and output, are those of the current generations, nothing
        changes: the open generations vanish, and the run pins the current ones instead. `publication` takes part in the transaction, for stores
        whose readable names live in the same database.

        Raises:
            LeaseLost: The lease has passed to another run, or the stages are not open.
        """
        ...

    def give_up(self, run_id: str, stages: Sequence[str]) -> None:
        """End what this run has open of a unit: its generations become failed, and the lease is given back. Idempotent.

        For a unit that will not be committed, while the run goes on elsewhere; what this run does not have open stays as it is.
        """
        ...

    def rollback(
        self,
        run_id: str,
        stage: str,
        generation: int | None = None,
        check: Callable[[Mapping[str, Mapping[str, StoredObject]]], None] | None = None,
        publication: Publication | None = None,
    ) -> CommitResult | Held:
        """Commit the map of an earlier generation again, with all stages that were committed together with it, all at once.

        Each of these stages gets a new generation, with a number never used before, that holds the results and entries of the earlier one, which
        itself is left as it is; so what was current before is kept as any earlier generation is, and can be gone back to. If nothing would
        change, nothing happens. The unit's lease is taken for that moment, under a new fencing number: a run that holds it is not disturbed
        (`Held`), and one that has died, or whose lease has expired, is refused from then on, as by `open_stages`.

        Args:
            run_id: A run that was begun for it, and that opens nothing.
            stage: One of the stages.
            generation: The generation of `stage` to go back to; by default the newest committed one that is older than the current one.
            check: Called with the entries of what is to become current, by stage and name, before anything changes; what it raises stops it.
            publication: Takes part in the transaction, as for `commit`; it is not told to prepare, since all of it takes a moment only.

        Raises:
            RunError: The generation is not there (any more), was not committed, or was committed together with other stages than today; the
                error says which ones can be gone back to (`kept`).
            StoredDataMissing: An object that it points to was struck.
        """
        ...

    def finish_run(self, run_id: str, state: str) -> Mapping[str, int]:
        """End the run: open generations become failed, leases and pins are dropped, the state and the snapshot are written. Idempotent.

        Returns:
            The snapshot: stage -> the generation that this run committed or read.
        """
        ...

    def note(self, run_id: str, name: str, value: str) -> str:
        """Keep a text with a run, unless there is one under this name already, and return the one that stands.

        For programs that watch runs: processes that take part in one run find by it what the first of them has made elsewhere. It goes with the run.

        Raises:
            RunError: No such run was begun.
        """
        ...

    def notes(self, run_id: str) -> Mapping[str, str]:
        """Return the texts that are kept with a run, by name; none for a run that is not known."""
        ...

    # --- tasks

    def inputs(self, run_id: str, tasks: Sequence[TaskKey]) -> Mapping[TaskKey, FoundResult]:
        """Return results of tasks as this run sees them: from generations it has open or has committed, else from those it pins.

        Pins the current generation of a stage that is neither. Tasks without a result are absent from the answer.
        """
        ...

    def before(self, run_id: str, stages: Sequence[str]) -> Mapping[str, int]:
        """Return, for stages that had one, the generation that was current before this run wrote them; and pin it until the run ends.

        It stays what the first call after the opening found; what this run has committed itself is never among it. Of a stage that the run only reads it
        is the generation that it pins.

        Raises:
            RunError: The run was not begun, or has ended.
        """
        ...

    def find_result(self, run_id: str, stage: str, fingerprint: str, *, base: bool = False) -> FoundResult | None:
        """Return the newest stored result with this fingerprint (`base`: with this base fingerprint) in the stage.

        Looked at are committed, failed and expired generations that still have their rows, and those that this run has open; never scratch,
        and never what another run has open. Results of which an object is gone are passed over.
        """
        ...

    def find_objects(self, run_id: str, stage: str, keys: Sequence[str], *, base: bool = False) -> Mapping[str, StoredObject]:
        """Return, per key (`base`: base key), the newest stored object in the generations that `find_result` looks at."""
        ...

    def recent_results(self, run_id: str, stage: str) -> Sequence[FoundResult]:
        """Return what `find_result` could find in the stage's current generation and in newer ones, newest first.

        For a run that will look for many results of one stage: what is among these need not be looked for one by one. Of the generations that a
        run has open itself, nothing is among them.
        """
        ...

    def recent_objects(self, run_id: str, stage: str) -> Sequence[KnownObject]:
        """Return what `find_objects` could find in the stage's current generation and in newer ones, newest first; as `recent_results`."""
        ...

    def previous(self, stage: str, task: str) -> TaskResult | None:
        """Return the task's result in the current generation of the stage, else in the newest one, for saying what has changed."""
        ...

    def record(self, run_id: str, generation: GenerationKey, result: TaskResult, new: Sequence[NewObject]) -> None:
        """Record a task's result in an open generation, in place of an earlier one of the same task.

        Raises:
            LeaseLost: The generation is not open any more, or the lease has another fencing number.
            DuplicateName: A readable name is taken by another task of the stage; both are named.
        """
        ...

    def record_all(self, run_id: str, records: Sequence[Record]) -> None:
        """Record several results, each as `record` does, in one transaction: all of them, or none."""
        ...

    def log_task(self, run_id: str, stage: str, result: TaskResult) -> None:
        """Note in the run's log what became of a task that gave no result: its outcome (failed, skipped) and why."""
        ...

    def forget_objects(self, ids: Sequence[str]) -> None:
        """Strike objects whose data was found to be gone, so that no result that needs them is found again."""
        ...

    # --- looking

    def current(self, stage: str) -> int | None:
        """Return the number of the stage's current generation; None before its first commit."""
        ...

    def shown(self) -> Mapping[str, Mapping[str, StoredObject]]:
        """Return for every stage the readable names of its current generation."""
        ...

    def entries(self, stage: str, generation: int) -> Mapping[str, StoredObject]:
        """Return the readable names of one generation."""
        ...

    def results(self, stage: str, generation: int) -> Sequence[TaskResult]:
        """Return the results of all tasks in one generation, in the order in which they were recorded."""
        ...

    def runs(self, limit: int = 20) -> Sequence[RunRow]:
        """Return the newest runs, newest first."""
        ...

    def unfinished(self) -> Sequence[RunRow]:
        """Return all runs that have not ended, oldest first: those at work, and those whose owner died."""
        ...

    def task_log(self, run_id: str) -> Sequence[tuple[str, TaskResult]]:
        """Return (stage, result without output) of every task that the run has recorded or logged, in order; kept when generations go."""
        ...

    def generations(self) -> Sequence[GenerationRow]:
        """Return all generations that still have rows, by stage and number."""
        ...

    def leases(self) -> Sequence[LeaseRow]:
        """Return all leases that are held."""
        ...

    def objects(self) -> Sequence[ObjectRow]:
        """Return all stored objects that have rows, those without a readable name included, by stage, generation and name."""
        ...

    # --- clean-up

    def expire(self, retention: Retention) -> Garbage:
        """Remove what retention does not keep, and return what can be deleted from the stores.

        Never touched: current, open and pinned generations. Scratch generations are kept for `minimum_age_s` only.
        """
        ...

    def forget_stages(self, stages: Sequence[str]) -> Garbage | Held:
        """Remove all generations of stages, the current ones included, and return what can be deleted from the stores.

        The stages are then as if they had never been committed, but for their numbers, which are never given twice. What generations of other stages
        point to stays. A run that is at work, and has opened, read or written one of the stages, is not disturbed (`Held`); one that has died,
        or whose time has expired, is refused from then on, as by `open_stages`.

        Raises:
            RunError: A stage that is not among them became current by the same commit.
        """
        ...

    def clear(self) -> Held | None:
        """Forget all runs, generations, results and stored objects; only the counters of the stages stay. What the stores hold is not touched.

        Returns:
            A run that is at work, and nothing was changed; else None.
        """
        ...

    def close(self) -> None:
        """Give back all connections."""
        ...
