"""Native assets read and write tables of the same store, and their lineage joins that of the flow."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest
import yaml

from pipedag_core import Flow, PipedagConfig, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ConfigError
from pipedag_core.looking import stored_value
from pipedag_core.runner import put_table
from pipedag_dagster import PipedagIOManager, PipedagResource, build_assets
from tests.adapters.dagster import native_assets


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pipedag.yaml"
    store = {"class": "parquet", "args": {"base_path": "store/{instance_id}"}}
    path.write_text(yaml.safe_dump({"instances": {"full": {"table_store": store, "attrs": {"rows": 3}}}}))
    return str(path)


@materialize(version="1")
def orders() -> pl.DataFrame:
    return pl.DataFrame({"amount": [1, 2, 3]})


@pytest.fixture
def flow():
    with Flow("shop") as made, Stage("raw"):
        orders()
    return made


def test_native_assets_live_in_the_store_beside_the_flow(flow, file, instance, granularity):
    resources = {
        "io_manager": PipedagIOManager(config_file=file, instance="full"),
        "pipedag": PipedagResource(config_file=file, instance="full"),
    }
    assets = [
        *build_assets(flow, "full", config=file, granularity=granularity),
        native_assets.summary,
        native_assets.model,
        native_assets.scored,
        native_assets.counted,
        native_assets.nothing,
    ]
    first = dg.materialize(assets, instance=instance, resources=resources)
    config = PipedagConfig(file).get("full")
    assert stored_value("native", "scored", pl.DataFrame, config=config).to_dicts() == [{"amount": 18}]
    assert stored_value("native", "model", config=config) == {"weight": 3}
    assert stored_value("dagster", "counted", config=config) == 3
    with open_session(config) as session:
        assert sorted(session.catalog.shown()["native"]) == ["model", "scored", "summary"]
        assert session.catalog.leases() == []
        assert {row.state for row in session.catalog.runs(20)} == {"succeeded"}
    told = {event.asset_key.to_user_string(): event.materialization for event in first.get_asset_materialization_events()}
    assert told["native/scored"].metadata["dagster/row_count"].value == 1
    assert told["native/summary"].tags["dagster/input_data_version/raw/orders"] == told["raw/orders"].tags["dagster/data_version"]
    # Equal rows have equal data versions, whoever wrote them.
    second = dg.materialize(assets, instance=instance, resources=resources)
    again = {event.asset_key.to_user_string(): event.materialization for event in second.get_asset_materialization_events()}
    assert {key: item.tags["dagster/data_version"] for key, item in told.items() if key.startswith("native")} == {
        key: item.tags["dagster/data_version"] for key, item in again.items() if key.startswith("native")
    }


def test_a_partitioned_asset_is_refused(file, instance):
    result = dg.materialize(
        [native_assets.parted],
        instance=instance,
        partition_key="a",
        resources={"io_manager": PipedagIOManager(config_file=file, instance="full")},
        raise_on_error=False,
    )
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "is partitioned" in failure.step_failure_data.error_display_string


def test_a_resource_runs_flows_and_reads_tables(flow, file):
    resource = PipedagResource(config_file=file, instance="full", overrides={"fail_fast": True})
    assert resource.settings().fail_fast
    assert resource.run(flow).successful
    assert resource.read("raw", "orders").to_pydict() == {"amount": [1, 2, 3]}
    with pytest.raises(ConfigError, match=r"no committed table 'order'\. Did you mean orders"):
        resource.read("raw", "order")
    with pytest.raises(ConfigError, match="has no setting 'fail_slow'"):
        PipedagResource(config_file=file, instance="full", overrides={"fail_slow": True}).settings()


def test_a_table_that_is_put_keeps_what_else_is_in_its_stage(flow, any_store):
    assert flow.run(config=any_store).successful
    put_table("raw", "extra", pl.DataFrame({"x": [1]}), config=any_store)
    report = put_table("raw", "extra", pl.DataFrame({"x": [2]}), config=any_store)
    assert report.changed
    assert stored_value("raw", "extra", pl.DataFrame, config=any_store).to_dicts() == [{"x": 2}]
    assert stored_value("raw", "orders", pl.DataFrame, config=any_store)["amount"].to_list() == [1, 2, 3]
    assert not put_table("raw", "extra", pl.DataFrame({"x": [2]}), config=any_store).changed
    # A flow's commit replaces all of its stage.
    assert flow.run(config=any_store).successful
    with pytest.raises(ConfigError, match="no committed table 'extra'"):
        stored_value("raw", "extra", config=any_store)


def test_a_value_that_cannot_be_kept_leaves_the_stage_as_it_was(flow, config):
    put_table("raw", "extra", {"fine": 1}, config=config)
    report = put_table("raw", "extra", lambda: None, config=config)
    assert not report.is_committed
    assert stored_value("raw", "extra", config=config) == {"fine": 1}
