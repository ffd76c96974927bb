from __future__ import annotations

import pytest

from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_contract import TableStoreContract


class TestPostgresStore(TableStoreContract):
    @pytest.fixture
    def store(self, postgres_url, schema_prefix):
        store = SqlStore(postgres_url, schema_prefix=schema_prefix)
        yield store
        store.close()


class TestPostgresStoreWithAStrangePrefix(TableStoreContract):
    @pytest.fixture
    def store(self, postgres_url, schema_prefix):
        store = SqlStore(postgres_url, schema_prefix=f"{schema_prefix}It's\"a;", schema_suffix="-ß")
        yield store
        store.close()
