from __future__ import annotations

import logging
import re

import duckdb
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipedag_core.errors import MaterializationError
from pipedag_core.ports.data import Placeholder, StoredTable, TableSchema
from pipedag_core.stores import sqltext
from pipedag_core.stores.sqlsyntax import DUCKDB, POSTGRES

NAMES = StoredTable("1", "raw", 3, "names", "raw/g3/names.parquet", TableSchema((), b""), "identity")


def prepare(sql, stages=("raw", "features")):
    return sqltext.prepare(sql, {"names": Placeholder("names", NAMES)}, frozenset(stages), lambda table: f"place_of_{table.name}")


def canonical(sql):
    return prepare(sql).canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("select 1 as A", "select 1 as a"),
        ("select 1 as Select", "select 1 as select"),
        ("select 1 as Select from t", "select 1 as select from t"),
        ("select t.Order from t", "select t.order from t"),
        ("select Date from t", "select date from t"),
        ("select 0x1F", "select 0 x1f"),
        ("select x'ff'", "select x 'ff'"),
        ("select 'a'\n'b'", "select 'a' 'b'"),
        ("select a - -1", "select a --1"),
        ("select 'a -- b'", "select 'a'"),
        ("select 1 -- a\r + 1", "select 1"),
        ("select 1e3", "select 1 e3"),
        ("select $$A$$", "select $$a$$"),
        ("select E'\\n'", "select '\\n'"),
        ('select "a b"', "select a b"),
        ("select a ! ~ b", "select a !~ b"),
    ],
)
def test_texts_that_may_mean_different_things_stay_different(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT a.b FROM t GROUP BY a ORDER  BY b", "select a . b from t group\nby a order by b;;"),
        ("SELECT DISTINCT a, count( * ) FROM t", "select distinct a,count(*) from t -- x"),
        ("CREATE TABLE x AS SELECT a FROM t", "create table x as select a from t"),
        ("SELECT a /* b /* c */ d */ FROM t", "SELECT a FROM t"),
        ("SELECT a\r\nFROM t -- x\r\nWHERE b", "select a from t where b"),
        ("EXPLAIN SELECT 'a' ; CALL f( 1 )", "EXPLAIN select 'a';CALL f(1)"),
    ],
)
def test_texts_that_differ_in_layout_only_are_equal(one, other):
    assert canonical(one) == canonical(other)


@given(st.text(max_size=8), st.text(max_size=8))
def test_two_string_literals_are_equal_only_if_their_text_is(one, other):
    assume(one != other)

    def literal(text):
        return "SELECT '" + text.replace("'", "''") + "'"

    assert canonical(literal(one)) != canonical(literal(other))


TERMS = [
    "1",
    "'aB'",
    "x'fF'",
    "0x1F",
    "'a'\n'B'",
    "1.5",
    ".5",
    "[1, 2][1:2]",
    "1::INT",
    "date '2020-01-01'",
    "1 - -1",
    "1 --1\n",
    "1 /* C */",
    "$$A b$$",
]
TERMS += ["E'\\n'", "'x' || 'Y'", "{'A': 1}['A']", "CASE WHEN true THEN 'A' END", "a.Order", "N", "1 ! = 2", "count(*)", "1e2", "1_0"]
ALIASES = ["", " AS A", " a", ' "a"', " as Select", " AS date", ' AS "Select"']


@st.composite
def queries(draw):
    items = draw(st.lists(st.tuples(st.sampled_from(TERMS), st.sampled_from(ALIASES)).map("".join), min_size=1, max_size=3))
    return f'SELECT {",".join(items)} FROM (SELECT 1 AS n, 2 AS "Order") AS a GROUP BY ALL'


@settings(max_examples=300)
@given(queries(), st.data())
def test_queries_that_duckdb_answers_differently_are_never_equal(one, data):
    at = data.draw(st.integers(0, len(one) - 1))
    other = one[:at] + data.draw(st.sampled_from([" ", "\n", "", one[at].swapcase(), one[at] * 2, "--", "\r", "'", '"'])) + one[at + 1 :]
    answers = []
    for text in (one, other):
        try:
            relation = duckdb.sql(text)
            if relation is None:
                return
            answers.append((relation.columns, [str(kind) for kind in relation.types], str(relation.fetchall())))
        except duckdb.Error:
            return
    if canonical(one) == canonical(other):
        assert answers[0] == answers[1]


def test_canonical_text_is_its_own_canonical_text():
    sql = "SELECT  a.X, x'FF', 'a'\n'b' -- c\n FROM t AS n;"
    assert canonical(canonical(sql)) == canonical(sql)


def test_the_words_that_are_folded_are_those_that_duckdb_reserves():
    found = duckdb.sql(
        "SELECT keyword_name FROM duckdb_keywords() GROUP BY 1 HAVING bool_and(keyword_category IN ('reserved', 'type_function'))"
    )
    assert {word for (word,) in found.fetchall()} == DUCKDB.reserved


