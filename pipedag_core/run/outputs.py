"""From what a task returned to stored objects, readable names and the text that the catalog keeps: the writing half of `pipedag_core.run.slots`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from pipedag_core.cache import codec, fingerprint
from pipedag_core.define.values import ExternalTableReference
from pipedag_core.define.walk import iter_leaves
from pipedag_core.errors import DuplicateName, PipedagError, StoredDataMissing
from pipedag_core.naming import check_bytes
from pipedag_core.plan.outputs import check_declared, name_outputs
from pipedag_core.ports.catalogs import NewObject
from pipedag_core.ports.data import (
    BatchData,
    ExternalTable,
    FileData,
    StoredBlob,
    StoredObject,
    StoredTable,
    TableSource,
    Target,
    Written,
)
from pipedag_core.ports.events import PointReached
from pipedag_core.ports.hooks import RowContract, WriteContext
from pipedag_core.run.loading import read_table
from pipedag_core.run.notes import add_note
from pipedag_core.run.session import Session
from pipedag_core.run.slots import Beside, Mark, MarkedView, Place, Policy, Slot, is_small, marked_text, missing
from pipedag_core.run.views import loaded, make

log = logging.getLogger(__name__)


@final
@dataclass(slots=True)
class Output:
    """What is to be recorded of a task's return value."""

    text: str
    entries: dict[str, str]
    new: list[NewObject]
    objects: list[StoredObject]
    sources: tuple[str, ...] = ()

    @property
    def rows(self) -> int | None:
        """Rows of all tables with a readable name, where all are known."""
        named = set(self.entries.values())
        counts = [item.rows for item in self.objects if isinstance(item, StoredTable) and item.id in named]
        return sum(count for count in counts if count is not None) if counts and None not in counts else None


def names(place: Place, slots: Sequence[Slot]) -> dict[int, str]:
    """Return the readable name of every slot that has one before it runs, by its number."""
    named = [(index, slot) for index, slot in enumerate(slots) if not slot.is_script and not slot.is_nameless]
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
            if slot.is_external:
                # Named twice in one output, it is one table.
                slot.stored = slot.stored or _same_external(slot, new)
            if slot.stored is None:
                new.extend(write_slot(place, slot, readable.get(index, ""), generation, policy))
                place.session.tell(PointReached(place.run.id, "after_write"))
            slot.release()
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


def write_slot(place: Place, slot: Slot, name: str, generation: int, policy: Policy) -> list[NewObject]:
    """Write one slot that is not stored yet under a readable name, and return what is to be recorded; nothing if equal rows are stored already."""
    if slot.blob is not None:
        return [_write_blob(place, slot, name, generation)]
    if isinstance(slot.obj, ExternalTableReference):
        return [_look_at(place, slot, slot.obj, generation)]
    if slot.is_script:
        return _write_script(place, slot, generation, policy)
    assert slot.data is not None
    streamed_frame = policy.kind == "lazy" and slot.key is None
    # What type_map makes of rows in memory is known only when they are written.
    retyped = bool(slot.options.type_map) and is_small(slot.data, place.session)
    hash_content = slot.content_hash is None and (policy.hash_always or streamed_frame or retyped)
    comment = slot.comment or place.task.function.description
    target = Target(place.stage, generation, name, place.task.id, slot.options, hash_content, comment, slot.comments)
    written = _with_place(place, name, lambda: place.access.write(slot.data, target, prepared=slot.prepared))  # pyright: ignore[reportArgumentType]
    table = _stored(place, slot, written, target, policy)
    if slot.contract is not None and not _is_as_promised(place, slot, table, slot.contract):
        # Written again as the contract has it; what is stored has the key of the query all the same.
        place.session.tables.drop([table.location])
        return write_slot(place, slot, name, generation, policy)
    key, base_key = slot.key or table.identity, slot.base_key or table.identity
    if hash_content and table.content_hash is not None and slot.key is None:
        # Only now is it known what the rows are; if they are stored already, the new copy is not needed.
        known = place.run.catalog(place.session).find_objects(place.stage, (table.identity,))
        same = known.get(table.identity)
        # Equal rows in another order are the same to consumers, but whoever looks at the table sees its order.
        if isinstance(same, StoredTable) and same.content_hash == table.content_hash:
            if not missing(place.session, place.run, [same]):
                place.session.tables.drop([table.location])
                slot.stored = same
                return []
            log.warning("%s: stored %s, which has the same rows, is gone or damaged; the new one takes its place", place.who, same.name)
    slot.stored = table
    return [NewObject(table, key, base_key)]


def _is_as_promised(place: Place, slot: Slot, table: StoredTable, contract: RowContract) -> bool:
    """Hold what has been written against its contract, and remove it if it breaks it: rows of queries and lazy frames are there only now.

    Returns:
        Whether it has the columns, types and rows that the contract makes of it; if not, the slot has them, to be written in its place.
    """
    hooks = place.session.hooks
    hook = hooks.for_type(contract.frame_type)
    try:
        rows = read_table(place.session, place.access, hook, table, contract.frame_type, table.name, table.name)
        checked = contract.check(rows, f"Table {table.name!r} of {place.who}")
        slot.contract = None
        if contract.same_shape(rows, checked):
            return True
        context = WriteContext(
            place.access, place.session.tables.capabilities, f"{place.stage}.{place.task.id}", slot.path, hooks.args(hook)
        )
        slot.data = hook.write(checked, context)
    except BaseException as error:
        place.session.tables.drop([table.location])
        if isinstance(error, PipedagError):
            error.__dict__.update({"table": table.name, "stage": place.stage, "task": place.task.id})
        raise
    return False


