from __future__ import annotations

import datetime as dt
import math
import uuid
from decimal import Decimal

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.errors import ConfigError, MaterializationError, UnsupportedByStore
from pipedag_core.hooks import sqlalchemy_types
from pipedag_core.hooks.registry import Hooks
from pipedag_core.hooks.sqlalchemy_literals import literal
from pipedag_core.ports.data import Form, QueryData, StoredTable

SCHEMA = from_arrow(pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string()), pa.field("c", pa.float64())]))
STORED = StoredTable("id", "raw", 1, "flights", "x", SCHEMA, "identity")


@pytest.fixture
def flights(folder):
    return Hooks().for_type(sa.Alias).read(STORED, sa.Alias, folder.reading("flights"))


@pytest.fixture
def text(folder):
    def go(query, dialect="duckdb"):
        folder.dialect = dialect
        data = Hooks().for_object(query).write(query, folder.writing())
        assert isinstance(data, QueryData)
        return " ".join(data.text.split())

    return go


@pytest.fixture
def run(text, folder):
    """Run a query of the hook where the placeholder is a real table."""
    folder.connection.execute("CREATE SCHEMA pipedag__in")
    folder.connection.execute(
        "CREATE TABLE pipedag__in.flights AS FROM (VALUES (1::BIGINT, 'a%b', 1.5::DOUBLE), (2, 'A_c', NULL), (3, 'x:y''z', 2.5)) v(a, b, c)"
    )
    return lambda query: folder.connection.execute(text(query)).fetchall()


def test_an_input_is_an_alias_with_the_arguments_name_and_the_stored_columns(flights):
    assert isinstance(flights, sa.Alias)
    assert flights.name == "flights"
    assert {column.name: (type(column.type).__name__, column.nullable) for column in flights.original.c} == {
        "a": ("BigInteger", False),
        "b": ("String", True),
        "c": ("Double", True),
    }


def test_the_placeholder_can_be_pasted_into_text(flights, text):
    query = sa.text(f"SELECT * FROM {flights.original.schema}.{flights.original.name}")
    assert text(query) == "SELECT * FROM pipedag__in.flights"


@pytest.mark.parametrize("as_type", [sa.Table, sa.Alias])
def test_both_names_of_the_input_type_give_an_alias(as_type, folder):
    assert isinstance(Hooks().for_type(as_type).read(STORED, as_type, folder.reading()), sa.Alias)


def test_an_input_in_a_collection_has_its_last_name_as_alias(folder, text):
    alias = Hooks().for_type(sa.Alias).read(STORED, sa.Alias, folder.reading("tbls.flights"))
    assert text(sa.select(alias.c.a)) == 'SELECT flights.a FROM pipedag__in."tbls.flights" AS flights'


def test_two_inputs_of_one_schema_stay_apart(folder, text):
    left, right = (Hooks().for_type(sa.Alias).read(STORED, sa.Alias, folder.reading(label)) for label in ("x", "y"))
    assert text(sa.select(left.c.a).join(right, left.c.a == right.c.a)) == (
        "SELECT x.a FROM pipedag__in.x AS x JOIN pipedag__in.y AS y ON x.a = y.a"
    )


def test_a_bare_table_means_all_its_rows(flights, run, text):
    assert text(flights) == "SELECT * FROM pipedag__in.flights AS flights"
    assert text(flights.original) == "SELECT * FROM pipedag__in.flights"
    for query in (flights, flights.original, sa.select(flights).subquery(), sa.select(flights).cte("x")):
        assert len(run(query)) == 3


def test_sql_is_by_reference_and_goes_only_to_stores_that_take_queries(flights, folder):
    hook = Hooks().for_object(sa.select(flights))
    assert hook.by_reference
    folder.forms = frozenset({Form.FILES})
    with pytest.raises(UnsupportedByStore, match="query"):
        hook.write(sa.select(flights), folder.writing())


