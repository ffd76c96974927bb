"""A model as text, for messages."""

from __future__ import annotations

from tests.flows.property.model import KINDS, Model, Task


def told(model: Model) -> str:
    """Return the model as text for people."""
    lines: list[str] = []
    standard = Task(0, KINDS[0], "", "")
    for unit in model.unit_order:
        for stage in model.units()[unit]:
            parent = model.stage(stage).parent
            lines.append(f"  stage {stage}" + (f" (inside {parent})" if parent else ""))
            lines += [f"    {_task_text(model, task, standard)}" for task in model.in_wiring_order if task.stage == stage]
    return "\n".join(lines) or "  (nothing)"


def _task_text(model: Model, task: Task, standard: Task) -> str:
    inputs = ", ".join(model.full_id(model.task(item.task)) + (f"[{item.item}]" if item.item else "") for item in task.inputs)
    kind = f"{task.kind.mode} {task.kind.engine} {task.kind.shape}"
    fields = (
        "constant",
        "letter",
        "column",
        "rows",
        "key",
        "table_name",
        "cached",
        "failing",
        "argument",
        "bump",
        "world",
        "fresh_allowed",
        "options",
        "versioned",
    )
    changed = [f"{name}={getattr(task, name)!r}" for name in fields if getattr(task, name) != getattr(standard, name)]
    return f"{model.ids[task.uid]}({inputs}): {kind} {' '.join(changed)}".rstrip()
