"""What a task returned, taken apart: tables, blobs, scripts and tables of others, each in the form in which it crosses to the store and with the key under which it may be known.

Work goes through three acts: `collect` finds them in the returned nest, `prepare` gives each its form and, where one is known before anything is
written, its key, and `reuse` points those whose key is known to what is stored. Writing the rest is the business of `pipedag_core.run.outputs`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast, final

from pipedag_core.cache import codec, fingerprint
from pipedag_core.cache.fingerprint import Fingerprint
from pipedag_core.define.contracts import contracts_of
from pipedag_core.define.task import Task
from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Table, View
from pipedag_core.define.walk import iter_leaves, join, map_leaves
from pipedag_core.errors import FlowError, MaterializationError, PipedagError, StoredDataMissing, UnsupportedValue
from pipedag_core.ports.data import (
    BatchData,
    ExternalTable,
    FileData,
    Prepared,
    QueryData,
    Selection,
    StoredBlob,
    StoredObject,
    StoredTable,
    StoredView,
    TableData,
    TableOptions,
    TableSource,
)
from pipedag_core.ports.hooks import RowContract, TableHook, WriteContext
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run.inputs import TaskInputs
from pipedag_core.run.notes import add_note
from pipedag_core.run.session import Run, Session
from pipedag_core.run.views import selection_of, selection_text

log = logging.getLogger(__name__)

_PLAIN = (str, bytes, int, float, bool, type(None))

#: Frames whose rows are in memory.
_FRAMES = ("polars.DataFrame", "pandas.DataFrame", "pyarrow.Table", "pyarrow.RecordBatch")


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """How the outputs of one execution are identified.

    Attributes:
        kind: "version", "auto", "lazy" or "never".
        forced: The task runs although a stored result might do, so what it gives must not be taken for an earlier result unless it is equal.
        lookup: Queries of a lazy task may be answered by stored tables.
        lookup_base: ... ignoring the cache function's value.
        cache_value: The cache function's value as canonical JSON, or None.
        fingerprint: The task's, where it is known before the outputs are (version, auto).
    """

    kind: str
    forced: bool
    lookup: bool
    lookup_base: bool
    cache_value: str | None
    fingerprint: Fingerprint | None

    @property
    def hash_always(self) -> bool:
        """Whether content hashes are needed at any size."""
        return self.kind == "never" or self.forced


@final
@dataclass(slots=True)
class Slot:
    """One table, blob, script or table of somebody else in a returned nest, on its way into the store.

    `is_nameless`: it is stored or known already and is only a source of something returned, so it gets no readable name. `contract`: what its rows
    have to be, and have not been found to be yet. `early`: the slot of the same table, if it was written on the way.
    """

    path: str
    obj: Any
    declared: str | None
    options: TableOptions = field(default_factory=TableOptions)
    hook: TableHook | None = None
    data: TableData | None = None
    prepared: Prepared | None = None
    blob: tuple[bytes, str] | None = None
    content_hash: str | None = None
    key: str | None = None
    base_key: str | None = None
    stored: StoredObject | None = None
    tables: dict[str, StoredTable] = field(default_factory=dict[str, StoredTable])
    is_nameless: bool = False
    contract: RowContract | None = None
    early: Slot | None = None
    comment: str = ""
    comments: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_external(self) -> bool:
        """Whether this is a table that somebody else owns, returned as a reference to it."""
        return isinstance(self.obj, ExternalTableReference)

    @property
    def has_frame(self) -> bool:
        """Whether rows are in memory as a frame that can be looked at before it is written."""
        return not _type_names(self.obj).isdisjoint(_FRAMES)

    @property
    def is_script(self) -> bool:
        """Whether this is RawSql, whose tables get their names when it has run."""
        return isinstance(self.obj, RawSql)

    def release(self) -> None:
        """Let go of what was returned, once it is stored; a script's text is small and stays."""
        if not self.is_script:
            self.obj = self.data = self.blob = None


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """Stands in the returned nest where slot `index` was."""

    index: int


@final
@dataclass(frozen=True, slots=True)
class MarkedView:
    """Stands in the returned nest where a view was."""

    selection: Selection
    sources: tuple[Mark | MarkedView, ...]


