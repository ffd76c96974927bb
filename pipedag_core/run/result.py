"""What a run gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, final

from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.flow import Flow
from pipedag_core.define.lazydict import as_wired
from pipedag_core.define.refs import Reference
from pipedag_core.define.task import Task
from pipedag_core.define.walk import iter_leaves
from pipedag_core.errors import ConfigError, FlowError, UnsupportedByStore
from pipedag_core.plan.model import Plan
from pipedag_core.ports.data import BatchSource, Form, StoredBlob, StoredTable, TableSource
from pipedag_core.ports.events import Outcome, StepReport
from pipedag_core.ports.hooks import TableHook
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run.inputs import map_inputs, upstream_values
from pipedag_core.run.loading import read_blob, read_table
from pipedag_core.run.session import Run, Session
from pipedag_core.run.views import loaded


@final
@dataclass(frozen=True)
class Result:
    """What a run gave: whether it went well, what happened step by step, and its values on demand.

    Attributes:
        flow, plan, run_id: What ran.
        successful: All steps ended well.
        exception: The first failed step's exception, as the task raised it; None if there is none.
        reports: One per step, in the order in which they ended.
    """

    flow: Flow
    plan: Plan
    run_id: str
    reports: Sequence[StepReport]
    run: Run
    open_session: Callable[[], AbstractContextManager[Session]]

    @property
    def successful(self) -> bool:
        """Whether all steps ended well."""
        return all(report.outcome.is_good for report in self.reports)

    @property
    def exception(self) -> BaseException | None:
        """The first failed step's exception."""
        return next((report.error for report in self.reports if report.outcome is Outcome.FAILED), None)

    @property
    def task_states(self) -> Mapping[Task, Outcome]:
        """Every task that was part of the run -> how its step ended."""
        outcomes = {(report.stage, report.task): report.outcome for report in self.reports if report.task is not None}
        return {task: outcomes[key] for task in self.flow.tasks if (key := (task.stage.name, task.id)) in outcomes}

    @property
    def task_values(self) -> Mapping[Task, Any]:
        """Every task that ended well -> what it returned, with `StoredTable`, `StoredView`, `ExternalTable` and `StoredBlob` for what is stored."""
        good = [task for task, outcome in self.task_states.items() if outcome.is_good]
        with self.open_session() as session:
            return upstream_values(session, self.run, self.plan, good, "The result")

    def get(self, reference: Reference, as_type: Any = None) -> Any:
        """Return what a task, or an item of it, gave in this run.

        Args:
            reference: A task of the flow, or an item of one.
            as_type: The type in which tables are wanted; by default the task's own `input_type` if it is a frame, else `pyarrow.Table`.

        Raises:
            FlowError: It is no reference to a task's output.
            ConfigError: Tables cannot be had as `as_type`.
            RunError: The task has no result in this run, or its generation has been cleaned up since.
        """
        with self.open_session() as session:
            return fetch(session, self.run, self.plan, reference, as_type, "This result")

    def to_frame(self) -> Any:
        """Return the reports as a `pyarrow.Table`: steps x (step, stage, task, outcome, reason, rows, seconds, message)."""
        from importlib import import_module

        rows = [report.to_dict() for report in self.reports]
        names = ("step", "stage", "task", "outcome", "reason", "rows", "seconds", "message")
        return import_module("pyarrow").table({name: [row[name] for row in rows] for name in names})

    def __repr__(self) -> str:
        steps = [report for report in self.reports if report.task is not None]
        counts: dict[str, int] = {}
        for report in steps:
            counts[report.outcome.value] = counts.get(report.outcome.value, 0) + 1
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"<Result of flow {self.flow.name!r}: {'successful' if self.successful else 'failed'}; tasks: {told or 'none'}; run {self.run_id}>"


def fetch(session: Session, run: Run, plan: Plan, reference: Any, as_type: Any, who: str) -> Any:
    """Load what a user's reference, or a nest of them, stands for in the eyes of a run."""
    wired = as_wired(reference)
    tasks = tasks_of(wired)
    if not tasks:
        raise FlowError(
            f"{reference!r} ({type(reference).__name__}) is not the output of a task. Pass the reference that the call of the task returned while the "
            "flow was declared, an item of it, or a nest of such references."
        )
    values = upstream_values(session, run, plan, tasks, who)
    return load_value(session, evaluate(wired, values.__getitem__), as_type, tasks[0] if tasks else None)


def tasks_of(wired: Any) -> list[Task]:
    """Return the tasks that raw references depend on, each once."""
    return list(dict.fromkeys(task for _, leaf in iter_leaves(wired) if isinstance(leaf, Reference) for task in leaf.tasks))


def load_value(session: Session, value: Any, as_type: Any, task: Task | None) -> Any:
    """Load everything that is stored in a resolved value."""
    hook: TableHook | None = None
    wanted = as_type

    def table_hook() -> TableHook:
        nonlocal hook, wanted
        if hook is None:
            hook, wanted = _choose(session, as_type, task)
        return hook

    # What is returned outlives the store's connection, so it must not be a query on it.
    can = session.tables.capabilities
    lasting = replace(can, reads=can.reads - {Form.QUERY})
    with session.tables.session("result") as access:

        def leaf(item: Any, path: str) -> Any:
            if isinstance(item, TableSource):
                whole = loaded(item, access, "The result")
                return read_table(session, access, table_hook(), whole, wanted, "result", path, lasting)
            if isinstance(item, StoredBlob):
                return read_blob(session, item)
            return item

        return map_inputs(value, leaf, "")


def read_first_rows(access: StoreSession, table: StoredTable, limit: int) -> list[list[Any]]:
    """Return the first rows of a stored table as Python values, in no order in particular.

    Raises:
        StoredDataMissing: The table is gone, cut short or damaged.
    """
    from importlib import import_module

    source = access.read(table, Form.BATCHES)
    if not isinstance(source, BatchSource):
        raise UnsupportedByStore(f"The store gave {type(source).__name__} where record batches were asked for.")
    rows: list[list[Any]] = []
    with import_module("pyarrow").RecordBatchReader.from_stream(source.stream) as reader:
        for batch in reader:
            part = batch.slice(0, limit - len(rows))
            rows += [list(row) for row in zip(*(column.to_pylist() for column in part.columns), strict=True)]
            if len(rows) >= limit:
                break
    return rows


def _choose(session: Session, as_type: Any, task: Task | None) -> tuple[TableHook, Any]:
    if as_type is not None:
        try:
            hook = session.hooks.for_type(as_type)
        except ConfigError as error:
            # The registry speaks of input_type, which is another place in the user's code.
            told = str(error).replace("Inputs cannot be loaded", "Tables cannot be had").replace("input_type", "as_type")
            raise ConfigError(told, **error.__dict__) from error
        if hook.by_reference:
            raise UnsupportedByStore(
                f"Tables can be had as {as_type!r} only inside a task. Ask for a frame, such as as_type=pl.DataFrame, or query the store's explore file."
            )
        return hook, as_type
    if task is not None and task.options.input_type is not None:
        hook = session.hooks.for_type(task.options.input_type)
        if not hook.by_reference:
            return hook, task.options.input_type
    from importlib import import_module

    arrow = import_module("pyarrow").Table
    return session.hooks.for_type(arrow), arrow
