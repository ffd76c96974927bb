"""Finds what understands a row contract, and what all of these have in common."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import FunctionType
from typing import Any, Final, Protocol

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

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


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
    """Return a hash of a contract: what it prints, and the source of its functions, since rules may be functions."""
    sources = [_source(function) for base in cls.__mro__ if base.__module__.partition(".")[0] not in _OWN for function in _functions(base)]
    return f"{cls.__name__}:{digest('contract', _ADDRESS.sub('', described), *sources)[:16]}"


def _functions(cls: type) -> Iterator[FunctionType]:
    """Yield the functions in a class, also those that a decorator has wrapped."""
    for value in vars(cls).values():
        for found in (value, getattr(value, "__func__", None), *getattr(value, "__dict__", {}).values()):
            if isinstance(found, FunctionType):
                yield found


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        # Of a function that was typed in, there is no file.
        return f"{function.__code__.co_code.hex()} {function.__code__.co_consts!r:.2000}"


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
