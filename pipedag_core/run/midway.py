"""Tables that a task writes in the middle of its work: `Table(...).materialize()`.

Each is an object like those that a task returns, with a key and an identity of its own, so it is found again where theirs are. What the task writes later
reads it as one more input. What the task does not return as well is shown beside its output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast, final

from pipedag_core.define.values import Table
from pipedag_core.errors import DuplicateName, MaterializationError, UnsupportedByStore
from pipedag_core.naming import check_bytes
from pipedag_core.plan.outputs import beside_path, name_output
from pipedag_core.ports.catalogs import NewObject
from pipedag_core.ports.data import Placeholder, StoredTable
from pipedag_core.ports.events import PointReached
from pipedag_core.run import outputs
from pipedag_core.run.loading import read_table
from pipedag_core.run.slots import Beside, Mark, Place, Policy, Slot, prepare, reuse, table_slot


@final
class WouldWrite(BaseException):
    """A table would have to be written where only a look at what is stored is allowed: no error, and nothing that a task should catch."""


@final
class Midway:
    """Writes such tables for one execution of one task, one at a time whichever of the task's threads asks.

    Args:
        place: Where outputs go; each table becomes one more input of it.
        generation: Number of the generation that is written.
        policy: How outputs are identified.
        new: Gets what is written, for whoever has to remove it if the task fails.
        before_query: Called before a query is executed that no stored table answers.
        writes: Whether anything may be written; otherwise `WouldWrite` is raised where something would have to be.

    Attributes:
        place: As given, with the tables so far among its inputs.
    """

    def __init__(
        self,
        place: Place,
        generation: int,
        policy: Policy,
        new: list[NewObject],
        before_query: Callable[[], None],
        *,
        writes: bool = True,
    ) -> None:
        self.place = place
        self._generation = generation
        self._policy = policy
        self._new = new
        self._before_query = before_query
        self._writes = writes
        self._slots: dict[str, Slot] = {}
        # What is written may be a stream that itself writes a table on its way.
        self._lock = threading.RLock()
        self._is_over = False
        # By the last part of its path an input is called in queries.
        self._aliases = {path.rpartition(".")[2].casefold() for path in place.inputs.labels}

    def materialize(self, table: Table[Any], *, return_as_type: Any = None, config_context: Any = None, schema: Any = None) -> Any:
        """Write a table now; see `Table.materialize`.

        Raises:
            MaterializationError: The task's function has come to its end; a thread of it has gone on.
        """
        with self._lock:
            return self._materialized(table, return_as_type, config_context, schema)

    def end(self) -> None:
        """Refuse whatever comes later: the function has come to its end, and its output is being looked at."""
        with self._lock:
            self._is_over = True

    def _materialized(self, table: Table[Any], return_as_type: Any, config_context: Any, schema: Any) -> Any:
        where = {"stage": self.place.stage, "task": self.place.task.id}
        if self._is_over:
            raise MaterializationError(
                f"{self.place.who} has returned already, and a thread that it has started wants to write a table now. Wait for all threads before the "
                "function returns.",
                table=table.name,
                **where,
            )
        check_options(self.place.who, config_context, schema)
        path = beside_path(len(self._slots))
        name = name_output(self.place.task.id, path, table.name, self.place.position)
        if name in self._slots:
            raise DuplicateName(f"{self.place.who} has written a table {name!r} already. Give this one another name.", table=name, **where)
        check_bytes(name, self.place.session.tables.capabilities.max_name_bytes, f"table name in {self.place.stage}.{self.place.task.id}")
        slot = table_slot(self.place, table, path)
        stored = self._write(slot, name)
        self._slots[name] = slot
        self._refer(table, slot, stored)
        if isinstance(return_as_type, (tuple, list)):
            return tuple(self._read(slot, stored, name, as_type) for as_type in cast("Sequence[Any]", return_as_type))
        return self._read(slot, stored, name, self._type(return_as_type))

    def beside(self, marked: Any, slots: list[Slot]) -> tuple[Any, list[Slot]]:
        """Return the output of the task with what was written and is not returned beside it."""
        returned = {id(slot.early) for slot in slots if not slot.is_nameless}
        return put_beside(marked, slots, [slot for slot in self._slots.values() if id(slot) not in returned])

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
                self._new.extend(outputs.write_slot(place, slot, name, self._generation, policy))
                place.session.tell(PointReached(place.run.id, "after_write"))
        slot.release()
        assert isinstance(slot.stored, StoredTable)
        return slot.stored

    def _type(self, wanted: Any) -> Any:
        if wanted is not None:
            return wanted
        hooks, own = self.place.session.hooks, self.place.task.options.input_type
        # An AUTO_VERSION task got the object itself when it was looked at, which is like its inputs.
        is_own = own is not None and (self._policy.kind == "auto" or hooks.for_type(own).by_reference)
        return own if is_own else hooks.reference_type()

    def _read(self, slot: Slot, stored: StoredTable, name: str, as_type: Any) -> Any:
        place = self.place
        hook = place.session.hooks.for_type(as_type)
        label = _free(name, place.inputs.placeholders)
        alias = _free(name, self._aliases)
        self._aliases.add(alias.casefold())
        self.place = place = replace(
            place, inputs=replace(place.inputs, placeholders={**place.inputs.placeholders, label: Placeholder(label, stored)})
        )
        found = read_table(place.session, place.access, hook, stored, as_type, label, name, alias=alias)
        if hook.by_reference:
            self._refer(found, slot, stored)
        return found

    def _refer(self, obj: Any, slot: Slot, stored: StoredTable) -> None:
        self.place.references[id(obj)] = (obj, stored)
        self.place.early[id(obj)] = slot


def _free(name: str, taken: Any) -> str:
    """Return a name that is not among those that are taken, whatever their case."""
    found, number = name, 1
    while found.casefold() in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def check_options(who: str, config_context: Any, schema: Any) -> None:
    """Refuse what a running task cannot choose.

    Raises:
        UnsupportedByStore: One of them is given.
    """
    if config_context is not None or schema is not None:
        raise UnsupportedByStore(f"{who}: a task writes to its own stage; leave out config_context and schema of Table.materialize().")


def put_beside(marked: Any, slots: Sequence[Slot], more: Sequence[Slot]) -> tuple[Any, list[Slot]]:
    """Return a marked nest and its slots with more slots beside it."""
    if not more:
        return marked, [*slots]
    return Beside(marked, tuple(Mark(len(slots) + at) for at in range(len(more)))), [*slots, *more]
