from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from pipedag_core.stores.parquet import ParquetStore
from pipedag_core.testing.table_store_contract import TableStoreContract


class TestParquetStore(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = ParquetStore(tmp_path / "tables", threads=1, external_schemas={"theirs": tmp_path / "their files"})
        yield store
        store.close()

    @pytest.fixture
    def make_external(self, tmp_path):
        def make(table):
            (tmp_path / "their files").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "their files" / "Table.parquet")
            return "theirs", "Table"

        return make


class TestParquetStoreInAFolderWithAStrangeName(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = ParquetStore(tmp_path / "it's [a] *Größe* = 1;--", threads=1)
        yield store
        store.close()

    @pytest.fixture
    def make_external(self, tmp_path):
        def make(table):
            """Make a table of several files, in a folder that is named by its path."""
            folder = tmp_path / "it's [their] *Größe* = 1;--" / "Table=1"
            folder.mkdir(parents=True)
            for number in range(table.num_rows):
                pq.write_table(table.slice(number, 1), folder / f"{number}.parquet")
            return str(folder.parent), folder.name

        return make
