"""One join, written in six styles on one pair of tables: all give the same rows."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Flow, SequentialEngine, Stage, materialize

CALLS: list[str] = []


@materialize(version="1.0", nout=2)
def input_tables():
    CALLS.append("input_tables")
    names = pd.DataFrame({"pk": [1, 2, 3], "name": ["Alice", "Bob", "Charlie"], "x": [1, 2, 3]})
    ages = pd.DataFrame({"pk": [1, 2, 4], "age": [20, 40, 60]})
    return names, ages


@materialize(version="1.0", input_type=pd.DataFrame)
def in_pandas(names: pd.DataFrame, ages: pd.DataFrame):
    CALLS.append("in_pandas")
    joined = names.merge(ages, on="pk", how="left").assign(x2=lambda df: df["x"] * df["x"])
    return joined.astype({"age": "Int64"})


@materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
def in_polars_lazy(names: pl.LazyFrame, ages: pl.LazyFrame):
    CALLS.append("in_polars_lazy")
    return names.join(ages, on="pk", how="left").with_columns(x2=pl.col("x") * pl.col("x"))


@materialize(version="1.0", input_type=pl.DataFrame)
def in_polars(names: pl.DataFrame, ages: pl.DataFrame):
    CALLS.append("in_polars")
    return names.join(ages, on="pk", how="left").with_columns(x2=pl.col("x") * pl.col("x"))


@materialize(lazy=True, input_type=sa.Table)
def in_sqlalchemy(names: sa.Alias, ages: sa.Alias):
    CALLS.append("in_sqlalchemy")
    return sa.select(names.c.pk, names.c.name, names.c.x, ages.c.age, (names.c.x * names.c.x).label("x2")).select_from(
        names.outerjoin(ages, names.c.pk == ages.c.pk)
    )


def ref(table: sa.Alias) -> str:
    return f'"{table.original.schema}"."{table.original.name}"'


@materialize(lazy=True, input_type=sa.Table)
def in_sql_text(names: sa.Alias, ages: sa.Alias):
    CALLS.append("in_sql_text")
    return sa.text(
        f"""
        SELECT n.pk, n.name, n.x, a.age, n.x * n.x AS x2  -- one row per name
        FROM {ref(names)} AS n
        LEFT JOIN {ref(ages)} AS a ON n.pk = a.pk
        """
    )


@materialize(version="1.0", input_type=pa.Table)
def in_pyarrow(names: pa.Table, ages: pa.Table):
    CALLS.append("in_pyarrow")
    joined = names.join(ages, keys="pk", join_type="left outer")
    return joined.append_column("x2", pa.compute.multiply(joined["x"], joined["x"]))


STYLES = [in_pandas, in_polars_lazy, in_polars, in_sqlalchemy, in_sql_text, in_pyarrow]

#: Tasks whose function builds a query and is therefore always called; only the query is not executed again.
ALWAYS_CALLED = {"in_sqlalchemy", "in_sql_text", "in_polars_lazy"}


@pytest.fixture
def flow():
    CALLS.clear()
    with Flow("styles") as flow:
        with Stage("inputs"):
            names, ages = input_tables()
        with Stage("joined"):
            for style in STYLES:
                style(names, ages)
    return flow


def test_all_styles_give_the_same_rows(flow, config):
    result = flow.run(config=config)
    assert result.successful
    expected = [
        {"pk": 1, "name": "Alice", "x": 1, "age": 20, "x2": 1},
        {"pk": 2, "name": "Bob", "x": 2, "age": 40, "x2": 4},
        {"pk": 3, "name": "Charlie", "x": 3, "age": None, "x2": 9},
    ]
    for task in flow["joined"].tasks:
        frame = result.get(task, as_type=pl.DataFrame).select("pk", "name", "x", "age", "x2").sort("pk")
        assert frame.to_dicts() == expected, task.id


def test_a_second_run_executes_nothing(flow, config):
    flow.run(config=config)
    CALLS.clear()
    result = flow.run(config=config)
    assert {outcome.value for outcome in result.task_states.values()} == {"cached"}
    assert set(CALLS) == ALWAYS_CALLED


def test_every_style_is_a_plain_function_outside_of_a_flow():
    names, ages = input_tables()
    assert in_pandas(names, ages)["x2"].tolist() == [1, 4, 9]


def test_both_engines_give_the_same(flow, config):
    one = flow.run(config=config, orchestration_engine=SequentialEngine())
    other = flow.run(config=config)
    for task in flow["joined"].tasks:
        assert one.get(task, as_type=pl.DataFrame).equals(other.get(task, as_type=pl.DataFrame))
