"""References: what stands for a task's output while a flow is declared.

A reference names a place (`out`, `out["a"]`, `out["a"].b`). What a consumer gets is what stands in that place when the consumer is wired: the
task's output with all updates recorded up to then. `settled` says what that is. What a consumer has got is *raw*: a nest of tasks, items and merges
that no later update changes.

A reference has a few attributes of its own (`name`, `stage`, `task`, `key` ...), which hide fields of the same name: read those as items, `out["name"]`.
"""

# The functions below are the other half of the classes above them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pipedag_core.define import doors
from pipedag_core.define.shapes import UNKNOWN, inner, problem
from pipedag_core.define.structure import entries, merge_values, pick
from pipedag_core.define.values import View
from pipedag_core.define.walk import Bag, is_key, iter_leaves, map_leaves
from pipedag_core.errors import FlowError, UnknownItem, UnsupportedValue

if TYPE_CHECKING:
    from pipedag_core.define.task import Task

#: Places below a root: (kind, key) from the outside in.
Steps = tuple[tuple[str, Any], ...]

_ADVICE: Final = "Its value is known only when the flow runs: do this inside a task."


class Reference:
    """Stands for a value that exists only once the flow runs. Equal only to itself."""

    __slots__ = ("_items", "_updates")

    def __init__(self) -> None:
        self._items: dict[Any, TaskGetItem] = {}
        self._updates: list[tuple[Steps, Any]] = []

    # --- what it depends on

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose outputs it is made of, without those of recorded updates."""
        raise NotImplementedError

    def _origin(self) -> Task:
        """Return the task whose output this is, or is an item of, or is based on."""
        raise NotImplementedError

    def _annotation(self) -> Any:
        """Return what is declared about the value's type."""
        return UNKNOWN

    def _problem(self, kind: str, key: Any) -> str | None:
        """Return why there can be no such item, if that is known."""
        return problem(self._annotation(), kind, key)

    def _length(self) -> int | None:
        """Return how many items it has, if declared."""
        return None

    # --- items, attributes, updates

    def _item(self, kind: str, key: Any) -> TaskGetItem:
        ident = (kind, key.__class__, key)
        found = self._items.get(ident)
        if found is None:
            reason = None if _root(self)._updates else self._problem(kind, key)
            if reason is not None:
                shown = f"[{key!r}]" if kind == "item" else f".{key}"
                raise UnknownItem(f"{self!r} has no {shown}: {reason}.", item=key, reference=repr(self))
            found = self._items[ident] = TaskGetItem(self, key, kind)
        return found

    def __getitem__(self, key: Any) -> TaskGetItem:
        """Return a reference to one item.

        Raises:
            UnknownItem: The task is known not to return it.
            FlowError: The key is no plain value.
        """
        if not is_key(key):
            raise FlowError(
                f"{self!r} cannot be indexed with a {type(key).__name__}. Use one key or one index at a time; slice inside a task."
            )
        return self._item("item", key)

    def __getattr__(self, name: str) -> TaskGetItem:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._item("attr", name)

    def update(self, other: Any = None, /, **entries: Any) -> None:
        """Record an update with a dict, a dataclass, or a reference to one; consumers wired from now on see it, later updates win.

        Raises:
            UnsupportedValue: `other` is none of these.
        """
        steps: list[tuple[str, Any]] = []
        root: Reference = self
        while isinstance(root, TaskGetItem):
            steps.append((root.kind, root.key))
            root = root.parent
        for new in (other, entries or None):
            if new is not None:
                root._updates.append((tuple(reversed(steps)), _addition(new, self)))

    def __or__(self, other: Any) -> Merged:
        """Return a reference to this value, updated with `other`; this one stays as it is."""
        merged = merge(settled(self), _addition(other, self))
        return merged if isinstance(merged, Merged) else Merged(merged, ())

    def __ror__(self, other: Any) -> NoReturn:
        raise FlowError(
            f"A {type(other).__name__} cannot be updated with {self!r} while a flow is declared. Write the reference first, or do it inside a task."
        )

    def get_output_from_store(self, as_type: Any = None, **options: Any) -> Any:
        """Return the last committed value from the store, without running anything; see `pipedag_core.looking.output_from_store`."""
        return doors.output_from_store(self, as_type=as_type, **options)

    # --- what only a value can do

    def _refuse(self, what: str) -> NoReturn:
        raise FlowError(f"{self!r} {what} while the flow is declared. {_ADVICE}", reference=repr(self))

    def __iter__(self) -> Iterator[TaskGetItem]:
        length = self._length()
        if length is None:
            self._refuse("cannot be unpacked or iterated, as it is not declared with nout=...,")
        return iter([self._item("item", index) for index in range(length)])

    def __len__(self) -> int:
        length = self._length()
        return self._refuse("has no known length") if length is None else length

    def __bool__(self) -> bool:  # noqa: PLE0304 -- it never returns
        self._refuse("is neither true nor false")

    def __contains__(self, key: object) -> bool:
        self._refuse("cannot be searched")

    def __lt__(self, other: object) -> bool:
        self._refuse("cannot be compared")

    __le__ = __gt__ = __ge__ = __lt__

    def __int__(self) -> int:
        self._refuse("is no number")

    def __float__(self) -> float:
        self._refuse("is no number")

    __index__ = __int__

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse("cannot be called")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise FlowError(f"Items of {self!r} cannot be set. Write .update({{{key!r}: ...}}) or | {{{key!r}: ...}}.", reference=repr(self))


