"""What a return annotation says about an output before the task has run: its fields and items, and whether it is one table.

No library is imported for this: table types are known by name, as annotations may be mere text.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import fields
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from pipedag_core.define.annotations import CONTRACT_BASES, UNKNOWN, field_annotation, is_table_text, library
from pipedag_core.define.values import RawSql
from pipedag_core.define.walk import Kind, kind_of_class

#: (top package, class name): an output annotated with one of these classes, or with a class derived from it, is one table.
_TABLE_CLASSES: Final = frozenset(
    {
        ("pandas", "DataFrame"),
        ("polars", "DataFrame"),
        ("polars", "LazyFrame"),
        ("pyarrow", "Table"),
        ("pyarrow", "RecordBatch"),
        ("pyarrow", "RecordBatchReader"),
        ("sqlalchemy", "Selectable"),
        ("sqlalchemy", "TextClause"),
        ("duckdb", "DuckDBPyRelation"),
        ("_duckdb", "DuckDBPyRelation"),
        ("ibis", "Table"),
        ("pydiverse.transform", "Table"),
        # Classes that say what rows a table has.
        *CONTRACT_BASES,
    }
)

_WITHOUT_ITEMS: Final = (bool, int, float, date, time, timedelta, Decimal, type(None))
_WITHOUT_ATTRIBUTES: Final = (dict, list, tuple, set, frozenset, str, bytes, RawSql, Mapping, MutableMapping, Sequence, *_WITHOUT_ITEMS)


def unwrap(annotation: Any) -> Any:
    """Return what `Annotated[X, ...]`, `X | None` and the like say about a value that is there."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return unwrap(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return unwrap(members[0]) if len(members) == 1 else UNKNOWN
    return annotation


def text_of(annotation: Any) -> str:
    """Return the annotation as short text; a class as `top_package.Name`, wherever its library keeps it."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        package = annotation.__module__.partition(".")[0]
        return annotation.__qualname__ if package in ("builtins", "__main__") else f"{package}.{annotation.__qualname__}"
    return annotation if isinstance(annotation, str) else repr(annotation)


def is_table(annotation: Any) -> bool:
    """Return whether an output with this annotation is known to be one table without a name of its own."""
    plain = unwrap(annotation)
    if isinstance(plain, str):
        return is_table_text(plain)
    cls = get_origin(plain) or plain
    if not isinstance(cls, type):
        return False
    return any((library(base), base.__name__) in _TABLE_CLASSES for base in cls.__mro__)


def _fields(plain: Any) -> dict[str, Any] | None:
    """Return field name -> annotation (as written) of a dataclass or named tuple, else None."""
    cls = get_origin(plain) or plain
    if not isinstance(cls, type):
        return None
    kind = kind_of_class(cls)
    if kind is Kind.DATACLASS:
        return {item.name: item.type for item in fields(cls)}
    if kind is Kind.NAMED_TUPLE:
        return dict.fromkeys(cast("Any", cls)._fields, UNKNOWN)
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def problem(annotation: Any, kind: str, key: Any, outputs: tuple[str, ...] | None = None) -> str | None:
    """Return why an output with this annotation has no such item or attribute, or None if it may have.

    Args:
        annotation: As `annotation_of` gave it.
        kind: "item" or "attr".
        key: The item's key or the attribute's name.
        outputs: The declared names of the task's tables, which are the items of a script.
    """
    plain = unwrap(annotation)
    if plain is UNKNOWN:
        return None
    name = text_of(plain)
    known = _fields(plain)
    if known is not None:
        if isinstance(key, int) and kind_of_class(get_origin(plain) or plain) is Kind.NAMED_TUPLE:
            return None if -len(known) <= key < len(known) else f"{name} has {len(known)} items"
        return None if key in known else f"{name} has no field {key!r}; its fields are: {_listed(list(known))}"
    if isinstance(plain, str) or is_table(plain):
        if not is_table(plain):
            return None
        what = "columns" if kind == "item" else "attributes"
        return f"it returns one table ({name}), and {what} of a table can only be read inside a task"
    cls: Any = get_origin(plain) or plain
    if typing.is_typeddict(cls):
        keys = list(cls.__annotations__)
        if kind == "attr":
            return f"{name} is a dict; write [{key!r}] instead of .{key}"
        return None if key in keys else f"{name} has no key {key!r}; its keys are: {_listed(keys)}"
    if kind == "attr":
        return f"it returns {name}, which has no fields; use [...] for its items" if cls in _WITHOUT_ATTRIBUTES else None
    if cls in _WITHOUT_ITEMS:
        return f"it returns {name}, which has no items"
    if cls is RawSql and outputs is not None and isinstance(key, str) and key.casefold() not in outputs:
        return f"the script is declared with outputs={list(outputs)!r}"
    return None


def inner(annotation: Any, kind: str, key: Any) -> Any:
    """Return the annotation of one item or attribute of an output, or `UNKNOWN`."""
    plain = unwrap(annotation)
    known = None if plain is UNKNOWN else _fields(plain)
    cls = get_origin(plain) or plain
    args = get_args(plain)
    if known is not None or typing.is_typeddict(cls):
        return field_annotation(cls, key)
    if kind == "item" and cls in (dict, Mapping, MutableMapping) and len(args) == 2:
        return args[1]
    if kind == "item" and cls in (list, Sequence) and len(args) == 1:
        return args[0]
    if kind == "item" and cls is tuple and isinstance(key, int):
        if len(args) == 2 and args[1] is Ellipsis:
            return args[0]
        return args[key] if -len(args) <= key < len(args) else UNKNOWN
    return UNKNOWN
