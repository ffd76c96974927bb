"""Flows on the PostgreSQL store."""

from __future__ import annotations

import polars as pl
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, PipedagConfig, Stage, Table, materialize


@pytest.fixture
def make_config(tmp_path, postgres_url, schema_prefix):
    def make(**args):
        instance = {
            "table_store": {"class": "sql", "args": {"url": postgres_url, "schema_prefix": schema_prefix + "{instance_id}_", **args}}
        }
        return PipedagConfig({"instances": {"full": instance}}).get("full")

    return make


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def ask(postgres_url, schema_prefix):
    """Asks the server directly; `{}` in the query is the prefix of all schemas."""

    def ask(query):
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            cursor = connection.execute(query.format(f"{schema_prefix}full_"))
            return cursor.fetchall() if cursor.description else []

    return ask


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task}


def make_flow(version="1", limit=1, extra=None):
    @materialize(version=version, nout=2)
    def load():
        return pl.DataFrame({"i": [1, 2, 3], "t": ["a", None, "c"]}), Table(pa.table({"i": [1]}), name="Other", primary_key=["i"])

    @materialize(lazy=True, input_type=sa.Table)
    def select(numbers):
        return Table(
            sa.select(numbers.c.i, (numbers.c.i * 2).label("double")).where(numbers.c.i > limit), name="selected", indexes=[["double"]]
        )

    @materialize(input_type=pl.DataFrame, version="1")
    def last(selected):
        return selected.with_columns(pl.col("double").cast(pl.Float64))

    with Flow("f") as flow:
        with Stage("raw"):
            numbers, _ = load()
        with Stage("features"):
            selected = select(numbers)
            frame = last(selected)
            if extra is not None:
                materialize(lambda: pa.table({"x": [extra]}), name="extra", version=str(extra))()
    return flow, frame


def test_a_flow_runs_in_the_database_and_is_cached_then(config, ask):
    flow, frame = make_flow()
    result = flow.run(config=config)
    assert outcomes(result) == {"load": "ran", "select": "ran", "last": "ran"}
    assert result.get(frame, as_type=pl.DataFrame).to_dict(as_series=False) == {"i": [2, 3], "double": [4.0, 6.0]}
    assert ask("SELECT i, double FROM {}features.selected ORDER BY i") == [(2, 4), (3, 6)]
    assert ask("SELECT * FROM {}raw.other") == [(1,)]
    assert outcomes(flow.run(config=config)) == {"load": "cached", "select": "cached", "last": "cached"}
    flow, _ = make_flow(limit=2)
    assert outcomes(flow.run(config=config)) == {"load": "cached", "select": "ran", "last": "ran"}
    assert ask("SELECT i, double FROM {}features.selected ORDER BY i") == [(3, 6)]


def test_writing_through_the_views_of_stages_and_generations_is_refused(config, ask):
    for extra in (None, 1):
        assert make_flow(extra=extra)[0].run(config=config).successful
    assert ask("SELECT i FROM {}features__g2.selected ORDER BY i") == [(2,), (3,)]
    for schema in ("features", "features__g2"):
        for statement in (
            "DELETE FROM {}%s.selected",
            "UPDATE {}%s.selected SET i = 1",
            "INSERT INTO {}%s.selected VALUES (1, 1)",
            "TRUNCATE {}%s.selected",
        ):
            with pytest.raises(psycopg.errors.Error, match=r"cannot (insert|update|delete)|is not a table"):
                ask(statement % schema)
