"""Several steps in one call: all of a stage, all of a flow, or giving a stage back; what orchestrators call who do not want a task of theirs per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from pipedag_core.define.flow import Flow
from pipedag_core.errors import PlanMismatch
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.plan.selection import contract
from pipedag_core.ports.catalogs import GenerationRow, TaskKey
from pipedag_core.ports.data import StoredObject, StoredTable
from pipedag_core.ports.engines import Engine
from pipedag_core.ports.events import Given, Outcome, StepReport
from pipedag_core.run import steps
from pipedag_core.run.one_process import Units
from pipedag_core.run.session import Run, Session

#: All steps of a unit of stages: `stage:features`.
STAGE: Final = "stage:"
#: Gives back the lease of a unit that has not been committed: `close:features`.
CLOSE: Final = "close:"
#: All steps of the plan.
FLOW: Final = "flow"


def is_part(id: str) -> bool:
    """Return whether an id stands for several steps, or for giving a stage back."""
    return id == FLOW or id.startswith((STAGE, CLOSE))


def check_part(plan: Plan, id: str) -> None:
    """Make sure that a plan has the stage that a part names.

    Raises:
        PlanMismatch: It has not, or the stage is inside of another one, with which it is committed.
    """
    if id == FLOW:
        return
    kind, _, stage = id.partition(":")
    units = [step.stage for step in plan.steps if step.kind is StepKind.OPEN]
    if stage not in units:
        raise PlanMismatch(
            f"The plan of flow {plan.flow!r} has no part {id!r}. It has: {', '.join(f'{kind}:{unit}' for unit in units)}.",
            flow=plan.flow,
            step=id,
        )


def execute_part(session: Session, run: Run, flow: Flow, plan: Plan, id: str, engine: Engine) -> StepReport:
    """Carry out several steps of a registered run.

    Args:
        session, run, flow, plan: As for `execute_step`.
        id: `stage:<unit>`, `close:<unit>` or `flow`.
        engine: Carries out the steps.

    Returns:
        One report: that of the commit or the end, with what was given; the first failure; or WAITING, if the first stage is being written by
        another run. Observers are told of every single step.
    """
    if id.startswith(CLOSE):
        return _close(session, run, plan, id)
    wanted = plan.steps if id == FLOW else tuple(step for step in plan.steps if step.stage in plan.unit(id.removeprefix(STAGE)))
    # A stage that fails on its own stays open: it may be tried again, and is given back by `close:`.
    units = Units(session, run, plan) if id == FLOW else None
    failed: list[StepReport] = []

    def run_step(step: Step, computed: Callable[[], None] | None = None, /) -> StepReport:
        state = "failed" if failed and step.kind is StepKind.FINISH else None
        report = steps.execute_step(session, run, flow, plan, step, state=state, computed=computed)
        if report.outcome is Outcome.FAILED:
            failed.append(report)
        if units is not None:
            units.note(report)
        return report

    def skip_step(step: Step, because: Step) -> StepReport:
        report = steps.skip_step(session, run, step, because)
        if units is not None:
            units.note(report)
        return report

    first = next((step for step in wanted if step.kind is StepKind.OPEN), None)
    if first is not None:
        # Whoever calls may have better things to do than to wait.
        report = run_step(first)
        if report.outcome is Outcome.WAITING:
            return replace(report, step=id)
        if failed:
            wanted = tuple(step for step in wanted if step.kind is StepKind.FINISH)
    before = current_generations(session, plan, wanted)
    part = replace(plan, steps=contract(wanted, {step.id for step in wanted if step is not first}))
    reports = engine.run(part, run_step, skip_step, fail_fast=False)
    if failed:
        return replace(failed[0], step=id, seconds=sum(report.seconds for report in reports))
    last = reports[-1]
    given = [given_by(session, run, plan, step, before) for step in wanted if step.kind is StepKind.COMMIT]
    everything = tuple(item for some in given for item in some)
    rows = [item.rows for item in everything if item.rows is not None]
    return replace(
        last,
        step=id,
        seconds=sum(report.seconds for report in reports),
        rows=sum(rows) if rows else None,
        tables=tuple(item.name for item in everything) if id != FLOW else (),
        given=everything,
    )


def _close(session: Session, run: Run, plan: Plan, id: str) -> StepReport:
    stage = id.removeprefix(CLOSE)
    left = [row for row in _open_rows(session, run) if row.stage in plan.unit(stage)]
    if left:
        steps.give_up(session, run, plan, stage)
    reason = ", ".join(f"{row.stage} g{row.number} given up" for row in left) or "nothing was open"
    return StepReport(id, Outcome.FINISHED, reason, stage)


def _open_rows(session: Session, run: Run) -> list[GenerationRow]:
    return [row for row in session.catalog.generations() if row.run_id == run.id and row.state == "open"]


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
