"""From what a task returned to stored objects, readable names and the text that the catalog keeps.

Work goes through four acts: `collect` finds the tables and blobs in the returned nest, `prepare` turns each into the form in which it crosses to
the store and gives it a key where one is known before writing, `reuse` looks these keys up, and `write` writes what is left.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from pipedag_core.cache import codec, fingerprint
from pipedag_core.cache.fingerprint import Fingerprint
from pipedag_core.define.task import Task
from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Table, View
from pipedag_core.define.walk import map_leaves
from pipedag_core.errors import DuplicateName, MaterializationError, PipedagError, UnsupportedByStore, UnsupportedValue
from pipedag_core.naming import check_bytes
from pipedag_core.plan.outputs import check_declared, name_outputs
from pipedag_core.ports.catalogs import NewObject
from pipedag_core.ports.data import (
    BatchData,
    FileData,
    Prepared,
    QueryData,
    StoredBlob,
    StoredObject,
    StoredTable,
    TableData,
    TableOptions,
    Target,
    Written,
)
from pipedag_core.ports.hooks import TableHook, WriteContext
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run.inputs import TaskInputs
from pipedag_core.run.loading import Loaded
from pipedag_core.run.session import Run, Session

_PLAIN = (str, bytes, int, float, bool, type(None))


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
    """One table, blob or script in a returned nest, on its way into the store."""

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

    @property
    def is_script(self) -> bool:
        """Whether this is RawSql, whose tables get their names when it has run."""
        return isinstance(self.obj, RawSql)


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """Stands in the returned nest where slot `index` was."""

    index: int


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs go, and for whom."""

    session: Session
    access: StoreSession
    run: Run
    task: Task
    stage: str
    position: str
    stages: frozenset[str]
    inputs: TaskInputs
    loaded: Loaded

    @property
    def who(self) -> str:
        """The task, for messages."""
        return f"Task {self.stage}.{self.task.id}"


def collect(place: Place, value: Any) -> tuple[Any, list[Slot]]:
    """Return the nest with marks in place of tables, blobs and scripts, and these in order.

    Raises:
        UnsupportedValue: Something in the nest can be neither stored nor kept as a plain value; the message names its path.
    """
    slots: list[Slot] = []

    def leaf(item: Any, path: str) -> Any:
        slot = _slot(place, item, path)
        if slot is None:
            return item
        slots.append(slot)
        return Mark(len(slots) - 1)

    marked = map_leaves(value, leaf, "")
    try:
        # Before anything is written: is all the rest something that can be kept?
        codec.encode(marked, lambda item, _: {"$": "mark"} if isinstance(item, Mark) else None)
    except UnsupportedValue as error:
        raise UnsupportedValue(f"{place.who} returned something that cannot be kept. {error}", **error.__dict__) from None
    return marked, slots


def _slot(place: Place, item: Any, path: str) -> Slot | None:
    if id(item) in place.loaded.references:
        return Slot(path, item, None, stored=place.loaded.references[id(item)][1])
    if isinstance(item, Table):
        return _table_slot(place, item, path)
    if isinstance(item, Blob):
        return Slot(path, item, item.name)
    if isinstance(item, RawSql):
        return Slot(path, item, None)
    if isinstance(item, (View, ExternalTableReference)):
        raise UnsupportedByStore(
            f"{place.who} returned a {type(item).__name__}{_at(path)}; the embedded store does not support it yet. Return the query as a table instead.",
            task=place.task.id,
            stage=place.stage,
        )
    if isinstance(item, _PLAIN):
        return None
    names = {_short_type_name(kind) for kind in type(item).__mro__}
    settings = place.session
    if names & set(settings.auto_blob):
        return Slot(path, Blob(item), None)
    hook = settings.hooks.for_object(item)
    if hook is None or (settings.auto_table and not names & set(settings.auto_table)):
        return None
    return Slot(path, item, None, hook=hook)