@final
@dataclass(frozen=True, slots=True)
class Beside:
    """A returned nest, and tables that were written on the way to it."""

    value: Any
    tables: tuple[Mark, ...]


def marked_text(marked: Any, leaf: Callable[[Mark], Mapping[str, Any]]) -> str:
    """Return a marked nest as canonical text, with `leaf(mark)` for what was stored and views by what they select.

    Raises:
        UnsupportedValue: Something in the nest cannot be kept as a plain value; the message names its path.
    """

    def node(item: Mark | MarkedView | Beside) -> Mapping[str, Any]:
        if isinstance(item, Mark):
            return leaf(item)
        if isinstance(item, Beside):
            return {"$": "beside", "value": encoded(item.value), "tables": [leaf(mark) for mark in item.tables]}
        return {"$": "view", "selection": selection_text(item.selection), "sources": [node(source) for source in item.sources]}

    def encoded(nest: Any) -> Any:
        return codec.encode(nest, lambda item, _: node(item) if isinstance(item, (Mark, MarkedView, Beside)) else None)

    return codec.dumps(encoded(marked))


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs go, and for whom.

    Attributes:
        references: id of an object that stands for a stored table, view or blob -> the object, and what it stands for.
        early: id of an object that stands for a table that was written on the way -> its slot.
    """

    session: Session
    access: StoreSession
    run: Run
    task: Task
    stage: str
    position: str
    stages: frozenset[str]
    inputs: TaskInputs
    references: dict[int, tuple[Any, TableSource]]
    early: dict[int, Slot] = field(default_factory=dict[int, Slot])

    @property
    def who(self) -> str:
        """The task, for messages."""
        return f"Task {self.stage}.{self.task.id}"


def collect(place: Place, value: Any) -> tuple[Any, list[Slot]]:
    """Return the nest with marks in place of tables, views, blobs and scripts, and all but views in order.

    Raises:
        UnsupportedValue: Something in the nest can be neither stored nor kept as a plain value; the message names its path.
    """
    slots: list[Slot] = []
    contracts = contracts_of(place.task.function.returns, value)

    def enter(slot: Slot) -> Mark:
        slots.append(slot)
        return Mark(len(slots) - 1)

    def known(table: TableSource, path: str) -> Mark | MarkedView:
        if isinstance(table, StoredView):
            return MarkedView(table.selection, tuple(known(source, path) for source in table.sources))
        return enter(Slot(path, None, None, stored=table, is_nameless=True))

    def source(item: Any, path: str) -> Mark | MarkedView:
        if id(item) in place.references:
            return known(place.references[id(item)][1], path)
        found = leaf(item, path)
        if isinstance(found, MarkedView) or (isinstance(found, Mark) and not _is_no_table(slots[found.index])):
            return found
        raise UnsupportedValue(
            f"{place.who} returned a View{_at(path)} of a {type(item).__module__}.{type(item).__qualname__}. A View selects from tables: give it an input, a "
            "data frame, a query, Table(...) or an ExternalTableReference.",
            stage=place.stage,
            task=place.task.id,
            path=path,
        )

    def leaf(item: Any, path: str) -> Any:
        reference = place.references.get(id(item))
        is_other = reference is not None and isinstance(reference[1], (StoredView, ExternalTable))
        if path in contracts and (is_other or isinstance(item, (View, RawSql, ExternalTableReference))):
            what = type(item).__name__ if not is_other else "a reference to a view, or to a table of others,"
            raise MaterializationError(
                f"{place.who} returned{_at(path)} {what} where a table under the contract {contracts[path].__name__} is declared. "
                "Only tables that the task writes can be held against a contract: return a query or a frame, or drop the annotation.",
                stage=place.stage,
                task=place.task.id,
            )
        if isinstance(item, View):
            return view(item, path)
        if reference is not None and isinstance(reference[1], (StoredView, ExternalTable)):
            return known(reference[1], path)
        slot = _slot(place, item, path, contracts.get(path))
        return item if slot is None else enter(slot)

    def view(item: View, path: str) -> MarkedView:
        where = f"{place.who}{_at(path)}"
        selection = selection_of(item, where)
        sources = tuple(
            source(part, join(join(path, "src"), inner) if inner else join(path, "src")) for inner, part in iter_leaves(item.src)
        )
        if not sources:
            raise FlowError(
                f"{where}: the View has no source. Give it a table, or a list of tables.", stage=place.stage, task=place.task.id
            )
        return MarkedView(selection, sources)

    marked = map_leaves(value, leaf, "")
    try:
        # Before anything is written: is all the rest something that can be kept?
        marked_text(marked, lambda _: {"$": "mark"})
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{place.who} returned something that cannot be kept. {error}", **error.__dict__) from None
    return marked, slots


def _slot(place: Place, item: Any, path: str, contract: type | None) -> Slot | None:
    reference = place.references.get(id(item))
    early = place.early.get(id(item))
    if early is not None:
        return _returned_early(place, early, path, contract)
    if reference is not None and contract is None:
        # What is stored itself comes from `pipedag_core.run.supplied`, and stays what it was called.
        stored = cast("StoredTable | StoredBlob", reference[1])
        return Slot(path, item, item.name if item is stored else None, stored=stored)
    if isinstance(item, Table):
        return table_slot(place, cast("Table[Any]", item), path, contract)
    if isinstance(item, Blob):
        return Slot(path, item, item.name)
    if isinstance(item, RawSql):
        return Slot(path, item, None)
    if isinstance(item, ExternalTableReference):
        return Slot(path, item, None, is_nameless=True)
    if isinstance(item, _PLAIN):
        return None
    names = _type_names(item)
    settings = place.session
    if names & set(settings.auto_blob):
        return Slot(path, Blob(item), None)
    hook = settings.hooks.for_object(item)
    if hook is None or (settings.auto_table and not names & set(settings.auto_table)):
        return None
    return _under(place, contract, Slot(path, item, None, hook=hook))


def _returned_early(place: Place, early: Slot, path: str, contract: type | None) -> Slot:
    """Return the slot of a table that was written on the way and is returned."""
    said = None if contract is None else place.session.hooks.contract(contract)
    if said is not None and early.options.contract != said.token:
        raise MaterializationError(
            f"{place.who} returned{_at(path)} what Table(...).materialize() has written without the contract {said.name} that is declared for it. "
            f"Name it there: Table(..., annotation={said.name}).",
            stage=place.stage,
            task=place.task.id,
        )
    return Slot(path, None, early.declared, early.options, stored=early.stored, early=early)


def table_slot(place: Place, table: Table[Any], path: str, contract: type | None = None) -> Slot:
    """Return the slot of a wrapped table.

    Raises:
        UnsupportedValue: No hook understands what is in it.
    """
    where = {"stage": place.stage, "task": place.task.id}
    dialect = place.session.tables.capabilities.dialect
    types = {column: place.session.hooks.sql_type(kind, dialect) for column, kind in table.type_map.items()}
    options = TableOptions(table.primary_key, table.indexes, types, table.nullable, table.non_nullable, table.materialization_details)
    contract = table.annotation if table.annotation is not None else contract
    reference = place.references.get(id(table.obj))
    if reference is not None and contract is None and options == TableOptions() and isinstance(reference[1], StoredTable):
        return Slot(path, table.obj, table.name, stored=reference[1])
    hook = place.session.hooks.for_object(table.obj)
    if hook is None:
        raise UnsupportedValue(
            f"{place.who} returned a Table{_at(path)} of a {type(table.obj).__module__}.{type(table.obj).__qualname__}, which no hook understands. "
            "Return a data frame, an Arrow table, a query, or Blob(...) for other objects.",
            **where,
        )
    return _under(place, contract, Slot(path, table.obj, table.name, options, hook))


def _under(place: Place, contract: type | None, slot: Slot) -> Slot:
    """Return a slot with what its contract asks of the table; what `Table(...)` says itself goes before that."""
    if contract is None:
        return slot
    said = slot.contract = place.session.hooks.contract(contract)
    options, dialect = slot.options, place.session.tables.capabilities.dialect
    types: Mapping[str, str] = options.type_map
    if not slot.has_frame:
        # Frames in memory are cast by the contract itself.
        types = {column: place.session.hooks.sql_type(kind, dialect) for column, kind in said.types.items()} | dict(options.type_map)
    silent = options.nullable is None and options.non_nullable is None
    slot.options = replace(
        options,
        primary_key=options.primary_key or said.primary_key,
        non_nullable=said.non_nullable if silent else options.non_nullable,
        type_map=types,
        contract=said.token,
    )
    slot.comment, slot.comments = said.comment, said.comments
    return slot


def _is_no_table(slot: Slot) -> bool:
    return slot.is_script or isinstance(slot.obj, Blob)


def _at(path: str) -> str:
    return f" at {path!r}" if path else ""


def _type_names(item: object) -> frozenset[str]:
    """Return the short names of an object's type and of those that it is made from: package and name, as in `pandas.Series`."""
    return _names_of(type(item))


