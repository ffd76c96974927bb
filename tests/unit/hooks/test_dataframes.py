from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipedag_core.errors import ConfigError, MaterializationError, QueryFailed, UnsupportedByStore
from pipedag_core.hooks.registry import Hooks
from pipedag_core.ports.data import BatchData, FileData, Form

LIBRARIES = [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatch, pa.RecordBatchReader, duckdb.DuckDBPyRelation]
FORMS = [frozenset(Form), frozenset({Form.BATCHES}), frozenset({Form.FILES}), frozenset({Form.BATCHES, Form.QUERY})]


def made(table, as_type, folder):
    return {
        pd.DataFrame: lambda: table.to_pandas(types_mapper=pd.ArrowDtype),
        pl.DataFrame: lambda: pl.from_arrow(table),
        pl.LazyFrame: lambda: pl.from_arrow(table).lazy(),
        pa.Table: lambda: table,
        pa.RecordBatch: lambda: table.combine_chunks().to_batches()[0],
        pa.RecordBatchReader: table.to_reader,
        duckdb.DuckDBPyRelation: lambda: folder.connection.from_arrow(table),
    }[as_type]()


def rows(obj):
    if isinstance(obj, pd.DataFrame):
        obj = pa.Table.from_pandas(obj, preserve_index=False)
    elif isinstance(obj, duckdb.DuckDBPyRelation):
        obj = obj.to_arrow_table()
    elif isinstance(obj, pl.LazyFrame):
        obj = obj.collect()
    if isinstance(obj, pl.DataFrame):
        obj = obj.to_arrow()
    if isinstance(obj, pa.RecordBatchReader):
        obj = obj.read_all()
    return obj.to_pylist()


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: "+".join(sorted(form.value for form in forms)))
@pytest.mark.parametrize("read_as", LIBRARIES)
@pytest.mark.parametrize("made_as", LIBRARIES)
def test_every_library_reads_what_every_library_writes(made_as, read_as, forms, through, flights, folder):
    table = flights.drop_columns("gain")
    result = through(made(table, made_as, folder), read_as, forms)
    assert isinstance(result, read_as)
    assert rows(result) == table.to_pylist()


@pytest.mark.parametrize("read_as", LIBRARIES)
def test_a_table_without_rows_keeps_its_columns(read_as, through):
    result = through(pa.table({"a": pa.array([], pa.int32()), "b": pa.array([], pa.string())}), read_as)
    assert rows(result) == []
    schema = result.collect_schema().names() if isinstance(result, pl.LazyFrame) else getattr(result, "columns", None)
    names = result.schema.names if isinstance(result, pa.Table | pa.RecordBatch | pa.RecordBatchReader) else list(schema)
    assert names == ["a", "b"]


@pytest.mark.parametrize("as_type", [pd.DataFrame, pl.DataFrame, pa.Table, pa.RecordBatch])
def test_rows_in_memory_can_be_streamed_again_and_are_counted(as_type, flights, folder):
    frame = made(flights, as_type, folder)
    data = Hooks().for_object(frame).write(frame, folder.writing())
    assert data.rows == 3
    for _ in range(2):
        assert pa.RecordBatchReader.from_stream(data.stream()).read_all().num_rows == 3


@pytest.mark.parametrize("as_type", [pl.LazyFrame, duckdb.DuckDBPyRelation])
def test_lazy_objects_are_written_by_their_library_and_never_held_in_memory(as_type, flights, folder):
    frame = made(flights, as_type, folder)
    data = Hooks().for_object(frame).write(frame, folder.writing())
    assert isinstance(data, FileData)
    assert data.stream is None
    assert data.rows is None


def test_readers_and_foreign_streams_are_read_once(flights, folder):
    class Foreign:
        def __arrow_c_stream__(self, requested_schema=None):
            return flights.__arrow_c_stream__(requested_schema)

    for obj in (flights.to_reader(), Foreign()):
        data = Hooks().for_object(obj).write(obj, folder.writing())
        assert isinstance(data, BatchData)
        assert not data.in_memory
        assert pa.RecordBatchReader.from_stream(data.stream()).read_all()["delay"] == flights["delay"]