def _with_place(place: Place, name: str, action: Any) -> Any:
    try:
        return action()
    except StoredDataMissing as error:
        # An input turned out to be damaged while it was read: struck, so that the next run makes it again.
        if "object_id" in error.__dict__:
            place.run.catalog(place.session).forget_objects((error.__dict__["object_id"],))
        raise
    except PipedagError as error:
        error.__dict__.update({"table": name, "stage": place.stage, "task": place.task.id})
        raise
    except Exception as error:
        add_note(error, f"while writing table {place.stage}.{name} of {place.who}")
        raise


def _stored(place: Place, slot: Slot, written: Written, target: Target, policy: Policy) -> StoredTable:
    content_hash = slot.content_hash or written.content_hash
    if content_hash is not None:
        identity = fingerprint.content_identity(content_hash, slot.options)
    elif policy.kind == "lazy" and slot.key is not None and not policy.forced:
        identity = slot.key
    else:
        # A version stands for the code, not for what the code reads from outside: made again, its rows may be others.
        deterministic = policy.kind == "auto" and not policy.hash_always
        base = policy.fingerprint.full if policy.fingerprint is not None else ""
        identity = fingerprint.result_identity(base, slot.path, slot.options, "" if deterministic else fingerprint.nonce())
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
        query=slot.prepared.readable if slot.prepared is not None else _query_of(place, slot),
        seal=written.seal,
    )


def _query_of(place: Place, slot: Slot) -> str | None:
    """Return what rows were computed by that came from a query of the store's database, though not by one that the task returned as such."""
    data = slot.data
    return place.access.readable(data.query()) if isinstance(data, (BatchData, FileData)) and data.query is not None else None


def _write_blob(place: Place, slot: Slot, name: str, generation: int) -> NewObject:
    assert slot.blob is not None
    assert slot.key is not None
    raw, format = slot.blob
    location = place.session.blobs.write(raw, format, place.stage, generation, name)
    blob = StoredBlob(os.urandom(10).hex(), place.stage, generation, name, location, slot.key, len(raw), format)
    slot.stored = blob
    return NewObject(blob, slot.key, slot.key)


def _look_at(place: Place, slot: Slot, external: ExternalTableReference, generation: int) -> NewObject:
    """Make sure that somebody else's table is there, and give what it is today a name that nothing else has."""
    place.access.external_columns(external.schema, external.name)
    identity = fingerprint.external_identity(external.schema, external.name, fingerprint.nonce())
    found = ExternalTable(os.urandom(10).hex(), place.stage, generation, external.schema, external.name, identity)
    slot.stored = found
    return NewObject(found, slot.key or identity, slot.base_key or identity)


def _same_external(slot: Slot, new: Sequence[NewObject]) -> StoredObject | None:
    known = (item.stored for item in new if isinstance(item.stored, ExternalTable))
    return next((item for item in known if (item.owner, item.name) == (slot.obj.schema, slot.obj.name)), None)


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
    sources: dict[str, None] = {}

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

    def leaf(item: Mark) -> Mapping[str, Any]:
        slot = slots[item.index]
        if slot.is_script:
            return {"$": "raw", "path": slot.path, "tables": {name: {"id": table.id} for name, table in slot.tables.items()}}
        assert slot.stored is not None
        if slot.is_nameless:
            return {"$": "source", "id": slot.stored.id}
        return {"$": "object", "id": slot.stored.id, "path": slot.path, "declared": slot.declared}

    for index, slot in enumerate(slots):
        if slot.is_script:
            for name, table in slot.tables.items():
                enter(name, table)
        elif slot.is_nameless:
            assert slot.stored is not None
            sources[slot.stored.id] = None
            objects.append(slot.stored)
        else:
            assert slot.stored is not None
            enter(readable[index], slot.stored)
    if any(slot.is_script for slot in slots):
        check_declared(place.task.id, place.task.options.outputs, list(entries), place.stage)
    _check_views(place, marked, slots)
    return Output(marked_text(marked, leaf), entries, new, objects, tuple(sources))


def _check_views(place: Place, marked: Any, slots: Sequence[Slot]) -> None:
    """Find out now, and not in a consumer, whether views have the columns that they name."""

    def source(item: Mark | MarkedView) -> TableSource:
        if isinstance(item, MarkedView):
            return make(item.selection, [source(part) for part in item.sources])
        stored = slots[item.index].stored
        assert isinstance(stored, (StoredTable, ExternalTable))
        return stored

    for path, item in iter_leaves(marked.value if isinstance(marked, Beside) else marked):
        if isinstance(item, MarkedView):
            loaded(source(item), place.access, f"{place.who}{f', output {path!r}' if path else ''}")
