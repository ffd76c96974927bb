"""What a program can know about a run while it goes on: reports of steps, and events for observers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, final

from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import TaskResult
from pipedag_core.ports.data import StoredObject


class Outcome(Enum):
    """How a step ended."""

    OPENED = "opened"
    RAN = "ran"
    CACHED = "cached"
    COMMITTED = "committed"
    UNCHANGED = "unchanged"
    FINISHED = "finished"
    FAILED = "failed"
    SKIPPED = "skipped"
    WAITING = "waiting"

    @property
    def is_good(self) -> bool:
        """Whether steps that depend on this one may start."""
        return self not in (Outcome.FAILED, Outcome.SKIPPED, Outcome.WAITING)


@final
@dataclass(frozen=True, slots=True)
class Given:
    """A table or blob that a step gave, for whoever shows it or tells others of it.

    Attributes:
        stage, task, name: Where it is to be read, whose it is (without the stage), its readable name.
        identity: Equal identities promise equal data.
        rows: Count, where the store knows it; None for a blob.
        generation: Number of the stage's generation that shows it.
        changed: After a commit: whether the generation before showed another one, or none. None before a commit.
        query: The query that made it, or None.
    """

    stage: str
    task: str
    name: str
    identity: str
    rows: int | None
    generation: int
    changed: bool | None = None
    query: str | None = None


@final
@dataclass(frozen=True, slots=True)
class StepReport:
    """How one call of `execute` ended.

    Attributes:
        step: Id of the step.
        outcome: How it ended.
        reason: Why, in words ("version 1.0 -> 1.1", "query changed", "cache valid").
        stage, task: Where; the task's id without its stage, or None.
        tables: Readable names of the tables of a task's output.
        rows: Rows of all tables written or pointed to, where known.
        seconds: Wall time.
        error: The exception of a failed step, in the process where it happened.
        message: The error as text.
        given: What a task gave, or what a commit has made visible; told by `execute` only, not in a run within one process.
    """

    step: str
    outcome: Outcome
    reason: str = ""
    stage: str | None = None
    task: str | None = None
    tables: tuple[str, ...] = ()
    rows: int | None = None
    seconds: float = 0.0
    message: str = ""
    error: BaseException | None = field(default=None, compare=False)
    given: tuple[Given, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values, without the exception object."""
        result = asdict(replace(self, error=None))
        del result["error"]
        result["outcome"] = self.outcome.value
        result["message"] = self.message or ("" if self.error is None else str(self.error))
        return result


@final
@dataclass(frozen=True, slots=True)
class StageReport:
    """What became of a stage, and of all that is committed with it, where one call carried it out.

    Attributes:
        stages: The outermost stage first.
        reports: One per step, in the order in which they ended.
        generations: Stage -> generation that this run made, or left, current; empty if it was not committed.
        changed: Whether the commit changed anything.
        entries: Stage -> readable name -> stored object, of these generations.
        results: Full task id -> result, of these generations. After a commit that changed nothing it is an earlier run's that is told here;
            what this run did is in `reports`.
    """

    stages: tuple[str, ...]
    reports: tuple[StepReport, ...]
    generations: Mapping[str, int] = field(default_factory=dict[str, int])
    changed: bool = False
    entries: Mapping[str, Mapping[str, StoredObject]] = field(default_factory=dict[str, Mapping[str, StoredObject]])
    results: Mapping[str, TaskResult] = field(default_factory=dict[str, TaskResult])

    @property
    def is_committed(self) -> bool:
        """Whether the stage was committed, with or without a change."""
        return bool(self.generations)

    @property
    def failures(self) -> tuple[StepReport, ...]:
        """The reports of failed steps."""
        return tuple(report for report in self.reports if report.outcome is Outcome.FAILED)


@final
@dataclass(frozen=True, slots=True)
class RunStarted:
    """This process begins to take part in a run: with its first step, or with the one step that it was called for.

    Attributes:
        run_id, flow, instance: Which run.
        steps: Ids of the steps of its plan.
        plan: The plan.
        config: The instance's configuration, a `ConfigContext`.
    """

    run_id: str
    flow: str
    instance: str
    steps: tuple[str, ...]
    plan: Plan | None = field(default=None, repr=False, compare=False)
    config: Any = field(default=None, repr=False, compare=False)


@final
@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step is about to be carried out."""

    run_id: str
    step: str


@final
@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step was carried out or skipped."""

    run_id: str
    report: StepReport


@final
@dataclass(frozen=True, slots=True)
class PointReached:
    """A named point was passed; for tests of what happens when a process dies there.

    Attributes:
        run_id: The run; "" where clean-up is called on its own.
        point: `after_open`; `after_write` of each table, blob or script; `before_record`, when all is written, and `after_record`;
            `before_commit`, `after_commit`; `before_finish`, `after_finish`; `before_clean_up`, `before_deletion`, when rows are gone and data
            is not, `after_clean_up`; `before_show`, `after_show`.
    """

    run_id: str
    point: str


@final
@dataclass(frozen=True, slots=True)
class NamesSwitchedEarly:
    """A commit did not wait any longer for those who read the old tables: a statement that named several of them then may have seen both states.

    Attributes:
        run_id, stages: Which commit.
        waited_s: How long it had waited.
    """

    run_id: str
    stages: tuple[str, ...]
    waited_s: float


@final
@dataclass(frozen=True, slots=True)
class RunFinished:
    """The finish step has written the run's state."""

    run_id: str
    state: str


@final
@dataclass(frozen=True, slots=True)
class RunLeft:
    """This process has done what it was to do for a run, which may go on in others."""

    run_id: str


Event = RunStarted | StepStarted | StepEnded | PointReached | NamesSwitchedEarly | RunFinished | RunLeft


class RunObserver(Protocol):
    """Is told what happens in a run. What it raises is logged as a warning and never disturbs the run.

    But `ObserverFailed`, at the two events that stand outside of all steps, is raised: at `RunStarted`, before anything is done, and at `RunLeft`, when
    all is done. For observers without which nobody wants to run.
    """

    def on_event(self, event: Event) -> None:
        """Take note of an event. Called from the thread in which it happened; must return quickly."""
        ...
