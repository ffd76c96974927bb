"""What a database has to do to keep tables for `pipedag_core.stores.sql_store`.

The store knows names, generations, options and hashes; a dialect knows one database. Two objects make it:

* a `Dialect`, one per opened store: the whole database, and what readers see of it;
* a `Link`, one per task: its way to the database. Each method of a link is one action. A dialect decides how long a link holds a connection: from one
  action to the next where connections are plenty (PostgreSQL), or for the length of one action where only one process can hold the database at a time
  (a DuckDB file). While the user's code runs, it holds none, unless that was given a connection, so that others get their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from pipedag_core.ports.catalogs import Publication
from pipedag_core.ports.data import Form, Prepared, RowDifference, StoredTable, TableOptions, TableSchema
from pipedag_core.stores.sql_names import Place
from pipedag_core.stores.sqlsyntax import Syntax


@final
@dataclass(frozen=True, slots=True)
class Order:
    """A table that is to be made.

    Attributes:
        schema: Where; made if it is not there.
        places: Names that it may take in that schema, best first. The dialect takes the first that is free and keeps it from others until it is done.
        options: As declared. Columns that they name are checked by the dialect, which sees the columns first.
        where: Task and table, for messages.
        comment, comments: What people are told of the table, and of its columns, in databases where they look for that.
    """

    schema: str
    places: Iterable[Place]
    options: TableOptions
    where: str
    comment: str = ""
    comments: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True, slots=True)
class Made:
    """A table that was made.

    Attributes:
        place: Where it is.
        schema: Its columns, with the Arrow types in which `Link.stream` gives them back.
        rows: Count, where the database told it.
    """

    place: Place
    schema: TableSchema
    rows: int | None


@final
@dataclass(frozen=True, slots=True)
class ScriptOrder:
    """A script that is to be run.

    Attributes:
        prepared: The script; inputs stand in it as their places.
        inputs: Tables that can be read under `stage.table` too, and where they are.
        stage: Names without a schema, and those in this schema, are the script's own.
        schema: The generation's schema, in which the tables end.
        attempts: Returns the places that a table of this name may take, best first.
        where: Task, for messages.
    """

    prepared: Prepared
    inputs: Sequence[tuple[StoredTable, Place]]
    stage: str
    schema: str
    attempts: Any
    where: str


class TableIsGone(Exception):
    """The table is not there any more. Its text is the table as the dialect names it, where several were asked for."""


class Link(Protocol):
    """One task's way to the database, in one thread. Errors of the driver come out as ours, with the readable query."""

    def source(self, places: Sequence[Place]) -> Any:
        """Return a connection on which the places can be queried until `close`.

        Raises:
            TableIsGone: One cannot.
        """
        ...

    def columns(self, place: Place) -> TableSchema:
        """Return the columns of any table or view of the database, with the Arrow types in which `stream` gives them.

        Raises:
            TableIsGone: There is none that can be read.
        """
        ...

    def stream(self, place: Place, schema: TableSchema) -> Any:
        """Return the rows, in their order, as an object with `__arrow_c_stream__` and exactly these columns.

        Raises:
            TableIsGone: There is no such table.
        """
        ...

    def stream_query(self, query: str, places: Sequence[Place], schema: TableSchema) -> Any:
        """Return the rows of a query, in its order, as `stream` does.

        Args:
            query: One SELECT in the dialect.
            places: What it reads.
            schema: Its columns.

        Raises:
            TableIsGone: One of the places is not there.
        """
        ...

    def compare_rows(self, before: Place, after: Place, columns: Sequence[str], key: Sequence[str]) -> RowDifference:
        """Count how the rows of two tables differ; see `StoreSession.compare_rows`, and `row_difference` for the query.

        Raises:
            TableIsGone: One of them is not there.
        """
        ...

    def from_query(self, order: Order, query: str, readable: str) -> Made:
        """Make a table from one query of the dialect, all or nothing; rows never leave the database.

        Raises:
            QueryFailed, MaterializationError, StoreError: See `StoreSession.write`.
        """
        ...

    def from_batches(self, order: Order, batches: Any) -> Made:
        """Make a table from a `pyarrow.RecordBatchReader`, all or nothing. What the reader raises passes through.

        Raises:
            MaterializationError, StoreError: See `StoreSession.write`.
        """
        ...

    def run_script(self, order: ScriptOrder) -> Mapping[str, Made]:
        """Run the statements of a script and return what they created: readable name -> table. All or nothing.

        Raises:
            QueryFailed: With the statement that failed.
            MaterializationError: It changed something that it did not create.
        """
        ...

    def content_hash(self, made: Made) -> str | None:
        """Return a hash of rows that the database made itself, or None where that would cost too much."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Found:
    """A schema with tables, or with what readers saw before a commit; `table` None for a schema as a whole."""

    schema: str
    table: str | None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Dialect(Protocol):
    """One database. Safe to use from several threads."""

    @property
    def syntax(self) -> Syntax:
        """Its SQL, for the tokenizer."""
        ...

    @property
    def address(self) -> str:
        """Which database it is, without secrets; the same for all that reach it."""
        ...

    @property
    def reads(self) -> frozenset[Form]:
        """Forms in which tables can be had."""
        ...

    @property
    def max_name_bytes(self) -> int:
        """Longest name of a table or column."""
        ...

    def named(self, place: Place) -> str:
        """Return what stands behind FROM to read a place."""
        ...

    def link(self, label: str) -> Link:
        """Return a task's way to the database; nothing is opened yet. `label` (flow and task) is shown where the database can show it."""
        ...

    def missing(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return those of the places at which there is no table."""
        ...

    def found(self) -> Iterator[Found]:
        """Yield all tables in schemas of generations, and schemas that a commit left behind."""
        ...

    def drop(self, places: Sequence[Place], schemas: Sequence[str]) -> None:
        """Remove tables for good, schemas that are empty then, and schemas that a commit left behind. What is gone already is no error.

        Views of ours that stand in the way go too. What other people made on top of a table keeps it: a warning names that.
        """
        ...

    def show(self, stages: Mapping[str, Mapping[str, Place]]) -> None:
        """Make readable names say this: stage -> readable name -> place. Each stage changes at once; stages that are not named go."""
        ...

    def shown(self) -> Mapping[str, Mapping[str, Place | None]]:
        """Return what the readable names say now; None where a name stands for something else."""
        ...

    def show_generation(self, stage: str, number: int, tables: Mapping[str, Place]) -> None:
        """Let a generation's schema show, by views that refuse writes, those of its tables that are elsewhere."""
        ...

    def hide_generation(self, stage: str, number: int) -> None:
        """Remove what `show_generation` made."""
        ...

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return what takes part in the catalog's commit of these stages' generations; None if the catalog is not in this database."""
        ...

    def close(self) -> None:
        """Give back all connections; the dialect can be used again afterwards."""
        ...
