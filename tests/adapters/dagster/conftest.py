"""What the tests of the Dagster adapter share: stores of every kind, and a Dagster that keeps to itself."""

from __future__ import annotations

import dagster as dg
import pytest

from pipedag_core import PipedagConfig


@pytest.fixture(autouse=True)
def _quiet_dagster(monkeypatch):
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


@pytest.fixture
def instance():
    """A Dagster instance in memory."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture(params=["parquet", "duckdb", "postgres"])
def any_store(request, tmp_path):
    """A configuration of each kind of store, in places of the test's own."""
    if request.param == "parquet":
        store = {"class": "parquet", "args": {"base_path": str(tmp_path / "store" / "{instance_id}")}}
    elif request.param == "duckdb":
        (tmp_path / "store").mkdir()
        store = {"class": "sql", "args": {"url": f"duckdb:///{tmp_path}/store/{{instance_id}}.duckdb"}}
    else:
        url, prefix = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema_prefix")
        store = {"class": "sql", "args": {"url": url, "schema_prefix": prefix + "{instance_id}_"}}
    blobs = {"class": "file", "args": {"base_path": str(tmp_path / "blobs" / "{instance_id}")}}
    return PipedagConfig({"instances": {"__any__": {"table_store": store, "blob_store": blobs}}}).get()


@pytest.fixture
def materialized():
    """Lists what a result, or a run, has materialized: asset key as text -> materialization, in order."""

    def of(result):
        return {
            event.asset_key.to_user_string(): event.materialization
            for event in result.all_events
            if event.event_type_value == "ASSET_MATERIALIZATION"
        }

    return of


@pytest.fixture(params=["stage", "task"])
def granularity(request):
    """How much one step does: what Dagster is told must be the same."""
    return request.param
