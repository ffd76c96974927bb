from __future__ import annotations

import struct
from decimal import Decimal
from itertools import pairwise

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.errors import UnsupportedByStore
from pipedag_core.stores.arrow_hash import ContentHasher, type_token

LIST = pa.list_(pa.struct([("k", pa.int16()), ("t", pa.string())]))
MAP = pa.map_(pa.string(), pa.list_(pa.float64()))
TYPES = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.uint8(), st.integers(0, 255)),
    "float": (pa.float64(), st.floats()),
    "single": (pa.float32(), st.floats(width=32)),
    "half": (pa.float16(), st.floats(width=16, allow_nan=False)),
    "text": (pa.string(), st.text(max_size=5)),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "fixed": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "bool": (pa.bool_(), st.booleans()),
    "time": (pa.timestamp("us", "UTC"), st.integers(0, 2**50)),
    "date": (pa.date32(), st.integers(0, 20000)),
    "decimal": (pa.decimal128(10, 2), st.integers(-(10**9), 10**9).map(lambda n: Decimal(n) / 100)),
    "list": (
        LIST,
        st.lists(st.none() | st.fixed_dictionaries({"k": st.none() | st.integers(0, 9), "t": st.none() | st.text(max_size=2)}), max_size=3),
    ),
    "pair": (pa.list_(pa.int8(), 2), st.lists(st.none() | st.integers(0, 9), min_size=2, max_size=2)),
    "map": (
        MAP,
        st.dictionaries(st.text(max_size=2), st.none() | st.lists(st.none() | st.floats(), max_size=2), max_size=2).map(
            lambda d: list(d.items())
        ),
    ),
    "view": (pa.string_view(), st.text(max_size=15)),
    "views": (
        pa.list_(pa.struct([("v", pa.binary_view())])),
        st.lists(st.none() | st.fixed_dictionaries({"v": st.none() | st.binary(max_size=15)}), max_size=2),
    ),
    "fixed views": (pa.list_(pa.string_view(), 1), st.lists(st.none() | st.text(max_size=15), min_size=1, max_size=1)),
    "nothing": (pa.null(), st.none()),
}


def content(table: pa.Table) -> str:
    hasher = ContentHasher(table.schema)
    for batch in table.to_batches():
        hasher.update(batch)
    return hasher.result()


@st.composite
def tables(draw, min_rows: int = 0):
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=4))
    rows = draw(st.integers(min_rows, 12))
    columns = [pa.array(draw(st.lists(st.none() | TYPES[kind][1], min_size=rows, max_size=rows)), TYPES[kind][0]) for kind in kinds]
    return pa.Table.from_arrays(columns, names=[f"c{number}" for number in range(len(columns))])


@given(tables(), st.data())
def test_cutting_and_slicing_change_nothing(table, data):
    whole = pa.concat_tables([table, table])
    cuts = sorted(data.draw(st.lists(st.integers(0, table.num_rows), max_size=3)))
    edges = [0, *cuts, table.num_rows]
    pieces = [whole.slice(table.num_rows + start, end - start) for start, end in pairwise(edges)]
    recut = pa.concat_tables(pieces)
    assert content(recut) == content(table) == content(table.combine_chunks())
    assert content(whole) != content(table) or not table.num_rows


@given(tables(min_rows=1), st.data())
def test_one_changed_value_or_null_changes_the_hash(table, data):
    at = data.draw(st.integers(0, table.num_columns - 1))
    kind = table.schema.field(at).type
    if pa.types.is_null(kind):
        return
    row = data.draw(st.integers(0, table.num_rows - 1))
    strategy = next(strategy for arrow, strategy in TYPES.values() if arrow == kind)
    new = data.draw(st.none() | strategy)
    old = table.column(at)
    changed = pa.concat_arrays([old.combine_chunks().slice(0, row), pa.array([new], kind), old.combine_chunks().slice(row + 1)])
    other = table.set_column(at, table.schema.field(at), changed)
    is_same = repr(table.column(at)[row].as_py()) == repr(changed[row].as_py())
    assert (content(other) == content(table)) == is_same


@given(tables())
def test_names_types_and_the_order_of_columns_count(table):
    renamed = table.rename_columns(["x", *table.column_names[1:]])
    turned = table.select(list(reversed(table.column_names)))
    more = table.append_column("more", pa.nulls(table.num_rows))
    assert content(renamed) != content(table)
    assert content(more) != content(table)
    assert (content(turned) == content(table)) == (table.num_columns == 1)


def test_the_order_of_rows_counts():
    assert content(pa.table({"a": [1, 2]})) != content(pa.table({"a": [2, 1]}))


def test_nullability_and_metadata_of_the_schema_do_not_count():
    plain = pa.table({"a": [1]})
    strict = plain.cast(pa.schema([pa.field("a", pa.int64(), nullable=False)], metadata={"pandas": "{}"}))
    assert content(strict) == content(plain)


