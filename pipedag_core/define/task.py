"""Tasks: `@materialize` turns a function into one that is recorded when it is called inside a flow."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final, overload

from pipedag_core import naming
from pipedag_core.define import compared
from pipedag_core.define.annotations import Unevaluated, annotation_of, scope_of, unevaluated
from pipedag_core.define.capture import Capture
from pipedag_core.define.context import by_hand, declaring, executing
from pipedag_core.define.contracts import may_name
from pipedag_core.define.lazydict import resolve
from pipedag_core.define.options import Declared, TaskOptions, make_options
from pipedag_core.define.refs import Reference
from pipedag_core.define.shapes import problem
from pipedag_core.define.walk import iter_leaves
from pipedag_core.errors import FlowError

if TYPE_CHECKING:
    from pipedag_core.define.flow import Declaration, Flow
    from pipedag_core.define.stage import Stage

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
class TaskFunction(Declared):
    """A function that is a task. Inside a flow a call records a task; outside, and inside a running task, the plain function runs.

    Attributes:
        fn: The plain function.
        options: Its options.
    """

    def __init__(self, fn: Callable[..., Any], options: TaskOptions) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.options = options
        self._scope = scope_of(fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record a task and return a reference to its output; or, where no flow is being declared, call the function.

        Raises:
            FlowError: The call is outside a stage, or its arguments do not fit the function.
            UnsupportedValue: An argument holds what cannot be passed on; the message holds its path.
        """
        declaration: Declaration | None = declaring.get()
        # A flow can be declared inside a running task; what that task's own helpers call then runs at once, as elsewhere.
        if declaration is None or executing.get() is not declaration.executing:
            token = by_hand.set(True)
            try:
                return self.fn(*args, **kwargs)
            finally:
                by_hand.reset(token)
        stage = declaration.stage
        if stage is None:
            raise FlowError(
                f"Task {self.options.name!r} is called outside a stage of flow {declaration.flow.name!r}. Call it inside `with Stage(...):`.",
                flow=declaration.flow.name,
                task=self.options.name,
            )
        return Task(self, stage, declaration, args, kwargs)

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature."""
        return inspect.signature(self.fn)

    @functools.cached_property
    def returns(self) -> Any:
        """The return annotation: evaluated where it can be, else as text; `annotations.UNKNOWN` if there is none."""
        return annotation_of(self.fn, "return", self._scope)

    @functools.cached_property
    def promised(self) -> Mapping[str, Any]:
        """Parameter -> annotation, for those whose annotation may name a contract of rows; of `*args` as that of a tuple."""
        found: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            annotation = annotation_of(self.fn, name, self._scope)
            if may_name(annotation):
                found[name] = tuple[annotation, ...] if parameter.kind is inspect.Parameter.VAR_POSITIONAL else annotation
        return found

    @functools.cached_property
    def unevaluated(self) -> Mapping[str, Unevaluated]:
        """Parameter, or `return` -> what of its annotation cannot be evaluated, though a contract of rows may stand there."""
        return unevaluated(self.fn, self._scope)

    @functools.cached_property
    def description(self) -> str:
        """The first paragraph of the docstring, in one line."""
        text = inspect.getdoc(self.fn) or ""
        return " ".join(text.partition("\n\n")[0].split())

    def __reduce__(self) -> Any:
        # Like a function: by name where the name leads here, so that the other side gets its own; else by what it is made of.
        found: Any = sys.modules.get(self.fn.__module__)
        for part in self.fn.__qualname__.split("."):
            found = getattr(found, part, None)
        return self.fn.__qualname__ if found is self else (TaskFunction, (self.fn, self.options))

    def __repr__(self) -> str:
        return f"<task function {self.options.name}>"


@final
class Task(Reference):
    """One call of a task function in a flow, and the reference to its output.

    Attributes:
        name: The task's name as its user wrote it.
        id: Unique within its stage: the normalised name, with `_2`, `_3` for repeated calls in wiring order.
        flow, stage: Where it is wired.
        number: Its number in the flow, from 0 in wiring order.
        function, fn, options: What is called, and how.
        parameters: Label -> argument, in the order of the signature, defaults included. `*args` is one tuple under its own name; each of `**kwargs` has
            its own. After the wiring: containers, plain values, stages, configurations, views and raw references.
        upstream: The tasks whose outputs are among the arguments, in wiring order; complete after the wiring.
        reads: The stages among the arguments.
        whole: The stages of which it takes all tables that were wired before it, in two versions.
    """

    __slots__ = ("flow", "function", "id", "name", "number", "parameters", "reads", "stage", "upstream", "waiting", "whole")

    def __init__(
        self, function: TaskFunction, stage: Stage, declaration: Declaration, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.function = function
        self.stage = stage
        self.flow: Flow = declaration.flow
        self.name = function.options.name
        self.id = naming.normalize(self.name)
        capture = Capture(self.flow, stage.name, self.name)
        if function.options.versions is None:
            given = _bound(function, args, kwargs, capture)
        else:
            given = compared.bound(function.options.versions, function.signature, args, kwargs, _where(capture))
        self.parameters: Mapping[str, Any] = {label: capture.take(value, label) for label, value in given.items()}
        self.waiting = capture.waiting
        self._depend(capture, len(self.flow.tasks))
        if function.unevaluated:
            _tell_unevaluated(self)
        self.id, self.number = declaration.add(self)

    def _depend(self, capture: Capture, number: int) -> None:
        versions = self.options.versions
        self.reads: tuple[Stage, ...] = tuple(capture.stages)
        self.whole: tuple[Stage, ...] = (
            () if versions is None else compared.stages_in(self.parameters[versions.label], self.stage, _where(capture))
        )
        earlier = (task for stage in self.whole for task in stage.tasks if task.number < number)
        self.upstream: tuple[Task, ...] = tuple(sorted({*capture.tasks, *earlier}, key=lambda task: task.number))

    def complete(self) -> None:
        """Replace what was known only at the end of the wiring; called once, by the flow.

        Raises:
            UnknownItem: An entry of a LazyDict was never written, or what was written has no such item.
            FlowError: As for a call.
        """
        if self.waiting:
            capture = Capture(self.flow, self.stage.name, self.name)
            self.parameters = {label: capture.look(resolve(value), label) for label, value in self.parameters.items()}
            self.waiting = False
            self._depend(capture, self.number)

    @property
    def options(self) -> TaskOptions:
        return self.function.options

    @property
    def fn(self) -> Callable[..., Any]:
        return self.function.fn

    @property
    def full_id(self) -> str:
        """`stage.id`, unique in the flow."""
        return f"{self.stage.name}.{self.id}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (self,)

    def bind(self, parameters: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for a call of `fn`.

        Args:
            parameters: The labels of `parameters` with the values to be passed.
        """
        args: list[Any] = []
        kwargs = dict(parameters)
        for label, parameter in self.function.signature.parameters.items():
            if parameter.kind in _POSITIONAL and label in kwargs:
                args.append(kwargs.pop(label))
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(kwargs.pop(label, ()))
        return tuple(args), kwargs

    def _origin(self) -> Task:
        return self

    def _annotation(self) -> Any:
        return self.function.returns

    def _length(self) -> int | None:
        return self.options.nout

    def _problem(self, kind: str, key: Any) -> str | None:
        nout = self.options.nout
        if nout is not None and isinstance(key, int) and not 0 <= key < nout:
            return f"it is declared with nout={nout}, so its items are 0 to {nout - 1}"
        return problem(self.function.returns, kind, key, self.options.outputs)

    def __repr__(self) -> str:
        return f"<task {self.stage.name}.{self.id}>"


