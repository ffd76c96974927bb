"""From the model to a real flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipedag_core import Flow, Stage, materialize
from tests.flows.property.bodies import INPUT_TYPES, VERSIONS, function_of
from tests.flows.property.model import Model, Task


def build(model: Model, folder: Path | None, called: Callable[[Task], None]) -> Flow:
    """Return the flow that a model describes.

    Args:
        model: The model.
        folder: Where the files are that queries of tasks with a cache function read; None where the database cannot read them.
        called: Told of every call of a task's function.
    """
    made: dict[int, Any] = {}
    with Flow("edited") as flow:
        for unit in model.unit_order:
            with Stage(unit):
                for item in model.wiring(unit):
                    if isinstance(item, Task):
                        made[item.uid] = _wire(model, item, made, folder, called)
                    else:
                        with Stage(item):
                            for task in model.tasks:
                                if task.stage == item:
                                    made[task.uid] = _wire(model, task, made, folder, called)
    return flow


def _wire(model: Model, task: Task, made: dict[int, Any], folder: Path | None, called: Callable[[Task], None]) -> Any:
    world_file = None if folder is None else folder / f"world_{task.uid}.csv"
    if task.cached and world_file is not None:
        world_file.write_text(f"w\n{task.world}\n")
    declared = materialize(
        name=task.name,
        input_type=INPUT_TYPES[task.kind.engine],
        version=VERSIONS[task.kind.mode](task),
        lazy=task.kind.mode == "lazy",
        cache=(lambda tables, values, argument: task.world) if task.cached else None,
        allow_fresh_input=task.fresh_allowed,
    )(function_of(task, world_file, called))
    tables: list[Any] = []
    values: list[Any] = []
    for source in task.inputs:
        key = model.item_key(source)
        reference = made[source.task] if key is None else made[source.task][key]
        (tables if model.task(source.task).kind.gives_table else values).append(reference)
    return declared(tables, values, task.given)
