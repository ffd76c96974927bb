"""What the rules of the catalog ask of a database: one transaction, in which statements can be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipedag_core.catalogs import statements

Row = tuple[Any, ...]


class Transaction(Protocol):
    """One transaction of a database. Writing ones exclude each other, reading ones see one state from their beginning to their end."""

    @property
    def native(self) -> Any:
        """The driver's connection, for those who change other things of the database in the same transaction."""
        ...

    def exclude(self) -> None:
        """Keep others from writing from now on, if the transaction does not do so from its beginning."""
        ...

    def rows(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Run a statement and return all its rows."""
        ...

    def run(self, sql: str, values: Mapping[str, object]) -> None:
        """Run a statement that returns nothing."""
        ...

    def run_many(self, sql: str, values: Sequence[Mapping[str, object]]) -> None:
        """Run a statement once per set of values."""
        ...


def first(tx: Transaction, sql: str, values: Mapping[str, object]) -> Row | None:
    """Return the first row, or None."""
    found = tx.rows(sql, values)
    return found[0] if found else None


def rows_for(tx: Transaction, sql: str, wanted: Sequence[Sequence[str | int]], values: Mapping[str, object]) -> list[Row]:
    """Run a statement with the VALUES list `{wanted}`, in pieces where the list is long, and return all rows."""
    found: list[Row] = []
    for piece in statements.chunks(wanted):
        numbers = tuple(isinstance(cell, int) for cell in piece[0])
        parameters = {f"v{i}_{j}": cell for i, row in enumerate(piece) for j, cell in enumerate(row)}
        found += tx.rows(statements.expanded(sql, len(piece), numbers), {**values, **parameters})
    return found
