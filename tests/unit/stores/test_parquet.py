from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedag_core.errors import FlowError, MaterializationError, StoredDataMissing, StoreError
from pipedag_core.ports.data import BatchData, FileData, Form, QueryData, TableOptions
from pipedag_core.stores import explore
from pipedag_core.stores.parquet import ParquetStore
from pipedag_core.testing.table_store_samples import ask, keep, prepare, rows, target


@pytest.fixture
def store(tmp_path):
    store = ParquetStore(tmp_path / "tables", threads=1)
    yield store
    store.close()


@pytest.fixture
def session(store):
    with store.session("flow.task") as session:
        yield session


def batch(**columns) -> BatchData:
    table = pa.table(columns)
    return BatchData(lambda: table, in_memory=True)


def test_a_run_in_which_all_is_cached_loads_neither_duckdb_nor_pyarrow(tmp_path):
    with (store := ParquetStore(tmp_path / "t", threads=1)).session("f.t") as session:
        table = keep(session, batch(a=[1]))
    store.show({"raw": {"t": table}})
    store.close()
    code = f"""
import sys
from pipedag_core.ports.data import StoredTable, TableSchema
from pipedag_core.stores.parquet import ParquetStore
store = ParquetStore({str(tmp_path / "t")!r}, threads=1)
table = StoredTable("1", "raw", 1, "t", {table.location!r}, TableSchema((), b""), "i", 1, {table.size})
with store.session("f.t") as session:
    assert not store.missing([table])
store.show({{"raw": {{"t": table}}}})
store.close()
print(sorted({{"duckdb", "pyarrow", "sqlglot"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_folder_can_be_moved_with_all_its_tables(tmp_path, session):
    stored = keep(session, batch(a=[1]))
    (tmp_path / "tables").rename(tmp_path / "moved")
    with ParquetStore(tmp_path / "moved", threads=1).session("f.t") as moved:
        assert rows(moved, stored) == [{"a": 1}]


def test_lazy_frames_stream_into_the_file_and_are_hashed_there(session):
    frame = pl.LazyFrame({"a": [1, 2], "b": ["x", None]})
    first, second = (keep(session, FileData(f.sink_parquet), hash_content=True) for f in (frame, frame.sort("a", descending=True)))
    assert first.content_hash.partition("#")[0] == second.content_hash.partition("#")[0]
    assert first.content_hash != second.content_hash
    assert first.content_hash.startswith("duckdb3:")
    assert rows(session, second)[0] == {"a": 2, "b": None}
    assert first.rows == 2


def test_a_frame_in_memory_has_one_hash_however_it_is_handed_over(session):
    frame = pl.DataFrame({"a": [1, None], "b": ["x", "a text that is longer than a view"], "c": [[1], None]})
    data = FileData(frame.write_parquet, lambda: frame, len(frame))
    stored = keep(session, data, hash_content=True)
    assert stored.content_hash == session.hash_rows(data) == session.hash_rows(BatchData(frame.to_arrow, in_memory=True))


@pytest.mark.parametrize(
    "column",
    [
        pl.Series(["a", None, "b"], dtype=pl.Categorical),
        pl.Series(["a", None], dtype=pl.Enum(["b", "a"])),
        pl.Series([["a long text, not inline", None], None], dtype=pl.List(pl.String)),
        pl.Series([["a", None], None], dtype=pl.List(pl.Categorical)),
        pl.Series([{"a": "x"}, None]),
        pl.Series([["a", "b"], None], dtype=pl.Array(pl.String, 2)),
    ],
)
def test_all_text_that_polars_has_can_be_hashed(session, column):
    frame = pl.DataFrame({"a": column})
    stored = keep(session, FileData(frame.write_parquet, lambda: frame), hash_content=True)
    assert stored.content_hash.startswith("arrow3:")
    assert session.hash_rows(FileData(frame.write_parquet, lambda: frame.head(1))) != stored.content_hash
    assert session.hash_rows(BatchData(lambda: frame.head(1).vstack(frame.tail(-1)), in_memory=True)) == stored.content_hash


def test_integers_that_arrow_does_not_know_are_refused_with_what_to_do(session):
    frame = pl.DataFrame({"a": pl.Series([2**100], dtype=pl.Int128)})
    for data in (
        FileData(frame.write_parquet, lambda: frame),
        FileData(frame.lazy().sink_parquet),
        BatchData(lambda: frame, in_memory=True),
    ):
        with pytest.raises(MaterializationError, match="128-bit"):
            keep(session, data, hash_content=True)


def test_the_users_own_error_passes_through_a_file_writer(session):
    def write(path):
        raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError):
        keep(session, FileData(write))
    assert keep(session, batch(a=[1])).location == "raw/g1/t.parquet"


def test_an_error_of_the_users_own_files_is_not_taken_for_one_of_the_store(session):
    def write(path):
        Path("/no/such/file").read_text(encoding="utf-8")

    with pytest.raises(FileNotFoundError):
        keep(session, FileData(write))


def test_a_folder_that_cannot_be_written_is_a_store_error_that_says_where(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with ParquetStore(tmp_path / "file" / "tables", threads=1).session("f.t") as session, pytest.raises(StoreError, match="file"):
        keep(session, batch(a=[1]))


@pytest.mark.parametrize("frame", [pl.DataFrame({"a": [1], "A": [2]}), pl.DataFrame({"": [1]}), pl.DataFrame()])
def test_frames_whose_columns_sql_cannot_tell_apart_are_refused(session, store, frame):
    with pytest.raises(MaterializationError, match="column"):
        keep(session, FileData(frame.write_parquet))
    assert not list(store.base_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    "kind", [pa.decimal256(50, 2), pa.month_day_nano_interval(), pa.run_end_encoded(pa.int32(), pa.int8()), pa.list_(pa.struct([]))]
)
def test_arrow_types_that_parquet_does_not_keep_are_refused_by_name(session, kind):
    with pytest.raises(MaterializationError, match="'odd'"):
        keep(session, batch(odd=pa.nulls(1, kind)))


def test_declared_types_are_what_is_stored(session):
    options = TableOptions(type_map={"a": "SMALLINT", "b": "DECIMAL(10,2)"})
    kinds = ("int16", "decimal128(10, 2)", "string")
    for data in (batch(a=[1], b=[2], c=["x"]), QueryData("SELECT 1 AS a, 2 AS b, 'x' AS c")):
        assert tuple(column.type for column in keep(session, data, options=options).schema.columns) == kinds
    frame = pl.DataFrame({"a": [1], "b": [2], "c": ["x"]})
    stored = keep(session, FileData(frame.write_parquet, lambda: frame), options=options, hash_content=True)
    assert tuple(column.type for column in stored.schema.columns)[:2] == kinds[:2]
    lazy = keep(session, FileData(frame.lazy().sink_parquet), options=options)
    assert tuple(column.type for column in lazy.schema.columns)[:2] == kinds[:2]


@pytest.mark.parametrize(
    ("column", "kind"), [("a", "TINYINT"), ("a", "NO_SUCH_TYPE"), ("a", "INTEGER) AS x, (SELECT 1"), ("nope", "INTEGER"), ("a", "INTERVAL")]
)
def test_declared_types_that_do_not_fit_are_refused(session, column, kind):
    for data in (batch(a=[1000]), QueryData("SELECT 1000 AS a")):
        with pytest.raises(MaterializationError):
            keep(session, data, options=TableOptions(type_map={column: kind}))


def test_nulls_are_found_in_columns_of_any_name_beside_nested_ones(session):
    data = batch(**{"s": [{"a": None, "b": 1}], "s.a": [1], "l": [[None]], "x": pa.nulls(1, pa.int8())})
    keep(session, data, options=TableOptions(non_nullable=("s.a",)))
    with pytest.raises(MaterializationError, match="'x'"):
        keep(session, data, options=TableOptions(non_nullable=("x",)))


def test_row_groups_stay_small_and_keep_statistics(session, store):
    parts = [pa.record_batch({"i": pa.array(range(start, start + 1000), pa.int64())}) for start in range(0, 300_000, 1000)]
    stored = keep(
        session, BatchData(lambda: pa.RecordBatchReader.from_batches(parts[0].schema, iter(parts)), in_memory=False), hash_content=True
    )
    metadata = pq.read_metadata(store.base_path / stored.location)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).statistics.min == 0
    assert stored.content_hash == session.hash_rows(BatchData(lambda: pa.Table.from_batches(parts), in_memory=True))


@pytest.mark.parametrize("query", ["SELECT 1 AS a; SELECT 2 AS a", "CREATE TABLE x AS SELECT 1", "EXPLAIN SELECT 1"])
def test_what_is_not_one_query_is_refused(session, query):
    with pytest.raises(MaterializationError, match="RawSql"):
        keep(session, QueryData(query))


def test_a_query_may_be_anything_that_gives_rows(session):
    names = keep(session, batch(id=[1, 2], kind=["a", "b"]), "names")
    for query in (
        "FROM pipedag__in.names",
        "WITH x AS (FROM pipedag__in.names) TABLE x",
        "PIVOT pipedag__in.names ON kind USING sum(id)",
        "VALUES (1)",
    ):
        assert ask(session, query, names=names)


def test_a_missing_input_is_said_to_be_missing_and_not_a_wrong_query(session, store):
    names = keep(session, batch(a=[1]), "names")
    prepared = prepare(session, "SELECT * FROM pipedag__in.names", names=names)
    store.drop([names.location])
    with pytest.raises(StoredDataMissing, match="next run"):
        session.write(QueryData(""), target(), prepared=prepared)


@pytest.mark.parametrize("raw", [b"", b"junk" * 50])
def test_a_damaged_file_is_said_to_be_damaged(session, store, raw):
    stored = keep(session, batch(a=[1]))
    (store.base_path / stored.location).write_bytes(raw)
    assert list(store.missing([stored])) == [stored]
    for form in Form:
        with pytest.raises(StoredDataMissing, match="next run"):
            session.read(stored, form)


def test_scripts_may_not_reach_out_of_the_database(session, tmp_path):
    for script in (
        "CREATE TABLE t AS SELECT 1 AS a; COPY t TO 'x.csv'",
        "ATTACH 'x.duckdb' AS other",
        "LOAD httpfs",
        "EXPORT DATABASE 'x'",
    ):
        with pytest.raises(MaterializationError, match="reaches out"):
            session.run_script(prepare(session, script), [], "raw", target("script"))
    assert not list(tmp_path.glob("x*"))


def test_a_script_may_read_files_and_use_a_schema_with_the_name_of_a_database(session, tmp_path):
    (tmp_path / "in.csv").write_text("a\n1\n")
    script = f"CREATE TABLE t (a INTEGER); COPY t FROM '{tmp_path / 'in.csv'}'; CREATE TEMP TABLE scratch AS FROM t; CREATE TABLE u AS FROM scratch"
    for stage in ("temp", "memory", "main", "größe"):
        found = session.run_script(prepare(session, script), [], stage, target("script", stage=stage))
        assert sorted(found) == ["t", "u"]


def test_a_script_that_cannot_be_kept_whole_leaves_nothing(session, store):
    for script in (
        "CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE b AS SELECT INTERVAL 1 DAY AS x",
        'CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE "t__g1" AS SELECT 1',
    ):
        with pytest.raises((MaterializationError, FlowError)):
            session.run_script(prepare(session, script), [], "raw", target("script"))
    assert not list(store.base_path.rglob("*.parquet"))


# --- explore.duckdb ---------------------------------------------------------------------------------------------------------------


def shown(store) -> dict[tuple[str, str], list[tuple]]:
    with duckdb.connect(str(store.base_path / "explore.duckdb"), read_only=True) as connection:
        names = connection.execute("SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        return {(schema, name): connection.execute(f'FROM explore."{schema}"."{name}"').fetchall() for schema, name in names}


def test_explore_shows_every_table_under_its_readable_name(store, session):
    stored = keep(session, batch(a=[1]))
    store.show({"raw": {"Größe = 1": stored}, "temp": {"t": stored}, "empty": {}})
    assert shown(store) == {("raw", "Größe = 1"): [(1,)], ("temp", "t"): [(1,)]}
    store.show({"raw": {"u": stored}})
    assert shown(store) == {("raw", "u"): [(1,)]}
    assert sorted(path.name for path in store.base_path.iterdir()) == [".explore", "explore.duckdb", "raw"]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["raw", "main", "B c"]), st.dictionaries(st.sampled_from("tuv"), st.booleans())), min_size=2)
)
def test_after_any_changes_explore_shows_what_it_shows_when_made_at_once(tmp_path_factory, states):
    store = ParquetStore(tmp_path_factory.mktemp("store"), threads=1)
    with store.session("test") as session:
        one, other = keep(session, batch(a=[1]), "one"), keep(session, batch(b=[2]), "other")
        for state in states:
            store.show({stage: {name: one if first else other for name, first in tables.items()} for stage, tables in state.items()})
        expected = {(stage, name): [(1,)] if first else [(2,)] for stage, tables in states[-1].items() for name, first in tables.items()}
        assert shown(store) == expected
    store.close()


class Recording:
    """A connection that notes its statements."""

    def __init__(self, connection):
        self.connection, self.statements = connection, []

    def execute(self, statement):
        self.statements.append(statement)
        return self.connection.execute(statement)


def test_explore_makes_only_what_differs(tmp_path, store, session):
    path = tmp_path / "tables" / keep(session, batch(a=[1])).location
    connection = Recording(duckdb.connect())
    explore.refresh(tmp_path, {"raw": {"t": path, "u": path}}, lambda: nullcontext(connection))
    assert sum("CREATE VIEW" in statement for statement in connection.statements) == 2
    connection.statements.clear()
    explore.refresh(tmp_path, {"raw": {"t": path, "v": path}}, lambda: nullcontext(connection))
    assert [statement.split()[:2] for statement in connection.statements[2:-2]] == [["DROP", "VIEW"], ["CREATE", "VIEW"]]


def test_explore_is_not_written_again_for_nothing(store, session):
    stored = keep(session, batch(a=[1]))
    store.show({"raw": {"t": stored}})
    before = (store.base_path / "explore.duckdb").stat().st_ino
    store.show({"raw": {"t": stored}})
    assert (store.base_path / "explore.duckdb").stat().st_ino == before
    (store.base_path / "explore.duckdb").unlink()
    store.show({"raw": {"t": stored}})
    assert shown(store)


def test_explore_is_replaced_under_a_reader_who_keeps_the_old_one(store, session):
    stored = keep(session, batch(a=[1]))
    store.show({"raw": {"t": stored}})
    with duckdb.connect(str(store.base_path / "explore.duckdb"), read_only=True) as reader:
        store.show({"raw": {"u": stored}})
        assert reader.execute("FROM raw.t").fetchall() == [(1,)]
    assert list(shown(store)) == [("raw", "u")]


def test_explore_is_left_alone_beside_a_write_ahead_log(store, session, caplog):
    stored = keep(session, batch(a=[1]))
    store.show({"raw": {"t": stored}})
    (store.base_path / "explore.duckdb.wal").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        store.show({"raw": {"u": stored}})
    assert "read-only" in caplog.text
    (store.base_path / "explore.duckdb.wal").unlink()
    assert list(shown(store)) == [("raw", "t")]


def test_explore_leaves_out_what_cannot_be_shown(store, session, caplog):
    here, gone = keep(session, batch(a=[1]), "here"), keep(session, batch(a=[1]), "gone")
    store.drop([gone.location])
    store.show({"raw": {"gone": gone, "here": here}, "information_schema": {"t": here}})
    assert list(shown(store)) == [("raw", "here")]
    assert "raw.gone" in caplog.text
    assert "information_schema" in caplog.text
