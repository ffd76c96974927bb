"""What a task promises about the rows of its tables is an asset check in Dagster."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest

from pipedag_core import Flow, Stage, Table, materialize
from pipedag_dagster import build_assets


@pytest.fixture
def world():
    return {"id": [1, 2], "name": ["a", "b"]}


@pytest.fixture
def flow(world):
    @materialize()
    def people():
        return Table(pl.DataFrame({"id": world["id"], "name": world["name"]}), "people", primary_key="id", non_nullable=["name"])

    with Flow("promises") as made, Stage("raw"):
        people()
    return made


def evaluations(result):
    return {
        item.check_name: (item.passed, {name: value.value for name, value in item.metadata.items()})
        for item in result.get_asset_check_evaluations()
    }


def test_promises_are_checks_that_committed_tables_have_passed(flow, world, any_store, instance):
    assert flow.run(config=any_store).successful
    assets = build_assets(flow, config=any_store, learn="default")
    assert {(spec.name, spec.blocking) for asset in assets for spec in asset.check_specs} == {("primary_key", True), ("not_null", True)}
    found = evaluations(dg.materialize(assets, instance=instance))
    assert found["primary_key"] == (True, {"columns": ["id"], "failing_rows": 0})
    assert found["not_null"] == (True, {"columns": ["id", "name"], "failing_rows": 0})


def test_a_broken_promise_is_a_failed_check_with_its_count(flow, world, config, instance):
    assert flow.run(config=config).successful
    assets = build_assets(flow, config=config, learn="default")
    world["name"] = ["a", None]
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    assert not result.success
    assert evaluations(result) == {"not_null": (False, {"failing_rows": 1, "nulls in name": 1})}
    world.update(id=[1, 1], name=["a", "b"])
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    assert evaluations(result) == {"primary_key": (False, {"failing_keys": 1})}


def test_checks_may_be_left_out(flow, world, config, instance):
    assert flow.run(config=config).successful
    assets = build_assets(flow, config=config, learn="default")
    result = dg.materialize(assets, instance=instance, selection=dg.AssetSelection.all() - dg.AssetSelection.all_asset_checks())
    assert result.success
    assert evaluations(result) == {}
