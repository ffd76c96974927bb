"""From stored tables and blobs to the objects that a task asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from pipedag_core.define.contracts import contracts_of
from pipedag_core.define.task import Task
from pipedag_core.define.walk import segment
from pipedag_core.errors import FlowError, PipedagError, StoredDataMissing, TracingRefused
from pipedag_core.ports.data import ExternalTable, Form, StoredBlob, StoredTable, StoredView, TableSource
from pipedag_core.ports.hooks import ReadContext, TableHook, TracingHook
from pipedag_core.ports.stores import Capabilities, StoreSession
from pipedag_core.run.inputs import Elsewhere, TaskInputs, label, leaves, map_inputs, source_of
from pipedag_core.run.notes import add_note
from pipedag_core.run.session import Session
from pipedag_core.run.views import loaded

#: id of an object that only refers to a table or view -> the object and what it refers to.
References = dict[int, tuple[Any, TableSource]]


@final
@dataclass(frozen=True, slots=True)
class Loaded:
    """Arguments ready for the call.

    Attributes:
        inputs: What was loaded, with the columns of views and of other people's tables.
        parameters: As the task's function takes them; large, so nobody keeps them for longer than the call.
        references: id of an object that only refers to a table or view -> the object and that table; returned as it came, it becomes a pointer.
    """

    inputs: TaskInputs
    parameters: Mapping[str, Any]
    references: References = field(default_factory=dict[int, tuple[Any, TableSource]])


def load(session: Session, access: StoreSession, task: Task, inputs: TaskInputs) -> Loaded:
    """Load everything among the arguments, in the `input_type` that the task asked for.

    Raises:
        FlowError: The task gets tables and declares no `input_type`.
        StoredDataMissing: A stored table or blob is gone or damaged.
    """
    references: References = {}
    hook = _hook_for(session, task, inputs)
    inputs = with_columns(access, task, inputs)
    contracts = _contracts(task, inputs.parameters)

    def leaf(value: Any, path: str) -> Any:
        if isinstance(value, StoredBlob):
            return read_blob(session, value)
        if isinstance(value, Elsewhere):
            return _read_elsewhere(value, hook, task.options.input_type, path)
        if not isinstance(value, TableSource) or hook is None:
            return value
        name = inputs.labels[path]
        found = read_table(session, access, hook, value, task.options.input_type, name, path, alias=_alias(task, name))
        # What is another instance's is copied where it is returned.
        if hook.by_reference and not (task.options.versions is not None and isinstance(value, ExternalTable)):
            references[id(found)] = (found, value)
        contract = session.hooks.contract(contracts[path]) if path in contracts else None
        if contract is None or not isinstance(found, contract.frame_type):
            return found
        return contract.check(found, f"Argument {path!r} of task {task.stage.name}.{task.id}")

    give = _paired(leaf, references) if inputs.with_sources else leaf
    return Loaded(inputs, {name: map_inputs(value, give, segment(name)) for name, value in inputs.parameters.items()}, references)


def _paired(load_leaf: Callable[[Any, str], Any], references: References) -> Callable[[Any, str], Any]:
    """Return what gives everything that is stored together with where it is from."""

    def leaf(value: Any, path: str) -> Any:
        found = load_leaf(value, path)
        if not isinstance(value, (TableSource, StoredBlob)):
            return found
        source = source_of(value)
        if isinstance(value, TableSource):
            references[id(source)] = (source, value)
        return found, source

    return leaf


def _contracts(task: Task, parameters: Mapping[str, Any]) -> Mapping[str, type]:
    """Return path -> contract for the tables among the arguments."""
    promised = task.function.promised
    if not promised:
        return {}
    known = task.function.signature.parameters
    # Keywords that are gathered each have a name of their own.
    gathered = next((name for name, item in known.items() if item.kind is inspect.Parameter.VAR_KEYWORD), "")
    found: dict[str, type] = {}
    for name, value in parameters.items():
        annotation = promised.get(name if name in known else gathered)
        if annotation is not None:
            found.update(contracts_of(annotation, value, segment(name)))
    return found


def with_columns(access: StoreSession, task: Task, inputs: TaskInputs) -> TaskInputs:
    """Return the arguments with the columns of views and of other people's tables, which nobody has looked at before."""
    if all(isinstance(item.table, StoredTable) for item in inputs.placeholders.values()):
        return inputs
    who = f"Task {task.stage.name}.{task.id}"

    def leaf(value: Any, path: str) -> Any:
        return loaded(value, access, f"{who}, argument {path!r}") if isinstance(value, (StoredView, ExternalTable)) else value

    parameters = {name: map_inputs(value, leaf, segment(name)) for name, value in inputs.parameters.items()}
    return label(parameters, with_sources=inputs.with_sources)