@lru_cache(maxsize=256)
def _names_of(kind: type) -> frozenset[str]:
    return frozenset(f"{base.__module__.split('.')[0].lstrip('_')}.{base.__qualname__}" for base in kind.__mro__)


def prepare(place: Place, slots: Sequence[Slot], policy: Policy) -> None:
    """Give each slot the form in which it crosses to the store, and a key where one is known before anything is written."""
    for slot in slots:
        if slot.stored is not None:
            continue
        try:
            _prepare_slot(place, slot, policy)
        except StoredDataMissing:
            raise
        except PipedagError as error:
            name = slot.declared or slot.path or place.task.id
            error.__dict__.update({"stage": place.stage, "task": place.task.id, "table": name})
            if not str(error).startswith(f"Table {name!r}"):
                add_note(error, f"table {name!r} of {place.who}")
            raise


def _prepare_slot(place: Place, slot: Slot, policy: Policy) -> None:
    session, access, task = place.session, place.access, place.task
    version = str(task.options.version) if task.options.version is not None else ""
    if isinstance(slot.obj, Blob):
        slot.blob = session.blobs.encode(cast("Blob[Any]", slot.obj).obj)
        slot.key = slot.base_key = hashlib.sha256(slot.blob[0]).hexdigest()
    elif isinstance(slot.obj, ExternalTableReference):
        if policy.cache_value is not None:
            external = slot.obj
            slot.base_key = fingerprint.external_key(
                stage=place.stage, task=task.name, version=version, owner=external.schema, name=external.name
            )
            slot.key = fingerprint.with_cache_value(slot.base_key, policy.cache_value)
    elif slot.is_script:
        slot.prepared = access.prepare(slot.obj.sql, place.inputs.placeholders, place.stages)
        _query_keys(slot, place, version, policy)
    elif slot.hook is not None:
        if slot.contract is not None and slot.has_frame:
            # The library's own hook refuses what no table can keep, such as an index that means something; a contract might drop it.
            slot.hook.write(slot.obj, WriteContext(access, session.tables.capabilities, f"{place.stage}.{task.id}", slot.path, {}))
            slot.obj = slot.contract.check(slot.obj, f"Table {slot.declared or slot.path or task.id!r} of {place.who}")
            slot.hook, slot.contract = session.hooks.for_object(slot.obj) or slot.hook, None
        context = WriteContext(access, session.tables.capabilities, f"{place.stage}.{task.id}", slot.path, session.hooks.args(slot.hook))
        slot.data = slot.hook.write(slot.obj, context)
        if isinstance(slot.data, QueryData):
            slot.prepared = access.prepare(slot.data.text, place.inputs.placeholders, place.stages)
            if policy.kind == "lazy":
                _query_keys(slot, place, version, policy)
        elif (
            _in_memory(slot.data)
            and not slot.options.type_map
            and (policy.hash_always or policy.kind == "lazy" or is_small(slot.data, session))
        ):
            slot.content_hash = access.hash_rows(slot.data)
            if slot.content_hash is not None:
                slot.key = slot.base_key = fingerprint.content_identity(slot.content_hash, slot.options)


