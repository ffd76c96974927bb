"""A script of raw SQL turned step by step into programmatic SQL, with the same tables at every step."""

from __future__ import annotations

import polars as pl
import sqlalchemy as sa

from pipedag_core import Flow, RawSql, Stage, Table, materialize


def ref(table: sa.Alias) -> str:
    return f'"{table.original.schema}"."{table.original.name}"'


# Step 1: everything is one script, as it was found.


@materialize(lazy=True)
def all_tables():
    return RawSql(
        """
        CREATE TABLE tbl_a AS
        SELECT 1 AS x UNION ALL SELECT 2;

        CREATE TABLE out AS
        SELECT a.*, a.x * a.x AS x2   -- a semicolon; in a comment
        FROM tbl_a AS a;
        """
    )


# Step 2: the first table is a query, the second still text.


@materialize(lazy=True, input_type=sa.Table)
def get_tbl_a():
    return Table(sa.union_all(sa.select(sa.literal(1).label("x")), sa.select(sa.literal(2).label("x"))), name="tbl_a")


@materialize(lazy=True, input_type=sa.Table)
def get_out_text(a: sa.Alias):
    return Table(sa.text(f"SELECT a.*, a.x * a.x AS x2 FROM {ref(a)} AS a"), name="out")


# Step 3: both are expressions.


@materialize(lazy=True, input_type=sa.Table)
def get_out(a: sa.Alias):
    return Table(sa.select(a, (a.c.x * a.c.x).label("x2")), name="out")


@materialize(version="1.0", input_type=pl.DataFrame)
def total(out: pl.DataFrame):
    return out["x2"].sum()


def step_1():
    with Flow("raw") as flow, Stage("s0"):
        raw = all_tables()
        total(raw["out"])
    return flow


def step_2():
    with Flow("raw") as flow, Stage("s0"):
        total(get_out_text(get_tbl_a()))
    return flow


def step_3():
    with Flow("raw") as flow, Stage("s0"):
        total(get_out(get_tbl_a()))
    return flow


def test_every_step_shows_the_same_tables(config, tables_of):
    seen = []
    for make in (step_1, step_2, step_3):
        result = make().run(config=config)
        assert result.successful, result.exception
        flow = result.flow
        assert result.get(flow["s0"]["total"]) == 5
        seen.append({name: frame.sort("x").to_dicts() for name, frame in tables_of(config)["s0"].items()})
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["out"] == [{"x": 1, "x2": 1}, {"x": 2, "x2": 4}]


def test_a_second_run_of_every_step_executes_nothing(config):
    for make in (step_1, step_2, step_3):
        make().run(config=config)
        again = make().run(config=config)
        assert {outcome.value for outcome in again.task_states.values()} == {"cached"}


def test_items_of_a_script_are_found_by_name(config):
    flow = step_1()
    result = flow.run(config=config)
    raw = result.get(flow["s0"]["all_tables"], as_type=pl.DataFrame)
    assert set(raw) == {"tbl_a", "out"}
    assert "OUT" in raw
    assert raw["out"]["x2"].to_list() == [1, 4]
