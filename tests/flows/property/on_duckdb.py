"""Edited flows on a DuckDB file: what readers see is always what the flow says; compared as on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipedag_core import PipedagConfig
from pipedag_core.ports.data import BatchSource, Form, StoredTable
from tests.flows.property.contents import Row
from tests.flows.property.instance import Instance
from tests.flows.property.memory import Retention
from tests.flows.property.on_postgres import EditedOnPostgres


class DuckdbInstance(Instance):
    """An instance in a DuckDB file."""

    def make_config(self) -> Any:
        store = {"class": "sql", "args": {"url": f"duckdb:///{self.folder}/{{instance_id}}.duckdb"}}
        blobs = {"class": "file", "args": {"base_path": str(self.folder / "{instance_id}")}}
        return PipedagConfig({"instances": {"i": {"table_store": store, "blob_store": blobs, "retention": self.retention}}}).get("i")

    @property
    def world_folder(self) -> Path | None:
        return None

    def close(self) -> None:
        self.stack.close()
        shutil.rmtree(self.folder)

    def rows(self, table: StoredTable, *, known: bool) -> pa.Table | None:
        source = self.access.read(table, Form.BATCHES)
        assert isinstance(source, BatchSource)
        return pa.RecordBatchReader.from_stream(source.stream).read_all()

    def explored(self) -> Mapping[str, Mapping[str, Sequence[Row]]]:
        """Return stage -> name -> rows, sorted, of what readers find under the readable names."""
        result: dict[str, dict[str, Sequence[Row]]] = {}
        with duckdb.connect(self.folder / "i.duckdb", read_only=True) as connection:
            views = "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal AND NOT regexp_matches(schema_name, '__g[0-9]+$')"
            for schema, name in connection.execute(views).fetchall():
                rows = connection.execute(f'SELECT * FROM "{schema}"."{name}"').fetchall()
                result.setdefault(schema, {})[self.unique.get(name, name)] = sorted(rows)
        return result


class EditedOnDuckdb(EditedOnPostgres):
    """A life in a DuckDB file."""

    def open_instance(self, retention: Retention) -> Instance:
        return DuckdbInstance(self.new_folder(), retention)