def _tell_unevaluated(task: Task) -> None:
    """Refuse annotations that name a contract which cannot be found, and warn where one might be named.

    Raises:
        FlowError: A contract is named, and would not be looked at.
    """
    function = task.function
    known = function.signature.parameters
    gathered = next((name for name, item in known.items() if item.kind is inspect.Parameter.VAR_KEYWORD), "")
    concerned = {"return", *(label if label in known else gathered for label, value in task.parameters.items() if _may_hold_tables(value))}
    code: Any = getattr(inspect.unwrap(function.fn), "__code__", None)
    for name, found in function.unevaluated.items():
        if name not in concerned:
            continue
        what = "return annotation" if name == "return" else f"annotation of parameter {name!r}"
        told = (
            f"Task {task.name!r} of stage {task.stage.name!r} in flow {task.flow.name!r}: the {what} cannot be evaluated: {found.text!r}"
            f"{f' ({found.where})' if found.where else ''}: {found.why}."
        )
        fix = "Import the name where the module runs and not for type checkers only, define it before the task, or say it with Table(..., annotation=...)."
        if found.is_contract:
            raise FlowError(
                f"{told} So the contract that it names would not be looked at. {fix}",
                task=task.name,
                stage=task.stage.name,
                flow=task.flow.name,
            )
        text = f"{told} If it names a contract of rows, that is not looked at. {fix}"
        if code is None:
            warnings.warn(text, stacklevel=2)
        else:
            warnings.warn_explicit(text, UserWarning, code.co_filename, code.co_firstlineno)