class TaskGetItem(Reference):
    """One item (`out["a"]`) or attribute (`out.a`) of an output.

    Attributes:
        parent: What it is an item of.
        key: Key, index or name.
        kind: "item" or "attr"; how it was written, both find the fields of a dataclass.
    """

    __slots__ = ("key", "kind", "parent")

    def __init__(self, parent: Reference, key: Any, kind: str = "item") -> None:
        super().__init__()
        self.parent = parent
        self.key = key
        self.kind = kind

    @property
    def task(self) -> Task:
        """The task whose output this is an item of."""
        return self.parent._origin()

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.parent.tasks

    def _origin(self) -> Task:
        return self.parent._origin()

    def _annotation(self) -> Any:
        return inner(self.parent._annotation(), self.kind, self.key)

    def __repr__(self) -> str:
        return f"{self.parent!r}[{self.key!r}]" if self.kind == "item" else f"{self.parent!r}.{self.key}"


class Merged(Reference):
    """An output with updates applied, the last one first served.

    Attributes:
        base: What is updated: a reference, or a dict that holds references where an update had put one in the reference's place.
        others: What it is updated with, in order: nests of values and references, with a dict, dataclass, LazyDict or reference outermost.
    """

    __slots__ = ("base", "others")

    def __init__(self, base: Any, others: tuple[Any, ...]) -> None:
        super().__init__()
        self.base = base
        self.others = others

    @property
    def tasks(self) -> tuple[Task, ...]:
        return references_of((self.base, *self.others))

    def _origin(self) -> Task:
        if isinstance(self.base, Reference):
            return self.base._origin()
        tasks = self.tasks
        if not tasks:
            raise FlowError(f"{self!r} holds no task's output.")
        return tasks[0]

    def __repr__(self) -> str:
        return (
            f"({' | '.join([repr(self.base), *('{...}' if not isinstance(other, Reference) else repr(other) for other in self.others)])})"
        )


def references_of(value: Any) -> tuple[Task, ...]:
    """Return the tasks that a nest of raw references depends on, each once, in the order in which they are met."""
    found: dict[Task, None] = {}
    for _, leaf in iter_leaves(value):
        if isinstance(leaf, Reference):
            found.update(dict.fromkeys(leaf.tasks))
        elif isinstance(leaf, View):
            found.update(dict.fromkeys(references_of(leaf.src)))
    return tuple(found)


def _root(reference: Reference) -> Reference:
    while isinstance(reference, TaskGetItem):
        reference = reference.parent
    return reference


def _addition(other: Any, target: Reference) -> Any:
    if not isinstance(other, (Reference, Bag)) and entries(other) is None:
        raise UnsupportedValue(
            f"{target!r} cannot be updated with a {type(other).__name__}. Use a dict, a dataclass, a LazyDict, or a task's output that is one."
        )
    return settle_all(other)


def merge(base: Any, other: Any) -> Any:
    """Return raw `base` updated with raw `other`: a value where both are known, else a `Merged`."""
    if isinstance(base, Merged):
        return Merged(base.base, (*base.others, other))
    if isinstance(base, (Reference, Bag)) or isinstance(other, (Reference, Bag)):
        return Merged(base, (other,))
    return merge_values(base, other, "a value of this flow")


def item_of(value: Any, kind: str, key: Any) -> Any:
    """Return one item of a raw value: of a merge, what the last update that holds it says, so that nothing else is depended on.

    Raises:
        UnknownItem: There is none, as far as known.
    """
    if isinstance(value, Merged):
        for count in range(len(value.others), 0, -1):
            other = value.others[count - 1]
            if isinstance(other, (Reference, Bag)):
                return Merged(value.base, value.others[:count])._item(kind, key)
            known = entries(other)
            if known is not None and key in known:
                return known[key]
        return item_of(value.base, kind, key)
    if isinstance(value, Reference):
        return value._item(kind, key)
    return pick(value, kind, key, "a value of this flow")


def _put(value: Any, steps: Steps, other: Any) -> Any:
    if not steps:
        return merge(value, other)
    (kind, key), rest = steps[0], steps[1:]
    return merge(value, {key: _put(item_of(value, kind, key), rest, other)})


def settled(reference: Reference) -> Any:
    """Return what a consumer wired now gets for a user's reference: a raw reference, or a nest of them where an update put one in its place.

    Must not be applied to what it returns: that is raw already.
    """
    steps: list[tuple[str, Any]] = []
    root = reference
    while isinstance(root, TaskGetItem):
        steps.append((root.kind, root.key))
        root = root.parent
    if not root._updates and not isinstance(root, Merged):
        return reference
    value: Any = root
    for at, other in root._updates:
        value = _put(value, at, other)
    for kind, key in reversed(steps):
        value = item_of(value, kind, key)
    return value


def settle_all(value: Any) -> Any:
    """Return a nest with all references settled, in new containers; a `LazyDict` inside stays as it is until the wiring ends."""

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, Reference):
            return settled(item)
        if isinstance(item, View):
            return replace(item, src=settle_all(item.src))
        return item

    return map_leaves(value, leaf, enter_bags=False)
