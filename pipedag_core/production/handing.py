"""What turns one value of a run into the next: frames into the library that a task wants, and what a function returned into what is handed on.

Each class remembers what has to be done with values of a type, since a run may take microseconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

from pipedag_core.define.values import Blob, ExternalTableReference, RawSql, Table, View
from pipedag_core.define.walk import Kind, build, children, is_plain, kind_of, map_leaves
from pipedag_core.errors import ProductionError
from pipedag_core.production.frames import Frames
from pipedag_core.production.sql import Database
from pipedag_core.production.views import selected
from pipedag_core.run.inputs import RawTables, leaves
from pipedag_core.run.views import selection_of

#: Turns one value into another.
Change = Callable[[Any], Any]


class _Nest(ABC):
    """Turns a nest into another one, leaf by leaf, in new containers.

    Attributes:
        known: Type -> what turns values of it into what is handed on; None if they are handed on as they are.
    """

    def __init__(self) -> None:
        self.known: dict[type, Change | None] = dict.fromkeys((str, int, float, bool, bytes, type(None)))
        self.known |= {dict: self._dict, list: self._list, tuple: self._tuple}

    def __call__(self, value: Any) -> Any:
        try:
            change = self.known[type(value)]
        except KeyError:
            change = self._learn(value)
        return value if change is None else change(value)

    def _dict(self, value: Any) -> Any:
        return {key: self(child) for key, child in value.items()}

    def _list(self, value: Any) -> Any:
        return [self(child) for child in value]

    def _tuple(self, value: Any) -> Any:
        return tuple([self(child) for child in value])

    def _container(self, value: Any) -> Any:
        kind = kind_of(value)
        return build(value, kind, [(key, self(child)) for key, child in children(value, kind)])

    @abstractmethod
    def _learn(self, value: Any) -> Change | None:
        """Find out, and remember, what is done with values of this one's type."""


@final
class Converter(_Nest):
    """Turns the frames in a nest into those of one library, in new containers.

    Args:
        frames: Converts.
        as_type: The type that is wanted; None leaves frames as they are.
        share: Whether somebody else can see the same frames.
        unwrap: Whether blobs become the objects in them.
    """

    def __init__(self, frames: Frames, as_type: Any, *, share: bool, unwrap: bool = True) -> None:
        super().__init__()
        self._frames = frames
        self._type = as_type
        self._share = share
        # What is not unwrapped is handed over as it is, whatever is in it.
        self.known[Blob] = _object if unwrap else None

    def reader(self, slot: int, *, take: bool) -> Callable[[list[Any]], Any]:
        """Return what converts the value of a slot.

        Args:
            slot: The slot.
            take: Whether nobody reads it after that, so that its memory is free once the task that got it has ended.
        """
        known, learn = self.known, self._learn

        # The lines of `__call__`: a call less for each argument, which shows where tasks take microseconds.
        def read(values: list[Any]) -> Any:
            value = values[slot]
            if take:
                values[slot] = None
            try:
                change = known[type(value)]
            except KeyError:
                change = learn(value)
            return value if change is None else change(value)

        return read

    def _learn(self, value: Any) -> Change | None:
        cls = type(value)
        found: Change | None = None
        if cls is RawTables:
            found = self._raw
        elif kind_of(value) is not Kind.LEAF:
            found = self._container
        elif self._frames.hook_of(cls, value) is not None:
            found = self._frame(cls, value)
        elif self._share and not is_plain(value) and cls.__module__ == "numpy":
            # An array has no copy on write, and is small beside a model.
            found = _copy
        self.known[cls] = found
        return found

    def _raw(self, value: Any) -> Any:
        return value.map(lambda table, _: self(table))

    def _frame(self, cls: type, value: Any) -> Change | None:
        frames, wanted = self._frames, self._type
        if wanted is not None and not issubclass(cls, wanted):
            return lambda frame: frames.convert(frame, wanted)
        return frames.sharer(cls, value) if self._share else None


def _copy(value: Any) -> Any:
    return value.copy()


@final
class Settle:
    """Computes the lazy frames of a nest, so that what a caller gets is there."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._known: dict[type, bool] = dict.fromkeys((str, int, float, bool, bytes, type(None)), False)

    def __call__(self, value: Any) -> Any:
        cls = type(value)
        if cls not in self._known:
            lazy = kind_of(value) is not Kind.LEAF or cls is RawTables or (self._frames.is_frame(value) and self._frames.is_lazy(cls))
            self._known[cls] = lazy
        if not self._known[cls]:
            return value
        return map_leaves(value, self._leaf)

    def _leaf(self, leaf: Any, path: str) -> Any:
        if type(leaf) is RawTables:
            return leaf
        return self._frames.settled(leaf) if self._frames.is_frame(leaf) and self._frames.is_lazy(type(leaf)) else leaf


@final
class Outcome(_Nest):
    """Turns what a function returned into a value: frames without the wishes around them, queries as their rows.

    Args:
        frames, database: What converts, and what runs SQL.
        who: The task, for messages.
        settle: Lazy frames are computed at once, because several will read them.
    """

    def __init__(self, frames: Frames, database: Database, who: str, *, settle: bool) -> None:
        super().__init__()
        self._who = who
        self._frames = frames
        self._database = database
        self._settle = settle
        self.known[Table] = self._table

    def _table(self, value: Any) -> Any:
        made = self._database.rows(value.obj) if isinstance(value.obj, str) else self(value.obj)
        if not value.type_map:
            return made
        types = self._database.arrow_types(self._frames.sql_types(value.type_map), self._who)
        return self._frames.retyped(made, types, self._who)

    def _view(self, value: Any) -> Any:
        frames = self._frames
        sources = [self(leaf) for _, leaf in leaves(value.src, "")]
        made = selected(selection_of(value, self._who), sources, frames, self._database, self._who)
        if made is None:
            raise ProductionError(f"{self._who}: the View has no source. Give it a table, or a list of tables.")
        # A frame of the library that the task works with; what is ignored has none.
        cls = next(type(source) for source in sources if source is not None)
        return made if frames.is_lazy(cls) else frames.convert(made, cls)

    def _query(self, value: Any) -> Any:
        return self._database.rows(self._frames.query_text(value))

    def _learn(self, value: Any) -> Change | None:
        cls = type(value)
        found: Change | None = None
        if kind_of(value) is not Kind.LEAF:
            found = self._container
        elif cls is RawSql:
            found = self._database.refuse_script
        elif cls is View:
            found = self._view
        elif cls is ExternalTableReference:
            found = self._refuse
        elif (hook := self._frames.hook_of(cls, value)) is not None:
            if hook.by_reference:
                found = self._query
            # Relations and streams can be read where they were made, and once; lazy frames of polars anywhere.
            elif self._frames.is_lazy(cls) and (self._settle or not hasattr(value, "collect")):
                found = self._frames.settled
            else:
                found = self._frames.storing(cls, value, self._who)
        self.known[cls] = found
        return found

    def _refuse(self, value: Any) -> Any:
        raise ProductionError(f"{self._who} returned a {type(value).__name__}, which it cannot do there. Return the table itself.")


def _object(value: Any) -> Any:
    return value.obj
