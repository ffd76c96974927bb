"""What a task promises about the rows of its tables is an asset check in Dagster."""

from __future__ import annotations

import dagster as dg
import dataframely as dy
import polars as pl
import pytest

from pipedag_core import Flow, Stage, Table, materialize
from pipedag_dagster import build_assets
from pipedag_dagster.states import annotated, from_json, to_json


class Prices(dy.Schema):
    """Prices that are asked for."""

    item = dy.String(primary_key=True)
    price = dy.Float64(nullable=False, min=0.0)


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


def test_promises_are_checks_that_committed_tables_have_passed(flow, world, any_store, instance, granularity):
    assert flow.run(config=any_store).successful
    assets = build_assets(flow, config=any_store, learn="default", granularity=granularity)
    assert {(spec.name, spec.blocking) for asset in assets for spec in asset.check_specs} == {("primary_key", True), ("not_null", True)}
    found = evaluations(dg.materialize(assets, instance=instance))
    assert found["primary_key"] == (True, {"columns": ["id"], "failing_rows": 0})
    assert found["not_null"] == (True, {"columns": ["id", "name"], "failing_rows": 0})


def test_a_broken_promise_is_a_failed_check_with_its_count(flow, world, config, instance, granularity):
    assert flow.run(config=config).successful
    assets = build_assets(flow, config=config, learn="default", granularity=granularity)
    world["name"] = ["a", None]
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    assert not result.success
    assert evaluations(result) == {"not_null": (False, {"failing_rows": 1, "nulls in name": 1})}
    world.update(id=[1, 1], name=["a", "b"])
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    assert evaluations(result) == {"primary_key": (False, {"failing_keys": 1})}


def test_checks_may_be_left_out(flow, world, config, instance, granularity):
    assert flow.run(config=config).successful
    assets = build_assets(flow, config=config, learn="default", granularity=granularity)
    result = dg.materialize(assets, instance=instance, selection=dg.AssetSelection.all() - dg.AssetSelection.all_asset_checks())
    assert result.success
    assert evaluations(result) == {}


@pytest.fixture
def priced(world):
    world["price"] = [1.0, 2.0]

    @materialize(outputs=["prices"])
    def prices() -> dy.DataFrame[Prices]:
        return Table(pl.DataFrame({"item": ["a", "b"], "price": world["price"]}), "prices")

    with Flow("priced") as made, Stage("raw"):
        prices()
    return made


def test_a_contract_is_a_check_before_anything_has_run(priced, any_store, instance):
    assets = build_assets(priced, config=any_store)
    kept = annotated(priced, priced.plan())
    assert from_json(to_json(kept), "what is kept") == kept
    [spec] = assets[0].check_specs
    assert (spec.name, spec.blocking, spec.description) == ("contract", True, "The rows keep the contract Prices.")
    result = dg.materialize(assets, instance=instance)
    assert evaluations(result) == {"contract": (True, {"contract": "Prices", "failing_rows": 0})}
    taught = build_assets(priced, config=any_store, learn="default")
    assert sorted(spec.name for spec in taught[0].check_specs) == ["contract", "not_null", "primary_key"]


def test_a_broken_contract_says_which_rules_how_many_rows_break(priced, world, config, instance, granularity):
    world["price"] = [-1.0, None]
    result = dg.materialize(build_assets(priced, config=config, granularity=granularity), instance=instance, raise_on_error=False)
    assert not result.success
    counts = {"rows that break price|min": 1, "rows that break price|nullability": 1}
    assert evaluations(result) == {"contract": (False, {"contract": "Prices", "failing_rows": 1, **counts})}
