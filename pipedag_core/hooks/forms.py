"""The choice of the form in which a hook and a store exchange a table."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import TypeVar

from pipedag_core.errors import MaterializationError, UnsupportedByStore
from pipedag_core.ports.data import BatchSource, FileSource, Form, QuerySource, Source, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext

S = TypeVar("S", BatchSource, FileSource, QuerySource)


def read_form(context: ReadContext, *preferred: Form) -> Form:
    """Return the first of the preferred forms in which the store gives tables.

    Raises:
        UnsupportedByStore: It gives none of them.
    """
    return _first(context.capabilities.reads, preferred, f"Input {context.label!r} needs the store to give")


def write_form(context: WriteContext, *preferred: Form) -> Form:
    """Return the first of the preferred forms in which the store takes tables.

    Raises:
        UnsupportedByStore: It takes none of them.
    """
    return _first(context.capabilities.writes, preferred, f"Task {context.task!r}: output {context.path!r} needs the store to take")


def expect(source: Source, kind: type[S], table: TableSource) -> S:
    """Return the source as the kind that was asked for.

    Raises:
        UnsupportedByStore: The store answered with another kind.
    """
    if not isinstance(source, kind):
        raise UnsupportedByStore(f"Table {table.told}: asked for a {kind.__name__}, the store gave a {type(source).__name__}.")
    return source


def refused(context: WriteContext, reason: str) -> MaterializationError:
    """Return the error for an object that cannot be kept as a table, with the place where it was returned."""
    where = f"Task {context.task!r}" + (f", output {context.path!r}" if context.path else "")
    return MaterializationError(f"{where}: {reason}", task=context.task, path=context.path)


def _first(offered: AbstractSet[Form], preferred: tuple[Form, ...], need: str) -> Form:
    for form in preferred:
        if form in offered:
            return form
    forms = " or ".join(form.value for form in preferred)
    raise UnsupportedByStore(
        f"{need} {forms}; it has {', '.join(sorted(form.value for form in offered)) or 'nothing'}. Use another type or store."
    )
