"""Types of columns as users name them in `type_map`, in whatever library, as text of a store's SQL dialect."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, cast

from pipedag_core.errors import FlowError

#: Types of Python itself -> the Arrow type that their values become.
_PYTHON: Final[Mapping[type, tuple[Any, ...]]] = {
    bool: ("bool_",),
    int: ("int64",),
    float: ("float64",),
    str: ("string",),
    bytes: ("binary",),
    dt.datetime: ("timestamp", "us"),
    dt.date: ("date32",),
    dt.time: ("time64", "us"),
    dt.timedelta: ("duration", "us"),
    decimal.Decimal: ("decimal128", 38, 9),
}


def sql_type(kind: Any, dialect: str) -> str:
    """Return a type as SQL text.

    Args:
        kind: SQL text, which is taken as it is; or a type of SQLAlchemy, pyarrow, polars, pandas, numpy or Python.
        dialect: Of the store, as `Capabilities.dialect` names it.

    Raises:
        FlowError: It is no type.
        ConfigError: A library that the dialect needs is missing.
    """
    if isinstance(kind, str):
        return kind
    if "sqlalchemy.TypeEngine" in _names(kind):
        return import_module("pipedag_core.hooks.sqlalchemy").type_text(kind, dialect)
    arrow = arrow_type(kind)
    if arrow is None:
        raise FlowError(
            f"{kind!r} is not a type of a column. Write SQL text such as 'DECIMAL(10,2)', or a type of SQLAlchemy, polars, pyarrow, pandas or numpy."
        )
    if dialect == "duckdb":
        return import_module("pipedag_core.hooks.duckdb").type_text(arrow)
    hook = import_module("pipedag_core.hooks.sqlalchemy_types")
    return import_module("pipedag_core.hooks.sqlalchemy").type_text(hook.from_arrow(arrow), dialect)


def arrow_type(kind: Any) -> Any:
    """Return a type of any library but SQLAlchemy as a `pyarrow.DataType`, or None if it is none."""
    import pyarrow as pa

    if isinstance(kind, pa.DataType):
        return kind
    if isinstance(kind, type) and kind in _PYTHON:
        name, *args = _PYTHON[cast("type", kind)]
        return getattr(pa, name)(*args)
    names = _names(kind)
    if "polars.DataType" in names:
        return import_module("pipedag_core.hooks.polars").arrow_type(kind)
    if names & {"pandas.ExtensionDtype", "numpy.dtype", "numpy.generic"}:
        return import_module("pipedag_core.hooks.pandas").arrow_type(kind)
    return None


def _names(kind: Any) -> set[str]:
    cls = kind if isinstance(kind, type) else type(kind)
    return {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in cls.__mro__}
