"""Frames in memory: which objects are tables, how one library's becomes another's, and how each is kept apart from its copies.

Everything goes through the hooks, as between a task and a store; here the store is a table in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, cast, final

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.errors import UnsupportedByStore
from pipedag_core.ports.data import BatchData, BatchSource, Form, QueryData, QuerySource, StoredTable, TableSchema
from pipedag_core.ports.hooks import HookRegistry, ReadContext, SharingHook, TableHook, WriteContext
from pipedag_core.ports.stores import Capabilities

#: What crosses between hooks here.
_FORMS: Final = frozenset({Form.BATCHES})
CAPABILITIES: Final = Capabilities(reads=_FORMS | {Form.QUERY}, writes=_FORMS, dialect="duckdb", max_name_bytes=255)
QUERIES: Final = Capabilities(reads=_FORMS | {Form.QUERY}, writes=frozenset(Form), dialect="duckdb", max_name_bytes=255)

#: Types that hold rows to be computed or read once, by the names under which hooks are found.
_LAZY: Final = frozenset({"polars.LazyFrame", "duckdb.DuckDBPyRelation", "pyarrow.RecordBatchReader"})


def type_name(cls: type) -> str:
    """Return top package and class, whatever private module defines it: the name under which hooks know a type."""
    return f"{cls.__module__.partition('.')[0].lstrip('_')}.{cls.__name__}"


@final
class MemorySession:
    """One table in memory in place of a store's; as much of a `StoreSession` as hooks ask of it."""

    def __init__(self, table: Any, place: Callable[[Any], tuple[str, Any]] | None = None) -> None:
        self._table = table
        self._place = place

    def read(self, table: StoredTable, form: Form) -> Any:
        if form is Form.BATCHES:
            return BatchSource(self._table)
        if form is Form.QUERY and self._place is not None:
            return QuerySource(*self._place(self._table))
        raise UnsupportedByStore(f"A production flow has no {form.value}.")


