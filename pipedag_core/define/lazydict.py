"""LazyDict: a dict of references that is filled while a flow is wired, and may be read before it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, final

from pipedag_core.define.context import declaring
from pipedag_core.define.hints import caller, nearest
from pipedag_core.define.refs import Merged, Reference, TaskGetItem, item_of, merge, references_of, settle_all
from pipedag_core.define.structure import entries
from pipedag_core.define.values import View
from pipedag_core.define.walk import Bag, is_key, map_leaves
from pipedag_core.errors import DuplicateName, FlowError, UnknownItem, UnsupportedValue


@final
class LazyDict(Bag):
    """A dict of references, filled while wiring: entries can be read, and passed to tasks, before they are written.

    Reading an entry that is not there yet gives a placeholder, which becomes what is written by the end of the wiring. A LazyDict that is passed
    to a task as a whole is captured at the end of the wiring. Iteration, `len`, `in` and `get` see what is written so far. Each key is written once.
    """

    __slots__ = ("_asked", "_entries", "_places")

    def __init__(self) -> None:
        self._entries: dict[Any, Any] = {}
        self._places: dict[Any, str] = {}
        self._asked: dict[Any, Placeholder] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write an entry.

        Raises:
            DuplicateName: It is written already; both places are named.
            UnsupportedValue: The key is not plain data.
        """
        if not is_key(key):
            raise UnsupportedValue(f"A LazyDict has keys of plain data (text, numbers, dates), not {type(key).__name__}: {key!r:.80}.")
        if key in self._entries:
            raise DuplicateName(
                f"The entry {key!r} of a LazyDict is written twice: at {self._places[key]} and at {caller()}. "
                "Choose another key, or write the merged value once (first | second).",
                key=key,
            )
        self._entries[key] = value
        self._places[key] = caller()

    def __getitem__(self, key: Any) -> Any:
        """Return what was written, or else a placeholder for it.

        Raises:
            UnknownItem: It was not written, and no flow is being declared any more.
        """
        if key in self._entries:
            return self._entries[key]
        declaration = declaring.get()
        if declaration is None:
            raise UnknownItem(f"The LazyDict has no entry {key!r}. {nearest(str(key), map(str, self._entries))}", item=key)
        if not is_key(key):
            raise UnsupportedValue(f"A LazyDict has keys of plain data (text, numbers, dates), not {type(key).__name__}: {key!r:.80}.")
        if key not in self._asked:
            stage = declaration.stage
            self._asked[key] = Placeholder(self, key, caller(), stage.name if stage is not None else None)
        declaration.watch(self)
        return self._asked[key]

    def update(self, other: Any = None, /, **more: Any) -> None:
        """Write several entries: of a dict, a dataclass or another LazyDict that is filled already.

        Raises:
            DuplicateName: One of them is written already.
            UnsupportedValue: `other` has no entries that are known now.
        """
        new: dict[Any, Any] | None = {} if other is None else entries(other)
        if new is None:
            raise UnsupportedValue(
                f"A LazyDict cannot be updated with {other!r:.80}: its keys are not known while the flow is declared. Write them one by one."
            )
        for key, value in {**new, **more}.items():
            self[key] = value

    def get(self, key: Any, default: Any = None) -> Any:
        """Return what is written so far under this key, or the default."""
        return self._entries.get(key, default)

    def __delitem__(self, key: Any) -> NoReturn:
        raise FlowError(
            f"The entry {key!r} of a LazyDict cannot be removed: something may have been wired to it. Write only what shall stay."
        )

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Any]:
        return iter(dict(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> Iterable[Any]:
        """Return the keys written so far."""
        return tuple(self._entries)

    def values(self) -> Iterable[Any]:
        """Return the values written so far."""
        return tuple(self._entries.values())

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return keys and values written so far."""
        return tuple(self._entries.items())

    def bag_items(self) -> Iterable[tuple[Any, Any]]:
        """Return keys and settled values, as a consumer gets them."""
        return [(key, settle_all(value)) for key, value in self._entries.items()]

    def unwritten(self) -> Mapping[Any, Placeholder]:
        """Return the placeholders of entries that were read and are not written yet."""
        return {key: asked for key, asked in self._asked.items() if key not in self._entries}

    def __repr__(self) -> str:
        return f"LazyDict({', '.join(repr(key) for key in self._entries)})"


@final
class Placeholder(Reference):
    """An entry of a LazyDict that was read before it was written.

    Attributes:
        owner, key: Which entry.
        place: `file:line` of the call that read it first.
        within: Name of the stage in which it was read, or None.
    """

    __slots__ = ("key", "owner", "place", "within")

    def __init__(self, owner: LazyDict, key: Any, place: str, within: str | None) -> None:
        super().__init__()
        self.owner = owner
        self.key = key
        self.place = place
        self.within = within

    @property
    def tasks(self) -> tuple[Any, ...]:
        return references_of(resolve(self))

    def _origin(self) -> Any:
        return Merged(resolve(self), ())._origin()  # pyright: ignore[reportPrivateUsage] -- of one family

    def __repr__(self) -> str:
        return f"<entry {self.key!r} of a LazyDict>"


def unwritten_error(asked: Placeholder) -> UnknownItem:
    """Return the error for an entry that was read, and never written."""
    where = f" in stage {asked.within!r}" if asked.within is not None else ""
    return UnknownItem(
        f"The entry {asked.key!r} of a LazyDict was read at {asked.place}{where}, but nothing has written it by the end of the wiring. "
        f"{nearest(str(asked.key), map(str, asked.owner))}",
        item=asked.key,
        stage=asked.within,
    )


def resolve(value: Any, trail: tuple[Placeholder, ...] = ()) -> Any:
    """Return a raw nest without placeholders and LazyDicts: each is replaced by what it holds now.

    Raises:
        UnknownItem: An entry was never written.
        FlowError: An entry is made of itself.
    """

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, View):
            return replace(item, src=resolve(item.src, trail))
        if isinstance(item, Placeholder):
            if item in trail:
                loop = [*trail[trail.index(item) :], item]
                raise FlowError(
                    f"A LazyDict entry is made of itself: {' -> '.join(repr(asked.key) for asked in loop)} (read at {item.place}).",
                    item=item.key,
                )
            if item.key not in item.owner:
                raise unwritten_error(item)
            return resolve(settle_all(item.owner.get(item.key)), (*trail, item))
        if isinstance(item, TaskGetItem):
            parent = resolve(item.parent, trail)
            return item if parent is item.parent else item_of(parent, item.kind, item.key)
        if isinstance(item, Merged):
            result = resolve(item.base, trail)
            for other in item.others:
                result = merge(result, resolve(other, trail))
            return result
        return item

    return map_leaves(value, leaf)


def as_wired(value: Any) -> Any:
    """Return what a user's references stand for once the wiring has ended: a raw nest with all updates, and without placeholders.

    Args:
        value: A reference, or a nest of them, as it stands in the user's code.

    Raises:
        UnknownItem: An entry of a LazyDict was never written.
    """
    return resolve(settle_all(value))