@pytest.mark.parametrize(
    "nest", [lambda field: field, lambda field: pa.field("a", pa.list_(field)), lambda field: pa.field("a", pa.struct([field]))]
)
def test_metadata_of_a_column_or_of_a_part_of_it_counts(nest):
    def hashed(metadata):
        field = nest(pa.field("a", pa.int64(), metadata=metadata))
        return content(pa.table({"a": pa.nulls(1, field.type)}, schema=pa.schema([field])))

    assert len({hashed(metadata) for metadata in (None, {"unit": "m"}, {"unit": "km"}, {"unit": "m", "of": "length"})}) == 4
    assert hashed({"unit": "m", "PARQUET:field_id": "1"}) == hashed({"unit": "m"})


def test_the_categories_of_an_enum_count():
    few, many = (pl.DataFrame({"a": pl.Series(["x"], dtype=pl.Enum(categories))}).to_arrow() for categories in (["x"], ["x", "y"]))
    assert content(few) != content(many)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.list_(pa.int8()), pa.float64(), pa.null(), LIST, MAP])
def test_an_empty_table_has_a_hash_of_its_type(kind):
    empty = pa.table({"a": pa.array([], kind)})
    assert content(empty) == content(pa.Table.from_batches([], empty.schema))
    assert content(empty) != content(pa.table({"a": pa.array([], pa.int32())}))


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        ([pa.string(), pa.large_string(), pa.string_view()], ["ä", None, "", "a longer text than fits inline"]),
        ([pa.binary(), pa.large_binary(), pa.binary_view()], [b"\0", None, b"", b"more bytes than fit inline"]),
        (
            [
                pa.list_(pa.int8()),
                pa.large_list(pa.int8()),
                pa.list_view(pa.int8()),
                pa.large_list_view(pa.int8()),
                pa.list_(pa.field("element", pa.int8())),
            ],
            [[1, None], None, [], [2]],
        ),
        ([pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())], ["b", "a", None, "b"]),
    ],
)
def test_encodings_of_one_type_are_equal(kinds, values):
    arrays = [pa.array(values, kind) for kind in kinds]
    assert len({content(pa.table({"a": array})) for array in arrays}) == 1
    assert len({content(pa.table({"a": array.slice(1, 2)})) for array in arrays}) == 1


def test_text_bytes_and_categories_are_different_types():
    kinds = [pa.string(), pa.binary(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.string(), ordered=True)]
    assert len({content(pa.table({"a": pa.array(["x"]).cast(kind)})) for kind in kinds[:3]}) == 3
    assert len({type_token(kind) for kind in kinds}) == 4


def test_the_list_of_categories_counts_with_those_that_do_not_occur():
    def categories(names):
        return pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([names.index("x")], pa.int8()), pa.array(names))})

    assert content(categories(["x", "y"])) != content(categories(["y", "x"]))
    assert content(categories(["x", "y"])) != content(categories(["x"]))


def test_what_lies_under_a_null_does_not_count():
    def column(under):
        return pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(struct.pack("<3q", 1, under, 3))])

    assert content(pa.table({"a": column(0)})) == content(pa.table({"a": column(99)}))


def test_every_nan_is_one_value_and_the_two_zeros_are_two():
    def column(bits):
        return pa.table({"a": pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(struct.pack("<Q", bits))])})

    assert content(column(0x7FF8000000000000)) == content(column(0xFFF8000000000001))
    assert content(pa.table({"a": [0.0]})) != content(pa.table({"a": [-0.0]}))


def test_neighbours_cannot_be_mistaken_for_each_other():
    for left, right in [
        (["ab", "c"], ["a", "bc"]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ([None, ""], ["", None]),
        ([[None]], [None]),
        ([[], None], [None, []]),
    ]:
        kind = pa.string() if isinstance(left[0] or left[1], str) else pa.list_(pa.int8())
        assert content(pa.table({"a": pa.array(left, kind)})) != content(pa.table({"a": pa.array(right, kind)}))


def test_extension_types_are_hashed_by_storage_and_are_types_of_their_own():
    plain = pa.table({"a": pa.array([b"0123456789abcdef", None], pa.binary(16))})
    uuids = plain.cast(pa.schema([("a", pa.uuid())]))
    assert content(uuids) != content(plain)
    assert content(uuids) == content(uuids.slice(0))


def test_a_hash_is_the_same_in_every_process_and_release():
    table = pa.table({"i": [1, None], "t": ["ä", None], "f": [0.5, float("nan")], "l": [[1], None]})
    assert content(table) == "arrow3:2680a5cb4486548e4fcfb7877899fb1fd3e26d36"


@pytest.mark.parametrize(
    "kind", [pa.month_day_nano_interval(), pa.run_end_encoded(pa.int32(), pa.int8()), pa.dense_union([pa.field("a", pa.int8())])]
)
def test_a_type_without_rules_is_refused_even_when_nested(kind):
    for nested in (kind, pa.list_(kind), pa.struct([("a", kind)])):
        with pytest.raises(UnsupportedByStore):
            ContentHasher(pa.schema([("a", nested)]))