def read_table(
    session: Session,
    access: StoreSession,
    hook: TableHook,
    table: TableSource,
    as_type: Any,
    label: str,
    path: str,
    capabilities: Capabilities | None = None,
    alias: str | None = None,
) -> Any:
    """Load one table or view; the error says which one, and one that is gone is struck.

    `capabilities`: those that the hook may use; by default all of the store's. `alias`: what it is called in queries; by default the end of the path.
    """
    alias = alias or path.rpartition(".")[2] or label
    try:
        return hook.read(
            table, as_type, ReadContext(access, capabilities or session.tables.capabilities, label, alias, session.hooks.args(hook))
        )
    except StoredDataMissing as error:
        gone = table.id if isinstance(table, StoredTable) else error.__dict__.get("object_id")
        if gone is not None:
            session.catalog.forget_objects((gone,))
        raise
    except PipedagError:
        raise
    except Exception as error:
        add_note(error, f"while loading {_told(table)} for input {path!r}")
        raise


def _alias(task: Task, label: str) -> str | None:
    # Two versions of a table in one query need two names.
    return None if task.options.versions is None else label


def _read_elsewhere(value: Elsewhere, hook: TableHook | None, as_type: Any, path: str) -> Any:
    """Load a table or blob of another instance; nothing of that is changed, also if it turns out to be gone."""
    other = value.session
    if isinstance(value.stored, StoredBlob) or hook is None:
        return other.blobs.read(value.stored.location, getattr(value.stored, "format", ""), value.stored.identity)
    capabilities = replace(other.tables.capabilities, reads=other.tables.capabilities.reads - {Form.QUERY})
    try:
        return hook.read(value.stored, as_type, ReadContext(value.access, capabilities, path, path, other.hooks.args(hook)))
    except PipedagError:
        raise
    except Exception as error:
        add_note(error, f"while loading {_told(value.stored)} of another instance for input {path!r}")
        raise


def _told(table: TableSource) -> str:
    if isinstance(table, StoredTable):
        where = f"table {table.told} (generation {table.generation}), which is stored as {table.location}"
        return f"{where}. If that is damaged, delete it: the next run makes it again;"
    return table.told if isinstance(table, StoredView) else f"external table {table.told}"


def read_blob(session: Session, blob: StoredBlob) -> Any:
    """Load one stored blob. One that turns out to be gone or damaged is struck, so that the next run makes it again."""
    try:
        return session.blobs.read(blob.location, blob.format, blob.identity)
    except StoredDataMissing:
        session.catalog.forget_objects((blob.id,))
        raise


def load_empty(session: Session, access: StoreSession, task: Task, inputs: TaskInputs) -> Loaded:
    """Give the task inputs without rows, which know where they come from, for AUTO_VERSION."""
    references: References = {}
    hook = _hook_for(session, task, inputs)
    if hook is not None and not isinstance(hook, TracingHook):
        raise TracingRefused(
            f"Task {task.stage.name}.{task.id} has version=AUTO_VERSION, but what it would do on {task.options.input_type!r} cannot be seen without "
            "running it. Use input_type=pl.LazyFrame or a DuckDB relation, or give it a version such as version='1.0'.",
            stage=task.stage.name,
            task=task.id,
        )
    inputs = with_columns(access, task, inputs)

    def leaf(value: Any, path: str) -> Any:
        if isinstance(value, StoredBlob):
            return read_blob(session, value)
        if isinstance(value, Elsewhere):
            if hook is None or isinstance(value.stored, StoredBlob):
                return _read_elsewhere(value, None, None, path)
            return hook.empty(value.stored.schema, task.options.input_type, path)
        if not isinstance(value, TableSource) or hook is None:
            return value
        empty = hook.empty(value.schema, task.options.input_type, _alias(task, inputs.labels[path]) or path)
        references[id(empty)] = (empty, value)
        return empty

    give = _paired(leaf, references) if inputs.with_sources else leaf
    return Loaded(inputs, {name: map_inputs(value, give, segment(name)) for name, value in inputs.parameters.items()}, references)


def _hook_for(session: Session, task: Task, inputs: TaskInputs) -> TableHook | None:
    """Return what loads the task's tables; None if it gets none."""
    elsewhere = task.options.versions is not None and any(
        isinstance(leaf, Elsewhere) and isinstance(leaf.stored, StoredTable)
        for value in inputs.parameters.values()
        for _, leaf in leaves(value, "")
    )
    return _hook(session, task) if inputs.placeholders or elsewhere else None


def _hook(session: Session, task: Task) -> TableHook:
    if task.options.input_type is None:
        raise FlowError(
            f"Task {task.stage.name}.{task.id} gets tables as arguments but does not say in which library it wants them. "
            "Declare it, for instance @materialize(input_type=pl.LazyFrame) or input_type=sa.Table.",
            stage=task.stage.name,
            task=task.id,
        )
    return session.hooks.for_type(task.options.input_type)
