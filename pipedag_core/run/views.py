"""Views: what tasks wish to select from tables, turned into what stores and hooks can read, and into text and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

from pipedag_core.arrow_schema import selected
from pipedag_core.cache import fingerprint
from pipedag_core.define.values import ExternalTableReference, SortCol, SortOrder, View
from pipedag_core.errors import FlowError, MaterializationError, PipedagError, WrongType
from pipedag_core.ports.data import ExternalTable, Selection, StoredView, TableSource
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run.notes import add_note


def selection_of(view: View, where: str) -> Selection:
    """Return what a view selects, with nothing looked up.

    Raises:
        WrongType, FlowError: The view is declared in a way that means nothing.
    """
    columns: Any = view.columns
    if isinstance(columns, str):
        raise WrongType(f"{where}: columns of a View takes a list of names or a mapping new name -> old name. Write columns=[{columns!r}].")
    pairs: list[tuple[Any, Any]] | None = None
    if columns is not None:
        pairs = list(cast("Mapping[Any, Any]", columns).items()) if isinstance(columns, Mapping) else [(name, name) for name in columns]
    if pairs is not None:
        if not pairs or not all(isinstance(name, str) for pair in pairs for name in pair):
            raise WrongType(f"{where}: columns of a View takes names, at least one, and not {columns!r}.")
        names = [new.casefold() for new, _ in pairs]
        double = sorted({new for new, _ in pairs if names.count(new.casefold()) > 1})
        if double:
            raise FlowError(f"{where}: the View has columns of one name, {double}. Name each once.")
    limit: Any = view.limit
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise WrongType(f"{where}: limit of a View takes a whole number of rows, not {limit!r}.")
    return Selection(None if pairs is None else tuple(pairs), tuple(_sort_keys(view.sort_by, where)), limit)


def _sort_keys(given: Any, where: str) -> list[tuple[str, bool, bool]]:
    items: Sequence[Any] = [] if given is None else [given] if isinstance(given, (str, SortCol)) else list(given)
    keys: list[tuple[str, bool, bool]] = []
    for item in items:
        column = SortCol(item) if isinstance(item, str) else item
        if not isinstance(column, SortCol):
            raise WrongType(f"{where}: sort_by of a View takes column names and SortCol(...), not {item!r}.")
        keys.append((column.col, column.order is SortOrder.DESC, bool(column.nulls_first)))
    return keys


def make(selection: Selection, sources: Sequence[TableSource]) -> StoredView:
    """Return a view of these sources, not loaded yet."""
    return StoredView(tuple(sources), selection, fingerprint.view_identity(selection, [source.identity for source in sources]))


def loaded(source: TableSource, access: StoreSession, where: str) -> TableSource:
    """Return a table or view with its columns; those of other people's tables are looked at, unless they are known.

    Raises:
        MaterializationError: A view names a column that is not there, or its sources do not fit together.
        StoreError: The table of somebody else is not there.
    """
    if isinstance(source, ExternalTable) and not source.schema.arrow:
        try:
            return replace(source, schema=access.external_columns(source.owner, source.name))
        except PipedagError as error:
            add_note(error, f"needed by {where}")
            raise
    if not isinstance(source, StoredView) or source.schema.arrow:
        return source
    sources = tuple(loaded(item, access, where) for item in source.sources)
    first = sources[0].schema
    pairs = source.selection.columns or tuple((name, name) for name in first.names)
    by_new = dict(pairs)
    keys = tuple((by_new.get(name, name), down, nulls_first) for name, down, nulls_first in source.selection.sort_by)
    needed = list(dict.fromkeys([*(old for _, old in pairs), *(name for name, _, _ in keys)]))
    if len(sources) > 1 and source.selection.columns is None:
        needed = list(dict.fromkeys([*needed, *(name for item in sources for name in item.schema.names)]))
    _check(sources, needed, where)
    schema = selected([item.schema for item in sources], pairs)
    return StoredView(sources, replace(source.selection, columns=pairs, sort_by=keys), source.identity, schema)


def _check(sources: Sequence[TableSource], needed: Sequence[str], where: str) -> None:
    types: dict[str, str] = {}
    for item in sources:
        known = {column.name: column.type for column in item.schema.columns}
        for name in needed:
            if name not in known:
                raise MaterializationError(
                    f"{where}: a View names column {name!r}, which {item.told} does not have. It has: {', '.join(known)}."
                    + (" Rows of several tables go below each other by the names of their columns." if len(sources) > 1 else ""),
                    column=name,
                )
            if types.setdefault(name, known[name]) != known[name]:
                raise MaterializationError(
                    f"{where}: column {name!r} is {types[name]} in {sources[0].told} and {known[name]} in {item.told}, so a View cannot put their rows "
                    "below each other. Cast it in a task, or leave it out with columns=.",
                    column=name,
                )


# --- as text ------------------------------------------------------------------------------------------------------------------------


def selection_text(selection: Selection) -> Mapping[str, Any]:
    """Return a selection as JSON values."""
    return {
        "columns": None if selection.columns is None else [list(pair) for pair in selection.columns],
        "sort_by": [list(key) for key in selection.sort_by],
        "limit": selection.limit,
    }


def selection_from(node: Mapping[str, Any]) -> Selection:
    """Return the selection that `selection_text` was given."""
    columns = node["columns"]
    return Selection(
        None if columns is None else tuple((new, old) for new, old in columns),
        tuple((name, down, nulls_first) for name, down, nulls_first in node["sort_by"]),
        node["limit"],
    )


# --- among arguments ----------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Wired:
    """Turns views and tables of others that stand among a task's arguments into what can be read.

    Attributes:
        who: The task, for messages.
        salt: Returns what tells one state of somebody else's table from another.
    """

    who: str
    salt: Callable[[], str]

    def leaf(self, item: Any, path: str, flat: Callable[[Any], Sequence[tuple[str, Any]]]) -> Any:
        """Return an argument's leaf, with a `StoredView` or `ExternalTable` in place of what a user wrote.

        Args:
            item: Any leaf; references are resolved already.
            path: Its place.
            flat: Returns (path, leaf) of a nest.
        """
        if isinstance(item, ExternalTableReference):
            return ExternalTable("", "", 0, item.schema, item.name, fingerprint.external_identity(item.schema, item.name, self.salt()))
        if not isinstance(item, View):
            return item
        where = f"{self.who}, argument {path!r}"
        sources = [(inner, self.leaf(leaf, path, flat)) for inner, leaf in flat(item.src)]
        for inner, source in sources:
            if not isinstance(source, TableSource):
                raise MaterializationError(
                    f"{where}: a View selects from tables, and {inner or 'its source'} is a {type(source).__name__}."
                )
        if not sources:
            raise FlowError(f"{where}: the View has no source. Give it a table, or a list of tables.")
        return make(selection_of(item, where), [source for _, source in sources])
