"""`@input_stage_versions`: a task that gets two versions of tables, to compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

from pipedag_core.define.compared import make_versions
from pipedag_core.define.options import make_options
from pipedag_core.define.task import TaskFunction
from pipedag_core.errors import FlowError


@overload
def input_stage_versions(fn: Callable[..., Any]) -> TaskFunction: ...


@overload
def input_stage_versions(
    fn: None = None,
    *,
    name: str | None = None,
    input_type: Any = None,
    version: Any = None,
    cache: Callable[..., Any] | None = None,
    lazy: bool = False,
    group_node_tag: str | None = None,
    nout: int | None = None,
    add_input_source: bool = False,
    ordering_barrier: bool = True,
    call_context: Callable[[], Any] | None = None,
    allow_fresh_input: bool = False,
    outputs: str | Sequence[str] | None = None,
    include_views: bool = True,
    lock_source_stages: bool = True,
    pass_args: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], TaskFunction]: ...


def input_stage_versions(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    input_type: Any = None,
    version: Any = None,
    cache: Callable[..., Any] | None = None,
    lazy: bool = False,
    group_node_tag: str | None = None,
    nout: int | None = None,
    add_input_source: bool = False,
    ordering_barrier: bool = True,
    call_context: Callable[[], Any] | None = None,
    allow_fresh_input: bool = False,
    outputs: str | Sequence[str] | None = None,
    include_views: bool = True,
    lock_source_stages: bool = True,
    pass_args: Iterable[str] = (),
) -> TaskFunction | Callable[[Callable[..., Any]], TaskFunction]:
    """Make a task that gets two versions of tables: what this run is writing, and what was there before, or is there in another instance.

    The function gets two dictionaries, readable name -> table in its `input_type`. Tables of other stages than the task's own are keyed `stage.table`.
    The second one holds the same names; where the other version has no such table, an `OtherVersionMissing` stands in its place.

    A call of the task may hold, in any nest of arguments:

    * outputs of tasks, or items of them: their tables and blobs;
    * a stage: all tables of it that were wired before. No argument at all: those of the task's own stage. In the other version these are also the
      tables of tasks that the flow does not have any more;
    * one `ConfigContext`: the other version is what that instance has committed. The function gets it as its third argument, if it takes three.

    Args:
        fn: The function.
        name, input_type, version, cache, lazy, group_node_tag, nout, call_context, allow_fresh_input, outputs: As for `materialize`. What decides on its
            validity are the tables of both versions.
        add_input_source: Must be left out: the function gets tables by their names.
        ordering_barrier: All that is wired before it in the same container ends before it starts, and all that is wired later starts after it.
        include_views: Without effect: views have no names in a stage.
        lock_source_stages: Keep clean-up of another instance from what is read there, until the task ends. This takes the right to write to its catalog.
        pass_args: Keywords of the call that reach the function as they are, loaded like arguments of other tasks.

    Raises:
        FlowError: As for `materialize`; or the function has no parameters for the two dictionaries.
    """
    given: dict[str, Any] = {
        "input_type": input_type,
        "version": version,
        "cache": cache,
        "lazy": lazy,
        "group_node_tag": group_node_tag,
        "nout": nout,
        "add_input_source": add_input_source,
        "ordering_barrier": ordering_barrier,
        "call_context": call_context,
        "allow_fresh_input": allow_fresh_input,
        "outputs": outputs,
        "invocation": None,
        "takes_late": False,
    }

    def decorate(function: Callable[..., Any]) -> TaskFunction:
        if isinstance(function, TaskFunction):
            raise FlowError(
                f"{function!r} is decorated twice. Keep one of @materialize and @input_stage_versions.", task=function.options.name
            )
        if not callable(function):
            raise FlowError(
                f"@input_stage_versions stands above a function, not {function!r}. Give options by name: @input_stage_versions(version='1.0')."
            )
        versions = make_versions(function, pass_args, lock_source_stages)
        return TaskFunction(function, make_options(function, name, {**given, "versions": versions}))

    return decorate if fn is None else decorate(fn)
