"""What keeps tables and blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, final

from pipedag_core.ports.catalogs import GenerationKey, Publication
from pipedag_core.ports.data import (
    ExternalTable,
    Form,
    Placeholder,
    Prepared,
    RowDifference,
    Source,
    StoredTable,
    TableData,
    TableSchema,
    TableSource,
    Target,
    Written,
)


@final
@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do; asked for instead of who it is.

    Attributes:
        reads, writes: Forms in which tables can be had and given. A hook picks the first of its own preferences that is offered.
        dialect: Name of the SQL dialect as sqlglot and SQLAlchemy know it (`duckdb`, `postgres`).
        max_name_bytes: Longest readable table name.
        live_names: Readable names change with each commit, and not only at the end of a run.
    """

    reads: frozenset[Form]
    writes: frozenset[Form]
    dialect: str
    max_name_bytes: int
    live_names: bool = False


@final
@dataclass(frozen=True, slots=True)
class Deposit:
    """Something that lies in a store, whether the catalog knows it or not.

    Attributes:
        location: The store's own address of it, as `drop` takes it.
        stage, generation: For which stage and generation it was written; None for what belongs to no table (work files).
        changed: Unix seconds of its last change, as far as the store knows; 0.0 where it does not.
        size: Bytes, where the store knows it.
    """

    location: str
    stage: str | None
    generation: int | None
    changed: float
    size: int | None = None


class StoreSession(Protocol):
    """One task's access to a store: its connection, alone on it, until the task ends. Not shared between threads."""

    def read(self, table: TableSource, form: Form) -> Source:
        """Return the table in this form, without reading rows.

        A loaded view is read as the query that it stands for, in its order; never as FILES. A table that somebody else owns is read where it lies.

        Raises:
            StoredDataMissing: The table, or a source of the view, is gone, cut short or damaged.
            StoreError: The table of somebody else is not there.
            UnsupportedByStore: The form is not among `capabilities.reads`, or FILES of a view.
        """
        ...

    def external_columns(self, owner: str, name: str) -> TableSchema:
        """Look at a table that somebody else owns, and return its columns as they are now.

        Args:
            owner: The schema in which it lies, as its `ExternalTableReference` names it.
            name: Its name there.

        Raises:
            StoreError: There is no such table, or no right to read it; the message says where it was looked for.
            ConfigError: Nobody has told the store where this schema is.
        """
        ...

    def prepare(self, sql: str, placeholders: Mapping[str, Placeholder], stages: frozenset[str]) -> Prepared:
        """Turn one query, or a whole script, into what is hashed and what is run.

        Args:
            sql: In the store's dialect; inputs stand in it as `"pipedag__in"."<label>"`, quoted or not.
            placeholders: Label -> input of this task.
            stages: Names of all stages of the flow. A table written as `stage.table` is bound to the input that it names.

        Raises:
            MaterializationError: The text is not SQL that can be tokenized; or it names a table of a stage that is not an input of the task
                (the message says to pass it as an argument).
        """
        ...

    def readable(self, query: str) -> str | None:
        """Return a query that was made of places which `read` has given, with the names of the stored tables instead; never an error.

        Returns:
            SQL in which these tables are `"stage"."name"`; None if the query reads anything else, or if the store cannot say.
        """
        ...

    def write(self, data: TableData, target: Target, *, prepared: Prepared | None = None) -> Written:
        """Write a table completely, at a place where nothing was, in one pass.

        `QueryData` comes with its `prepared` shape. A content hash is made if `target.hash_content`: in the pass that writes, or by one
        aggregate over the written file where the rows do not pass through our hands. On an error nothing that could be mistaken for a
        table is left, and what was written is removed.

        Raises:
            QueryFailed: The database refused the query; the message holds the readable query.
            MaterializationError: The rows cannot be kept (duplicate or empty column names, a type that would lose information).
            StoreError: No space, no rights, no connection.
        """
        ...

    def run_script(
        self, prepared: Prepared, inputs: Sequence[StoredTable], stage: str, target: Target
    ) -> Mapping[str, tuple[Target, Written]]:
        """Run the statements of a script, in order, and write each table and view that exists in schema `stage` afterwards.

        Unqualified names are created in schema `stage`; inputs can be read under `stage.table`. `target` gives generation and task.

        Returns:
            Readable name -> where it was to go and what was written.

        Raises:
            QueryFailed: With the statement that failed.
        """
        ...

    def hash_rows(self, data: TableData) -> str | None:
        """Return the content hash of rows in memory, equal to what `write` would find; None if the rows are not in memory."""
        ...

    def compare_rows(
        self, before: StoredTable | ExternalTable, after: StoredTable | ExternalTable, columns: Sequence[str], key: Sequence[str]
    ) -> RowDifference:
        """Count how the rows of two tables differ, where they lie: no row leaves the store.

        Two nulls are equal, and so are two values that are not a number. The order of rows does not count.

        Args:
            before, after: The tables.
            columns: Which columns are compared, at least one; both tables have them, in types that can be compared with each other.
            key: Those of the columns that name a row in both tables, without nulls; empty to compare rows as a whole.

        Raises:
            StoredDataMissing, StoreError: A table is gone.
            QueryFailed: The database cannot compare them.
        """
        ...


