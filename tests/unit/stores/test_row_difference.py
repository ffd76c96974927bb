"""How two tables differ row by row: the query counts as one would by hand."""

from __future__ import annotations

from collections import Counter

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.ports.data import RowDifference
from pipedag_core.stores import row_difference

COLUMNS = ("k", "x", "y")
VALUES = st.one_of(st.none(), st.integers(0, 2))
ROWS = st.lists(st.tuples(st.integers(0, 5), VALUES, VALUES), max_size=8)


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        yield connection


def difference(connection, before, after, key):
    schema = pa.schema([(name, pa.int64()) for name in COLUMNS])
    for name, rows in (("before", before), ("after", after)):
        connection.register(name, pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=schema))
    [row] = connection.execute(row_difference.query('"before"', '"after"', COLUMNS, key)).fetchall()
    return row_difference.read(row, COLUMNS, key)


@given(before=ROWS, after=ROWS)
def test_rows_as_wholes_are_counted_as_often_as_they_occur(connection, before, after):
    old, new = Counter(before), Counter(after)
    assert difference(connection, before, after, ()) == RowDifference((new - old).total(), (old - new).total())


@given(before=ROWS, after=ROWS)
def test_rows_with_a_key_are_matched_by_it(connection, before, after):
    old, new = ({row[0]: row for row in rows} for rows in (before, after))
    both = old.keys() & new.keys()
    columns = {name: sum(old[key][at] != new[key][at] for key in both) for at, name in enumerate(COLUMNS)}
    expected = RowDifference(
        len(new.keys() - both),
        len(old.keys() - both),
        sum(old[key] != new[key] for key in both),
        {name: count for name, count in columns.items() if count},
    )
    assert difference(connection, list(old.values()), list(new.values()), ("k",)) == expected
    assert difference(connection, list(old.values()), list(old.values()), ("k",)).is_empty
