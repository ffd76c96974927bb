"""What a DuckDB relation is computed from: its query with readable names, and the columns that it leads back to, held against what really changes."""

from __future__ import annotations

import duckdb
import polars as pl
import pytest
from duckdb import CaseExpression, ConstantExpression, FunctionExpression, StarExpression
from duckdb import ColumnExpression as C

from pipedag_core.ports.data import StoredTable, TableOptions, TableSchema
from pipedag_core.stores.column_lineage import column_sources
from pipedag_core.stores.relation_text import readable

COLUMNS = {"raw": {"a": ["k", "x", "Y"]}, "more": {"b": ["k", "z"]}}
ALL = [(stage, table, column) for stage, tables in COLUMNS.items() for table, columns in tables.items() for column in columns]
VALUES = {"k": "i", "x": "i * i + 1", "Y": "10 - i", "z": "i * 3 + 2"}


def stored(stage, name):
    return StoredTable(name, stage, 1, name, "", TableSchema((), b""), name, None, None, None, TableOptions())


TABLES = {("raw__g1", "a"): stored("raw", "a"), ("more__g1", "b"): stored("more", "b")}


def relations(changed=None):
    """Return both tables as relations; one of their columns with other values, if wanted."""
    connection = duckdb.connect()
    for stage, tables in COLUMNS.items():
        connection.execute(f"CREATE SCHEMA {stage}__g1")
        for table, columns in tables.items():
            of = {name: f"({VALUES[name]}) * 7 + 13" if changed == (stage, table, name) else VALUES[name] for name in columns}
            chosen = ", ".join(f"{text} AS {name}" for name, text in of.items())
            connection.execute(f"CREATE TABLE {stage}__g1.{table} AS SELECT {chosen} FROM range(5) AS r(i)")
    return connection.sql("SELECT * FROM raw__g1.a").set_alias("a"), connection.sql("SELECT * FROM more__g1.b").set_alias("b")


def sql(text):
    """Return what makes a relation by a query over `q`."""
    return lambda a, b: a.query("q", text)


#: How a relation is made -> the columns that decide which rows there are, or their order, and so may count or not.
CASES = {
    "project": (lambda a, b: a.project("x + 1 AS p, Y, 1 AS one, k AS kk"), ""),
    "filter": (lambda a, b: a.filter("x > 2"), "x"),
    "order": (lambda a, b: a.order("x DESC").limit(3), "x"),
    "join": (lambda a, b: a.join(b, "a.k = b.k", how="left").project("a.k AS q, x + z AS s, Y"), "k"),
    "join by name": (lambda a, b: a.join(b, "k"), "k"),
    "semi join": (lambda a, b: a.join(b, "a.k = b.k", how="semi"), "k"),
    "join with itself": (lambda a, b: a.join(a.set_alias("c"), "a.k = c.k").project("a.x + c.Y AS s"), "k"),
    "aggregate": (lambda a, b: a.aggregate("k % 2 AS g, sum(x) AS s, max(Y) AS m, count(*) AS n"), "k"),
    "expressions": (lambda a, b: a.aggregate([C("Y"), FunctionExpression("sum", C("x")).alias("t")]), "Y"),
    "case": (lambda a, b: a.select(CaseExpression(C("x") > 3, C("Y")).otherwise(ConstantExpression(0)).alias("c")), ""),
    "union": (lambda a, b: a.project("k, x").union(b), ""),
    "except": (lambda a, b: a.project("k, x").except_(b), "k x z"),
    "star without": (lambda a, b: a.select(StarExpression(exclude=["x"])), ""),
    "star replaced": (lambda a, b: a.project("* REPLACE (x + k AS x)"), ""),
    "star renamed": (lambda a, b: a.project("* RENAME (x AS w)"), ""),
    "chosen columns": (lambda a, b: a.project("k, COLUMNS('x|Y')"), ""),
    "names exchanged": (lambda a, b: a.project("Y AS x, x AS Y"), ""),
    "other case": (lambda a, b: a.project('X AS "X", y'), ""),
    "names used at once": (lambda a, b: a.project("x + 1 AS p, p + Y AS w"), ""),
    "a name that is there as well": (lambda a, b: a.project("x + 1 AS k, k + 1 AS w"), ""),
    "field": (lambda a, b: a.project("{'p': x, 'q': k} AS s").project("s.p AS sp, s.q + 1 AS sq"), ""),
    "element": (lambda a, b: a.project("[x, Y] AS l").project("l[1] AS e"), ""),
    "json": (lambda a, b: a.project("json_object('p', x, 'q', Y) AS j").project("j->>'p' AS e"), ""),
    "window": (sql("SELECT k, sum(x) OVER w AS s, lag(Y) OVER w AS l FROM q WINDOW w AS (ORDER BY k)"), "k"),
    "pivot": (sql("PIVOT q ON (k % 2) USING sum(x) GROUP BY Y"), "k Y"),
    "unpivot": (sql("UNPIVOT q ON x, Y INTO NAME n VALUE v"), ""),
    "union by name": (sql("SELECT k, x FROM q UNION ALL BY NAME SELECT Y AS x, k FROM q"), ""),
    "new names for all": (sql("SELECT * FROM q AS t(x, Y, k)"), ""),
    "new names for some": (sql("SELECT c1, c3 FROM q AS t(c1, c2, c3)"), ""),
    "names of a common table expression": (sql("WITH w(p, r) AS (SELECT x, k FROM q) SELECT * FROM w"), ""),
    "a name for another table": (sql("WITH a AS (SELECT Y AS x FROM q) SELECT x FROM a"), ""),
    "scalar": (sql("SELECT q.*, (SELECT max(x) FROM q) AS big FROM q"), ""),
    "correlated": (sql("SELECT (SELECT sum(r.x) FROM q r WHERE r.k <= q.k) AS s FROM q"), "k"),
    "lateral": (sql("SELECT q.k, l.w FROM q, LATERAL (SELECT q.x + 1 AS w) l"), ""),
    "unnest": (sql("SELECT q.k, u.v FROM q, unnest([q.x, q.Y]) AS u(v)"), ""),
    "using": (sql("SELECT k, w, v FROM (SELECT k, Y AS w FROM q) JOIN (SELECT k, x + Y AS v FROM q) USING (k)"), "k"),
    "recursive": (
        sql("WITH RECURSIVE r AS (SELECT k, x FROM q WHERE k < 2 UNION ALL SELECT k + 1, x FROM r WHERE k < 3) SELECT * FROM r"),
        "k",
    ),
    "lambda": (lambda a, b: a.project("list_transform([x], lambda Y: Y + 1) AS l, k"), ""),
    "the row": (sql("SELECT q AS whole, (q).x AS f FROM q"), ""),
}