def _query_keys(slot: Slot, place: Place, version: str, policy: Policy) -> None:
    assert slot.prepared is not None
    slot.base_key = fingerprint.query_key(
        stage=place.stage, task=place.task.name, version=version, canonical=slot.prepared.canonical, options=slot.options
    )
    slot.key = fingerprint.with_cache_value(slot.base_key, policy.cache_value)


def _in_memory(data: TableData) -> bool:
    return data.in_memory if isinstance(data, BatchData) else isinstance(data, FileData) and data.stream is not None


def is_small(data: TableData, session: Session) -> bool:
    """Return whether a table that comes from memory is small enough to be hashed for its own sake."""
    rows = None if isinstance(data, QueryData) else data.rows
    return rows is not None and rows <= session.content_hash_rows


def query_parts(slots: Sequence[Slot], inputs: TaskInputs) -> dict[str, str]:
    """Return the queries of a lazy task for saying what changed: inputs by label, so that a changed input is not a changed query."""
    parts: dict[str, str] = {}
    for slot in slots:
        if slot.prepared is not None:
            text = slot.prepared.canonical
            for placeholder in inputs.placeholders.values():
                text = text.replace(placeholder.table.identity, placeholder.label)
            parts[f"query {slot.path}".strip()] = fingerprint.short(text)
    return parts


