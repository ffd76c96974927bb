"""Tables on their way between a task and a store, and tables at rest.

A table crosses a port in one of three forms:

* BATCHES: Arrow record batches, as anything that offers `__arrow_c_stream__`;
* FILES: Parquet files, to be read or written by the library that the task uses;
* QUERY: a query of the store's SQL dialect, so that rows never leave the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, final


class Form(Enum):
    """How a table crosses a port."""

    BATCHES = "batches"
    FILES = "files"
    QUERY = "query"


@final
@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type as pyarrow writes it (`int64`, `timestamp[us, tz=UTC]`), and whether it may hold nulls."""

    name: str
    type: str
    nullable: bool = True


@final
@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of a stored table, in order.

    Attributes:
        columns: For people, for canonical text and for whatever needs no pyarrow.
        arrow: The same as an Arrow IPC schema message, which keeps every type exactly.
    """

    columns: tuple[Column, ...]
    arrow: bytes

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.columns)


@final
@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a table wishes to be kept, as declared by `Table(...)` and annotations; all of it is part of the table's identity.

    `contract` is the token of its row contract; "" without one.
    """

    primary_key: tuple[str, ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    type_map: Mapping[str, str] = field(default_factory=dict[str, str])
    nullable: tuple[str, ...] | None = None
    non_nullable: tuple[str, ...] | None = None
    materialization_details: str | None = None
    contract: str = ""


@final
@dataclass(frozen=True, slots=True)
class StoredTable:
    """Where an immutable table lives and what is known about it. Text and numbers only, so that any process can open it.

    Attributes:
        id: Its key in the catalog.
        stage, generation: Where it was written (a later generation may point to it).
        name: Its readable name there.
        location: The store's own address of it (a path below the base path; a schema and table).
        schema: Its columns.
        identity: Hash of what it is; equal identities promise equal rows, columns and options.
        rows: Count, where the store knows it.
        size: Bytes, where the store knows it.
        content_hash: Hash of schema and rows with its algorithm's name (`arrow3:...`), or None. Where the order of rows does not count in it,
            a hash of that order may follow behind `#`.
        options: What was declared with it.
        query: The query that made it, with readable names, or None.
        seal: By what the store tells that its data is still what was written; for the store alone to read. None where it has no need of it.
    """

    id: str
    stage: str
    generation: int
    name: str
    location: str
    schema: TableSchema
    identity: str
    rows: int | None = None
    size: int | None = None
    content_hash: str | None = None
    options: TableOptions = field(default_factory=TableOptions)
    query: str | None = None
    seal: str | None = None

    @property
    def told(self) -> str:
        """What messages call it."""
        return f"{self.stage}.{self.name}"


@final
@dataclass(frozen=True, slots=True)
class StoredBlob:
    """Where an immutable blob lives.

    Attributes:
        id, stage, generation, name, location: As for `StoredTable`.
        identity: SHA-256 of its bytes, hexadecimal. Checked before the blob is read.
        size: Bytes.
        format: How its bytes are to be read (`pickle`).
    """

    id: str
    stage: str
    generation: int
    name: str
    location: str
    identity: str
    size: int
    format: str


#: Columns that are not known yet.
NO_COLUMNS = TableSchema((), b"")


@final
@dataclass(frozen=True, slots=True)
class ExternalTable:
    """A table that somebody else owns; it is read, never written, and never removed.

    Attributes:
        id, stage, generation: Its key in the catalog, and for which stage it was recorded; "", "" and 0 for one that stands among a task's
            arguments and nowhere else.
        owner, name: Where it lies, as its `ExternalTableReference` names it. It has no readable name in a stage.
        identity: What it counts as to consumers.
        schema: Its columns when it was last looked at; `NO_COLUMNS` before.
    """

    id: str
    stage: str
    generation: int
    owner: str
    name: str
    identity: str
    schema: TableSchema = NO_COLUMNS

    @property
    def told(self) -> str:
        """What messages call it."""
        return f"{self.owner}.{self.name}"


@final
@dataclass(frozen=True, slots=True)
class Selection:
    """What a view does to the rows of its sources, put one below the other.

    Attributes:
        columns: (name in the view, name in the sources), in order; None for all columns of the first source.
        sort_by: (name in the view or else in the sources, descending, nulls first), in order.
        limit: How many rows are kept at most, after sorting; None for all.
    """

    columns: tuple[tuple[str, str], ...] | None = None
    sort_by: tuple[tuple[str, bool, bool], ...] = ()
    limit: int | None = None


@final
@dataclass(frozen=True, slots=True)
class StoredView:
    """A selection from tables that is never written: whoever reads it has it inlined. It has no readable name in a stage.

    Attributes:
        sources: What it selects from; their rows are put one below the other, columns by name.
        selection: What is selected.
        identity: Hash of its selection and of the identities of its sources.
        schema: Its columns; `NO_COLUMNS` until it is loaded. Then its selection names all columns, those to sort by as the sources call them.
    """

    sources: tuple[TableSource, ...]
    selection: Selection
    identity: str
    schema: TableSchema = NO_COLUMNS

    @property
    def told(self) -> str:
        """What messages call it."""
        return f"a view of {', '.join(dict.fromkeys(leaf.told for leaf in self.leaves))}"

    @property
    def leaves(self) -> tuple[StoredTable | ExternalTable, ...]:
        """All tables that it is made of, those of views inside it included."""
        return tuple(leaf for source in self.sources for leaf in (source.leaves if isinstance(source, StoredView) else (source,)))


#: What a task can read as a table.
TableSource = StoredTable | StoredView | ExternalTable

#: What has a row of its own in the catalog.
StoredObject = StoredTable | StoredBlob | ExternalTable


# --- from a store to a task ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class BatchSource:
    """A stored table as a stream of Arrow record batches; `stream` offers `__arrow_c_stream__` and can be read once."""

    stream: Any


@final
@dataclass(frozen=True, slots=True)
class FileSource:
    """A stored table as Parquet files: absolute paths, or URLs that fsspec understands."""

    paths: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class QuerySource:
    """A stored table as SQL.

    Attributes:
        place: What may stand behind FROM to read it (`read_parquet('...')`, `"features__g17"."joined"`).
        connection: The native connection on which `place` means this table (for DuckDB a cursor); open until the task ends.
    """

    place: str
    connection: Any


Source = BatchSource | FileSource | QuerySource


# --- from a task to a store ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class BatchData:
    """Rows in memory or coming as a stream.

    Attributes:
        stream: Returns an object with `__arrow_c_stream__`. May be called again only if `in_memory`.
        in_memory: The rows are all here, so they can be hashed before they are written (and need not be written if they are known).
        rows: Count, if known beforehand.
        query: Returns the query that the rows will come from, in the store's own SQL; None if they come from elsewhere. It is only shown.
    """

    stream: Callable[[], Any]
    in_memory: bool
    rows: int | None = None
    query: Callable[[], str] | None = None


@final
@dataclass(frozen=True, slots=True)
class FileData:
    """Rows whose library writes Parquet itself, best without passing through our hands.

    Attributes:
        write: Writes one Parquet file at an absolute local path.
        stream: As in `BatchData` when the rows are all in memory, else None (a lazy frame: rows are seen only while they are written).
        rows: Count, if known beforehand.
        query: As in `BatchData`.
    """

    write: Callable[[str], None]
    stream: Callable[[], Any] | None = None
    rows: int | None = None
    query: Callable[[], str] | None = None


@final
@dataclass(frozen=True, slots=True)
class QueryData:
    """Rows that the store makes itself.

    Attributes:
        text: One SELECT (or WITH, VALUES, FROM...) in the store's dialect. Inputs stand in it as logical tokens (see `Placeholder`).
    """

    text: str


TableData = BatchData | FileData | QueryData


@final
@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for an input table in SQL, as the two-part name `"{SCHEMA}"."{label}"`, until the query has been hashed.

    A query is hashed with this token and run with the place of the stored table. `label` is the input's place among the arguments
    (`names`, `tbls.flights`), so it changes neither with versions nor with data. Never replaced by text search: the store finds
    the tokens with a tokenizer.
    """

    label: str
    table: TableSource


#: The schema part of every placeholder. A user's schema of this name would clash; it is refused as a stage name by its double underscore ending.
PLACEHOLDER_SCHEMA = "pipedag__in"


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """A query in two shapes.

    Attributes:
        canonical: For hashing: tokens joined by single spaces; literals as they are; no comments; inputs as the identities of their tables.
        text: For running: inputs replaced by where the tables are.
        readable: For people: inputs as `stage.table`.
        inputs: Labels of the placeholders that occur in it.
        statements: How many statements it is.
    """

    canonical: str
    text: str
    readable: str
    inputs: tuple[str, ...]
    statements: int = 1


@final
@dataclass(frozen=True, slots=True)
class Target:
    """Where a table is to be written.

    Attributes:
        stage, generation, name: Readable address; the store makes the physical one, and never writes over anything.
        task: For messages.
        options: What was declared with the table.
        hash_content: Whether a content hash is wanted.
        comment, comments: What people are told of the table, and of its columns, where the store can keep that.
    """

    stage: str
    generation: int
    name: str
    task: str
    options: TableOptions = field(default_factory=TableOptions)
    hash_content: bool = False
    comment: str = ""
    comments: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True, slots=True)
class Written:
    """What a store knows about a table that it has just written; it becomes a `StoredTable` when the catalog has its row."""

    location: str
    schema: TableSchema
    rows: int | None
    size: int | None
    content_hash: str | None
    seal: str | None = None


# --- between two tables -------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class RowDifference:
    """How the rows of two tables differ, counted.

    Attributes:
        added: Rows of the later table that the earlier one lacks. Where rows are compared as a whole, how often one occurs counts.
        removed: Rows of the earlier table that the later one lacks.
        changed: Rows that both have by their key, and in which anything else differs; None where there is no key to tell.
        columns: Column -> in how many of the changed rows it differs; those that differ nowhere are left out.
    """

    added: int
    removed: int
    changed: int | None = None
    columns: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def is_empty(self) -> bool:
        """Whether the rows are the same, in whatever order."""
        return not (self.added or self.removed or self.changed)