def test_a_script_is_split_where_its_statements_end():
    script = "select ';' ; -- x;\n $$;$$;; create table a as from b /* ; */ ; explain select ';'; call f(';')"
    assert sqltext.split(script) == ["select ';'", "$$;$$", "create table a as from b", "explain select ';'", "call f(';')"]


@pytest.mark.parametrize(
    ("statement", "leaves"),
    [
        ("COPY t TO 'x.csv'", True),
        ("COPY (SELECT a FROM t) TO 'x'", True),
        ("COPY t FROM 'to.csv'", False),
        ("COPY \"to\" FROM 'x'", False),
    ],
)
def test_copying_out_is_told_from_copying_in(statement, leaves):
    assert sqltext.writes_a_file(statement) is leaves


@pytest.mark.parametrize(
    "sql",
    [
        "WITH raw AS (SELECT 1 AS names) SELECT raw.names FROM raw",
        "SELECT raw.names FROM t AS raw",
        "SELECT extract(year FROM raw.day) FROM t AS raw",
        "SELECT features.f(1)",
        "CREATE TABLE features.x AS SELECT 1; SELECT * FROM features.x",
        "CREATE TABLE x AS SELECT 1; SELECT * FROM features.x",
        "DROP TABLE IF EXISTS features.y",
    ],
)
def test_names_that_only_look_like_tables_of_a_stage_stay(sql):
    assert prepare(sql).text == sql


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("FROM raw.names", 'FROM place_of_names AS "names"'),
        ("SELECT * FROM RAW.Names n", "SELECT * FROM place_of_names n"),
        ("PIVOT raw.names ON x", "PIVOT place_of_names ON x"),
        ("SELECT * FROM t, raw.names WHERE raw.names.x = 1", 'SELECT * FROM t, place_of_names AS "names" WHERE "names".x = 1'),
        ("SELECT * FROM pipedag__in.names ASOF JOIN t USING (x)", 'SELECT * FROM place_of_names AS "names" ASOF JOIN t USING (x)'),
        ("SELECT * FROM (pipedag__in.names)", 'SELECT * FROM (place_of_names AS "names")'),
        ('SELECT * FROM pipedag__in.names "n"', 'SELECT * FROM place_of_names "n"'),
        ("SELECT * FROM pipedag__in.names AS n(a, b)", "SELECT * FROM place_of_names AS n(a, b)"),
        ("CALL raw.f(1); CREATE TABLE x AS FROM raw.names", 'CALL raw.f(1); CREATE TABLE x AS FROM place_of_names AS "names"'),
    ],
)
def test_inputs_are_bound_wherever_they_stand(sql, text):
    assert prepare(sql).text == text


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM features.x",
        "CALL f(1); SELECT * FROM t JOIN features.x ON 1",
        "INSERT INTO raw.names SELECT 1",
        "INSERT INTO features.x SELECT 1",
    ],
)
def test_other_tables_of_stages_are_refused(sql):
    with pytest.raises(MaterializationError, match=re.escape(sql)):
        prepare(sql)


def test_text_that_the_parser_does_not_know_is_no_reason_to_warn(caplog):
    with caplog.at_level(logging.ERROR):
        prepare("CALL raw.f(1)")
    assert logging.getLogger("sqlglot").handlers


def with_schemas(sql):
    schemas = {"full_raw": "raw", "full_features": "features"}
    labels = {"names": Placeholder("names", NAMES)}
    return sqltext.prepare(sql, labels, frozenset({"raw", "features"}), lambda table: f"place_of_{table.name}", POSTGRES, schemas)


@pytest.mark.parametrize("text", ["SELECT * FROM full_raw.names", 'SELECT * FROM "full_raw"."names"', "SELECT * FROM Full_Raw.NAMES"])
def test_a_table_named_by_the_schema_that_people_read_is_bound_like_the_stage(text):
    prepared = with_schemas(text)
    assert prepared.inputs == ("names",)
    assert prepared.canonical == with_schemas("SELECT * FROM raw.names").canonical


@pytest.mark.parametrize("text", ["SELECT * FROM full_raw.other", "SELECT 1 WHERE EXISTS (SELECT FROM full_features.x)"])
def test_a_table_that_is_no_input_is_refused_by_the_schema_that_people_read(text):
    with pytest.raises(MaterializationError, match="which is not an input of the task"):
        with_schemas(text)


def test_a_table_of_a_stage_cannot_be_read_past_the_flow_by_naming_its_database():
    with pytest.raises(MaterializationError, match="together with its database"):
        with_schemas("SELECT * FROM db.full_raw.names")
    assert with_schemas("SELECT a.full_raw.y FROM t AS a").inputs == ()


def test_a_byte_order_mark_is_no_part_of_a_query():
    assert prepare("\ufeffSELECT 1") == prepare("SELECT 1")
