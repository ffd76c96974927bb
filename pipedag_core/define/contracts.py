"""Row contracts: classes of schema libraries that stand in a task's annotations, and say what rows a table has.

No library is imported for this: a class is known by the names of its ancestors.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Final, get_args, get_origin

from pipedag_core.define.shapes import UNKNOWN, inner, library, unwrap
from pipedag_core.define.walk import Kind, children, join, kind_of, segment

#: (library, name) of the class from which all contracts of a library are derived.
_BASES: Final = frozenset({("dataframely", "Schema"), ("pandera", "DataFrameModel"), ("pydiverse.colspec", "ColSpec")})

#: Bases that libraries keep for themselves.
_OWN: Final = frozenset({library for library, _ in _BASES})


def is_contract(cls: Any) -> bool:
    """Return whether something is a class that says what rows a table has."""
    if not isinstance(cls, type) or library(cls) in _OWN:
        return False
    return any((library(base), base.__name__) in _BASES for base in cls.__mro__)


def contract_in(annotation: Any) -> type | None:
    """Return the contract that an annotation names: `Contract`, `Frame[Contract]`, `Annotated[Frame, Contract]`; None if it names none."""
    named = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    plain = unwrap(annotation)
    origin = get_origin(plain)
    # Containers hold tables, each with a contract of its own; what is in the brackets of a frame is the frame's.
    inside = get_args(plain) if isinstance(origin, type) and kind_of_frame(origin) else ()
    return next((found for found in (plain, *named, *inside) if is_contract(found)), None)


def kind_of_frame(cls: type) -> bool:
    """Return whether a generic class is a frame and not a container."""
    return cls.__name__ in ("DataFrame", "LazyFrame")


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
