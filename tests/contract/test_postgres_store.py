from __future__ import annotations

import psycopg
import pytest

from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_contract import TableStoreContract


class WithOthers:
    @pytest.fixture
    def make_external(self, postgres_url, schema_prefix):
        def make(table):
            kinds = {"int64": "bigint", "string": "text", "double": "double precision"}
            columns = ", ".join(f"{field.name} {kinds[str(field.type)]}" for field in table.schema)
            place = f'"{schema_prefix}theirs"."Table"'
            with psycopg.connect(postgres_url, autocommit=True) as connection:
                connection.execute(f'CREATE SCHEMA "{schema_prefix}theirs"')
                connection.execute(f"CREATE TABLE {place} ({columns})")
                marks = ", ".join(["%s"] * table.num_columns)
                connection.cursor().executemany(f"INSERT INTO {place} VALUES ({marks})", [tuple(row.values()) for row in table.to_pylist()])
            return f"{schema_prefix}theirs", "Table"

        return make


class TestPostgresStore(WithOthers, TableStoreContract):
    @pytest.fixture
    def store(self, postgres_url, schema_prefix):
        store = SqlStore(postgres_url, schema_prefix=schema_prefix)
        yield store
        store.close()


class TestPostgresStoreWithAStrangePrefix(WithOthers, TableStoreContract):
    @pytest.fixture
    def store(self, postgres_url, schema_prefix):
        store = SqlStore(postgres_url, schema_prefix=f"{schema_prefix}It's\"a;", schema_suffix="-ß")
        yield store
        store.close()
