"""What every table store has to pass about comparing the rows of two tables."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipedag_core.errors import StoredDataMissing
from pipedag_core.ports.data import BatchData, QueryData, RowDifference, StoredTable
from pipedag_core.ports.stores import TableStore
from pipedag_core.testing.table_store_samples import keep

_NAN = float("nan")


class TableStoreDifferenceContract:
    """Comparing rows; part of `TableStoreContract`."""

    def test_rows_with_a_key_are_added_removed_or_changed(self, store: TableStore) -> None:
        before = _kept(store, {"id": [1, 2, 3, 4], "x": [1.0, 2.0, None, 4.0], "y": ["a", "b", "c", "d"]})
        after = _kept(store, {"id": [5, 4, 3, 2], "x": [5.0, 4.0, 3.0, 9.0], "y": ["e", "d", "c", "B"]})
        assert _difference(store, before, after, "id") == RowDifference(1, 1, 2, {"x": 2, "y": 1})

    def test_a_key_may_be_of_several_columns(self, store: TableStore) -> None:
        before = _kept(store, {"a": [1, 1, 2], "b": ["x", "y", "x"], "v": [1, 2, 3]})
        after = _kept(store, {"a": [1, 1, 3], "b": ["x", "y", "x"], "v": [1, 0, 3]})
        assert _difference(store, before, after, "a", "b") == RowDifference(1, 1, 1, {"v": 1})

    def test_without_a_key_it_counts_how_often_a_row_occurs(self, store: TableStore) -> None:
        before = _kept(store, {"x": [1, 1, 1, 2, None], "y": ["a", "a", "a", None, None]})
        after = _kept(store, {"x": [1, 3, None, None], "y": ["a", "c", None, None]})
        assert _difference(store, before, after) == RowDifference(2, 3)

    @pytest.mark.parametrize("key", [(), ("id",)])
    def test_equal_rows_in_another_order_do_not_differ(self, store: TableStore, key: tuple[str, ...]) -> None:
        values = [
            (1, _NAN, None, Decimal("1.50"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), b"\0"),
            (2, float("inf"), "", Decimal("-2.00"), None, b""),
            (3, None, "Ä", None, dt.datetime(1900, 1, 1, tzinfo=dt.UTC), None),
        ]
        names = ("id", "x", "s", "d", "t", "b")
        before, after = (_kept(store, dict(zip(names, zip(*rows, strict=True), strict=True))) for rows in (values, values[::-1]))
        assert _difference(store, before, after, *key).is_empty
        assert _difference(store, before, before, *key).is_empty

    def test_all_columns_of_a_table_may_be_its_key(self, store: TableStore) -> None:
        before, after = _kept(store, {"id": [1, 2]}), _kept(store, {"id": [2, 3]})
        assert _difference(store, before, after, "id") == RowDifference(1, 1, 0)

    def test_tables_without_rows_can_be_compared(self, store: TableStore) -> None:
        some = _kept(store, {"id": [1, 2], "x": ["a", "b"]})
        none = _kept(store, {"id": pa.array([], pa.int64()), "x": pa.array([], pa.string())})
        assert _difference(store, none, some, "id") == RowDifference(2, 0, 0)
        assert _difference(store, some, none) == RowDifference(0, 2)
        assert _difference(store, none, none).is_empty

    def test_numbers_of_two_types_are_compared_by_value(self, store: TableStore) -> None:
        before, after = _kept(store, {"id": [1, 2], "x": [1, 2]}), _kept(store, {"id": [1, 2], "x": [1.0, 2.5]})
        assert _difference(store, before, after, "id") == RowDifference(0, 0, 1, {"x": 1})

    def test_strange_names_of_columns_can_be_compared(self, store: TableStore) -> None:
        names = ['x"; drop table y; --', "there", "k0", "c0", "n", "select", "Ä b"]
        before = _kept(store, {"id": [1, 2], **{name: [1, 2] for name in names}})
        after = _kept(store, {"id": [1, 2], **{name: [1, 3] for name in names}})
        assert _difference(store, before, after, "id") == RowDifference(0, 0, 1, dict.fromkeys(names, 1))
        assert _difference(store, before, after) == RowDifference(1, 1)

    def test_a_table_made_by_a_query_can_be_compared_with_one_of_rows(self, store: TableStore) -> None:
        with store.session("f.query") as session:
            queried = keep(session, QueryData("SELECT CAST(1 AS BIGINT) AS id, 'a' AS s UNION ALL SELECT 2, 'b'"), "queried")
        assert _difference(store, queried, _kept(store, {"id": [1, 2], "s": ["a", "c"]}), "id") == RowDifference(0, 0, 1, {"s": 1})

    def test_comparing_with_a_table_that_is_gone_names_it(self, store: TableStore) -> None:
        before, after = _kept(store, {"id": [1]}), _kept(store, {"id": [1]})
        store.drop([before.location])
        for one, other in ((before, after), (after, before)):
            with pytest.raises(StoredDataMissing) as caught:
                _difference(store, one, other, "id")
            assert caught.value.__dict__["object_id"] == before.id

    def test_tables_of_another_instance_in_the_same_place_can_be_compared(self, store: TableStore) -> None:
        before, after = _kept(store, {"id": [1, 2]}), _kept(store, {"id": [2, 3]})
        with store.session("f.t") as session:
            assert session.compare_rows(store.seen_by_others(before), after, ("id",), ("id",)) == RowDifference(1, 1, 0)


def _kept(store: TableStore, columns: Mapping[str, Sequence[Any] | pa.Array]) -> StoredTable:
    table = pa.table({name: values if isinstance(values, pa.Array) else list(values) for name, values in columns.items()})
    with store.session("f.t") as session:
        return keep(session, BatchData(lambda: table, in_memory=True))


def _difference(store: TableStore, before: StoredTable, after: StoredTable, *key: str) -> RowDifference:
    with store.session("pipedag diff") as session:
        return session.compare_rows(before, after, before.schema.names, key)
