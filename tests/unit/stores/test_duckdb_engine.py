from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core import duckdb_types
from pipedag_core.errors import MaterializationError, PipedagError, QueryFailed, StoreError
from pipedag_core.stores import duckdb_engine
from pipedag_core.stores.duckdb_engine import Engine
from pipedag_core.stores.layout import place


@pytest.fixture
def engine(tmp_path):
    engine = Engine(memory_limit=None, temp_directory=str(tmp_path / "overflow"), threads=1)
    yield engine
    engine.close()


@pytest.fixture
def connection(engine):
    with engine.cursor() as connection:
        yield connection


KEPT = {
    "TINYINT": "1", "UBIGINT": "18446744073709551615", "FLOAT": "0.1", "DOUBLE": "'nan'", "DECIMAL(38,10)": "1.25", "DECIMAL(4,1)": "1.5", "BOOLEAN": "true",
    "VARCHAR": "'ä'", "BLOB": "'a'", "DATE": "'2020-02-29'", "TIME": "'12:00:00.123456'", "TIMESTAMP": "'2020-01-01 00:00:00.123456'",
    "TIMESTAMP_NS": "'2020-01-01 00:00:00.123456789'", "TIMESTAMP WITH TIME ZONE": "'2020-01-01 00:00:00+05'", "UUID": "'00000000-0000-0000-0000-000000000001'",
    "JSON": "'{\"a\": 1}'", "INTEGER[]": "[1, NULL]", "STRUCT(a INTEGER, b VARCHAR[])": "{'a': 1, 'b': ['x']}", "MAP(VARCHAR, INTEGER)": "MAP {'a': 1}",
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_a_kept_type_comes_back_exactly(connection, tmp_path, kind):
    query = f"SELECT CAST({KEPT[kind]} AS {kind}) AS x"
    columns = duckdb_engine.columns_of(connection, query, "here")
    duckdb_engine.copy_query(connection, query, tmp_path / "x.parquet", duckdb_engine.projection(columns, {}, "here"))
    again = f"SELECT x, typeof(x), x::VARCHAR FROM {place(tmp_path / 'x.parquet')}"
    assert str(connection.sql(again).fetchall()) == str(connection.sql(f"SELECT x, typeof(x), x::VARCHAR FROM ({query})").fetchall())


REFUSED = [
    "INTERVAL 1 DAY",
    "'12:00+02'::TIMETZ",
    "'101'::BIT",
    "'a'::ENUM('a')",
    "1::BIGNUM",
    "union_value(a := 1)",
    "1::VARIANT",
    "[1, 2]::INT[2]",
    "row(1)",
]
REFUSED += ["[1::HUGEINT]", "{'a': [1::UHUGEINT]}", "MAP {'a': INTERVAL 1 DAY}", "'POINT(1 1)'::GEOMETRY"]


@pytest.mark.parametrize("value", REFUSED)
def test_a_type_that_parquet_would_change_is_refused_with_what_to_cast_it_to(connection, value):
    columns = duckdb_engine.columns_of(connection, f'SELECT {value} AS "odd"', "here")
    with pytest.raises(MaterializationError, match=r"(?s)here.*'odd'.*Cast .* to "):
        duckdb_engine.projection(columns, {}, "here")


def test_no_type_of_duckdb_is_forgotten(connection):
    known = {row[0] for row in connection.sql("SELECT DISTINCT logical_type FROM duckdb_types()").fetchall()}
    kept = {
        "BIGINT",
        "BLOB",
        "BOOLEAN",
        "DATE",
        "DECIMAL",
        "DOUBLE",
        "FLOAT",
        "INTEGER",
        "LIST",
        "MAP",
        "SMALLINT",
        "STRUCT",
        "TIME",
        "TIME_NS",
        "TIMESTAMP",
    }
    kept |= {
        "TIMESTAMP_MS",
        "TIMESTAMP_NS",
        "TIMESTAMP_S",
        "TIMESTAMP WITH TIME ZONE",
        "TINYINT",
        "UBIGINT",
        "UINTEGER",
        "USMALLINT",
        "UTINYINT",
        "UUID",
        "VARCHAR",
    }
    # Names of things that no column has: placeholders of DuckDB's own catalogue.
    internal = {"NULL", "ANY", "TYPE", "INVALID", "UNKNOWN", "POINTER", "LAMBDA", "TABLE", "TIMESTAMPTZ_NS"}
    refused = {name.upper() for name in duckdb_types.REFUSED}
    assert {name.strip('"') for name in known} - kept - internal - refused == set()


def test_a_sum_is_narrowed_and_an_overflow_says_what_to_do(connection, tmp_path):
    query = "SELECT sum(x) AS total FROM (VALUES (9223372036854775807), (1)) AS t(x)"
    casts = duckdb_engine.projection(duckdb_engine.columns_of(connection, query, "here"), {}, "here")
    assert casts == [("total", "BIGINT")]
    with pytest.raises(duckdb.Error) as caught:
        duckdb_engine.copy_query(connection, query, tmp_path / "x.parquet", casts)
    translated = duckdb_engine.translate(caught.value, "here", query, casts)
    assert isinstance(translated, QueryFailed)
    assert "DECIMAL(38,0)" in str(translated)
    assert "total" in str(translated)


def test_order_and_comments_at_the_end_of_a_query_are_kept(connection, tmp_path):
    query = "SELECT sum(i) AS s FROM range(1000) AS t(i) GROUP BY i ORDER BY i DESC -- largest first"
    duckdb_engine.copy_query(connection, query, tmp_path / "x.parquet", [("s", "BIGINT")])
    assert pq.read_table(tmp_path / "x.parquet")["s"].to_pylist() == list(range(999, -1, -1))


def test_a_python_variable_is_no_table(connection):
    hidden = pa.table({"a": [1]})
    with pytest.raises(duckdb.CatalogException):
        connection.sql("SELECT * FROM hidden")
    assert hidden.num_rows == 1


def test_the_clock_of_the_machine_does_not_count(connection):
    assert connection.sql("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


def test_every_error_of_duckdb_is_translated():
    errors = [kind for name in dir(duckdb) if isinstance(kind := getattr(duckdb, name), type) and issubclass(kind, duckdb.Error)]
    assert len(errors) > 20
    for kind in errors:
        translated = duckdb_engine.translate(kind("what it said"), "Table 't'", "SELECT 1")
        assert isinstance(translated, PipedagError)
        assert "what it said" in str(translated)
        assert "Table 't'" in str(translated)
        assert "SELECT 1" in str(translated)


def test_too_little_memory_says_which_setting_to_raise(tmp_path):
    engine = Engine(memory_limit="20MB", temp_directory="", threads=1)
    with engine.cursor() as connection, pytest.raises(duckdb.Error) as caught:
        connection.execute("SELECT string_agg(i::VARCHAR || repeat('x', 100)) FROM range(1000000) AS t(i)").fetchall()
    engine.close()
    translated = duckdb_engine.translate(caught.value, "here", "SELECT ...")
    assert isinstance(translated, StoreError)
    assert "memory_limit" in str(translated)


def test_settings_that_duckdb_refuses_are_named(tmp_path):
    engine = Engine(memory_limit="plenty", temp_directory=str(tmp_path), threads=1)
    with pytest.raises(StoreError, match="memory_limit"):
        engine.cursor()


# --- content hashes of files ------------------------------------------------------------------------------------------------------


def content(table: pa.Table, path) -> str:
    pq.write_table(table, path)
    with duckdb.connect() as connection:
        return duckdb_engine.content_hash(connection, place(path), "schema")


VALUES = st.lists(
    st.tuples(
        st.none() | st.integers(-3, 3),
        st.none() | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]),
        st.none() | st.sampled_from(["", "a", "NULL"]),
        st.none() | st.lists(st.none() | st.integers(0, 1), max_size=2),
    ),
    max_size=5,
)
SCHEMA = pa.schema([("i", pa.int64()), ("f", pa.float64()), ("s", pa.string()), ("l", pa.list_(pa.int8()))])


