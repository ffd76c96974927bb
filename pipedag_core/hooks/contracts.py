"""Finds what understands a row contract, and what all of these have in common."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from types import CellType, FunctionType, MethodType
from typing import Any, Final, Protocol, cast

from pipedag_core.errors import ConfigError, MaterializationError
from pipedag_core.hashing import digest
from pipedag_core.ports.hooks import RowContract

#: Name of the class from which contracts of a library are derived -> `module:Class`.
_READERS: Final[Mapping[str, str]] = {
    "dataframely.Schema": "pipedag_core.hooks.polars_dataframely:DataframelyContract",
    "pandera.DataFrameModel": "pipedag_core.hooks.pandera:PanderaContract",
    "pydiverse.ColSpec": "pipedag_core.hooks.polars_colspec:ColSpecContract",
}

#: Packages whose classes say nothing of their own.
_OWN: Final = frozenset({"dataframely", "pandera", "pydiverse", "builtins", "typing"})

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class _Reader(Protocol):
    def __call__(self, cls: type) -> RowContract: ...


def read_contract(cls: type) -> RowContract:
    """Return what a class of a schema library says.

    Raises:
        ConfigError: No library is known whose class it is.
    """
    for base in cls.__mro__:
        target = _READERS.get(f"{base.__module__.partition('.')[0]}.{base.__name__}")
        if target is not None:
            module, _, name = target.partition(":")
            reader: _Reader = getattr(import_module(module), name)
            return reader(cls)
    raise ConfigError(
        f"{cls.__module__}.{cls.__qualname__} says nothing about rows. Use a schema class of dataframely, pandera or pydiverse.colspec.",
        type=cls.__qualname__,
    )


def token(cls: type, described: str) -> str:
    """Return a hash of a contract: what it prints, and its functions, since rules may be functions."""
    rules = [canonical(value) for base in cls.__mro__ if base.__module__.partition(".")[0] not in _OWN for value in _rules(base)]
    return f"{cls.__name__}:{digest('contract', _ADDRESS.sub('', described), *rules)[:16]}"


def canonical(value: Any, depth: int = 4) -> str:
    """Return a value as text that is the same in every process: sets in order, functions as their source and all that they remember."""
    if depth == 0:
        return type(value).__name__
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(canonical(item, depth - 1) for item in cast("set[Any]", value))) + "}"
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return "{" + ", ".join(f"{canonical(key, depth - 1)}: {canonical(item, depth - 1)}" for key, item in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(canonical(item, depth - 1) for item in cast("list[Any]", value)) + "]"
    if isinstance(value, partial):
        made = cast("partial[Any]", value)
        return canonical([made.func, made.args, made.keywords], depth)
    if isinstance(value, MethodType):
        return canonical(value.__func__, depth)
    if isinstance(value, FunctionType):
        remembered = [value.__defaults__, value.__kwdefaults__, *map(_content, value.__closure__ or ())]
        return f"{_source(value)} {canonical(remembered, depth - 1)}"
    return _ADDRESS.sub("", repr(value))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _rules(cls: type) -> Iterator[Any]:
    """Yield the functions in a class, and what its library has made of them."""
    for value in vars(cls).values():
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(getattr(value, "__func__", None), FunctionType):
            yield value.__func__
        elif type(value).__module__.partition(".")[0] in _OWN - {"builtins"}:
            yield dict(getattr(value, "__dict__", {}))


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        # Of a function that was typed in, there is no file.
        return f"{function.__code__.co_code.hex()} {_ADDRESS.sub('', repr(function.__code__.co_consts))}"


def broken(cls: type, where: str, counts: Mapping[str, int], rows: int) -> MaterializationError:
    """Return the error that rows break a contract.

    Args:
        cls: The contract.
        where: Table or argument, for the message.
        counts: Rule -> how many rows break it.
        rows: How many rows there are.
    """
    told = ", ".join(f"{rule!r} by {count:,} of {rows:,} rows" for rule, count in counts.items())
    return MaterializationError(
        f"{where} breaks its contract {cls.__name__}: {told}. Mend the rows, or the contract.",
        contract=cls.__name__,
        failing=dict(counts),
        rows=rows,
    )


def unfit(cls: type, where: str, error: Exception) -> MaterializationError:
    """Return the error that the columns are not those of a contract; the library says how."""
    told = str(error).partition("\n\nResolved plan")[0].strip()
    return MaterializationError(f"{where} has not the columns of its contract {cls.__name__}: {told}", contract=cls.__name__)


def text(value: Any) -> str:
    """Return a description as text; "" if there is none."""
    return value.strip() if isinstance(value, str) else ""


def comment_of(cls: type) -> str:
    """Return the first paragraph of a class's own docstring, in one line."""
    return " ".join(inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("\n\n")[0].split())
