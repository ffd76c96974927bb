"""Jobs and schedules for parts of a flow, and assets that Dagster materializes by itself when something changed."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest

from pipedag_core import Flow, Stage, materialize
from pipedag_core.errors import ConfigError
from pipedag_dagster import PipedagTranslator, build_assets, build_definitions, eager_when_changed


@pytest.fixture
def world():
    return {"start": 1}


@pytest.fixture
def flow(world):
    @materialize()
    def source() -> pl.DataFrame:
        return pl.DataFrame({"x": [world["start"]]})

    @materialize(version="1", input_type=pl.DataFrame, group_node_tag="nightly")
    def consumer(table) -> pl.DataFrame:
        return table * 2

    with Flow("shop") as made:
        with Stage("raw"):
            table = source()
        with Stage("marts"):
            consumer(table)
    return made


def test_there_is_a_job_for_the_flow_and_for_each_part_that_is_named(flow, config, instance):
    defs = build_definitions(
        flow, config=config, jobs=["raw"], schedules={"nightly": "0 3 * * *", "*": "0 5 * * 0"}, timezone="Europe/Berlin"
    )
    assert sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")) == [
        "shop_default",
        "shop_default_nightly",
        "shop_default_raw",
    ]
    schedules = {schedule.name: schedule for schedule in defs.schedules}
    assert schedules["shop_default_nightly_schedule"].cron_schedule == "0 3 * * *"
    assert schedules["shop_default_schedule"].execution_timezone == "Europe/Berlin"
    result = defs.resolve_job_def("shop_default_raw").execute_in_process(instance=instance)
    assert [event.asset_key.to_user_string() for event in result.get_asset_materialization_events()] == ["raw/source"]


def test_a_part_that_is_not_there_is_refused(flow, config):
    with pytest.raises(ConfigError, match=r"no stage or tag 'mart'\. Did you mean 'marts'\?"):
        build_definitions(flow, config=config, schedules={"mart": "0 3 * * *"})


def test_only_other_content_starts_what_depends_on_it(flow, world, config, instance):
    assets = build_assets(flow, config=config, translator=PipedagTranslator(automation_condition=eager_when_changed()))
    defs = dg.Definitions(assets=assets)
    consumer = dg.AssetKey(["marts", "consumer"])

    def wanted(cursor):
        found = dg.evaluate_automation_conditions(defs, instance, asset_selection=dg.AssetSelection.assets(consumer), cursor=cursor)
        return found.total_requested, found.cursor

    dg.materialize(assets, instance=instance)
    _, cursor = wanted(None)
    # Made again, with the same rows.
    dg.materialize(assets, instance=instance, selection=["raw/source"])
    count, cursor = wanted(cursor)
    assert count == 0
    world["start"] = 2
    dg.materialize(assets, instance=instance, selection=["raw/source"])
    count, cursor = wanted(cursor)
    assert count == 1
    dg.materialize(assets, instance=instance, selection=["marts/consumer"])
    count, _ = wanted(cursor)
    assert count == 0
