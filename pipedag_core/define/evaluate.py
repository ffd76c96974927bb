"""What raw references stand for once the outputs of their tasks are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipedag_core.define.refs import Merged, Reference, TaskGetItem
from pipedag_core.define.structure import merge_values, pick
from pipedag_core.define.task import Task
from pipedag_core.define.values import View
from pipedag_core.define.walk import map_leaves


def evaluate(value: Any, output_of: Callable[[Task], Any]) -> Any:
    """Return a nest with every reference replaced by what it stands for.

    Args:
        value: A task's argument after the wiring, or any nest of raw references.
        output_of: Returns the output of a task, as a nest of containers whose leaves may be anything.

    Raises:
        UnknownItem: An output has not the item that a reference names; the message lists those that it has.
        UnsupportedValue: An update meets something that cannot be updated.
    """

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, Task):
            return output_of(item)
        if isinstance(item, TaskGetItem):
            return pick(evaluate(item.parent, output_of), item.kind, item.key, _what(item.parent))
        if isinstance(item, Merged):
            result = evaluate(item.base, output_of)
            for other in item.others:
                result = merge_values(result, evaluate(other, output_of), _what(item.base))
            return result
        if isinstance(item, View):
            return replace(item, src=evaluate(item.src, output_of))
        return item

    return map_leaves(value, leaf)


def _what(reference: object) -> str:
    return f"the output of {reference!r}" if isinstance(reference, Reference) else "a value of this flow"
