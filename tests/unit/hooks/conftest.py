"""A folder of Parquet files that gives and takes tables in every form, for hooks to meet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.hooks.registry import Hooks
from pipedag_core.naming import quote_literal
from pipedag_core.ports.data import BatchData, BatchSource, FileData, FileSource, Form, QuerySource, StoredTable
from pipedag_core.ports.hooks import ReadContext, WriteContext
from pipedag_core.ports.stores import Capabilities

ALL = frozenset(Form)


@dataclass
class Folder:
    path: Path
    forms: frozenset[Form] = ALL
    dialect: str = "duckdb"
    connection: duckdb.DuckDBPyConnection = field(default_factory=duckdb.connect)
    numbers: itertools.count = field(default_factory=itertools.count)

    def read(self, table: StoredTable, form: Form):
        if form is Form.FILES:
            return FileSource((table.location,))
        if form is Form.QUERY:
            return QuerySource(f"read_parquet({quote_literal(table.location)})", self.connection)
        return BatchSource(pq.read_table(table.location).to_reader())

    @property
    def capabilities(self):
        return Capabilities(self.forms, self.forms, self.dialect, 63)

    def keep(self, data, name="flights") -> StoredTable:
        """Write what a hook handed over."""
        path = str(self.path / f"{name} =[x]*-{next(self.numbers)}.parquet")
        if isinstance(data, FileData):
            data.write(path)
        else:
            assert isinstance(data, BatchData)
            pq.write_table(pa.RecordBatchReader.from_stream(data.stream()).read_all(), path)
        schema = from_arrow(pq.read_schema(path))
        return StoredTable("id", "raw", 1, name, path, schema, "identity", rows=data.rows)

    def writing(self, **args):
        return WriteContext(self, self.capabilities, "clean", "flights", args)

    def reading(self, label="flights", **args):
        return ReadContext(self, self.capabilities, label, label.rpartition(".")[2], args)


@pytest.fixture
def folder(tmp_path):
    result = Folder(tmp_path)
    yield result
    result.connection.close()


@pytest.fixture
def through(folder):
    """Write an object with its hook, and read it as a type."""

    def go(obj, as_type, forms=ALL, **args):
        folder.forms = forms
        hooks = Hooks()
        stored = folder.keep(hooks.for_object(obj).write(obj, folder.writing()))
        return hooks.for_type(as_type).read(stored, as_type, folder.reading(**args))

    return go


@pytest.fixture
def flights():
    return pa.table(
        {"carrier": ["UA", "b'6", None], "delay": pa.array([1, None, 2**60 + 1], pa.int64()), "gain": [1.5, float("nan"), None]}
    )
