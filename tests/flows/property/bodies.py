"""The functions of the tasks: the same arithmetic as in `contents.py`, written in each library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Blob, RawSql, Table
from tests.flows.property.contents import SECOND_COLUMN, SECOND_CONSTANT
from tests.flows.property.model import ITEMS, OPTIONS, Failing, Task

INPUT_TYPES: Mapping[str, Any] = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.Table,
    "scan": pl.LazyFrame,
    "select": sa.Table,
    "text": sa.Table,
    "script": sa.Table,
    "pass": sa.Table,
}
VERSIONS: Mapping[str, Callable[[Task], Any]] = {
    "version": lambda task: task.version,
    "auto": lambda task: AUTO_VERSION,
    "lazy": lambda task: task.version if task.versioned else None,
    "never": lambda task: None,
}


class TaskFailed(Exception):
    """What a failing task raises."""


def function_of(task: Task, world_file: Path | None, called: Callable[[Task], None]) -> Callable[..., Any]:
    """Return a function that does what the task says.

    Args:
        task: The task.
        world_file: A CSV file with what the task finds outside, for queries; None where they cannot read any, and hold it themselves.
        called: Told of every call.
    """

    def body(tables: list[Any], values: list[Any], argument: Any) -> Any:
        called(task)
        if task.failing is not Failing.NO:
            raise TaskFailed(task.name)
        tables = [table for nest in tables for table in (nest.values() if isinstance(nest, Mapping) else [nest])]
        numbers = [value["number"] if isinstance(value, dict) else value for value in values]
        if task.kind.engine == "pass":
            return Table(tables[0], name=task.table_name)
        if task.kind.engine in ("select", "text", "script"):
            return _sql(task, tables, [int(argument), *numbers], world_file)
        extra = int(argument) + sum(numbers) + (task.world if task.cached else 0)
        return _frames(task, tables, extra)

    return body


# --- frames -----------------------------------------------------------------------------------------------------------------------------


def _frames(task: Task, tables: Sequence[Any], extra: int) -> Any:
    make = {"pandas": _pandas, "polars": _polars, "arrow": _arrow, "scan": _scan}[task.kind.engine]
    first = make(task, tables, task.constant, task.column, extra)
    if task.kind.shape == "pair":
        return {ITEMS[0]: _table(task, first), ITEMS[1]: make(task, tables, SECOND_CONSTANT, SECOND_COLUMN, extra)}
    if task.kind.shape == "table":
        return _table(task, first)
    total = int(first["x"].sum())
    return total if task.kind.shape == "value" else Blob({"number": total}, task.table_name)


def _table(task: Task, data: Any) -> Any:
    if task.key or task.options or task.table_name is not None:
        declared: Mapping[str, Any] = OPTIONS[task.options]
        return Table(data, name=task.table_name, primary_key=["x"] if task.key else None, **declared)
    return data


def _start(task: Task) -> tuple[list[int], list[str]]:
    return [task.constant + number for number in range(task.rows)], [task.letter] * task.rows


def _polars_start(task: Task) -> pl.DataFrame:
    x, text = _start(task)
    return pl.DataFrame({"x": x, "text": text}, schema={"x": pl.Int64, "text": pl.String})


def _polars(task: Task, tables: Sequence[pl.DataFrame], constant: int, column: str, extra: int) -> pl.DataFrame:
    base = tables[0] if tables else _polars_start(task)
    extra += sum(int(table["x"].sum()) for table in tables[1:])
    x = (pl.col("x") * 3 + (constant + extra) + pl.when(pl.nth(1) == task.letter).then(10).otherwise(0)) % 1000
    return base.select(x.cast(pl.Int64).alias("x"), pl.lit(task.letter).alias(column))


def _scan(task: Task, tables: Sequence[pl.LazyFrame], constant: int, column: str, extra: int) -> pl.LazyFrame:
    base = tables[0] if tables else _polars_start(task).lazy()
    second = base.collect_schema().names()[1]
    sums = [f"sum_{number}" for number in range(len(tables) - 1)]
    for name, table in zip(sums, tables[1:], strict=True):
        base = base.join(table.select(pl.col("x").sum().alias(name)), how="cross")
    x = pl.col("x") * 3 + (constant + extra) + pl.when(pl.col(second) == task.letter).then(10).otherwise(0)
    for name in sums:
        x += pl.col(name)
    return base.select((x % 1000).cast(pl.Int64).alias("x"), pl.lit(task.letter).alias(column))


def _pandas(task: Task, tables: Sequence[pd.DataFrame], constant: int, column: str, extra: int) -> pd.DataFrame:
    x, text = _start(task)
    base = tables[0] if tables else pd.DataFrame({"x": pd.Series(x, dtype="int64"), "text": pd.Series(text, dtype="str")})
    extra += sum(int(table["x"].sum()) for table in tables[1:])
    hits = (base.iloc[:, 1] == task.letter).astype("int64") * 10
    made = (base["x"] * 3 + constant + extra + hits) % 1000
    return pd.DataFrame({"x": made.astype("int64"), column: pd.Series([task.letter] * len(base), dtype="str")})


def _arrow(task: Task, tables: Sequence[pa.Table], constant: int, column: str, extra: int) -> pa.Table:
    x, text = _start(task)
    base = tables[0] if tables else pa.table({"x": pa.array(x, pa.int64()), "text": pa.array(text, pa.string())})
    extra += sum(pc.call_function("sum", [table["x"]]).as_py() or 0 for table in tables[1:])
    pairs = zip(base.column(0).to_pylist(), base.column(1).to_pylist(), strict=True)
    made = [(x * 3 + constant + extra + (10 if text == task.letter else 0)) % 1000 for x, text in pairs]
    return pa.table({"x": pa.array(made, pa.int64()), column: pa.array([task.letter] * len(made), pa.string())})


# --- queries ----------------------------------------------------------------------------------------------------------------------------


def _sql(task: Task, tables: Sequence[Any], numbers: Sequence[int], world_file: Path | None) -> Any:
    found = str(task.world) if world_file is None else f"(SELECT CAST(w AS BIGINT) FROM read_csv('{world_file}'))"
    outside = found if task.cached else None
    make = _select if task.kind.engine == "select" else _text_query
    first = make(task, tables, [task.constant, *numbers], task.column, outside)
    if task.kind.engine == "script":
        second = make(task, tables, [SECOND_CONSTANT, *numbers], SECOND_COLUMN, outside)
        name = task.script_name
        return RawSql(f"CREATE TABLE {name} AS {first.text};\nCREATE TABLE {name}_n AS {second.text};")
    if task.kind.shape == "pair":
        second = make(task, tables, [SECOND_CONSTANT, *numbers], SECOND_COLUMN, outside)
        return {ITEMS[0]: _table(task, first), ITEMS[1]: second}
    return _table(task, first)


def _rows_text(task: Task) -> str:
    x, _ = _start(task)
    if not x:
        return f"(SELECT 0 AS x, '{task.letter}' AS text WHERE false)"
    return "(VALUES " + ", ".join(f"({number}, '{task.letter}')" for number in x) + ")"


def _text_query(task: Task, tables: Sequence[Any], numbers: Sequence[int], column: str, outside: str | None) -> sa.TextClause:
    def place(table: Any) -> str:
        return f'"{table.original.schema}"."{table.original.name}"'

    source = place(tables[0]) if tables else _rows_text(task)
    second = list(tables[0].c)[1].name if tables else "text"
    terms = [*map(str, numbers), *(f"(SELECT CAST(coalesce(sum(x), 0) AS BIGINT) FROM {place(table)})" for table in tables[1:])]
    extra = " + ".join([*terms, *([outside] if outside else [])])
    alias = "t" if tables else "t(x, text)"
    x = f"(t.x * 3 + {extra} + CASE WHEN t.\"{second}\" = '{task.letter}' THEN 10 ELSE 0 END) % 1000"
    return sa.text(f"SELECT CAST({x} AS BIGINT) AS x, '{task.letter}' AS \"{column}\" FROM {source} AS {alias}")


def _select(task: Task, tables: Sequence[Any], numbers: Sequence[int], column: str, outside: str | None) -> Any:
    if tables:
        base: Any = tables[0]
        x, text = base.c.x, list(base.c)[1]
    else:
        base = sa.text(f"{_rows_text(task)} AS t(x, text)")
        x, text = sa.literal_column("t.x"), sa.literal_column("t.text")
    total: Any = x * 3
    for number in numbers:
        total += number
    for table in tables[1:]:
        total += sa.select(sa.cast(sa.func.coalesce(sa.func.sum(table.c.x), 0), sa.BigInteger)).scalar_subquery()
    if outside:
        total += sa.literal_column(outside)
    total += sa.case((text == task.letter, 10), else_=0)
    return sa.select(sa.cast(total % 1000, sa.BigInteger).label("x"), sa.literal(task.letter).label(column)).select_from(base)
