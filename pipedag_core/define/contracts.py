"""Row contracts: classes of schema libraries that stand in a task's annotations, and say what rows a table has.

No library is imported for this: a class is known by the names of its ancestors.
"""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pipedag_core.define.annotations import CONTRACT_BASES, UNKNOWN, library
from pipedag_core.define.shapes import inner
from pipedag_core.define.values import Table
from pipedag_core.define.walk import Kind, children, join, kind_of, segment

#: Bases that libraries keep for themselves.
_OWN: Final = frozenset({library for library, _ in CONTRACT_BASES})


def is_contract(cls: Any) -> bool:
    """Return whether something is a class that says what rows a table has."""
    if not isinstance(cls, type) or library(cls) in _OWN:
        return False
    return any((library(base), base.__name__) in CONTRACT_BASES for base in cls.__mro__)


def contract_in(annotation: Any) -> type | None:
    """Return the contract that an annotation names; None if it names none.

    It may stand alone, in the brackets of a frame or of `Table`, or beside one in `Annotated[...]`; any of them may be optional.
    """
    if is_contract(annotation):
        return annotation
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((found for found in args[1:] if is_contract(found)), None) or contract_in(args[0])
    if origin in (Union, types.UnionType):
        members = [member for member in args if member is not type(None)]
        return contract_in(members[0]) if len(members) == 1 else None
    # Containers hold tables, each with a contract of its own; what is in the brackets of a frame is the frame's.
    if args and (origin is Table or (isinstance(origin, type) and origin.__name__ in ("DataFrame", "LazyFrame"))):
        return contract_in(args[0])
    return None


def may_name(annotation: Any) -> bool:
    """Return whether a contract may be found in an annotation; a quick look, for what is done with every argument of every task."""
    if isinstance(annotation, (str, TypeVar)) or annotation is UNKNOWN:
        return False
    args = get_args(annotation)
    if args:
        return any(may_name(item) for item in args)
    return isinstance(annotation, type) and (is_contract(annotation) or bool(getattr(annotation, "__annotations__", None)))


def contracts_of(annotation: Any, value: Any, path: str = "") -> dict[str, type]:
    """Return path -> contract for the leaves of a nest.

    Args:
        annotation: What is declared for the nest.
        value: The nest.
        path: Where it is.
    """
    if annotation is UNKNOWN or annotation is inspect.Parameter.empty:
        return {}
    kind = kind_of(value)
    if kind is Kind.LEAF:
        found = contract_in(annotation)
        return {} if found is None else {path: found}
    result: dict[str, type] = {}
    what = "attr" if kind is Kind.DATACLASS else "item"
    for key, child in children(value, kind):
        result.update(contracts_of(inner(annotation, what, key), child, join(path, segment(key))))
    return result
