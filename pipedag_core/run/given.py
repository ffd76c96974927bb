"""What a step gave, for reports: tables and blobs of a task, or all that a commit has made visible."""

from __future__ import annotations

from collections.abc import Sequence

from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.ports.catalogs import TaskKey
from pipedag_core.ports.data import StoredObject, StoredTable
from pipedag_core.ports.events import Given
from pipedag_core.run.session import Run, Session


def current_generations(session: Session, plan: Plan, wanted: Sequence[Step]) -> dict[str, int | None]:
    """Return, of each stage that some steps commit, the current generation."""
    stages = [stage for step in wanted if step.kind is StepKind.COMMIT and step.stage is not None for stage in plan.unit(step.stage)]
    return {stage: session.catalog.current(stage) for stage in stages}


def given_by(session: Session, run: Run, plan: Plan, step: Step, before: dict[str, int | None]) -> tuple[Given, ...]:
    """Return what a step that went well gave: a task's tables and blobs, or all that a commit has made visible.

    Args:
        session, run, plan: As for `execute_step`.
        step: The step.
        before: For a commit: what `current_generations` returned before it.
    """
    if step.stage is None:
        return ()
    if step.kind is StepKind.TASK:
        assert step.task is not None
        found = session.catalog.inputs(run.id, [TaskKey(step.stage, step.task)])
        return tuple(
            _given(name, result.objects[id], step.stage, step.task, result.generation)
            for result in found.values()
            for name, id in result.result.entries.items()
            if id in result.objects
        )
    if step.kind is not StepKind.COMMIT:
        return ()
    result: list[Given] = []
    for stage in plan.unit(step.stage):
        number = session.catalog.current(stage)
        if number is None:
            continue
        previous = before.get(stage)
        old = {} if previous is None else {name: item.identity for name, item in session.catalog.entries(stage, previous).items()}
        owners = {name: item.task for item in session.catalog.results(stage, number) for name in item.entries}
        for name, item in session.catalog.entries(stage, number).items():
            result.append(_given(name, item, stage, owners.get(name, ""), number, changed=old.get(name) != item.identity))
    return tuple(result)


def _given(name: str, item: StoredObject, stage: str, task: str, generation: int, changed: bool | None = None) -> Given:
    return Given(
        stage=stage,
        task=task,
        name=name,
        identity=item.identity,
        rows=item.rows if isinstance(item, StoredTable) else None,
        generation=generation,
        changed=changed,
        query=item.query if isinstance(item, StoredTable) else None,
    )