def _may_hold_tables(value: Any) -> bool:
    return any(isinstance(leaf, Reference) for _, leaf in iter_leaves(value))


def _where(capture: Capture) -> dict[str, str]:
    return {"flow": capture.flow.name, "stage": capture.stage, "task": capture.task}


def _bound(function: TaskFunction, args: tuple[Any, ...], kwargs: dict[str, Any], capture: Capture) -> dict[str, Any]:
    """Return label -> argument for a call."""
    where = _where(capture)
    try:
        bound = function.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise FlowError(
            f"The call of task {capture.task!r} (stage {capture.stage!r}, flow {capture.flow.name!r}) does not fit its signature "
            f"{function.signature}: {error}.",
            **where,
        ) from error
    bound.apply_defaults()
    result: dict[str, Any] = {}
    for label, value in bound.arguments.items():
        if function.signature.parameters[label].kind is inspect.Parameter.VAR_KEYWORD:
            clash = next((name for name in value if name in function.signature.parameters), None)
            if clash is not None:
                raise FlowError(
                    f"The call of task {capture.task!r} (stage {capture.stage!r}, flow {capture.flow.name!r}) has a keyword {clash!r} that is "
                    "also the name of a parameter. Rename one of them.",
                    **where,
                )
            result.update(value)
        else:
            result[label] = value
    return result


@overload
def materialize(fn: Callable[..., Any]) -> TaskFunction: ...


@overload
def materialize(
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
    ordering_barrier: bool = False,
    call_context: Callable[[], Any] | None = None,
    allow_fresh_input: bool = False,
    outputs: str | Sequence[str] | None = None,
    invocation: Any = None,
    takes_late: bool = False,
) -> Callable[[Callable[..., Any]], TaskFunction]: ...


def materialize(
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
    ordering_barrier: bool = False,
    call_context: Callable[[], Any] | None = None,
    allow_fresh_input: bool = False,
    outputs: str | Sequence[str] | None = None,
    invocation: Any = None,
    takes_late: bool = False,
) -> TaskFunction | Callable[[Callable[..., Any]], TaskFunction]:
    """Make a task of a function: what it returns is materialized, what it gets is loaded from the store.

    Used as `@materialize` or `@materialize(...)`.

    Args:
        fn: The function.
        name: The task's name; by default the function's.
        input_type: In which type tables are loaded (`pl.LazyFrame`, `sa.Table` ...).
        version: Text: the task runs again only when this, or an input, changes. `AUTO_VERSION`: the version is made from what the task does to empty
            inputs. None: it always runs.
        cache: Called with the task's arguments; the task also runs again when its value changes.
        lazy: The task returns queries (or frames) and always runs; its queries are executed only when they, or their inputs, change.
        group_node_tag: Label of a style from the configuration.
        nout: Number of values that it returns, so that a call can be unpacked.
        add_input_source: Not supported yet.
        ordering_barrier: All that is wired before it in the same container ends before it starts, and all that is wired later starts after it.
        call_context: Called for a context manager that is open while the function runs.
        allow_fresh_input: It may run on fresh input where `ASSERT_NO_FRESH_INPUT` forbids it to others.
        outputs: The names of all tables that it returns, so that they are known before it runs; checked when it returns.
        invocation: Not supported yet.
        takes_late: It gets a `LateValue` as it is, where others get the text that is then made; for tasks that only ask what others got.

    Raises:
        FlowError: An option has a wrong type, contradicts another, or is not supported yet.
        DuplicateName: Two of the outputs are one name.
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
        "invocation": invocation,
        "takes_late": takes_late,
    }

    def decorate(function: Callable[..., Any]) -> TaskFunction:
        if isinstance(function, TaskFunction):
            raise FlowError(f"{function!r} is decorated twice. Keep one @materialize.", task=function.options.name)
        if not callable(function):
            raise FlowError(f"@materialize stands above a function, not {function!r}. Give options by name: @materialize(version='1.0').")
        return TaskFunction(function, make_options(function, name, given))

    return decorate if fn is None else decorate(fn)
