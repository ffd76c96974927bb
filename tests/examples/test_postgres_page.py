"""The configuration that docs/postgres.md shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest
import yaml

from pipedag_core import Flow, PipedagConfig, Stage, Table, materialize
from tests.postgres_server import url_with

ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(postgres_url):
    """An empty database of the test's own."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE page")
    yield url_with(postgres_url, database="page")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE page WITH (FORCE)")


def test_the_example_of_the_page_on_postgresql_runs_and_finds_its_results_again(database, monkeypatch):
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "postgres.md").read_text(), re.DOTALL)
    monkeypatch.setenv("DATABASE_URL", database)

    @materialize(version="1")
    def numbers():
        return Table(pa.table({"i": [1, 2]}), materialization_details="quick")

    with Flow("f") as flow, Stage("features"):
        numbers()
    config = PipedagConfig(yaml.safe_load(text)).get("full")
    for outcome in ("ran", "cached"):
        result = flow.run(config=config)
        assert result.successful, result.exception
        assert [report.outcome.value for report in result.reports if report.task] == [outcome]
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT i FROM full_features.numbers ORDER BY i").fetchall() == [(1,), (2,)]
        schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'full%' ORDER BY 1").fetchall()
    assert [name for (name,) in schemas] == ["full_features", "full_features__g1", "full_pipedag__catalog"]
