"""Plan and Step: what engines and orchestrators see of a flow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, final

from pipedag_core.errors import PlanMismatch

#: Format of the plan's JSON. A plan of another format is refused.
FORMAT = 1


_NO_PLAN = "This is not a plan. Make one with `pipedag plan MODULE:FLOW --json`."


class StepKind(Enum):
    """What a step does."""

    OPEN = "open"
    TASK = "task"
    COMMIT = "commit"
    FINISH = "finish"


_KINDS = {kind.value: kind for kind in StepKind}


@final
@dataclass(frozen=True, slots=True)
class Step:
    """A unit of execution that any engine can call.

    Attributes:
        id: `open:features`, `task:features.joined`, `commit:features`, `finish`.
        kind: What it does.
        stage: The stage (for open and commit: the outermost stage of the unit); None for finish.
        task: The task's id without its stage, for task steps.
        upstream: Ids of the steps that must have ended well before this one starts (for finish: must have ended).
    """

    id: str
    kind: StepKind
    stage: str | None
    task: str | None
    upstream: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class PlanStage:
    """A stage as the plan knows it.

    Attributes:
        name: Normalised name.
        unit: The outermost stage that it is committed with (itself if it is not nested).
        parent: The stage around it, or None.
    """

    name: str
    unit: str
    parent: str | None = None


@final
@dataclass(frozen=True, slots=True)
class PlanTask:
    """A task as the plan knows it.

    Attributes:
        stage, task: Where, and its id within the stage: its name, with `_2`, `_3` for repeated calls.
        name: The name of the function, as the user sees it.
        position: Hash of its place in the wiring: its name, stage and arguments, with upstream tasks as their positions.
        upstream: Full ids (`stage.task`) of the tasks whose results are its arguments.
        lazy, version, input_type: As declared, as text ("AUTO_VERSION" for that; "" for none).
        cached_by: What decides on its validity: "version", "lazy", "auto" or "never".
        outputs: Readable names of its tables where they can be known before a run, else None.
        description: First paragraph of its docstring.
        groups: Labels of the group nodes around it, outermost first.
        tags: Its group_node_tag and the like.
        external: Tables of others that it is known to read, as `schema.name`: those among its arguments, and those that it is known to return.
    """

    stage: str
    task: str
    name: str
    position: str
    upstream: tuple[str, ...]
    cached_by: str
    version: str = ""
    input_type: str = ""
    outputs: tuple[str, ...] | None = None
    description: str = ""
    groups: tuple[str, ...] = ()
    tag: str = ""
    external: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`stage.task`, unique in the flow."""
        return f"{self.stage}.{self.task}"


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """A flow, compiled: what there is, what shall be done, in which order.

    Attributes:
        flow, instance: Which flow, on which data (None: the configuration's default).
        source: Import reference of the flow, `package.module:flow_or_factory`, or None for one that only lives in this process.
        digest: Hash of the wiring: stages, tasks, edges. No versions, no constants, no configuration.
        stages, tasks: All of the flow, in wiring order.
        steps: What this plan does, in depth-first order; less than all after a selection.
        scratch: Tasks were chosen by name: they run into scratch generations and nothing is committed.
    """

    flow: str
    instance: str | None
    source: str | None
    digest: str
    stages: tuple[PlanStage, ...]
    tasks: tuple[PlanTask, ...]
    steps: tuple[Step, ...]
    scratch: bool = False
    format: int = field(default=FORMAT)

    def step(self, id: str) -> Step:
        """Return the step with this id.

        Raises:
            PlanMismatch: There is none; the message shows the nearest ids.
        """
        for step in self.steps:
            if step.id == id:
                return step
        from difflib import get_close_matches

        near = get_close_matches(id, [step.id for step in self.steps], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else f" Its steps are: {', '.join(step.id for step in self.steps[:20])}."
        raise PlanMismatch(f"The plan of flow {self.flow!r} has no step {id!r}.{hint}", flow=self.flow, step=id)

    def task(self, stage: str, task: str) -> PlanTask:
        """Return the task with this id within the stage."""
        return next(item for item in self.tasks if item.stage == stage and item.task == task)

    def unit(self, stage: str) -> tuple[str, ...]:
        """Return the names of all stages that are committed with this one, the outermost first."""
        root = next(item.unit for item in self.stages if item.name == stage)
        return (root, *(item.name for item in self.stages if item.unit == root and item.name != root))

    def with_outputs(self, outputs: Mapping[str, Sequence[str]], external: Mapping[str, Sequence[str]] | None = None) -> Plan:
        """Return a plan that knows more of what tasks give.

        Args:
            outputs: Full task id -> readable names of its tables. Declared ones stay as they are.
            external: Full task id -> tables of others that it returned, as `schema.name`.
        """
        more = external or {}
        tasks = tuple(
            replace(
                task,
                outputs=tuple(outputs[task.id]) if task.outputs is None and task.id in outputs else task.outputs,
                external=tuple(dict.fromkeys((*task.external, *more.get(task.id, ())))),
            )
            if task.id in outputs or task.id in more
            else task
            for task in self.tasks
        )
        return replace(self, tasks=tasks)

    def to_json(self) -> str:
        """Return the plan as JSON text: same plan, same text."""
        raw = asdict(self)
        for step, item in zip(self.steps, raw["steps"], strict=True):
            item["kind"] = step.kind.value
        return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises:
            PlanMismatch: The text is not a plan, or one of another format.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise PlanMismatch(_NO_PLAN) from error
        return cls.from_parsed(raw)

    @classmethod
    def from_parsed(cls, raw: Any) -> Plan:
        """Return the plan whose JSON text was parsed already, because it stands within a larger one.

        Raises:
            PlanMismatch: As `from_json`.
        """
        try:
            found = raw["format"]
        except (KeyError, TypeError) as error:
            raise PlanMismatch(_NO_PLAN) from error
        if found != FORMAT:
            raise PlanMismatch(f"The plan has format {found!r}, this version of pipedag reads {FORMAT}. Make it again with `pipedag plan`.")
        try:
            return cls(
                flow=raw["flow"],
                instance=raw["instance"],
                source=raw["source"],
                digest=raw["digest"],
                stages=tuple(PlanStage(**item) for item in raw["stages"]),
                tasks=tuple(_task(**item) for item in raw["tasks"]),
                steps=tuple(_step(**item) for item in raw["steps"]),
                scratch=raw["scratch"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanMismatch(f"The plan is damaged: {error}. Make it again with `pipedag plan`.") from error


# JSON knows no tuples. Plans have thousands of these, and are read whenever definitions of them are loaded.


def _task(*, upstream: list[str], outputs: list[str] | None, groups: list[str], external: Sequence[str] = (), **others: Any) -> PlanTask:
    known = None if outputs is None else tuple(outputs)
    return PlanTask(upstream=tuple(upstream), outputs=known, groups=tuple(groups), external=tuple(external), **others)


def _step(*, kind: str, upstream: list[str], **others: Any) -> Step:
    return Step(kind=_KINDS[kind], upstream=tuple(upstream), **others)
