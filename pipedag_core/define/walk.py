"""What counts as a container and what as a leaf, in arguments and in return values; defined here once.

Containers are dict (subclasses too: they come out as plain dicts), list, tuple, named tuple, set, frozenset, instances of a user's dataclass, and
`Bag`. Everything else is a leaf: plain values, frames, references, and all that this package defines itself (`Table`, `View`, `Stage` ...).

A path names a place in such a nest: `tbls.flights`, `args.0.x`. It is text for messages and labels, and two places never share one:
a key that is no simple name is written in brackets.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final, cast
from uuid import UUID

from pipedag_core.errors import UnsupportedValue

_PACKAGE: Final = "pipedag_core"
_PLAIN: Final = (str, bool, int, float, bytes, type(None), Enum, date, time, timedelta, Decimal, UUID, PurePath)
_INTEGER: Final = re.compile(r"-?\d+")
_MISSING: Final = object()


class Bag:
    """A mapping of this package that stands for a dict wherever values nest."""

    __slots__ = ()

    def bag_items(self) -> Iterable[tuple[Any, Any]]:
        """Return keys and values as they are now."""
        raise NotImplementedError


class Kind(Enum):
    """How a type is taken apart and put together again."""

    LEAF = "leaf"
    DICT = "dict"
    LIST = "list"
    TUPLE = "tuple"
    NAMED_TUPLE = "named tuple"
    SET = "set"
    FROZEN_SET = "frozenset"
    DATACLASS = "dataclass"
    BAG = "bag"


@lru_cache(maxsize=4096)
def kind_of_class(cls: type[object]) -> Kind:
    """Return how instances of a class are walked."""
    exact: dict[type[object], Kind] = {list: Kind.LIST, tuple: Kind.TUPLE, set: Kind.SET, frozenset: Kind.FROZEN_SET}
    if cls in exact:
        return exact[cls]
    if issubclass(cls, Enum):
        return Kind.LEAF
    if issubclass(cls, Bag):
        return Kind.BAG
    if issubclass(cls, dict):
        return Kind.DICT
    names = dir(cls)
    if issubclass(cls, tuple) and "_fields" in names and "_make" in names:
        return Kind.NAMED_TUPLE
    ours = cls.__module__.partition(".")[0] == _PACKAGE or "__pipedag_config__" in names
    return Kind.DATACLASS if "__dataclass_fields__" in names and not ours else Kind.LEAF


def kind_of(value: object) -> Kind:
    """Return how a value is walked."""
    return kind_of_class(type(value))


def is_plain(value: object) -> bool:
    """Return whether the value is plain data: None, numbers, text, bytes, dates and times, Decimal, UUID, paths, enum members."""
    return isinstance(value, _PLAIN)


def is_key(key: object) -> bool:
    """Return whether the value can be a key in a nest: plain data, or a tuple of plain data."""
    return isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(map(is_key, cast("tuple[object, ...]", key))))


def segment(key: object) -> str:
    """Return a key as one part of a path: names and integers as they are, anything else in brackets."""
    if isinstance(key, str) and not isinstance(key, Enum):
        simple = key and "." not in key and "[" not in key and not _INTEGER.fullmatch(key)
        return str(key) if simple else f"[{key!r}]"
    return str(key) if type(key) is int else f"[{key!r}]"


def join(path: str, part: str) -> str:
    """Return the path one part longer."""
    return f"{path}.{part}" if path else part


def field_values(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance that have a value, in order."""
    pairs = ((item.name, getattr(value, item.name, _MISSING)) for item in fields(value))
    return {name: child for name, child in pairs if child is not _MISSING}


def with_fields(value: Any, changes: dict[str, Any]) -> Any:
    """Return a copy of a dataclass instance with other values; frozen ones too, and without running its `__init__` again."""
    result = copy.copy(value)
    for name, child in changes.items():
        object.__setattr__(result, name, child)
    return result


def _by_text(item: object) -> tuple[str, str]:
    return type(item).__qualname__, repr(item)