def _table_slot(place: Place, table: Table[Any], path: str) -> Slot:
    where = {"stage": place.stage, "task": place.task.id}
    if table.annotation is not None or table.type_map:
        option = "annotation" if table.annotation is not None else "type_map"
        raise UnsupportedByStore(
            f"{place.who} returned a Table with {option}{_at(path)}; the embedded store does not support it yet. Cast the columns in the task.", **where
        )
    options = TableOptions(
        table.primary_key, table.indexes, {}, table.nullable, table.non_nullable, table.materialization_details
    )
    reference = place.loaded.references.get(id(table.obj))
    if reference is not None and options == TableOptions():
        return Slot(path, table.obj, table.name, stored=reference[1])
    hook = place.session.hooks.for_object(table.obj)
    if hook is None:
        raise UnsupportedValue(
            f"{place.who} returned a Table{_at(path)} of a {type(table.obj).__module__}.{type(table.obj).__qualname__}, which no hook understands. "
            "Return a data frame, an Arrow table, a query, or Blob(...) for other objects.",
            **where,
        )
    return Slot(path, table.obj, table.name, options, hook)


def _at(path: str) -> str:
    return f" at {path!r}" if path else ""


def _short_type_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0].lstrip('_')}.{kind.__qualname__}"


def prepare(place: Place, slots: Sequence[Slot], policy: Policy) -> None:
    """Give each slot the form in which it crosses to the store, and a key where one is known before anything is written."""
    session, access, task = place.session, place.access, place.task
    version = str(task.options.version) if task.options.version is not None else ""
    for slot in slots:
        if slot.stored is not None:
            continue
        if isinstance(slot.obj, Blob):
            slot.blob = session.blobs.encode(slot.obj.obj)
            slot.key = slot.base_key = hashlib.sha256(slot.blob[0]).hexdigest()
        elif slot.is_script:
            slot.prepared = access.prepare(slot.obj.sql, place.inputs.placeholders, place.stages)
            _query_keys(slot, place, version, policy)
        elif slot.hook is not None:
            context = WriteContext(access, session.tables.capabilities, f"{place.stage}.{task.id}", slot.path, session.hooks.args(slot.hook))
            slot.data = slot.hook.write(slot.obj, context)
            if isinstance(slot.data, QueryData):
                slot.prepared = access.prepare(slot.data.text, place.inputs.placeholders, place.stages)
                if policy.kind == "lazy":
                    _query_keys(slot, place, version, policy)
            elif _in_memory(slot.data) and (policy.hash_always or policy.kind == "lazy" or _is_small(slot.data, session)):
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


def _is_small(data: TableData, session: Session) -> bool:
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
        by_query = slot.prepared is not None
        if slot.stored is not None or slot.key is None or slot.base_key is None or slot.is_script or (by_query and not policy.lookup):
            continue
        wanted.setdefault(slot.base_key if policy.lookup_base else slot.key, []).append(slot)
    if not wanted:
        return
    found = session.catalog.find_objects(place.run.id, place.stage, tuple(wanted), base=policy.lookup_base)
    gone = missing(session, list(found.values()))
    for key, stored in found.items():
        if stored.id not in gone:
            for slot in wanted[key]:
                slot.stored = stored


def missing(session: Session, objects: Sequence[StoredObject]) -> set[str]:
    """Return the ids of objects whose data is gone, and strike them from the catalog, so that they count as a miss from now on."""
    tables = [item for item in objects if isinstance(item, StoredTable)]
    blobs = {item.location: item for item in objects if isinstance(item, StoredBlob)}
    gone = {table.id for table in session.tables.missing(tables)} if tables else set[str]()
    if blobs:
        gone |= {blobs[location].id for location in session.blobs.missing({location: blob.size for location, blob in blobs.items()})}
    if gone:
        session.catalog.forget_objects(tuple(gone))
    return gone


@final
@dataclass(slots=True)
class Output:
    """What is to be recorded of a task's return value."""

    text: str
    entries: dict[str, str]
    new: list[NewObject]
    objects: list[StoredObject]

    @property
    def rows(self) -> int | None:
        """Rows of all tables where all are known."""
        counts = [item.rows for item in self.objects if isinstance(item, StoredTable)]
        return sum(count for count in counts if count is not None) if counts and None not in counts else None


