"""Items and updates of values that are there: what `out["a"].b` and `out | other` mean once `out` is known."""

from __future__ import annotations

from typing import Any

from pipedag_core.define.walk import Kind, build, children, field_values, kind_of, with_fields
from pipedag_core.errors import UnknownItem, UnsupportedValue


def _known(keys: list[Any]) -> str:
    if not keys:
        return "it is empty"
    shown = ", ".join(repr(key) for key in keys[:12])
    return f"it has {shown}" + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")


def pick(value: Any, kind: str, key: Any, what: str) -> Any:
    """Return one item or attribute of a value.

    Args:
        value: A nest of containers, or an object of this package that has items (the tables of a script).
        kind: "item" or "attr"; the field of a dataclass or named tuple can be had as either.
        key: Key, index or name.
        what: Names the value in the error ("the output of task 'features.split'").

    Raises:
        UnknownItem: There is no such item; the message lists those that there are.
    """
    shape = kind_of(value)
    if shape in (Kind.DATACLASS, Kind.NAMED_TUPLE) and isinstance(key, str):
        known = field_values(value) if shape is Kind.DATACLASS else value._asdict()
        if key in known:
            return known[key]
        raise UnknownItem(f"There is no field {key!r} in {what}: {_known(list(known))}.", item=key)
    if kind == "attr":
        hint = f" Write [{key!r}] instead of .{key}." if shape in (Kind.DICT, Kind.BAG) else ""
        raise UnknownItem(f"There is no attribute {key!r} in {what}, which is a {type(value).__name__}.{hint}", item=key)
    if shape in (Kind.DICT, Kind.BAG):
        known = dict(children(value, shape))
        if key in known:
            return known[key]
        raise UnknownItem(f"There is no item {key!r} in {what}: {_known(list(known))}.", item=key)
    if shape in (Kind.LIST, Kind.TUPLE, Kind.NAMED_TUPLE):
        if isinstance(key, int) and -len(value) <= key < len(value):
            return value[key]
        raise UnknownItem(f"There is no item {key!r} in {what}, a {type(value).__name__} of {len(value)}.", item=key)
    if shape is Kind.LEAF and type(value).__module__.startswith("pipedag_core.") and hasattr(value, "__getitem__"):
        return value[key]
    raise UnknownItem(f"There is no item {key!r} in {what}, which is a {type(value).__name__} and has no items.", item=key)


def entries(value: Any) -> dict[Any, Any] | None:
    """Return what a value adds when something is updated with it: the items of a dict, the fields of a dataclass; None for others."""
    kind = kind_of(value)
    if kind in (Kind.DICT, Kind.BAG, Kind.DATACLASS):
        return dict(children(value, kind))
    return None


def merge_values(base: Any, other: Any, what: str) -> Any:
    """Return `base` with the entries of `other` in place of its own; neither of them is changed, and nothing is merged below the first level.

    Args:
        base: A dict (which can grow), or a dataclass, named tuple, list or tuple (of which the fields and items that exist can be replaced).
        other: A dict or a dataclass.
        what: Names the base in errors.

    Raises:
        UnknownItem: The base can not grow and has no such field or item.
        UnsupportedValue: One of the two has no entries.
    """
    new = entries(other)
    if new is None:
        raise UnsupportedValue(
            f"A {type(other).__name__} cannot update {what}. Update with a dict, a dataclass, or a task's output that is one."
        )
    kind = kind_of(base)
    if kind in (Kind.DICT, Kind.BAG):
        return {**dict(children(base, kind)), **new}
    if kind is Kind.DATACLASS:
        known = field_values(base)
        for key in new:
            if key not in known:
                raise UnknownItem(f"There is no field {key!r} to update in {what}: {_known(list(known))}.", item=key)
        return with_fields(base, new)
    if kind in (Kind.LIST, Kind.TUPLE, Kind.NAMED_TUPLE):
        names: list[str] = list(base._fields) if kind is Kind.NAMED_TUPLE else []
        items: dict[Any, Any] = dict(children(base, kind))
        for key, child in new.items():
            index: Any = names.index(key) if key in names else key
            if index not in items:
                raise UnknownItem(f"There is no item {key!r} to update in {what}, a {type(base).__name__} of {len(items)}.", item=key)
            items[index] = child
        return build(base, kind, list(items.items()))
    raise UnsupportedValue(
        f"{what[:1].upper()}{what[1:]} is a {type(base).__name__}, which cannot be updated. Only dicts, dataclasses and lists can."
    )
