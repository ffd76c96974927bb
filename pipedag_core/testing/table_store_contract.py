"""What every table store has to pass: subclass `TableStoreContract` and give it the fixture `store`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipedag_core.errors import MaterializationError, PipedagError, StoredDataMissing
from pipedag_core.ports.data import BatchData, FileData, Form, QueryData, StoredTable
from pipedag_core.ports.stores import TableStore
from pipedag_core.testing.table_store_difference_contract import TableStoreDifferenceContract
from pipedag_core.testing.table_store_options_contract import TableStoreOptionsContract
from pipedag_core.testing.table_store_samples import keep, rows, target
from pipedag_core.testing.table_store_sources_contract import TableStoreSourcesContract
from pipedag_core.testing.table_store_sql_contract import TableStoreSqlContract

#: Names that break whatever pastes names into SQL or paths.
STRANGE_NAMES = [
    "a b",
    'quo"te',
    "quo'te",
    "größe",
    "🦆",
    "select",
    "a.b",
    "a;b",
    'x"; drop table y; --',
    "a=b",
    "*",
    "a/b",
    "..",
    "%41",
    "x.a2",
    "a\\b",
]


class TableStoreContract(TableStoreDifferenceContract, TableStoreOptionsContract, TableStoreSourcesContract, TableStoreSqlContract):
    """Tables.

    Subclasses override the fixtures `store` and `make_external`; an adding of `drop_past_store` lets damage be tested too.
    """

    @pytest.fixture
    def store(self) -> TableStore:
        """Return an empty store."""
        raise NotImplementedError("Override the fixture `store` in your subclass of TableStoreContract.")

    @pytest.fixture
    def rows_as_table(self) -> pa.Table:
        """A table with nulls, and with types that all stores keep."""
        return pa.table(
            {"id": pa.array([1, 2, None], pa.int64()), "x": [0.5, None, float("inf")], "name": ["Ä", "", None], "ok": [True, None, False]}
        )

    # --- round trips --------------------------------------------------------------------------------------------------------------

    def test_batches_come_back_equal_and_in_order(self, store: TableStore, rows_as_table: pa.Table) -> None:
        _need(store.capabilities.writes, Form.BATCHES)
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: rows_as_table, in_memory=True))
            assert rows(session, stored) == rows_as_table.to_pylist()
            assert stored.schema.names == ("id", "x", "name", "ok")
            assert stored.rows == 3

    def test_a_stream_of_many_batches_comes_back_in_order(self, store: TableStore) -> None:
        _need(store.capabilities.writes, Form.BATCHES)
        schema = pa.schema([("i", pa.int64())])
        parts = [pa.record_batch({"i": pa.array(range(start, start + 50_000), pa.int64())}) for start in range(0, 300_000, 50_000)]
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: pa.RecordBatchReader.from_batches(schema, iter(parts)), in_memory=False))
            assert [row["i"] for row in rows(session, stored)] == list(range(300_000))

    def test_files_come_back_equal(self, store: TableStore, rows_as_table: pa.Table) -> None:
        _need(store.capabilities.writes, Form.FILES)
        with store.session("f.t") as session:
            stored = keep(session, FileData(lambda path: pq.write_table(rows_as_table, path), lambda: rows_as_table))
            assert rows(session, stored) == rows_as_table.to_pylist()

    def test_a_query_is_kept_as_its_rows(self, store: TableStore) -> None:
        _need(store.capabilities.writes, Form.QUERY)
        with store.session("f.t") as session:
            stored = keep(session, QueryData("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, NULL ORDER BY a"))
            assert rows(session, stored) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]

    def test_every_offered_form_reads_the_same_rows(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: rows_as_table, in_memory=True))
            for form in store.capabilities.reads:
                assert rows(session, stored, form) == rows_as_table.to_pylist()

    def test_a_sum_of_integers_stays_an_exact_integer(self, store: TableStore) -> None:
        _need(store.capabilities.writes, Form.QUERY)
        with store.session("f.t") as session:
            stored = keep(session, QueryData("SELECT SUM(x) AS s FROM (SELECT 9007199254740993 AS x UNION ALL SELECT 2) AS t"))
            assert rows(session, stored) == [{"s": 9007199254740995}]

    def test_a_table_without_rows_keeps_its_columns(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            for number, data in enumerate(
                [BatchData(lambda: rows_as_table.slice(0, 0), in_memory=True), QueryData("SELECT 1 AS id, 'x' AS x WHERE 1 = 0")]
            ):
                stored = keep(session, data, f"t{number}", hash_content=True)
                assert stored.rows == 0
                assert rows(session, stored) == []
                assert stored.schema.names[:2] == ("id", "x")

    def test_what_one_session_wrote_another_reads(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: rows_as_table, in_memory=True))
        store.close()
        with store.session("f.u") as session:
            assert rows(session, stored) == rows_as_table.to_pylist()

    # --- names --------------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", STRANGE_NAMES)
    def test_strange_names_of_stages_and_tables_are_just_names(self, store: TableStore, rows_as_table: pa.Table, name: str) -> None:
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: rows_as_table, in_memory=True), name, stage=name)
            assert rows(session, stored) == rows_as_table.to_pylist()
            store.show({name: {name: stored}})
            store.drop([stored.location])
            assert list(store.missing([stored])) == [stored]

    def test_strange_names_of_columns_are_just_names(self, store: TableStore) -> None:
        names = [*STRANGE_NAMES, "Upper", "with\nline end", "count(*)"]
        table = pa.table([[number] for number in range(len(names))], names=names)
        with store.session("f.t") as session:
            stored = keep(session, BatchData(lambda: table, in_memory=True), hash_content=True)
            assert stored.schema.names == tuple(names)
            for form in store.capabilities.reads:
                assert rows(session, stored, form) == table.to_pylist()

    def test_names_that_look_like_paths_or_attempts_stay_apart(self, store: TableStore) -> None:
        with store.session("f.t") as session:
            tables = [pa.table({"i": [number]}) for number in range(len(STRANGE_NAMES))]
            stored = [
                keep(session, BatchData(lambda t=table: t, in_memory=True), name) for table, name in zip(tables, STRANGE_NAMES, strict=True)
            ]
            assert [rows(session, one)[0]["i"] for one in stored] == list(range(len(STRANGE_NAMES)))

    # --- nothing is written over, nothing half-written stays ---------------------------------------------------------------------

    def test_a_second_attempt_gets_its_own_place(self, store: TableStore) -> None:
        with store.session("f.t") as session:
            first = keep(session, BatchData(lambda: pa.table({"i": [1]}), in_memory=True))
            second = keep(session, BatchData(lambda: pa.table({"i": [2]}), in_memory=True))
            assert first.location != second.location
            assert [rows(session, first), rows(session, second)] == [[{"i": 1}], [{"i": 2}]]

    def test_many_threads_write_one_name_without_overwriting(self, store: TableStore) -> None:
        count = 8
        barrier = threading.Barrier(count)

        def write(number: int) -> StoredTable:
            with store.session(f"f.t{number}") as session:
                barrier.wait()
                return keep(session, BatchData(lambda: pa.table({"i": [number]}), in_memory=True))

        with ThreadPoolExecutor(count) as pool:
            stored = list(pool.map(write, range(count)))
        with store.session("f.t") as session:
            assert [rows(session, one)[0]["i"] for one in stored] == list(range(count))

    def test_an_error_while_rows_stream_is_the_users_own_and_leaves_nothing(self, store: TableStore) -> None:
        def broken() -> Any:
            yield pa.record_batch({"i": [1]})
            raise ZeroDivisionError("in the user's code")

        with store.session("f.t") as session:
            first = keep(session, BatchData(lambda: pa.table({"i": [1]}), in_memory=True), "other")
            with pytest.raises(ZeroDivisionError, match="in the user's code"):
                keep(
                    session,
                    BatchData(lambda: pa.RecordBatchReader.from_batches(pa.schema([("i", pa.int64())]), broken()), in_memory=False),
                    "t",
                )
            stored = keep(session, BatchData(lambda: pa.table({"i": [2]}), in_memory=True), "t")
            # The place of the failed attempt is free again.
            assert stored.location == first.location.replace("other", "t")

    @pytest.mark.parametrize("query", ["SELECT 1 AS a, 2 AS a", "SELECT no_such_column", "SELEC 1", "SELECT 1 AS a FROM no_such_table"])
    def test_a_query_that_cannot_be_kept_is_refused_with_its_text(self, store: TableStore, query: str) -> None:
        _need(store.capabilities.writes, Form.QUERY)
        with store.session("f.t") as session:
            with pytest.raises(MaterializationError) as caught:
                keep(session, QueryData(query), "wanted")
            assert "wanted" in str(caught.value)

    def test_columns_that_cannot_be_told_apart_are_refused(self, store: TableStore) -> None:
        for names in (["a", "a"], ["a", ""], []):
            table = pa.table([[1]] * len(names), names=names)
            with store.session("f.t") as session, pytest.raises(MaterializationError, match="wanted"):
                keep(session, BatchData(lambda t=table: t, in_memory=True), "wanted")

    # --- content hashes -----------------------------------------------------------------------------------------------------------

    def test_rows_in_memory_have_the_hash_that_writing_them_gives(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            data = BatchData(lambda: rows_as_table, in_memory=True)
            expected = session.hash_rows(data)
            assert expected is not None
            assert keep(session, data, hash_content=True).content_hash == expected
            assert session.hash_rows(BatchData(lambda: pa.table({"id": [1]}), in_memory=True)) != expected
            if Form.FILES in store.capabilities.writes:
                files = FileData(lambda path: pq.write_table(rows_as_table, path), lambda: rows_as_table)
                assert session.hash_rows(files) == keep(session, files, hash_content=True).content_hash == expected

    def test_rows_that_are_not_in_memory_have_no_hash_beforehand(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            assert session.hash_rows(QueryData("SELECT 1 AS a")) is None
            assert session.hash_rows(BatchData(rows_as_table.to_reader, in_memory=False)) is None

    def test_queries_with_equal_rows_have_equal_hashes_where_there_are_any(self, store: TableStore) -> None:
        _need(store.capabilities.writes, Form.QUERY)
        with store.session("f.t") as session:
            same = [
                keep(session, QueryData(q), hash_content=True).content_hash
                for q in ("SELECT 1 AS a, 'x' AS b", "SELECT 2 - 1 AS a, lower('X') AS b")
            ]
            other = [
                keep(session, QueryData(q), hash_content=True).content_hash for q in ("SELECT 1 AS a, 'X' AS b", "SELECT 1 AS a, 'x' AS c")
            ]
        if same[0] is not None:
            assert same[0] == same[1]
            assert len({same[0], *other}) == 3

    def test_no_hash_is_made_unless_it_is_wanted(self, store: TableStore, rows_as_table: pa.Table) -> None:
        with store.session("f.t") as session:
            assert keep(session, BatchData(lambda: rows_as_table, in_memory=True)).content_hash is None

    # --- missing, dropped, shown --------------------------------------------------------------------------------------------------

    def test_a_dropped_table_is_missing_and_dropping_it_again_is_no_error(self, store: TableStore) -> None:
        with store.session("f.t") as session:
            stored = [keep(session, BatchData(lambda: pa.table({"i": [1]}), in_memory=True), name) for name in ("a", "b")]
        assert list(store.missing(stored)) == []
        store.drop([stored[0].location])
        store.drop([stored[0].location])
        assert list(store.missing(stored)) == [stored[0]]
        with store.session("f.t") as session:
            assert rows(session, stored[1]) == [{"i": 1}]
            for form in store.capabilities.reads:
                with pytest.raises(StoredDataMissing, match="a"):
                    rows(session, stored[0], form)

    def test_showing_may_be_repeated_and_changed(self, store: TableStore) -> None:
        with store.session("f.t") as session:
            one, two = (keep(session, BatchData(lambda n=n: pa.table({"i": [n]}), in_memory=True), f"t{n}", stage="s") for n in (1, 2))
        for shown in ({"s": {"t": one}}, {"s": {"t": one}}, {"s": {"t": two, "u": one}, "empty": {}}, {}):
            store.show(shown)

    def test_a_store_knows_whether_it_shows_what_it_should(self, store: TableStore) -> None:
        with store.session("f.t") as session:
            one, two = (keep(session, BatchData(lambda n=n: pa.table({"i": [n]}), in_memory=True), f"t{n}", stage="s") for n in (1, 2))
        assert not store.shows({"s": {"t": one}})
        store.show({"s": {"t": one}})
        assert store.shows({"s": {"t": one}})
        for other in ({"s": {"t": two}}, {"s": {"u": one}}, {"s": {"t": one, "u": two}}, {"s": {"t": one}, "empty": {}}, {}):
            assert not store.shows(other)

    def test_everything_that_lies_in_the_store_is_told_recorded_or_not(self, store: TableStore) -> None:
        assert list(store.deposits()) == []
        before = time.time() - 60
        with store.session("f.t") as session:
            stored = [
                keep(session, BatchData(lambda: pa.table({"i": [1]}), in_memory=True), name, stage=stage, generation=number)
                for number, stage in enumerate(STRANGE_NAMES, 1)
                for name in ("t", "t", "u")
            ]
        found = {item.location: item for item in store.deposits()}
        assert found.keys() == {table.location for table in stored}
        for table in stored:
            item = found[table.location]
            assert (item.stage, item.generation) == (table.stage, table.generation)
            assert item.size in (None, table.size)
            assert item.changed == 0.0 or item.changed > before
        store.drop(list(found))
        assert list(store.deposits()) == []

    def test_a_damaged_catalog_cannot_make_the_store_touch_other_things(self, store: TableStore) -> None:
        for location in ("../../etc/passwd", "/etc/passwd", "s/g1/../../x.parquet", "", "catalog.sqlite"):
            with pytest.raises(PipedagError):
                store.drop([location])


def _need(offered: frozenset[Form], form: Form) -> None:
    if form not in offered:
        pytest.skip(f"the store does not offer {form.value}")


__all__ = ["STRANGE_NAMES", "TableStoreContract", "target"]