@final
class Frames:
    """Turns frames of one library into those of another.

    Args:
        hooks: Finds hooks.
        place: Makes an Arrow table readable by SQL in this thread, and returns its name and the connection; for relations of DuckDB.
    """

    def __init__(self, hooks: HookRegistry, place: Callable[[Any], tuple[str, Any]] | None = None) -> None:
        self._hooks = hooks
        self._place = place
        self._kinds: dict[type, TableHook | None] = {}
        self._schemas: dict[Any, TableSchema] = {}
        self._lock = threading.Lock()

    def hook_of(self, cls: type, obj: Any) -> TableHook | None:
        """Return the hook for frames of this class; None if they are none."""
        try:
            return self._kinds[cls]
        except KeyError:
            found = None if issubclass(cls, (str, bytes, int, float, bool, type(None))) else self._hooks.for_object(obj)
            self._kinds[cls] = found
            return found

    def hook_for(self, as_type: Any) -> TableHook:
        """Return the hook that gives frames of a type."""
        return self._hooks.for_type(as_type)

    def is_frame(self, obj: Any) -> bool:
        """Return whether an object is a table."""
        return self.hook_of(type(obj), obj) is not None

    def is_lazy(self, cls: type) -> bool:
        """Return whether frames of this class are computed, or read, only when they are asked for."""
        return any(type_name(base) in _LAZY for base in cls.__mro__)

    def schema_of(self, arrow: Any) -> TableSchema:
        """Return the schema of an Arrow table."""
        key = arrow.schema
        found = self._schemas.get(key)
        if found is None:
            found = self._schemas[key] = from_arrow(key)
        return found

    def to_arrow(self, obj: Any, who: str = "", path: str = "") -> Any:
        """Return a frame as a `pyarrow.Table`, without copying where its library can do that.

        Raises:
            MaterializationError: It holds what no table can hold.
        """
        pa = import_module("pyarrow")
        if type(obj) is pa.Table:
            return obj
        hook = self.hook_of(type(obj), obj)
        assert hook is not None
        if type_name(type(obj)) == "polars.DataFrame":
            return obj.to_arrow()
        data = hook.write(obj, WriteContext(_NO_SESSION, CAPABILITIES, who, path, self._hooks.args(hook)))
        if not isinstance(data, BatchData):
            raise UnsupportedByStore(f"{who}: a {type(obj).__name__} can only be written by a database, which production does not have.")
        stream = data.stream()
        return stream if type(stream) is pa.Table else pa.RecordBatchReader.from_stream(stream).read_all()

    def from_arrow(self, table: Any, as_type: Any, label: str = "table") -> Any:
        """Return an Arrow table as a frame of another library."""
        pa = import_module("pyarrow")
        if as_type is pa.Table:
            return table
        hook = self._hooks.for_type(as_type)
        context = ReadContext(MemorySession(table, self._place), CAPABILITIES, label, label.rpartition(".")[2], self._hooks.args(hook))  # pyright: ignore[reportArgumentType]
        stored = StoredTable("", "", 0, label, "", self.schema_of(table), "")
        return hook.read(stored, as_type, context)

    def type_named(self, name: str) -> Any:
        """Return a type of frames by the name under which hooks know it: `polars.DataFrame`."""
        library, _, cls = name.rpartition(".")
        return getattr(import_module(library), cls)

    def convert(self, obj: Any, as_type: Any, label: str = "table") -> Any:
        """Return a frame as another library's, or as it is if it is of that type already."""
        if isinstance(obj, as_type):
            return obj
        name, wanted = type_name(type(obj)), type_name(as_type)
        if wanted == "polars.LazyFrame" and name == "polars.DataFrame":
            return obj.lazy()
        if wanted == "polars.DataFrame" and name == "polars.LazyFrame":
            return obj.collect()
        return self.from_arrow(self.to_arrow(obj, path=label), as_type, label)

    def query_text(self, obj: Any) -> str:
        """Return a query that reads no input, as text of DuckDB's dialect."""
        hook = self.hook_of(type(obj), obj)
        assert hook is not None
        data = hook.write(obj, WriteContext(_NO_SESSION, QUERIES, "", "", self._hooks.args(hook)))
        assert isinstance(data, QueryData)
        return data.text

    def settled(self, obj: Any) -> Any:
        """Return a frame that is computed: lazy ones are collected, and streams are read."""
        if type_name(type(obj)) == "polars.LazyFrame":
            return obj.collect()
        return self.to_arrow(obj)

    def sharer(self, cls: type, obj: Any) -> Callable[[Any], Any] | None:
        """Return what makes a frame of this class that can be changed in place without changing the one given; None if there is no need."""
        hook = self.hook_of(cls, obj)
        return hook.share if isinstance(hook, SharingHook) else None

    def storing(self, cls: type, obj: Any, who: str) -> Callable[[Any], Any] | None:
        """Return what gives a frame of this class as a consumer in training would get it; None if that is as it is."""
        hook = self.hook_of(cls, obj)
        if not isinstance(hook, SharingHook):
            return None
        return hook.storing(WriteContext(_NO_SESSION, CAPABILITIES, who, "", self._hooks.args(cast("TableHook", hook))))

    def sql_types(self, types: Mapping[str, Any]) -> dict[str, str]:
        """Return types of columns, in the terms of any library, as text of DuckDB's dialect."""
        return {name: self._hooks.sql_type(kind, "duckdb") for name, kind in types.items()}

    def retyped(self, obj: Any, types: Mapping[str, Any], who: str) -> Any:
        """Return a frame with some columns cast, exactly or not at all: column -> Arrow type."""
        table = self.to_arrow(self.settled(obj) if self.is_lazy(type(obj)) else obj, who)
        made = import_module("pipedag_core.stores.parquet_files").retyped(table.to_reader(), types, who).read_all()
        return self.from_arrow(made, type(obj))

    def args(self, hook: TableHook) -> Mapping[str, Any]:
        """Return the options of a hook."""
        return self._hooks.args(hook)


_NO_SESSION: Any = MemorySession(None)