c = sa.column
NEW_YEAR = dt.datetime.fromisoformat("2020-01-01")
QUERIES = {
    "like": (lambda t: sa.select(t.c.a).where(t.c.b.like("a%")), [(1,)]),
    "contains": (lambda t: sa.select(t.c.a).where(t.c.b.contains("%", autoescape=True)), [(1,)]),
    "ilike": (lambda t: sa.select(t.c.a).where(t.c.b.ilike("A%")).order_by(t.c.a), [(1,), (2,)]),
    "regexp": (lambda t: sa.select(t.c.a).where(t.c.b.regexp_match("^a.b$")), [(1,)]),
    "replace": (lambda t: sa.select(t.c.b.regexp_replace("a", "%")).where(t.c.a == 1), [("%%b",)]),
    "quotes": (lambda t: sa.select(t.c.a).where(t.c.b == "x:y'z"), [(3,)]),
    "cast": (
        lambda t: sa.select(sa.cast(t.c.a, sa.String), sa.cast("2020-01-01", sa.Date)).where(t.c.a == 1),
        [("1", dt.date(2020, 1, 1))],
    ),
    "float": (
        lambda t: sa.select(sa.func.typeof(sa.cast(t.c.a, sa.Float)), sa.func.typeof(sa.literal(1.5))).limit(1),
        [("DOUBLE", "DOUBLE")],
    ),
    "window": (
        lambda t: sa.select(sa.func.sum(t.c.a).over(order_by=t.c.a, rows=(-1, 0))).order_by(t.c.a),
        [(1,), (3,), (5,)],
    ),
    "limit": (lambda t: sa.select(t.c.a).order_by(t.c.a).limit(1).offset(1), [(2,)]),
    "in": (lambda t: sa.select(t.c.a).where(t.c.b.in_(["x:y'z", "a%b"])).order_by(t.c.a), [(1,), (3,)]),
    "in nothing": (lambda t: sa.select(t.c.a).where(t.c.a.in_([])), []),
    "not in nothing": (lambda t: sa.select(sa.func.count()).select_from(t).where(t.c.a.not_in([])), [(3,)]),
    "tuples": (lambda t: sa.select(t.c.a).where(sa.tuple_(t.c.a, t.c.b).in_([(1, "a%b")])), [(1,)]),
    "case": (lambda t: sa.select(sa.case((t.c.a > 2, "50%"), else_=None)).order_by(t.c.a), [(None,), (None,), ("50%",)]),
    "modulo": (lambda t: sa.select(t.c.a % 2).order_by(t.c.a), [(1,), (0,), (1,)]),
    "division": (lambda t: sa.select(t.c.a / 2, t.c.a // 2).where(t.c.a == 3), [(1.5, 1)]),
    "two signs": (lambda t: sa.select(-sa.literal(-3), t.c.a - -1).where(t.c.a == 1), [(3, 2)]),
    "days": (lambda t: sa.select(sa.literal(NEW_YEAR) + dt.timedelta(days=2, hours=-1)), [(NEW_YEAR + dt.timedelta(hours=47),)]),
    "difference": (lambda t: sa.select(sa.literal(dt.date(2020, 1, 3)) - sa.literal(dt.date(2020, 1, 1))), [(2,)]),
    "extract": (lambda t: sa.select(sa.extract("year", sa.literal(dt.date(2020, 1, 3)))), [(2020,)]),
    "array": (lambda t: sa.select(sa.literal(["x'", "%"], sa.ARRAY(sa.String))), [(["x'", "%"],)]),
    "json": (lambda t: sa.select(sa.literal({"a": "x'y%"}, sa.JSON)), [('{"a": "x\'y%"}',)]),
    "union": (lambda t: sa.union_all(sa.select(t.c.a), sa.select(t.c.a + 10)).order_by("a"), [(1,), (2,), (3,), (11,), (12,), (13,)]),
    "exists": (lambda t: sa.select(t.c.a).where(sa.exists().where(t.c.a == 1)).order_by(t.c.a), [(1,), (2,), (3,)]),
    "nulls": (lambda t: sa.select(t.c.a).order_by(t.c.c.desc().nulls_last()), [(3,), (1,), (2,)]),
    "distinct from": (lambda t: sa.select(t.c.a).where(t.c.c.is_distinct_from(1.5)).order_by(t.c.a), [(2,), (3,)]),
    "bound text": (lambda t: sa.text("SELECT :x AS x, '100%' AS p").bindparams(x="it's"), [("it's", "100%")]),
    "text columns": (lambda t: sa.text("SELECT '%' AS x").columns(sa.column("x")), [("%",)]),
    "values": (
        lambda t: sa.select(sa.values(c("k", sa.Integer), c("v", sa.String), name="w").data([(1, "%"), (2, None)])),
        [(1, "%"), (2, None)],
    ),
    "filter": (lambda t: sa.select(sa.func.count().filter(t.c.a > 1)), [(2,)]),
    "try cast": (lambda t: sa.select(sa.try_cast("x", sa.Integer)), [(None,)]),
    "boolean": (lambda t: sa.select(sa.literal(1, sa.Boolean), sa.true()), [(True, True)]),
    "enum": (lambda t: sa.select(sa.literal("a%", sa.Enum("a%", "b"))), [("a%",)]),
    "strange names": (lambda t: sa.select(t.c.a.label('Weird "%(x)s" col')).where(t.c.a == 1), [(1,)]),
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_means_the_same_as_text_in_the_store(name, run, flights):
    query, expected = QUERIES[name]
    assert run(query(flights)) == expected


@pytest.mark.parametrize(("name", "kind"), [("a", "int64"), ("b", "string"), ("c", "double")])
def test_values_keep_their_type_in_the_stores_columns(name, kind, folder, text):
    value = {"a": 2**40, "b": "x", "c": 0.1}[name]
    table = folder.connection.sql(text(sa.select(sa.literal(value).label("x")))).to_arrow_table()
    assert str(table.schema.types[0]) == kind


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.decimals(-(10**20), 10**20, places=6),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.binary(),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.timedeltas(dt.timedelta(days=-10_000), dt.timedelta(days=10_000)),
    st.uuids(),
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES)
def test_every_value_comes_back_from_its_literal(value):
    ((result,),) = duckdb.execute(f"SELECT {literal(value, 'duckdb')}").fetchall()
    if isinstance(value, float) and math.isnan(value):
        assert math.isnan(result)
    else:
        assert result == value
        assert type(result) is type(value)


@given(left=VALUES, right=VALUES, dialect=st.sampled_from(["duckdb", "postgres"]))
def test_different_values_have_different_literals(left, right, dialect):
    if (type(left), repr(left)) != (type(right), repr(right)) and not (isinstance(left, Decimal) and left == right):
        assert literal(left, dialect) != literal(right, dialect)


@pytest.mark.parametrize("value", [object(), 2**127, Decimal("NaN"), Decimal(10) ** 38, {1, 2}, pd.Timestamp(1, unit="ns")])
def test_a_value_without_an_exact_literal_is_an_error_that_names_the_task(value, folder):
    query = sa.select(sa.literal(value, sa.types.NullType()))
    with pytest.raises(MaterializationError, match=r"Task 'clean', output 'flights': the query cannot be written as duckdb SQL"):
        Hooks().for_object(query).write(query, folder.writing())


def test_a_dialect_that_is_not_there_is_an_error(text):
    with pytest.raises(ConfigError, match="no dialect 'nosuch'"):
        text(sa.select(sa.literal(1)), "nosuch")


def test_postgres_gets_its_own_sql(text, flights):
    query = sa.select(flights.c.a).where(flights.c.b.regexp_match("^a%"), flights.c.c > 1.5)
    assert text(query, "postgres") == (
        "SELECT flights.a FROM pipedag__in.flights AS flights WHERE flights.b ~ '^a%' AND flights.c > CAST(1.5 AS DOUBLE PRECISION)"
    )
    assert text(sa.select(sa.literal(b"\x00'")), "postgres") == "SELECT decode('0027', 'hex') AS anon_1"
    assert text(sa.select(sa.literal(uuid.UUID(int=1), sa.Uuid)), "postgres").startswith("SELECT CAST('00000000-")


# --- types

ARROW = [
    pa.null(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.float16(),
    pa.float32(), pa.float64(), pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(20, 3), pa.decimal256(50, 3), pa.string(),
    pa.large_string(), pa.string_view(), pa.binary(), pa.binary(16), pa.large_binary(), pa.binary_view(), pa.date32(), pa.date64(),
    pa.time32("s"), pa.time64("ns"), pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("ms"), pa.month_day_nano_interval(),
    pa.list_(pa.int8()), pa.large_list(pa.string()), pa.list_(pa.float32(), 3), pa.list_view(pa.int8()), pa.large_list_view(pa.int8()),
    pa.list_(pa.list_(pa.int64())), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8()), pa.dictionary(pa.int8(), pa.string()),
    pa.run_end_encoded(pa.int32(), pa.string()), pa.uuid(), pa.json_(), pa.bool8(), pa.dense_union([pa.field("a", pa.int8())]),
]  # fmt: skip


@pytest.mark.parametrize("kind", ARROW, ids=str)
def test_every_arrow_type_has_a_type_in_sqlalchemy(kind):
    result = sqlalchemy_types.from_arrow(kind)
    assert isinstance(result, sa.types.TypeEngine)
    assert isinstance(result, sa.types.NullType) == (kind == pa.null())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int64(), sa.BigInteger),
        (pa.timestamp("us", "UTC"), sa.DateTime),
        (pa.duration("us"), sa.Interval),
        (pa.dictionary(pa.int8(), pa.string()), sa.String),
        (pa.struct([]), sa.JSON),
        (pa.uuid(), sa.Uuid),
        (pa.list_(pa.int64()), sa.ARRAY),
    ],
    ids=str,
)
def test_types_are_the_nearest_in_sqlalchemy(kind, expected):
    assert isinstance(sqlalchemy_types.from_arrow(kind), expected)


def test_details_of_types_are_kept():
    assert sqlalchemy_types.from_arrow(pa.timestamp("us", "UTC")).timezone
    assert not sqlalchemy_types.from_arrow(pa.timestamp("us")).timezone
    numeric = sqlalchemy_types.from_arrow(pa.decimal128(20, 3))
    assert (numeric.precision, numeric.scale) == (20, 3)
    nested = sqlalchemy_types.from_arrow(pa.list_(pa.list_(pa.int64())))
    assert (type(nested.item_type), nested.dimensions) == (sa.BigInteger, 2)


# --- plain text


def test_plain_text_goes_to_the_store_as_it_is(text):
    assert text("SELECT 'a;%' -- note\n") == "SELECT 'a;%' -- note"


def test_empty_text_is_an_error(folder):
    with pytest.raises(MaterializationError, match="the SQL text is empty"):
        Hooks().for_object("").write(" \n", folder.writing())


def test_a_table_is_not_loaded_as_text(folder):
    with pytest.raises(ConfigError, match=r"sa\.Alias"):
        Hooks().for_object("x").read(STORED, str, folder.reading())
