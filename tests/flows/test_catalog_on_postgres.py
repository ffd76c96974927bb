"""The Parquet store with its catalog in PostgreSQL."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipedag_core import Flow, PipedagConfig, Stage, materialize


@pytest.fixture
def config(tmp_path, postgres_url, schema_prefix):
    instance = {
        "table_store": {"class": "parquet", "args": {"base_path": str(tmp_path / "{instance_id}")}},
        "metadata_store": {"url": postgres_url},
    }
    name = f"{schema_prefix}project"
    yield PipedagConfig({"name": name, "instances": {"__any__": instance}}).get()
    from tests.postgres_server import drop_schemas

    drop_schemas(postgres_url, f"pipedag_{name}")


def test_a_flow_runs_once_and_is_cached_then(config):
    @materialize(version="1")
    def numbers():
        return pa.table({"i": [1, 2, 3]})

    @materialize(lazy=True, input_type=pa.Table)
    def more(numbers):
        return numbers.append_column("j", pa.array([4, 5, 6]))

    with Flow("f") as flow, Stage("s"):
        out = more(numbers())
    outcomes = []
    for _ in range(2):
        result = flow.run(config=config)
        assert result.successful
        assert result.get(out, as_type=pa.Table).to_pydict() == {"i": [1, 2, 3], "j": [4, 5, 6]}
        outcomes.append([report.outcome.value for report in result.reports if report.task])
    assert outcomes == [["ran", "ran"], ["cached", "cached"]]