def as_table(rows):
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


@given(VALUES, VALUES)
def test_two_files_have_equal_hashes_only_if_they_hold_the_same_rows_equally_often(tmp_path_factory, one, other):
    folder = tmp_path_factory.getbasetemp()
    hashes = [content(as_table(rows), folder / f"{name}.parquet") for name, rows in (("one", one), ("other", other))]
    unordered = [found.partition("#")[0] for found in hashes]
    assert (unordered[0] == unordered[1]) == (sorted(map(repr, one)) == sorted(map(repr, other)))
    assert (hashes[0] == hashes[1]) == (list(map(repr, one)) == list(map(repr, other)))


@given(VALUES, st.randoms())
def test_the_order_of_rows_counts_only_behind_the_mark(tmp_path_factory, rows, random):
    folder = tmp_path_factory.getbasetemp()
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = content(as_table(rows), folder / "one.parquet"), content(as_table(shuffled), folder / "other.parquet")
    assert one.partition("#")[0] == other.partition("#")[0]


def test_swapping_values_between_rows_counts(tmp_path):
    one = pa.table({"a": [1, 2], "b": [1, 2]})
    other = pa.table({"a": [1, 2], "b": [2, 1]})
    turned = pa.table({"a": [1, 3], "b": [2, 4]}), pa.table({"a": [2, 4], "b": [1, 3]})
    assert content(one, tmp_path / "1") != content(other, tmp_path / "2")
    assert content(turned[0], tmp_path / "3") != content(turned[1], tmp_path / "4")
