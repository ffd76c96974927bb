"""What a query's text says about where its columns come from."""

from __future__ import annotations

import pytest

from pipedag_core.stores.column_lineage import column_sources

KNOWN = {"raw x": {"orders": ["Amount", "k"]}, "m": {"d": ["Amount", "k", "Twice"]}}
ORDERS = ("raw x", "orders")
D = ("m", "d")


def sources(sql, dialect, *columns):
    return column_sources(sql, dialect, columns, KNOWN)


@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
@pytest.mark.parametrize(
    ("sql", "found"),
    [
        (
            'SELECT o."Amount", o."Amount" * 2 AS "Twice", 1 AS one FROM "raw x"."orders" AS o',
            {"Amount": [(*ORDERS, "Amount")], "Twice": [(*ORDERS, "Amount")]},
        ),
        (
            'SELECT o.*, x."Twice" + x.k AS s FROM "raw x".orders o JOIN (SELECT * FROM "m"."d" AS v) x ON x."Amount" = o."Amount"',
            {"Amount": [(*ORDERS, "Amount")], "k": [(*ORDERS, "k")], "s": [(*D, "Twice"), (*D, "k")]},
        ),
        (
            'WITH a AS (SELECT k, sum("Amount") AS t FROM "raw x"."orders" GROUP BY k) SELECT k, t FROM a UNION ALL SELECT k, "Twice" FROM m.d',
            {"k": [(*D, "k"), (*ORDERS, "k")], "t": [(*D, "Twice"), (*ORDERS, "Amount")]},
        ),
        ('SELECT row_number() OVER (PARTITION BY k ORDER BY "Twice") AS r FROM m.d', {"r": [(*D, "Twice"), (*D, "k")]}),
        ('SELECT (SELECT max(k) FROM "raw x".orders) AS q, a."Amount" FROM m.d a', {"q": [(*ORDERS, "k")], "Amount": [(*D, "Amount")]}),
        ("SELECT e.x FROM elsewhere.e AS e", {"x": [("elsewhere", "e", "x")]}),
    ],
)
def test_columns_are_followed_to_the_tables_that_hold_them(sql, found, dialect):
    asked = [*found, "one"]
    assert sources(sql, dialect, *asked) == {column: tuple(some) for column, some in found.items()}


@pytest.mark.parametrize(
    "sql", ["SELEC nonsense", "VALUES (1)", "CREATE TABLE m.x AS SELECT 1 AS a", "SELECT 1 AS a", "SELECT a FROM m.d " + "-" * 30_000]
)
def test_what_cannot_be_told_is_left_out(sql):
    assert sources(sql, "duckdb", "a") == {}


@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT k, t FROM m.d AS v(k, t, u)",
        'SELECT k, "Twice" AS t FROM m.d EXCEPT SELECT k, "Amount" FROM "raw x".orders',
        'SELECT j AS k, j AS t FROM (SELECT * FROM "raw x".orders) AS v(i, j)',
    ],
)
def test_what_is_followed_to_the_wrong_columns_is_left_out(sql, dialect):
    assert sources(sql, dialect, "k", "t") == {}


@pytest.mark.parametrize(("sql", "dialect"), [("SELECT s.b FROM (SELECT {'a': k, 'b': \"Twice\"} AS s FROM m.d)", "duckdb")])
def test_a_part_of_what_was_put_together_is_left_out(sql, dialect):
    assert sources(sql, dialect, "b") == {}
