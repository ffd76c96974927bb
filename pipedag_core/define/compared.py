"""What a task of `@input_stage_versions` takes: from its call to the tables and stages of which it gets two versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from pipedag_core.define.refs import Reference
from pipedag_core.define.stage import Stage
from pipedag_core.define.values import ExternalTableReference, View
from pipedag_core.define.walk import iter_leaves
from pipedag_core.errors import FlowError

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@final
@dataclass(frozen=True, slots=True)
class Versions:
    """How a function takes two versions of tables.

    Attributes:
        now, other: The parameters that get the dictionaries: of this run, and of the other version.
        config: The parameter that gets the other instance's configuration, if it has one.
        pass_args: Keywords that reach the function as they are.
        hold: Whether what is read of another instance is kept from clean-up there.
    """

    now: str
    other: str
    config: str | None
    pass_args: tuple[str, ...]
    hold: bool

    @property
    def label(self) -> str:
        """Under which label of `Task.parameters` the arguments stand from which tables are collected."""
        return "tables_" if "tables" in self.pass_args else "tables"


def make_versions(fn: Callable[..., Any], pass_args: Iterable[str], hold: bool) -> Versions:
    """Return how a function takes two versions.

    Raises:
        FlowError: It has no two parameters for them, or `pass_args` names something else than keywords that it takes.
    """
    name = getattr(fn, "__name__", repr(fn))
    if isinstance(pass_args, str):
        raise FlowError(f"Task {name!r}: pass_args is a list of names. Write pass_args=[{pass_args!r}].", task=name)
    passed = tuple(dict.fromkeys(pass_args))
    parameters = inspect.signature(fn).parameters
    positional = [item for item in parameters.values() if item.kind in _POSITIONAL]
    if len(positional) < 2:
        raise FlowError(
            f"Task {name!r}: @input_stage_versions gives its function two dictionaries, what this run writes and the other version, so it needs two "
            f"positional parameters. Write def {name}(now, before).",
            task=name,
        )
    now, other = positional[0].name, positional[1].name
    takes_all = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    for item in passed:
        known = parameters.get(item)
        if item in (now, other) or (not takes_all if known is None else known.kind is inspect.Parameter.POSITIONAL_ONLY):
            raise FlowError(
                f"Task {name!r}: pass_args names {item!r}, which is no keyword that the function takes besides its dictionaries.", task=name
            )
    config = positional[2].name if len(positional) > 2 and positional[2].name not in passed else None
    for item in parameters.values():
        if item.kind not in _VARIADIC and item.name not in (now, other, config, *passed) and item.default is inspect.Parameter.empty:
            raise FlowError(
                f"Task {name!r}: nothing would be given to the parameter {item.name!r}. Name it in pass_args, or give it a default.",
                task=name,
            )
    return Versions(now, other, config, passed, hold)


def bound(
    versions: Versions, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: Mapping[str, str]
) -> dict[str, Any]:
    """Return label -> argument for a call: what is passed on, defaults included, and all else under one label.

    Raises:
        FlowError: Something that the function needs is not given.
    """
    sources: dict[Any, Any] = {**dict(enumerate(args)), **{key: value for key, value in kwargs.items() if key not in versions.pass_args}}
    given: dict[str, Any] = {key: value for key, value in kwargs.items() if key in versions.pass_args}
    configs = [value for value in sources.values() if is_config(value)]
    if versions.config is not None and configs:
        given[versions.config] = configs[0]
    for label, parameter in signature.parameters.items():
        if label in (versions.now, versions.other) or label in given or parameter.kind in _VARIADIC:
            continue
        if parameter.default is inspect.Parameter.empty:
            what = (
                "another instance's configuration, PipedagConfig.default.get(instance)"
                if label == versions.config
                else f"the keyword {label}=... that pass_args names"
            )
            raise FlowError(f"{told(where)} is called without {what}, and its parameter {label!r} has no default.", **where)
        given[label] = parameter.default
    return {**given, versions.label: sources}


def stages_in(nest: Any, own: Stage, where: Mapping[str, str]) -> tuple[Stage, ...]:
    """Return the stages of which all tables are taken: those among the arguments, or the task's own if there is no argument.

    Args:
        nest: What the call gave, captured.
        own: The task's stage.
        where: Names of flow, stage and task, for messages.

    Raises:
        FlowError: Something among the arguments has no version of its own, or there are two configurations.
    """
    stages: dict[Stage, None] = {}
    configs = sources = 0
    for path, leaf in iter_leaves(nest):
        if isinstance(leaf, Stage):
            stages[leaf] = None
        elif getattr(leaf, "__pipedag_config__", False) is True:
            configs += 1
            if not is_config(leaf):
                raise FlowError(f"{told(where)} gets a PipedagConfig. Choose one of its instances: config.get('full').", **where)
        elif isinstance(leaf, (View, ExternalTableReference)):
            kind = type(leaf).__name__
            raise FlowError(
                f"{told(where)} gets, as argument {path!r}, a {kind}, which has no name in a stage and so no other version. Pass the tables that it is made of, "
                "or pass it by a keyword that pass_args names.",
                **where,
            )
        elif not isinstance(leaf, Reference):
            raise FlowError(
                f"{told(where)} gets, as argument {path!r}, {leaf!r:.80}, which is no table. Give values by a keyword, and name that in "
                "pass_args=[...] of @input_stage_versions.",
                **where,
            )
        sources += 1
    if configs > 1:
        raise FlowError(f"{told(where)} gets {configs} configurations. There is one other version: pass one.", **where)
    return tuple(stages) if sources > configs else (own,)


def is_config(value: Any) -> bool:
    """Return whether a value is the configuration of one instance."""
    return getattr(value, "__pipedag_config__", False) is True and hasattr(value, "instance_id")


def told(where: Mapping[str, str]) -> str:
    """Return what messages call the task."""
    return f"Task {where['task']!r} (stage {where['stage']!r}, flow {where['flow']!r})"