class TableStore(Protocol):
    """Keeps immutable tables. Nothing is a table before the catalog records it. Safe to use from several threads."""

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        ...

    @property
    def address(self) -> str:
        """Name of what its queries reach, without secrets; two stores of one name can read each other's tables, see `seen_by_others`."""
        ...

    def seen_by_others(self, table: StoredTable) -> ExternalTable:
        """Return a table as other stores of the same `address` can read it: one that somebody else owns, with its columns and identity."""
        ...

    def session(self, label: str) -> AbstractContextManager[StoreSession]:
        """Lease a connection for one task; `label` (flow and task) is shown where the database can show it."""
        ...

    def missing(self, tables: Sequence[StoredTable]) -> Sequence[StoredTable]:
        """Return those of the tables whose data is gone, or is not what was written as far as size and seal tell; cheap, it reads no rows."""
        ...

    def show(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> None:
        """Refresh the readable names: stage -> (readable name -> table). What is not named is no longer shown. May be repeated."""
        ...

    def shows(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> bool:
        """Return whether the readable names are these and no others, so that `show` would change nothing."""
        ...

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return what takes part in the catalog's commit of these generations (stage -> number); None if the catalog is not in the store's database."""
        ...

    def show_generation(self, stage: str, generation: int, tables: Mapping[str, StoredTable]) -> None:
        """Let people see a generation as a whole (readable name -> table), where the store can, though some of its tables were written for others."""
        ...

    def hide_generations(self, generations: Sequence[GenerationKey]) -> None:
        """Remove what `show_generation` made, for generations that have expired. Their tables stay until they are dropped."""
        ...

    def deposits(self) -> Sequence[Deposit]:
        """Return all that lies in the store: tables, recorded or not, and what a process that died has left on the way to one."""
        ...

    def drop(self, locations: Sequence[str]) -> None:
        """Remove tables, or other deposits, for good. A location that is gone already is no error."""
        ...

    def close(self) -> None:
        """Give back all connections."""
        ...


class BlobStore(Protocol):
    """Keeps immutable blobs. Safe to use from several threads."""

    def encode(self, obj: Any) -> tuple[bytes, str]:
        """Return the object's bytes and the name of their format.

        Raises:
            MaterializationError: The object cannot be turned into bytes.
        """
        ...

    def write(self, raw: bytes, format: str, stage: str, generation: int, name: str) -> str:
        """Write bytes at a place where nothing was, and return its location."""
        ...

    def read(self, location: str, format: str, sha256: str) -> Any:
        """Return the object, after its bytes have been checked against `sha256`.

        Raises:
            StoredDataMissing: The blob is gone or its bytes are others.
        """
        ...

    def missing(self, locations: Mapping[str, int]) -> Sequence[str]:
        """Return those of the locations (-> bytes) that are gone or have another size."""
        ...

    def deposits(self) -> Sequence[Deposit]:
        """Return all that lies in the store, recorded or not."""
        ...

    def drop(self, locations: Sequence[str]) -> None:
        """Remove blobs for good. A location that is gone already is no error."""
        ...
