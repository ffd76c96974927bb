"""Values that training has left behind, cut off from any store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, final

from pipedag_core.define.values import Blob
from pipedag_core.define.walk import map_leaves
from pipedag_core.run.inputs import RawTables


@final
@dataclass(frozen=True)
class FrozenTable:
    """A table as the bytes of one Parquet file.

    Attributes:
        parquet: The bytes, as the store had them.
        name: `stage.name`, for people.
    """

    parquet: bytes = field(repr=False)
    name: str

    @cached_property
    def arrow(self) -> Any:
        """The rows as a `pyarrow.Table`."""
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
        return pq.ParquetFile(pa.BufferReader(self.parquet)).read().replace_schema_metadata(None)


@final
@dataclass(frozen=True)
class FrozenBlob:
    """Any object.

    Attributes:
        obj: The object; shared by all threads, so nobody changes it.
        name: `stage.name`, for people.
    """

    obj: Any = field(repr=False)
    name: str


def thawed(value: Any) -> Any:
    """Return a frozen value as a run uses it: tables as `pyarrow.Table`, blobs as `Blob`."""

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, RawTables):
            return item.map(leaf)
        if isinstance(item, FrozenTable):
            return item.arrow
        return Blob(item.obj) if isinstance(item, FrozenBlob) else item

    return map_leaves(value, leaf)


def parquet_of(table: Any) -> bytes:
    """Return an Arrow table as the bytes of a Parquet file; equal tables give equal bytes."""
    pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def map_frozen(value: Any, function: Callable[[Any, str], Any]) -> Any:
    """Rebuild a nest with `function(leaf, path)`, going into the tables of scripts."""

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, RawTables):
            return item.map(lambda table, name: function(table, f"{path}.{name}" if path else name))
        return function(item, path)

    return map_leaves(value, leaf)