def children(value: Any, kind: Kind, path: str = "") -> list[tuple[Any, Any]]:
    """Return (key or index or field name, child) for a container of this kind, in a stable order.

    Raises:
        UnsupportedValue: A key is not plain data.
    """
    if kind is Kind.DICT or kind is Kind.BAG:
        pairs = list(value.items() if kind is Kind.DICT else value.bag_items())
        for key, _ in pairs:
            if type(key) is not str and not is_key(key):
                raise UnsupportedValue(
                    f"A dictionary{f' at {path!r}' if path else ''} has a key of type {type(key).__name__}: {key!r:.80}. "
                    "Use text, numbers, dates, enum members or tuples of them as keys.",
                    path=path,
                )
        return pairs
    if kind is Kind.DATACLASS:
        return list(field_values(value).items())
    if kind is Kind.SET or kind is Kind.FROZEN_SET:
        return list(enumerate(sorted(value, key=_by_text)))
    return list(enumerate(cast("list[Any]", value)))


def build(value: Any, kind: Kind, pairs: list[tuple[Any, Any]], path: str = "") -> Any:
    """Return a container like `value`, of this kind, with other children.

    Raises:
        UnsupportedValue: A set was to hold what cannot be in a set.
    """
    if kind is Kind.DICT or kind is Kind.BAG:
        return dict(pairs)
    if kind is Kind.DATACLASS:
        return with_fields(value, dict(pairs))
    items = [child for _, child in pairs]
    if kind is Kind.LIST:
        return items
    if kind is Kind.NAMED_TUPLE:
        return value._make(items)
    if kind is Kind.TUPLE:
        return tuple(items)
    try:
        return set(items) if kind is Kind.SET else frozenset(items)
    except TypeError as error:
        raise UnsupportedValue(
            f"The set{f' at {path!r}' if path else ''} would hold something that cannot be in a set ({error}). Use a list.", path=path
        ) from error


def _map(value: Any, fn: Callable[[Any, str], Any], path: str, enter_bags: bool) -> Any:
    kind = kind_of(value)
    if kind is Kind.LEAF or (kind is Kind.BAG and not enter_bags):
        return fn(value, path)
    pairs = [(key, _map(child, fn, join(path, segment(key)), enter_bags)) for key, child in children(value, kind, path)]
    return build(value, kind, pairs, path)


def _collect(value: Any, path: str, into: list[tuple[str, Any]]) -> None:
    kind = kind_of(value)
    if kind is Kind.LEAF:
        into.append((path, value))
        return
    for key, child in children(value, kind, path):
        _collect(child, join(path, segment(key)), into)


def _endless(path: str, error: RecursionError) -> UnsupportedValue:
    message = f"The value{f' at {path!r}' if path else ''} contains itself, or is nested too deeply. Pass a structure that ends."
    endless = UnsupportedValue(message, path=path)
    endless.__cause__ = error
    return endless


def map_leaves(value: Any, fn: Callable[[Any, str], Any], path: str = "", *, enter_bags: bool = True) -> Any:
    """Return a nest of new containers, with every leaf replaced by `fn(leaf, path)`.

    Args:
        value: Any nest; a single leaf is one too.
        fn: Called once per leaf with the leaf and its path; sets are gone through in an order that does not depend on the process.
        path: Path of `value` itself.
        enter_bags: Whether a `Bag` is a container (and comes out as a dict) or a leaf.

    Raises:
        UnsupportedValue: A key is not plain data, a set would hold what cannot be hashed, or the value contains itself.
    """
    try:
        return _map(value, fn, path, enter_bags)
    except RecursionError as error:
        raise _endless(path, error) from error


def iter_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for every leaf, in the order in which `map_leaves` meets them.

    Raises:
        UnsupportedValue: As for `map_leaves`.
    """
    found: list[tuple[str, Any]] = []
    try:
        _collect(value, path, found)
    except RecursionError as error:
        raise _endless(path, error) from error
    return iter(found)
