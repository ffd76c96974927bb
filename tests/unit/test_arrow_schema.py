from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipedag_core.arrow_schema import from_arrow, to_arrow

TYPES = [
    pa.int64(), pa.string(), pa.timestamp("us", tz="Europe/Berlin"), pa.decimal128(38, 10), pa.dictionary(pa.int8(), pa.string(), ordered=True),
    pa.null(), pa.duration("ms"), pa.list_(pa.field("item", pa.int8(), nullable=False)), pa.large_list(pa.string()), pa.list_(pa.float32(), 3),
    pa.struct([pa.field("a", pa.int8(), nullable=False)]), pa.map_(pa.string(), pa.list_(pa.int8())), pa.uuid(), pa.list_view(pa.int8()),
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("nullable", [True, False])
def test_every_type_comes_back_exactly(kind, nullable):
    nullable = nullable or kind == pa.null()
    schema = pa.schema([pa.field("ä b", kind, nullable=nullable)])
    described = from_arrow(schema)
    assert to_arrow(described).equals(schema)
    assert (described.columns[0].name, described.columns[0].nullable) == ("ä b", nullable)
    assert described.names == ("ä b",)


def test_types_are_named_as_pyarrow_names_them():
    assert from_arrow(pa.schema([("a", pa.timestamp("us", "UTC"))])).columns[0].type == "timestamp[us, tz=UTC]"


def test_what_pandas_and_parquet_note_beside_the_columns_does_not_count(tmp_path):
    table = pa.Table.from_pandas(pd.DataFrame({"a": [1], "s": [{"x": [1]}]}))
    pq.write_table(table, tmp_path / "t.parquet")
    plain = from_arrow(table.schema.remove_metadata())
    assert from_arrow(table.schema) == plain
    noted = pq.ParquetFile(tmp_path / "t.parquet").schema_arrow
    assert from_arrow(noted) == from_arrow(noted.remove_metadata())
    assert to_arrow(plain).metadata is None


def test_metadata_of_a_column_is_kept_in_any_order():
    one, other = (
        pa.schema([pa.field("a", pa.int8(), metadata=dict(pairs))]) for pairs in ([("x", "1"), ("y", "2")], [("y", "2"), ("x", "1")])
    )
    assert from_arrow(one) == from_arrow(other)
    assert to_arrow(from_arrow(one)).field("a").metadata == {b"x": b"1", b"y": b"2"}


def test_field_numbers_of_parquet_readers_are_dropped_at_every_depth():
    numbered = pa.field("e", pa.int8(), metadata={"PARQUET:field_id": "3"})
    kinds = [pa.list_(numbered), pa.large_list(numbered), pa.list_(numbered, 2), pa.struct([numbered]), pa.map_(pa.string(), numbered)]
    for kind in kinds:
        result = to_arrow(from_arrow(pa.schema([pa.field("a", kind, metadata={"PARQUET:field_id": "1"})])))
        assert "PARQUET" not in result.to_string(show_field_metadata=True)
