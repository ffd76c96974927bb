from __future__ import annotations

import psycopg
import pytest

from pipedag_core.ports.data import QueryData, RowDifference
from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_contract import TableStoreContract
from pipedag_core.testing.table_store_samples import keep


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

    def test_types_without_equality_are_compared_by_their_text(self, store):
        with store.session("f.t") as session:
            texts = "'{\"a\": 1}'::json AS j, point(1, 2) AS p, ARRAY['1'::json] AS l"
            one = keep(session, QueryData(f"SELECT 1 AS id, {texts}, '[1]'::text AS t"), "one")
            other = keep(session, QueryData(f"SELECT 1 AS id, {texts.replace('1, 2', '1, 3')}, '[1]'::jsonb AS t"), "other")
            assert session.compare_rows(one, one, one.schema.names, ("id",)).is_empty
            assert session.compare_rows(one, other, one.schema.names, ("id",)) == RowDifference(0, 0, 1, {"p": 1})
            assert session.compare_rows(one, other, one.schema.names, ()) == RowDifference(1, 1)


class TestPostgresStoreWithAStrangePrefix(WithOthers, TableStoreContract):
    @pytest.fixture
    def store(self, postgres_url, schema_prefix):
        store = SqlStore(postgres_url, schema_prefix=f"{schema_prefix}It's\"a;", schema_suffix="-ß")
        yield store
        store.close()
