"""Under which names a stored result is shown, and so what its tables are called by those who read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from pipedag_core.define.task import Task
from pipedag_core.plan.outputs import name_outputs
from pipedag_core.ports.catalogs import FoundResult
from pipedag_core.ports.data import StoredObject


def point(task: Task, position: str, output: Any, same_task: Mapping[str, str] | None) -> dict[str, str]:
    """Return the readable names under which a call shows a stored result: name -> object id.

    Args:
        task: The task that shows it.
        position: Its place in the wiring.
        output: The stored output as JSON values.
        same_task: The entries of the stored result if it comes from this very place in the wiring; they are right as they are.
    """
    if same_task is not None:
        return dict(same_task)
    objects: list[tuple[str, str | None, str]] = []
    entries: dict[str, str] = {}
    _find_objects(output, objects, entries)
    texts = name_outputs(task.id, [(path, declared) for path, declared, _ in objects], position)
    entries.update({name: object_id for name, (_, _, object_id) in zip(texts, objects, strict=True)})
    return entries


def shown_objects(found: FoundResult, output: Any) -> Mapping[tuple[str, str], StoredObject]:
    """Return (path, id) -> stored object for every table and blob of a result, with the stage and the name under which this result shows it.

    An object that was written for another name, or in another stage, and is pointed to by this result, is known to readers by this one's name.
    Tables that a script made are not among them.

    Args:
        found: The result.
        output: Its output as JSON values.
    """
    names: dict[str, list[str]] = {}
    for name, object_id in found.result.entries.items():
        names.setdefault(object_id, []).append(name)
    objects: list[tuple[str, str | None, str]] = []
    _find_objects(output, objects, {})
    shown: dict[tuple[str, str], StoredObject] = {}
    texts: list[str] | None = None
    for at, (path, _, object_id) in enumerate(objects):
        known = names.get(object_id, [])
        name = known[0] if known else found.objects[object_id].name
        if len(known) > 1:
            # One object under several names: the place in the output says which name is whose.
            texts = texts or name_outputs(found.result.task, [(place, declared) for place, declared, _ in objects], found.result.position)
            name = texts[at] if texts[at] in known else name
        shown[path, object_id] = renamed(found.objects[object_id], found.stage, name)
    return shown


def renamed(stored: StoredObject, stage: str, name: str) -> StoredObject:
    """Return a stored object under the stage and name by which a reader knows it; where it is stays the same."""
    return stored if (stored.stage, stored.name) == (stage, name) else replace(stored, stage=stage, name=name)


def _find_objects(node: Any, objects: list[tuple[str, str | None, str]], entries: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in cast("list[Any]", node):
            _find_objects(item, objects, entries)
    elif isinstance(node, dict):
        found = cast("dict[str, Any]", node)
        kind = found.get("$")
        if kind == "object":
            objects.append((found["path"], found["declared"], found["id"]))
        elif kind == "raw":
            entries.update({name: item["id"] for name, item in found["tables"].items()})
        else:
            for item in found.values():
                _find_objects(item, objects, entries)
