"""Views and tables of others as SQL, in what all dialects share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import ExternalTable, StoredTable, StoredView, TableSource

#: Alias of what a view selects from. Columns are always named with it, so it can hide none.
ALIAS: Final = quote_identifier("pipedag__v")


def select(view: StoredView, place: Callable[[StoredTable | ExternalTable], str]) -> str:
    """Return the query that a loaded view stands for.

    Args:
        view: The view, with its schema.
        place: Returns what stands behind FROM to read a table.
    """
    chosen = view.selection
    columns = chosen.columns or ()
    sources = [f"{source_text(source, place)} AS {ALIAS}" for source in view.sources]
    if len(sources) == 1:
        source = sources[0]
    else:
        # By name, whatever the order of columns in each of them.
        needed = list(dict.fromkeys([*(old for _, old in columns), *(name for name, _, _ in chosen.sort_by)]))
        parts = " UNION ALL ".join(f"SELECT {', '.join(map(_column, needed))} FROM {item}" for item in sources)
        source = f"({parts}) AS {ALIAS}"
    text = f"SELECT {', '.join(f'{_column(old)} AS {quote_identifier(new)}' for new, old in columns)} FROM {source}"
    if chosen.sort_by:
        keys = (
            f"{_column(name)} {'DESC' if descending else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"
            for name, descending, nulls_first in chosen.sort_by
        )
        text += f" ORDER BY {', '.join(keys)}"
    return text if chosen.limit is None else f"{text} LIMIT {chosen.limit}"


def source_text(source: TableSource, place: Callable[[StoredTable | ExternalTable], str]) -> str:
    """Return what stands behind FROM to read a table or a view; a view is a subquery, which gets its alias from whoever writes FROM."""
    return f"({select(source, place)})" if isinstance(source, StoredView) else place(source)


def readable(source: TableSource) -> str:
    """Return what a person would write behind FROM: `stage.table`, and for a view its query."""
    return source_text(source, _named)


def _named(table: StoredTable | ExternalTable) -> str:
    schema = table.owner if isinstance(table, ExternalTable) else table.stage
    return f"{quote_identifier(schema)}.{quote_identifier(table.name)}"


def _column(name: str) -> str:
    return f"{ALIAS}.{quote_identifier(name)}"