@pytest.mark.parametrize("series", [pl.Series([1]), pa.chunked_array([[1]])])
def test_a_column_is_not_a_table(series, folder):
    data = Hooks().for_object(series).write(series, folder.writing())
    with pytest.raises(MaterializationError, match=r"'clean'.*not of rows"):
        data.stream()


def test_a_store_without_a_common_form_is_named(flights, folder):
    folder.forms = frozenset({Form.QUERY})
    with pytest.raises(UnsupportedByStore, match="needs the store to take batches or files; it has query"):
        Hooks().for_object(flights).write(flights, folder.writing())


# --- pandas


def test_pandas_offers_three_back_ends(through, flights):
    dtypes = {name: through(flights, pd.DataFrame, dtype_backend=name).dtypes["carrier"] for name in ("numpy", "numpy_nullable", "pyarrow")}
    assert dtypes == {
        "numpy": pd.DataFrame({"s": ["a"]}).dtypes["s"],
        "numpy_nullable": pd.StringDtype(),
        "pyarrow": pd.ArrowDtype(pa.string()),
    }


def test_an_unknown_back_end_is_an_error_that_lists_the_known_ones(through, flights):
    with pytest.raises(ConfigError, match="numpy, numpy_nullable, pyarrow"):
        through(flights, pd.DataFrame, dtype_backend="dask")


def test_integers_with_gaps_are_floats_as_usual_unless_that_would_round(through):
    frame = through(pa.table({"small": pa.array([1, None]), "big": pa.array([2**53 + 1, None])}), pd.DataFrame)
    assert frame.dtypes.astype(str).to_dict() == {"small": "float64", "big": "Int64"}
    assert frame["big"][0] == 2**53 + 1


def test_pandas_and_its_nullable_types_keep_values_exactly(through):
    frame = pd.DataFrame(
        {"i": pd.array([2**62 + 1, None], "Int64"), "s": ["ä", None], "t": pd.to_datetime(["2024-01-01 00:00:00.000001", None])}
    )
    pd.testing.assert_frame_equal(
        through(frame, pd.DataFrame, dtype_backend="pyarrow"), through(frame, pa.Table).to_pandas(types_mapper=pd.ArrowDtype)
    )
    assert through(frame, pa.Table)["i"].to_pylist() == [2**62 + 1, None]


def test_row_numbers_are_not_kept_even_after_a_filter(through):
    frame = pd.DataFrame({"a": [3, 1, 2]}).query("a > 1").sort_values("a")
    assert through(frame, pa.Table).to_pydict() == {"a": [2, 3]}


@pytest.mark.parametrize(
    "index",
    [pd.Index([1, 2], name="key"), pd.Index(["x", "y"]), pd.date_range("2024", periods=2), pd.MultiIndex.from_tuples([(1, 2), (3, 4)])],
)
def test_an_index_that_means_something_is_refused_with_the_way_out(index, folder):
    frame = pd.DataFrame({"a": [1, 2]}, index=index)
    with pytest.raises(MaterializationError, match=r"Task 'clean', output 'flights'.*reset_index\(\)"):
        Hooks().for_object(frame).write(frame, folder.writing())


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, "b"], r"\[1\] are not text"), (["a", "a"], r"\['a'\] occur more than once"), ([("a", "b"), "c"], "not text")],
)
def test_column_labels_that_cannot_be_kept_are_named(labels, message, folder):
    frame = pd.DataFrame([[1, 2]])
    frame.columns = pd.Index(labels, tupleize_cols=False)
    with pytest.raises(MaterializationError, match=message):
        Hooks().for_object(frame).write(frame, folder.writing())


def test_a_column_of_mixed_objects_is_named(folder):
    frame = pd.DataFrame({"fine": [1, 2], "mixed": [1, "x"]})
    with pytest.raises(MaterializationError, match="column 'mixed'"):
        Hooks().for_object(frame).write(frame, folder.writing()).stream()


def test_writing_leaves_the_users_frame_as_it_was(through, flights):
    frame = flights.to_pandas()
    frame.attrs["name"] = "other"
    before = frame.copy()
    through(frame, pa.Table)
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == {"name": "other"}


# --- polars


