"""What converts between one Python table type and the three forms in which tables cross a port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

from pipedag_core.ports.data import TableData, TableSchema, TableSource
from pipedag_core.ports.stores import Capabilities, StoreSession


@final
@dataclass(frozen=True, slots=True)
class ReadContext:
    """What a hook may need to load an input.

    Attributes:
        session: The task's access to the store.
        capabilities: What the store can do.
        label: The input's place among the arguments, `names` or `tbls.flights`; also its logical token in SQL.
        alias: The last part of the label, a readable name for the table inside a query.
        args: Options of this hook from the configuration (`hook_args`).
    """

    session: StoreSession
    capabilities: Capabilities
    label: str
    alias: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])


@final
@dataclass(frozen=True, slots=True)
class WriteContext:
    """What a hook may need to hand over an output: where it is used, for messages, and what the store takes."""

    session: StoreSession
    capabilities: Capabilities
    task: str
    path: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])


class TableHook(Protocol):
    """Converts one family of table types. Holds no state; safe to use from several threads."""

    #: Inputs are references into the store (SQL), so handing them over reads no rows and lazy tasks may get them.
    by_reference: bool

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return the table, view or external table as an object of `as_type`: n rows x the columns in their written order.

        A view is not to be had as FILES.
        """
        ...

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the object over in the best form that the store takes. Reads no rows yet; never collects a lazy object.

        Raises:
            MaterializationError: The object is not a table that can be kept.
        """
        ...


@runtime_checkable
class TracingHook(Protocol):
    """A hook whose types can say what they would do: what `AUTO_VERSION` needs."""

    def empty(self, schema: TableSchema, as_type: Any, label: str) -> Any:
        """Return an object of `as_type` with this schema that carries `label` (the input's path) as its origin and refuses to be executed."""
        ...

    def trace(self, obj: Any) -> str:
        """Return the expression that the object stands for, as canonical text that names origins and the library's version.

        Raises:
            TracingRefused: The expression holds something that cannot be seen into (a Python function, an outside file), or it was executed.
        """
        ...


@runtime_checkable
class SharingHook(Protocol):
    """A hook whose types can be changed in place: what a production flow needs to hand one frame to several tasks."""

    def share(self, obj: Any) -> Any:
        """Return a frame with the same rows that can be changed in place without `obj` changing; cheap, so no rows are copied if it can be helped."""
        ...

    def storing(self, context: WriteContext) -> Callable[[Any], Any] | None:
        """Return what turns a frame into what a store would give back, or returns it as it is if that makes no difference; None if it never does.

        It is called for every frame that one task hands to another, so it is fast where nothing is to be done, and raises MaterializationError
        for a frame that no table can hold.
        """
        ...


class RowContract(Protocol):
    """What a class of a schema library says of a table's rows.

    Attributes:
        name: Its name, for people.
        token: Its name and a hash of all that it says, so that a table under another contract is another table.
        columns: The columns that it knows.
        primary_key, non_nullable: Columns that it promises about.
        types: Column -> type that SQL can cast to, where it names one.
        comment, comments: What it says of the table, and of columns, for people.
        frame_type: The class of frames that it can look at.
    """

    name: str
    token: str
    columns: tuple[str, ...]
    primary_key: tuple[str, ...]
    non_nullable: tuple[str, ...]
    types: Mapping[str, Any]
    comment: str
    comments: Mapping[str, str]
    frame_type: type

    def check(self, frame: Any, where: str) -> Any:
        """Return the frame with the contract's types, as a `frame_type`.

        Args:
            frame: A `frame_type`, or anything that gives Arrow batches.
            where: Table or argument, for messages.

        Raises:
            MaterializationError: Columns are missing or of other types, or rows break rules; the message counts them by rule.
        """
        ...

    def same_shape(self, before: Any, after: Any) -> bool:
        """Return whether two frames have the same columns, types and number of rows."""
        ...


class HookRegistry(Protocol):
    """Finds hooks by the names of types, without importing their libraries."""

    def for_object(self, obj: Any) -> TableHook | None:
        """Return the hook for this object's type or the nearest of its ancestors, else the one for `__arrow_c_stream__`, else None."""
        ...

    def for_type(self, as_type: Any) -> TableHook:
        """Return the hook that can load inputs as `as_type`.

        Raises:
            ConfigError: There is none; the message lists the types that there are.
        """
        ...

    def sql_type(self, kind: Any, dialect: str) -> str:
        """Return a column's type, given as SQL text or as a type of SQLAlchemy, pyarrow, polars, pandas, numpy or Python, as text of a dialect.

        Raises:
            FlowError: It is no type, or the dialect has no such type.
        """
        ...

    def reference_type(self) -> type:
        """Return the type in which tasks get references to stored tables, unless they ask for another."""
        ...

    def contract(self, cls: type) -> RowContract:
        """Return what a class of a schema library says.

        Raises:
            ConfigError: It is no such class.
        """
        ...

    def args(self, hook: TableHook) -> Mapping[str, Any]:
        """Return the options of this hook from the configuration."""
        ...