def columns_of(relation):
    rows = relation.fetchall()
    return {name: sorted(repr(row[at]) for row in rows) for at, name in enumerate(relation.columns)}


@pytest.mark.parametrize("case", CASES)
def test_a_column_leads_back_to_the_columns_that_change_it_or_is_left_out(case):
    make, deciding = CASES[case]
    text = readable(make(*relations()).sql_query(), TABLES)
    before = columns_of(make(*relations()))
    changed = {source: columns_of(make(*relations(source))) for source in ALL}
    told = {} if text is None else column_sources(text, "duckdb", list(before), COLUMNS)
    for column, sources in told.items():
        true = {source for source, after in changed.items() if after.get(column) != before[column]}
        assert {source for source in true ^ set(sources) if source[2] not in deciding.split()} == set()


@pytest.mark.parametrize("case", CASES)
def test_what_is_shown_gives_the_same_rows_where_tables_have_their_readable_names(case):
    make, _ = CASES[case]
    text = readable(make(*relations()).sql_query(), TABLES)
    if text is None:
        assert case == "pivot"
        return
    connection = duckdb.connect()
    for (_, name), table, frame in zip(TABLES, TABLES.values(), relations(), strict=True):
        rows = frame.to_arrow_table()  # noqa: F841 -- DuckDB finds it by its name
        connection.execute(f"CREATE SCHEMA {table.stage}; CREATE TABLE {table.stage}.{name} AS FROM rows")
    assert columns_of(connection.sql(text)) == columns_of(make(*relations()))


def test_most_columns_lead_somewhere():
    told = []
    for make, _ in CASES.values():
        text = readable(make(*relations()).sql_query(), TABLES)
        told.append(bool(text and column_sources(text, "duckdb", make(*relations()).columns, COLUMNS)))
    assert sum(told) > len(told) * 0.7


def test_names_that_duckdb_makes_up_are_the_same_each_time():
    def text():
        a, b = relations()
        return readable(a.join(b, "a.k = b.k").project("x, z").sql_query(), TABLES)

    assert text() == text()
    assert "raw.a" in text()
    assert "__g1" not in text()


def test_a_query_that_reads_anything_else_is_not_told(tmp_path):
    a, _ = relations()
    frame = pl.DataFrame({"k": [1]})
    frame.write_parquet(tmp_path / "other.parquet")
    connection = duckdb.connect()
    connection.execute("CREATE SCHEMA raw__g1; CREATE TABLE raw__g1.other AS SELECT 1 AS k")
    others = [
        connection.sql("SELECT * FROM raw__g1.other"),
        connection.sql(f"SELECT * FROM '{tmp_path}/other.parquet'"),
        connection.from_arrow(frame.to_arrow()),
        connection.sql("DESCRIBE raw__g1.other"),
    ]
    assert [readable(item.sql_query(), TABLES) for item in others] == [None] * len(others)
    assert readable("SELEC nonsense", TABLES) is None
    assert readable(a.sql_query(), {}) is None
    assert readable(connection.sql("SELECT i AS x FROM range(3) AS r(i)").sql_query(), {}) is not None
