from __future__ import annotations

import pytest

from pipedag_core.stores.parquet import ParquetStore
from pipedag_core.testing.table_store_contract import TableStoreContract


class TestParquetStore(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = ParquetStore(tmp_path / "tables", threads=1)
        yield store
        store.close()


class TestParquetStoreInAFolderWithAStrangeName(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = ParquetStore(tmp_path / "it's [a] *Größe* = 1;--", threads=1)
        yield store
        store.close()
