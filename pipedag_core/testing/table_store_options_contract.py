"""What every table store has to pass about the options of a table: types, nulls, keys and indexes that were declared."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipedag_core.errors import MaterializationError
from pipedag_core.ports.data import BatchData, Form, QueryData, TableData, TableOptions
from pipedag_core.ports.stores import TableStore
from pipedag_core.testing.table_store_samples import keep, rows

_TABLE = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "x": pa.array([0.5, None, 1.5]), "name": ["a", "b", "b"]})
_QUERY = "SELECT 1 AS id, 0.5 AS x, 'a' AS name UNION ALL SELECT 2, NULL, 'b' UNION ALL SELECT 3, 1.5, 'b'"


class TableStoreOptionsContract:
    """Options of tables; part of `TableStoreContract`."""

    @pytest.fixture(params=["batches", "query"])
    def data(self, request: pytest.FixtureRequest, store: TableStore) -> TableData:
        """Three rows: `id` 1 to 3, `x` with one null, `name` with one value twice."""
        form = Form(request.param)
        if form not in store.capabilities.writes:
            pytest.skip(f"this store takes no {form.value}")
        return BatchData(lambda: _TABLE, in_memory=True) if form is Form.BATCHES else QueryData(_QUERY)

    @pytest.mark.parametrize(
        ("options", "column"),
        [
            (TableOptions(primary_key=("nope",)), "nope"),
            (TableOptions(indexes=(("id",), ("nope",))), "nope"),
            (TableOptions(nullable=("nope",)), "nope"),
            (TableOptions(non_nullable=("nope",)), "nope"),
            (TableOptions(type_map={"nope": "BIGINT"}), "nope"),
            (TableOptions(primary_key=("id", "id")), "id"),
            (TableOptions(indexes=(("id", "id"),)), "id"),
            (TableOptions(primary_key=("id",), nullable=("id", "x", "name")), "id"),
            (TableOptions(nullable=("x",), non_nullable=("id",)), "name"),
        ],
    )
    def test_options_that_do_not_fit_the_columns_are_refused_by_name(
        self, store: TableStore, data: TableData, options: TableOptions, column: str
    ) -> None:
        with store.session("f.t") as session, pytest.raises(MaterializationError, match=f"'{column}'"):
            keep(session, data, "wanted", options=options)

    def test_an_unknown_column_is_named_with_the_columns_that_there_are(self, store: TableStore, data: TableData) -> None:
        with store.session("f.t") as session, pytest.raises(MaterializationError, match=r"'nope'.*'id', 'x', 'name'"):
            keep(session, data, options=TableOptions(non_nullable=("nope",)))

    @pytest.mark.parametrize(
        ("options", "nullable"),
        [
            (TableOptions(nullable=("x",)), ["x"]),
            (TableOptions(non_nullable=("id",)), ["x", "name"]),
            (TableOptions(nullable=("x", "name"), non_nullable=("id",)), ["x", "name"]),
            (TableOptions(primary_key=("id",), nullable=("x",), non_nullable=("name",)), ["x"]),
            (TableOptions(nullable=("id", "x", "name")), ["id", "x", "name"]),
        ],
    )
    def test_nullability_is_recorded_as_declared(
        self, store: TableStore, data: TableData, options: TableOptions, nullable: list[str]
    ) -> None:
        with store.session("f.t") as session:
            stored = keep(session, data, options=options)
            assert [column.name for column in stored.schema.columns if column.nullable] == nullable
            assert len(rows(session, stored)) == 3

    @pytest.mark.parametrize(
        "options", [TableOptions(non_nullable=("x",)), TableOptions(nullable=("id", "name")), TableOptions(primary_key=("x",))]
    )
    def test_a_null_where_none_may_be_is_an_error_with_the_column_and_leaves_nothing(
        self, store: TableStore, data: TableData, options: TableOptions
    ) -> None:
        with store.session("f.t") as session:
            before = len(store.deposits())
            with pytest.raises(MaterializationError, match=r"(?s)wanted.*x"):
                keep(session, data, "wanted", options=options)
            assert len(store.deposits()) == before

    def test_a_key_that_is_unique_is_kept_and_one_that_is_not_is_an_error_that_leaves_nothing(
        self, store: TableStore, data: TableData
    ) -> None:
        with store.session("f.t") as session:
            for key in (("id",), ("id", "name")):
                stored = keep(session, data, options=TableOptions(primary_key=key, indexes=(("name",), ("x", "name"))))
                assert sorted(row["id"] for row in rows(session, stored)) == [1, 2, 3]
            before = len(store.deposits())
            with pytest.raises(MaterializationError, match=r"(?s)wanted.*name"):
                keep(session, data, "wanted", options=TableOptions(primary_key=("name",)))
            assert len(store.deposits()) == before

    def test_columns_get_the_types_that_were_declared(self, store: TableStore, data: TableData) -> None:
        with store.session("f.t") as session:
            stored = keep(session, data, options=TableOptions(type_map={"id": "SMALLINT", "x": "DECIMAL(10,2)"}))
            assert [column.type for column in stored.schema.columns][:2] == ["int16", "decimal128(10, 2)"]
            assert sorted(row["id"] for row in rows(session, stored)) == [1, 2, 3]

    def test_a_value_that_does_not_fit_its_declared_type_is_an_error(self, store: TableStore) -> None:
        for data in (BatchData(lambda: pa.table({"id": [100_000]}), in_memory=True), QueryData("SELECT 100000 AS id")):
            with store.session("f.t") as session, pytest.raises(MaterializationError, match="wanted"):
                keep(session, data, "wanted", options=TableOptions(type_map={"id": "SMALLINT"}))
