"""What all tests share: a folder of their own to work in, and no configuration from outside."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No deadlines: a busy machine is no fault. On CI the same examples every time, so that a change is blamed for its own faults only.
settings.register_profile("pipedag", deadline=None, derandomize="CI" in os.environ, database=None)
settings.load_profile("pipedag")


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch):
    """Let relative paths, such as the default store's, lead into the test's own folder."""
    monkeypatch.delenv("PIPEDAG_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store_folder(tmp_path):
    """The folder in which the tables of `config` are."""
    return tmp_path / "store" / "default"


@pytest.fixture
def config(tmp_path):
    """A configuration of the default store in a folder of the test's own."""
    from pipedag_core import PipedagConfig

    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "store" / "{instance_id}")}}
    return PipedagConfig({"instances": {"__any__": {"table_store": store}}}).get()


@pytest.fixture(params=["parquet", "duckdb", "postgres"])
def each_store(request, tmp_path):
    """A configuration of each of the three stores, one after the other."""
    from pipedag_core import PipedagConfig

    if request.param == "parquet":
        return request.getfixturevalue("config")
    if request.param == "duckdb":
        args = {"url": f"duckdb:///{tmp_path}/data/{{instance_id}}.duckdb"}
    else:
        args = {
            "url": request.getfixturevalue("postgres_url"),
            "schema_prefix": request.getfixturevalue("schema_prefix") + "{instance_id}_",
        }
    instance = {
        "table_store": {"class": "sql", "args": args},
        "blob_store": {"class": "file", "args": {"base_path": str(tmp_path / "blobs" / "{instance_id}")}},
    }
    return PipedagConfig({"instances": {"full": instance}}).get("full")


@pytest.fixture
def tables_of():
    """Reads all visible tables of an instance: stage -> name -> polars.DataFrame."""
    import polars as pl

    from pipedag_core.config.wire import open_session
    from pipedag_core.ports.data import Form, StoredTable

    def read(config):
        with open_session(config) as session, session.tables.session("test") as access:
            return {
                stage: {
                    name: pl.read_parquet(access.read(table, Form.FILES).paths[0])
                    for name, table in entries.items()
                    if isinstance(table, StoredTable)
                }
                for stage, entries in session.catalog.shown().items()
            }

    return read


@pytest.fixture(scope="session")
def postgres_url():
    """The address of a PostgreSQL server; started when the first test needs it, one for all processes of a test run."""
    from tests.postgres_server import server

    with server() as url:
        yield url


@pytest.fixture
def schema_prefix(postgres_url):
    """A prefix for schemas of the test's own, which are removed afterwards."""
    from tests.postgres_server import drop_schemas, fresh_prefix

    prefix = fresh_prefix()
    yield prefix
    drop_schemas(postgres_url, prefix)