def reuse(place: Place, slots: Sequence[Slot], policy: Policy) -> None:
    """Point slots whose key is known to what is stored under it, if the data is still there."""
    session = place.session
    wanted: dict[str, list[Slot]] = {}
    for slot in slots:
        if slot.stored is not None or slot.key is None or slot.base_key is None or slot.is_script:
            continue
        # The key of a query, or of somebody else's table, does not say what the rows are; a forced run has to find that out.
        if (slot.prepared is not None and not policy.lookup) or (slot.is_external and policy.forced):
            continue
        wanted.setdefault(slot.base_key if policy.lookup_base else slot.key, []).append(slot)
    if not wanted:
        return
    found = place.run.catalog(session).find_objects(place.stage, tuple(wanted), base=policy.lookup_base)
    gone = missing(session, place.run, list(found.values()))
    if gone:
        names = sorted(item.name for item in found.values() if item.id in gone)
        log.warning("%s: stored %s is gone or damaged; it is made again", place.who, ", ".join(names))
    for key, stored in found.items():
        if stored.id not in gone:
            for slot in wanted[key]:
                slot.stored = stored


def has_rows(slot: Slot) -> bool:
    """Return whether all that is to be written for a slot is in memory."""
    return slot.blob is not None or (slot.data is not None and _in_memory(slot.data))


def missing(session: Session, run: Run, objects: Sequence[StoredObject]) -> set[str]:
    """Return the ids of objects whose data is gone, and strike them from the catalog, so that they count as a miss from now on."""
    memory = run.catalog(session)
    tables = memory.to_look_for([item for item in objects if isinstance(item, StoredTable)])
    blobs = {item.location: item for item in objects if isinstance(item, StoredBlob)}
    gone = {table.id for table in session.tables.missing(tables)} if tables else set[str]()
    memory.note_there(table.id for table in tables if table.id not in gone)
    # What else is gone is told by the task that looks for it.
    gone &= {item.id for item in objects}
    if blobs:
        gone |= {blobs[location].id for location in session.blobs.missing({location: blob.size for location, blob in blobs.items()})}
    if gone:
        memory.forget_objects(tuple(gone))
    return gone


def refuse_opaque(place: Place, slots: Sequence[Slot]) -> None:
    """Refuse scripts and blobs where only tables and values make sense."""
    for slot in slots:
        if slot.is_script or slot.is_external or isinstance(slot.obj, Blob):
            what = "RawSql" if slot.is_script else "a table of somebody else" if slot.is_external else "a blob"
            raise MaterializationError(
                f"{place.who} has version=AUTO_VERSION and returned {what}{_at(slot.path)}; what it holds cannot be seen without "
                "running the task. Give it a version such as version='1.0', or lazy=True for SQL.",
                task=place.task.id,
                stage=place.stage,
            )
