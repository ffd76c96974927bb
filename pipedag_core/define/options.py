"""How a task wishes to be run and kept: the options of `@materialize`, checked when the function is decorated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, final

from pipedag_core import naming
from pipedag_core.define.compared import Versions
from pipedag_core.errors import DuplicateName, FlowError


class _AutoVersion(Enum):
    """The one value that asks for a version made from what the task does to empty inputs."""

    AUTO_VERSION = "AUTO_VERSION"

    def __repr__(self) -> str:
        return "AUTO_VERSION"


#: `@materialize(version=AUTO_VERSION)`: the version is made from the expressions that the task builds.
AUTO_VERSION: Final = _AutoVersion.AUTO_VERSION


@final
@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of `@materialize`; see there.

    Attributes:
        name: The task's name as its user wrote it.
        outputs: Declared names of its tables, normalised; None if they are not declared.
        versions: How it takes two versions of tables; None for all tasks but those of `input_stage_versions`.
        All others: As given to `materialize`.
    """

    name: str
    input_type: Any = None
    version: str | _AutoVersion | None = None
    cache: Callable[..., Any] | None = None
    lazy: bool = False
    group_node_tag: str | None = None
    nout: int | None = None
    add_input_source: bool = False
    ordering_barrier: bool = False
    call_context: Callable[[], Any] | None = None
    allow_fresh_input: bool = False
    outputs: tuple[str, ...] | None = None
    invocation: Any = None
    takes_late: bool = False
    versions: Versions | None = None


class Declared:
    """What `@materialize` makes of a function.

    Attributes:
        fn: The plain function.
        options: Its options.
    """

    fn: Callable[..., Any]
    options: TaskOptions


def _outputs(value: str | Sequence[str] | None, task: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names: dict[str, str] = {}
    for name in [value] if isinstance(value, str) else value:
        if str(name).endswith(naming.PLACEHOLDER):
            raise FlowError(
                f"Task {task!r} declares the output {name!r}; a name with %% is not known before a run. Declare full names.", task=task
            )
        normal = naming.normalize(name, f"output name of task {task!r}")
        if normal in names:
            raise DuplicateName(
                f"Task {task!r} declares two outputs that are one name: {names[normal]!r} and {name!r}.", task=task, name=normal
            )
        names[normal] = name
    return tuple(names)


def make_options(fn: Callable[..., Any], name: str | None, given: dict[str, Any]) -> TaskOptions:
    """Return checked options for a function.

    Args:
        fn: The function.
        name: The task's name, or None for the function's.
        given: The other options of `materialize`.

    Raises:
        FlowError: An option has a wrong type, contradicts another, or is not supported yet.
        DuplicateName: Two of the declared outputs are one name.
    """
    own = name if name is not None else getattr(fn, "__name__", None)
    if own is None:
        raise FlowError(f"{fn!r} has no name of its own. Give it one: @materialize(name=...).")
    naming.normalize(own, "task name")

    def refuse(text: str) -> FlowError:
        return FlowError(f"Task {own!r}: {text}", task=own)

    if inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise refuse("an async function or a generator cannot be a task. Return the values from a plain function.")
    version, nout = given["version"], given["nout"]
    if version is not None and version is not AUTO_VERSION and (not isinstance(version, str) or not version.strip()):
        raise refuse(f"the version must be text that is not empty, or AUTO_VERSION, not {version!r}. Write for example version='1.0'.")
    if version is AUTO_VERSION and given["lazy"]:
        raise refuse("lazy=True and version=AUTO_VERSION exclude each other: a lazy task's queries are its version. Leave one of them out.")
    if version is AUTO_VERSION and given["input_type"] is None:
        raise refuse("version=AUTO_VERSION needs input_type, so that empty inputs can be made. Write for example input_type=pl.LazyFrame.")
    if given["input_type"] is not None and not isinstance(given["input_type"], type):
        raise refuse(
            f"input_type must be a type of tables, not {given['input_type']!r}. Write for example input_type=pl.LazyFrame, pd.DataFrame or sa.Table."
        )
    if nout is not None and (not isinstance(nout, int) or isinstance(nout, bool) or nout < 1):
        raise refuse(f"nout must be a whole number of at least 1, not {nout!r}.")
    for option in ("lazy", "add_input_source", "ordering_barrier", "allow_fresh_input", "takes_late"):
        if not isinstance(given[option], bool):
            raise refuse(f"{option} must be True or False, not {given[option]!r}.")
    for option in ("cache", "call_context"):
        if given[option] is not None and not callable(given[option]):
            raise refuse(f"{option} must be a function, not {given[option]!r}.")
    if given["add_input_source"] and given["input_type"] is None:
        raise refuse(
            "add_input_source=True gives what is loaded together with where it is from, so it needs input_type, such as pl.LazyFrame."
        )
    if given["add_input_source"] and given.get("versions") is not None:
        raise refuse(
            "add_input_source is of no use where two versions are compared: the function gets tables by their names. Leave it out."
        )
    if given["invocation"] is not None:
        raise refuse("invocation is not supported yet. Leave it out; the task then gets all rows in one call.")
    options: dict[str, Any] = {**given, "outputs": _outputs(given["outputs"], own)}
    return TaskOptions(name=own, **options)
