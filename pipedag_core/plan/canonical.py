"""Arguments as canonical text: for positions (with plain values) and for the digest of the wiring (without)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, time
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.define.values import ExternalTableReference, View
from pipedag_core.define.walk import Kind, children, iter_leaves, join, kind_of, segment

#: The most common leaves; their text is what Python writes.
_BY_REPR: Final = frozenset({str, int, float, bool, type(None)})


def plain_text(value: Any) -> str:
    """Return plain data as text from which type and value can be told; equal in every process."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, PurePath):
        return f"path {value.as_posix()!r}"
    if isinstance(value, (date, time)):
        return f"{type(value).__name__} {value.isoformat()}"
    return repr(value)


def _others(value: Any, task_text: Callable[[Task], str]) -> str:
    if isinstance(value, Stage):
        return f"stage {value.name!r}"
    if isinstance(value, View):
        rest = [nest_text(part, task_text) for part in (value.columns, value.limit)]
        return f"view {nest_text(value.src, task_text)} {' '.join(rest)} {value.sort_by!r}"
    if isinstance(value, ExternalTableReference):
        return f"external {value.schema!r} {value.name!r} {value.shared_lock_allowed}"
    if getattr(value, "__pipedag_config__", False) is True:
        return "config"
    return plain_text(value)


def reference_text(reference: Any, task_text: Callable[[Task], str]) -> str:
    """Return a raw reference as text.

    Args:
        reference: A task, an item, or a merge (whose parts may be any nests).
        task_text: Returns what stands for a task.
    """
    if isinstance(reference, Task):
        return task_text(reference)
    if isinstance(reference, TaskGetItem):
        return f"{reference_text(reference.parent, task_text)} {reference.kind} {nest_text(reference.key, task_text)}"
    if isinstance(reference, Merged):
        return f"merged({' | '.join(nest_text(part, task_text) for part in (reference.base, *reference.others))})"
    raise TypeError(f"{reference!r} is no raw reference")


def nest_text(value: Any, task_text: Callable[[Task], str]) -> str:
    """Return a nest of plain values and raw references as text; equal nests have equal texts."""
    if type(value) in _BY_REPR:
        return repr(value)
    kind = kind_of(value)
    if kind is Kind.LEAF:
        return reference_text(value, task_text) if isinstance(value, Reference) else _others(value, task_text)
    parts = [(nest_text(key, task_text), nest_text(child, task_text)) for key, child in children(value, kind)]
    if kind in (Kind.SET, Kind.FROZEN_SET):
        body = ", ".join(sorted(child for _, child in parts))
    elif kind is Kind.DICT or kind is Kind.BAG:
        body = ", ".join(f"{key}: {child}" for key, child in sorted(parts))
    else:
        body = ", ".join(child if kind in (Kind.LIST, Kind.TUPLE) else f"{key}: {child}" for key, child in parts)
    name = type(value).__qualname__ if kind in (Kind.DATACLASS, Kind.NAMED_TUPLE) else kind.value
    return f"{name}({body})"


def external_tables(value: Any) -> list[str]:
    """Return the tables of others in a nest, as `schema.name`, also those in views."""
    found: list[str] = []
    for _, leaf in iter_leaves(value):
        if isinstance(leaf, View):
            found += external_tables(leaf.src)
        elif isinstance(leaf, ExternalTableReference):
            found.append(f"{leaf.schema}.{leaf.name}")
    return found


def _task_id(task: Task) -> str:
    return task.full_id


def edges(value: Any, path: str) -> list[tuple[str, str]]:
    """Return (path, reference as text) for each reference and stage in an argument: what of it belongs to the wiring."""
    found: list[tuple[str, str]] = []
    for place, leaf in iter_leaves(value, path):
        if isinstance(leaf, View):
            found += edges(leaf.src, join(place, "src"))
        elif isinstance(leaf, Merged):
            for number, part in enumerate((leaf.base, *leaf.others)):
                found += edges(part, join(place, segment(number)))
        elif isinstance(leaf, Reference):
            found.append((place, reference_text(leaf, _task_id)))
        elif isinstance(leaf, Stage):
            found.append((place, f"stage {leaf.name!r}"))
    return found