def names(place: Place, slots: Sequence[Slot]) -> dict[int, str]:
    """Return the readable name of every slot that has one before it runs, by its number."""
    named = [(index, slot) for index, slot in enumerate(slots) if not slot.is_script]
    texts = name_outputs(place.task.id, [(slot.path, slot.declared) for _, slot in named], place.position)
    limit = place.session.tables.capabilities.max_name_bytes
    for text in texts:
        check_bytes(text, limit, f"table name in {place.stage}.{place.task.id}")
    result = {index: text for (index, _), text in zip(named, texts, strict=True)}
    if not any(slot.is_script for slot in slots):
        check_declared(place.task.id, place.task.options.outputs, texts, place.stage)
    return result


def write(place: Place, marked: Any, slots: Sequence[Slot], generation: int, policy: Policy) -> Output:
    """Write what is not stored yet, and return what is to be recorded. On an error what was written is removed."""
    readable = names(place, slots)
    new: list[NewObject] = []
    try:
        for index, slot in enumerate(slots):
            if slot.stored is None:
                new.extend(_write_slot(place, slot, readable.get(index, ""), generation, policy))
        return _output(place, marked, slots, readable, new)
    except BaseException:
        discard(place.session, [item.stored for item in new])
        raise


def discard(session: Session, objects: Sequence[StoredObject]) -> None:
    """Remove what was written and will not be recorded."""
    tables = [item.location for item in objects if isinstance(item, StoredTable)]
    blobs = [item.location for item in objects if isinstance(item, StoredBlob)]
    if tables:
        session.tables.drop(tables)
    if blobs:
        session.blobs.drop(blobs)


def _write_slot(place: Place, slot: Slot, name: str, generation: int, policy: Policy) -> list[NewObject]:
    if slot.blob is not None:
        return [_write_blob(place, slot, name, generation)]
    if slot.is_script:
        return _write_script(place, slot, generation, policy)
    assert slot.data is not None
    streamed_frame = policy.kind == "lazy" and slot.key is None
    hash_content = slot.content_hash is None and (policy.hash_always or streamed_frame)
    target = Target(place.stage, generation, name, place.task.id, slot.options, hash_content)
    written = _with_place(place, name, lambda: place.access.write(slot.data, target, prepared=slot.prepared))  # pyright: ignore[reportArgumentType]
    table = _stored(place, slot, written, target, policy)
    key, base_key = slot.key or table.identity, slot.base_key or table.identity
    if hash_content and table.content_hash is not None and slot.key is None:
        # Only now is it known what the rows are; if they are stored already, the new copy is not needed.
        known = place.session.catalog.find_objects(place.run.id, place.stage, (table.identity,))
        if table.identity in known and not missing(place.session, [known[table.identity]]):
            place.session.tables.drop([table.location])
            slot.stored = known[table.identity]
            return []
    slot.stored = table
    return [NewObject(table, key, base_key)]


def _with_place(place: Place, name: str, action: Any) -> Any:
    try:
        return action()
    except PipedagError:
        raise
    except Exception as error:
        error.add_note(f"pipedag: while writing table {place.stage}.{name} of {place.who}")
        raise


def _stored(place: Place, slot: Slot, written: Written, target: Target, policy: Policy) -> StoredTable:
    content_hash = slot.content_hash or written.content_hash
    if content_hash is not None:
        identity = fingerprint.content_identity(content_hash, slot.options)
    elif policy.kind == "lazy" and slot.key is not None and not policy.forced:
        identity = slot.key
    else:
        base = policy.fingerprint.full if policy.fingerprint is not None else ""
        identity = fingerprint.result_identity(base, slot.path, slot.options, fingerprint.nonce() if policy.hash_always or not base else "")
    query = slot.prepared.readable if slot.prepared is not None else None
    return StoredTable(
        id=os.urandom(10).hex(),
        stage=place.stage,
        generation=target.generation,
        name=target.name,
        location=written.location,
        schema=written.schema,
        identity=identity,
        rows=written.rows,
        size=written.size,
        content_hash=content_hash,
        options=slot.options,
        query=query,
    )


def _write_blob(place: Place, slot: Slot, name: str, generation: int) -> NewObject:
    assert slot.blob is not None
    assert slot.key is not None
    raw, format = slot.blob
    location = place.session.blobs.write(raw, format, place.stage, generation, name)
    blob = StoredBlob(os.urandom(10).hex(), place.stage, generation, name, location, slot.key, len(raw), format)
    slot.stored = blob
    return NewObject(blob, slot.key, slot.key)


