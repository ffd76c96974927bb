"""Tables that a task writes in the middle of its work: `Table(...).materialize()`.

Each is an object like those that a task returns, with a key and an identity of its own, so it is found again where theirs are. What the task writes later
reads it as one more input. What the task does not return as well is shown beside its output.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final, final

from pipedag_core.define.values import Table
from pipedag_core.errors import DuplicateName, UnsupportedByStore
from pipedag_core.naming import check_bytes
from pipedag_core.plan.outputs import name_output
from pipedag_core.ports.catalogs import NewObject
from pipedag_core.ports.data import Placeholder, StoredTable
from pipedag_core.ports.events import PointReached
from pipedag_core.run import outputs
from pipedag_core.run.loading import read_table
from pipedag_core.run.slots import Beside, Mark, Place, Policy, Slot, prepare, reuse, table_slot

#: Begins the path of such a table: without a name it is shown as `<task>_materialized_0`.
_PATH: Final = "materialized"


@final
class WouldWrite(Exception):
    """A table would have to be written where only a look at what is stored is allowed."""


@final
class Midway:
    """Writes such tables for one execution of one task. Used as a context: what was written is removed again if the task fails.

    Args:
        place: Where outputs go; each table becomes one more input of it.
        generation: Number of the generation that is written.
        policy: How outputs are identified.
        before_query: Called before a query is executed that no stored table answers.
        writes: Whether anything may be written; otherwise `WouldWrite` is raised where something would have to be.

    Attributes:
        place: As given, with the tables so far among its inputs.
        new: What was written.
    """

    def __init__(self, place: Place, generation: int, policy: Policy, before_query: Callable[[], None], *, writes: bool = True) -> None:
        self.place = place
        self.new: list[NewObject] = []
        self._generation = generation
        self._policy = policy
        self._before_query = before_query
        self._writes = writes
        self._slots: dict[str, Slot] = {}

    def __enter__(self) -> Midway:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            outputs.discard(self.place.session, [item.stored for item in self.new])

    def materialize(self, table: Table[Any], *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
        """Write a table now; see `Table.materialize`."""
        where = {"stage": self.place.stage, "task": self.place.task.id}
        if config_context is not None or schema is not None:
            raise UnsupportedByStore(f"{self.place.who}: a task writes to its own stage; leave out config_context and schema.", **where)
        path = f"{_PATH}_{len(self._slots)}"
        name = name_output(self.place.task.id, path, table.name, self.place.position)
        if name in self._slots:
            raise DuplicateName(f"{self.place.who} has written a table {name!r} already. Give this one another name.", table=name, **where)
        check_bytes(name, self.place.session.tables.capabilities.max_name_bytes, f"table name in {self.place.stage}.{self.place.task.id}")
        slot = table_slot(self.place, table, path)
        stored = self._write(slot, name)
        self._slots[name] = slot
        self.place.references[id(table)] = (table, stored)
        self.place.early[stored.id] = table.name
        found = [self._read(stored, name, as_type) for as_type in self._types(return_as_type)]
        return tuple(found) if isinstance(return_as_type, (tuple, list)) else found[0]

    def beside(self, marked: Any, slots: list[Slot]) -> tuple[Any, list[Slot]]:
        """Return the output of the task with what was written and is not returned beside it."""
        returned = {slot.stored.id for slot in slots if slot.stored is not None and not slot.is_nameless}
        left = [slot for slot in self._slots.values() if slot.stored is not None and slot.stored.id not in returned]
        if not left:
            return marked, slots
        return Beside(marked, tuple(Mark(len(slots) + at) for at in range(len(left)))), [*slots, *left]

    def _write(self, slot: Slot, name: str) -> StoredTable:
        place, policy = self.place, self._policy
        prepare(place, [slot], policy)
        # Equal work in one process is done once, as for what a task returns.
        with place.run.locks.hold(slot.key) if policy.kind == "lazy" and slot.key is not None else nullcontext():
            reuse(place, [slot], policy)
            if slot.stored is None:
                if not self._writes:
                    raise WouldWrite
                if slot.key is not None:
                    self._before_query()
                self.new.extend(outputs.write_slot(place, slot, name, self._generation, policy))
                place.session.tell(PointReached(place.run.id, "after_write"))
        slot.release()
        assert isinstance(slot.stored, StoredTable)
        return slot.stored

    def _types(self, wanted: Any) -> list[Any]:
        if isinstance(wanted, (tuple, list)):
            return [*wanted]
        if wanted is not None:
            return [wanted]
        options = self.place.task.options
        # An AUTO_VERSION task got the object itself when it was looked at, which is like its inputs.
        if options.input_type is not None and (
            self._policy.kind == "auto" or self.place.session.hooks.for_type(options.input_type).by_reference
        ):
            return [options.input_type]
        return [self.place.session.hooks.reference_type()]

    def _read(self, stored: StoredTable, name: str, as_type: Any) -> Any:
        place = self.place
        hook = place.session.hooks.for_type(as_type)
        label = name
        while label in place.inputs.placeholders:
            label = f"{label}_"
        self.place = place = replace(
            place, inputs=replace(place.inputs, placeholders={**place.inputs.placeholders, label: Placeholder(label, stored)})
        )
        found = read_table(place.session, place.access, hook, stored, as_type, label, name)
        if hook.by_reference:
            place.references[id(found)] = (found, stored)
        return found
