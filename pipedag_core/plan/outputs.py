"""Readable names of what a task returns: where they are known before it runs, and how they are made when it returns."""

from __future__ import annotations

from collections.abc import Sequence

from pipedag_core import naming
from pipedag_core.define.shapes import is_table
from pipedag_core.define.task import Task
from pipedag_core.errors import DuplicateName, MaterializationError
from pipedag_core.hashing import digest

#: Digits of the hash that a `%%` becomes.
_DIGITS = 8


def known_outputs(task: Task) -> tuple[str, ...] | None:
    """Return the names of a task's tables as far as they are known before a run: declared, or one unnamed table; else None."""
    options = task.options
    if options.outputs is not None:
        return options.outputs
    if options.nout is None and is_table(task.function.returns):
        return (task.id,)
    return None


#: Begins the path of a table that was written on the way; no path in a nest begins like this.
_BESIDE = "[materialized_"


def beside_path(number: int) -> str:
    """Return the path of a table that a task writes on the way, instead of returning it: the first has number 0."""
    return f"{_BESIDE}{number}]"


def name_output(task: str, path: str, declared: str | None, position: str, *, alone: bool = False) -> str:
    """Return the readable name of one table or blob; see `name_outputs`."""
    if declared is not None and declared.endswith(naming.PLACEHOLDER):
        return naming.normalize(declared.removesuffix(naming.PLACEHOLDER) + digest(position, path)[:_DIGITS], "table name")
    if declared is not None:
        return naming.normalize(declared, "table name")
    if alone or not path:
        return task
    words = path.replace("[", "").replace("]", "").replace("'", "").replace('"', "")
    return naming.normalize(f"{task}_{words.replace('.', '_')}", "table name")


def name_outputs(task: str, leaves: Sequence[tuple[str, str | None]], position: str) -> list[str]:
    """Return the readable name of each table and blob that a task returns.

    Names depend on names and paths only, never on versions or data.

    Args:
        task: The task's id within its stage.
        leaves: (path in the return value, declared name or None) for every table and blob.
        position: The task's position; with the path it makes a name that ends in `%%` unique.

    Returns:
        One name per leaf: the declared one, normalised; `x_%%` as `x_` and 8 digits; a single leaf without a name as the task; one of several as
        `<task>_<path>`. What was written on the way does not count for that.

    Raises:
        DuplicateName: Two leaves have one name; both paths are named.
        FlowError: A name is not legal.
    """
    found: dict[str, str] = {}
    returned = [path for path, _ in leaves if not path.startswith(_BESIDE)]
    for path, declared in leaves:
        name = name_output(task, path, declared, position, alone=[path] == returned)
        if name in found:
            raise DuplicateName(
                f"Task {task!r} returns two tables or blobs with one name, {name!r}: at {found[name] or 'the top'!r} and at {path or 'the top'!r} "
                "(names are case-insensitive). Name one of them: Table(..., name=...).",
                task=task,
                name=name,
            )
        found[name] = path
    return list(found)


def check_declared(task: str, declared: Sequence[str] | None, names: Sequence[str], stage: str = "") -> None:
    """Make sure that a task returned exactly the tables that it declares.

    Args:
        task: The task's id within its stage.
        declared: The names in `@materialize(outputs=[...])`, normalised; None if they are not declared.
        names: The names of what it returned.
        stage: Its stage, for the message.

    Raises:
        MaterializationError: Some are missing or unexpected; they are named.
    """
    if declared is None or set(declared) == set(names):
        return
    missing = [name for name in declared if name not in names]
    unexpected = [name for name in names if name not in declared]
    parts = [f"{what}: {', '.join(map(repr, some))}" for what, some in (("missing", missing), ("unexpected", unexpected)) if some]
    raise MaterializationError(
        f"Task {task!r}{f' of stage {stage!r}' if stage else ''} did not return the tables that it declares with outputs= ({'; '.join(parts)}). "
        "Change the declaration, or name the tables: Table(..., name=...).",
        stage=stage,
        task=task,
        missing=missing,
        unexpected=unexpected,
    )