def _write_script(place: Place, slot: Slot, generation: int, policy: Policy) -> list[NewObject]:
    assert slot.prepared is not None
    target = Target(place.stage, generation, slot.obj.name or place.task.id, place.task.id, slot.options, policy.hash_always)
    results = place.access.run_script(slot.prepared, place.inputs.tables, place.stage, target)
    new: list[NewObject] = []
    for name, (where, written) in results.items():
        part = Slot(codec.join(slot.path, name), None, name, prepared=slot.prepared)
        part.key = fingerprint.result_identity(slot.key or "", name, slot.options)
        part.base_key = fingerprint.result_identity(slot.base_key or "", name, slot.options)
        table = _stored(place, part, written, where, policy)
        slot.tables[name] = table
        new.append(NewObject(table, part.key, part.base_key))
    return new


def _output(place: Place, marked: Any, slots: Sequence[Slot], readable: Mapping[int, str], new: list[NewObject]) -> Output:
    entries: dict[str, str] = {}
    objects: list[StoredObject] = []

    def enter(name: str, stored: StoredObject) -> None:
        if name in entries:
            raise DuplicateName(
                f"{place.who} returned two tables named {name!r}. Names of tables are unique in a stage; rename one.",
                stage=place.stage,
                task=place.task.id,
                table=name,
            )
        entries[name] = stored.id
        objects.append(stored)

    def leaf(item: Any, _path: str) -> Mapping[str, Any] | None:
        if not isinstance(item, Mark):
            return None
        slot = slots[item.index]
        if slot.is_script:
            return {"$": "raw", "path": slot.path, "tables": {name: {"id": table.id} for name, table in slot.tables.items()}}
        assert slot.stored is not None
        return {"$": "object", "id": slot.stored.id, "path": slot.path, "declared": slot.declared}

    for index, slot in enumerate(slots):
        if slot.is_script:
            for name, table in slot.tables.items():
                enter(name, table)
        else:
            assert slot.stored is not None
            enter(readable[index], slot.stored)
    if any(slot.is_script for slot in slots):
        check_declared(place.task.id, place.task.options.outputs, list(entries), place.stage)
    return Output(codec.dumps(codec.encode(marked, leaf)), entries, new, objects)


def point(task: Task, position: str, output: Any, same_task: Mapping[str, str] | None) -> dict[str, str]:
    """Return the readable names under which a call shows a stored result: name -> object id.

    Args:
        task: The task that shows it.
        position: Its place in the wiring.
        output: The stored output as JSON values.
        same_task: The entries of the stored result if it comes from this very place in the wiring; they are right as they are.
    """
    if same_task is not None:
        return dict(same_task)
    objects: list[tuple[str, str | None, str]] = []
    entries: dict[str, str] = {}
    _find_objects(output, objects, entries)
    texts = name_outputs(task.id, [(path, declared) for path, declared, _ in objects], position)
    entries.update({name: object_id for name, (_, _, object_id) in zip(texts, objects, strict=True)})
    return entries


def _find_objects(node: Any, objects: list[tuple[str, str | None, str]], entries: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:  # pyright: ignore[reportUnknownVariableType]
            _find_objects(item, objects, entries)
    elif isinstance(node, dict):
        match node.get("$"):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            case "object":
                objects.append((str(node["path"]), node["declared"], str(node["id"])))  # pyright: ignore[reportUnknownArgumentType]
            case "raw":
                entries.update({str(name): str(item["id"]) for name, item in node["tables"].items()})  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType, reportUnknownVariableType]
            case _:
                for item in node.values():  # pyright: ignore[reportUnknownVariableType]
                    _find_objects(item, objects, entries)


def unexpected_script(place: Place, slots: Sequence[Slot]) -> None:
    """Refuse scripts and blobs where only tables and values make sense."""
    for slot in slots:
        if slot.is_script or isinstance(slot.obj, Blob):
            raise MaterializationError(
                f"{place.who} has version=AUTO_VERSION and returned {type(slot.obj).__name__}{_at(slot.path)}; what it holds cannot be seen without "
                "running the task. Give it a version such as version='1.0', or lazy=True for SQL.",
                task=place.task.id,
                stage=place.stage,
            )
