"""What training has committed, as of one moment: pinned for as long as somebody reads it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, final

from pipedag_core.catalogs.owner import this_process
from pipedag_core.config.context import ConfigContext
from pipedag_core.config.wire import open_session
from pipedag_core.define.flow import Flow
from pipedag_core.define.structure import pick
from pipedag_core.define.task import Task
from pipedag_core.define.walk import Kind, kind_of
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.model import Plan
from pipedag_core.plan.specification import Place
from pipedag_core.ports.catalogs import FoundResult, RunInfo, TaskKey
from pipedag_core.ports.data import ExternalTable, StoredView, TableSource
from pipedag_core.run.inputs import decode_output, leaves, map_inputs
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.session import Run, RunOptions, Session
from pipedag_core.run.views import loaded

#: Seconds after which the pins of an extraction that was killed end.
_TTL_S: Final = 3600.0


@final
@dataclass(frozen=True)
class Snapshot:
    """What training has committed, as of one moment.

    Attributes:
        session, run: Opened, and what pins the generations.
        flow, plan: Whole.
        results: Task -> its result; those without one are absent.
        values: The same, decoded.
    """

    session: Session
    run: Run
    flow: Flow
    plan: Plan
    results: Mapping[Task, FoundResult]
    values: Mapping[Task, Any]

    def value(self, place: Place) -> Any:
        """Return what stands at a place."""
        value = self.values[place.task]
        for key in place.path:
            kind = "attr" if kind_of(value) is Kind.DATACLASS else "item"
            value = pick(value, kind, key, f"the output of {place.task!r}")
        return value


@final
class open_snapshot:  # noqa: N801 -- a context manager reads as a verb
    """Pins what is current in all stages of a flow at one moment, and lets go of it at the end."""

    def __init__(self, flow: Flow, context: ConfigContext) -> None:
        self._flow = flow
        self._context = context
        self._opening = open_session(context)

    def __enter__(self) -> Snapshot:
        session = self._opening.__enter__()
        try:
            flow, context = self._flow, self._context
            plan = replace(compile_flow(flow, context.instance_name, flow.source), steps=())
            options = RunOptions()
            owner = this_process("flow.extract")
            info = RunInfo(f"extract-{uuid.uuid4().hex}", plan.flow, context.instance_name, plan.digest, options.to_json(), owner, _TTL_S)
            session.catalog.begin_run(info)
            self._run = Run(info, options)
            # All at once, so that no commit can come between two stages.
            session.catalog.open_stages(info.run_id, (), tuple(stage.name for stage in plan.stages), scratch=True)
            lookup = plan_lookup(self._run, plan)
            keys = {task: TaskKey(task.stage.name, task.id, lookup.tasks[task.stage.name, task.id].position) for task in flow.tasks}
            found = session.catalog.inputs(info.run_id, tuple(keys.values()))
            results = {task: found[key] for task, key in keys.items() if key in found}
            values = _decoded(session, results)
            self._session = session
            return Snapshot(session, self._run, flow, plan, results, values)
        except BaseException as error:
            self._opening.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._session.catalog.finish_run(self._run.id, "succeeded")
        finally:
            self._opening.__exit__(kind, error, trace)


def _decoded(session: Session, results: Mapping[Task, FoundResult]) -> dict[Task, Any]:
    """Return results as values; views and tables of others with their columns."""
    values = {task: decode_output(result) for task, result in results.items()}
    unknown = {
        task for task, value in values.items() if any(isinstance(leaf, (StoredView, ExternalTable)) for _, leaf in leaves(value, ""))
    }
    if not unknown:
        return values
    with session.tables.session("flow.extract") as access:
        for task in unknown:

            def leaf(item: Any, path: str, task: Task = task) -> Any:
                return loaded(item, access, f"the output of {task.full_id}") if isinstance(item, TableSource) else item

            values[task] = map_inputs(values[task], leaf, "")
    return values


def command(flow: Flow, context: ConfigContext, stages: Iterable[str] = ()) -> str:
    """Return the command that computes stages."""
    chosen = "".join(f" --stage {stage}" for stage in stages)
    return f"pipedag run {flow.source or 'MODULE:FLOW'} --instance {context.instance_name}{chosen}"
