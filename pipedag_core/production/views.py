"""Views in memory: what they select is taken out of Arrow tables, without a copy unless it has to be sorted."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipedag_core.errors import ProductionError
from pipedag_core.ports.data import Selection, StoredTable, StoredView
from pipedag_core.production.frames import Frames
from pipedag_core.run.inputs import leaves
from pipedag_core.run.views import loaded, make
from pipedag_core.stores import viewsql

if TYPE_CHECKING:
    from pipedag_core.production.sql import Database


def selected(selection: Selection, source: Any, frames: Frames, database: Database, where: str) -> Any:
    """Return the rows of a view as a `pyarrow.Table`; None if all that it selects from is ignored.

    Args:
        selection: What is selected.
        source: Nest of frames; None where one is ignored.
        frames, database: What converts, and what sorts.
        where: What messages begin with.

    Raises:
        ProductionError: Something that it selects from is no table.
        MaterializationError: It names a column that is not there, or its sources do not fit together.
    """
    given = [(path, leaf) for path, leaf in leaves(source, "") if leaf is not None]
    for path, leaf in given:
        if not frames.is_frame(leaf):
            raise ProductionError(f"{where}: a View selects from tables, and {path or 'its source'} is a {type(leaf).__name__}.")
    if not given:
        return None
    return _of_tables(
        selection,
        [frames.to_arrow(frames.settled(leaf) if frames.is_lazy(type(leaf)) else leaf) for _, leaf in given],
        frames,
        database,
        where,
    )


def _of_tables(selection: Selection, tables: Sequence[Any], frames: Frames, database: Database, where: str) -> Any:
    if len(tables) > 1:
        tables = [_wide(table) for table in tables]
    sources = [
        StoredTable(str(number), "source", 0, str(number), "", frames.schema_of(table), str(number))
        for number, table in enumerate(tables, 1)
    ]
    view = loaded(make(selection, sources), _NO_STORE, where)
    assert isinstance(view, StoredView)
    if view.selection.sort_by:
        names = {source.id: database.place(table)[0] for source, table in zip(sources, tables, strict=True)}
        # All sources are the ones above, which are stored tables.
        return database.rows(viewsql.select(view, lambda table: names[table.id]))
    pa = import_module("pyarrow")
    pairs = view.selection.columns or ()
    parts = [pa.Table.from_arrays([table.column(old) for _, old in pairs], names=[new for new, _ in pairs]) for table in tables]
    whole = parts[0] if len(parts) == 1 else pa.concat_tables(parts)
    return whole if view.selection.limit is None else whole.slice(0, view.selection.limit)


def _wide(table: Any) -> Any:
    """Return a table with text and bytes behind 64 bit offsets: libraries differ in that, stores do not."""
    pa = import_module("pyarrow")
    narrow = {pa.string(): pa.large_string(), pa.string_view(): pa.large_string(), pa.binary(): pa.large_binary()}
    if not any(field.type in narrow for field in table.schema):
        return table
    return table.cast(pa.schema([pa.field(field.name, narrow.get(field.type, field.type)) for field in table.schema]))


#: The columns of all that a view in memory selects from are known, so no store is asked for them.
_NO_STORE: Any = None