def test_a_column_of_python_objects_is_named(folder):
    frame = pl.DataFrame({"a": [1], "o": pl.Series([object()], dtype=pl.Object)})
    with pytest.raises(MaterializationError, match=r"\['o'\] hold Python objects"):
        Hooks().for_object(frame).write(frame, folder.writing())


def test_polars_keeps_its_own_types(through):
    frame = pl.DataFrame(
        {
            "cat": pl.Series(["a", None], dtype=pl.Categorical),
            "enum": pl.Series(["x", "y"], dtype=pl.Enum(["y", "x"])),
            "list": [[1], None],
            "struct": [{"q": 1}, None],
            "dec": pl.Series([Decimal("1.10"), None], dtype=pl.Decimal(38, 2)),
            "when": pl.Series([dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None], dtype=pl.Datetime("ns", "UTC")),
            "took": [dt.timedelta(seconds=1), None],
            "day": [dt.date(2024, 1, 1), None],
            "u": pl.Series([2**64 - 1, None], dtype=pl.UInt64),
        }
    )
    for read_as in (pl.DataFrame, pl.LazyFrame):
        result = through(frame, read_as).lazy().collect()
        assert result.schema == frame.schema
        assert result.equals(frame)


def test_an_error_while_a_lazy_frame_is_written_is_the_users_own(folder):
    frame = pl.LazyFrame({"a": ["x"]}).select(pl.col("a").str.to_integer())
    data = Hooks().for_object(frame).write(frame, folder.writing())
    with pytest.raises(pl.exceptions.PolarsError):
        data.write(str(folder.path / "x.parquet"))


# --- DuckDB


def test_integers_of_128_bits_become_64_bits_wherever_they_stand(through, folder):
    relation = folder.connection.sql(
        "SELECT sum(range) AS s, max(range)::UHUGEINT AS u, [sum(range)] AS l, {'x y': sum(range), 'z': 1} AS r, map {'k': sum(range)} AS m,"
        " array_value(sum(range), 1::HUGEINT) AS f FROM range(4)"
    )
    table = through(relation, pa.Table)
    kinds = [str(kind) for kind in table.schema.types]
    assert kinds[:2] == ["int64", "uint64"]
    assert "double" not in " ".join(kinds)
    assert table.to_pylist() == [{"s": 6, "u": 3, "l": [6], "r": {"x y": 6, "z": 1}, "m": [("k", 6)], "f": [6, 1]}]


def test_an_integer_that_does_not_fit_is_an_error_with_the_query(folder):
    relation = folder.connection.sql("SELECT 2::HUGEINT ** 70 AS a, (2::HUGEINT * 4611686018427387904)::HUGEINT AS b")
    data = Hooks().for_object(relation).write(relation, folder.writing())
    with pytest.raises(QueryFailed, match=r"(?s)Task 'clean'.*HUGEINT"):
        data.write(str(folder.path / "x.parquet"))


def test_two_columns_of_one_name_are_named(folder):
    relation = folder.connection.sql("SELECT 1 AS a, 2 AS A")
    with pytest.raises(MaterializationError, match="same name"):
        Hooks().for_object(relation).write(relation, folder.writing())


def test_a_relation_carries_the_arguments_name(through, flights):
    assert through(flights, duckdb.DuckDBPyRelation).filter("flights.delay = 1").fetchall() == [("UA", 1, 1.5)]


def test_a_relation_can_be_had_from_a_store_of_another_dialect(through, flights, folder):
    folder.dialect = "postgres"
    assert through(flights, duckdb.DuckDBPyRelation).aggregate("count(*)").fetchall() == [(3,)]


# --- property

VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
    pa.binary(): st.binary(),
    pa.bool_(): st.booleans(),
    pa.timestamp("us"): st.datetimes(),
    pa.date32(): st.dates(),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), read_as=st.sampled_from([pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatchReader]))
def test_values_come_back_as_they_went(data, read_as, through):
    kinds = data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    size = data.draw(st.integers(0, 5))
    columns = {
        f"c{n}": pa.array(data.draw(st.lists(st.none() | VALUES[kind], min_size=size, max_size=size)), kind) for n, kind in enumerate(kinds)
    }
    table = pa.table(columns)
    assert rows(through(table, read_as)) == table.to_pylist()
    assert rows(through(pl.from_arrow(table).lazy(), read_as)) == table.to_pylist()
