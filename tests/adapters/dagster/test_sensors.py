"""What Dagster learns between its own runs."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest

from pipedag_core import Flow, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.runner import execute
from pipedag_dagster import build_assets, build_definitions


@pytest.fixture
def world():
    return {"start": 1}


@pytest.fixture
def flow(world):
    @materialize()
    def source() -> pl.DataFrame:
        return pl.DataFrame({"x": [world["start"]]})

    @materialize(version="1", input_type=pl.DataFrame)
    def consumer(table) -> pl.DataFrame:
        return table * 2

    with Flow("shop") as made:
        with Stage("raw"):
            table = source()
        with Stage("marts"):
            consumer(table)
    return made


def look(defs, instance, cursor=None):
    sensor = next(sensor for sensor in defs.sensors if sensor.name == "shop_default_outside_runs")
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        found = sensor.evaluate_tick(context)
    return found.asset_events, found.cursor


def test_tables_that_others_committed_appear_in_dagster(flow, world, any_store, instance):
    defs = build_definitions(flow, config=any_store)
    assert look(defs, instance)[0] == []
    assert flow.run(config=any_store).successful
    events, cursor = look(defs, instance)
    assert [event.asset_key.to_user_string() for event in events] == ["raw/source", "marts/consumer"]
    assert events[0].metadata["dagster/row_count"].value == 1
    assert events[1].tags["dagster/input_data_version/raw/source"] == events[0].tags["dagster/data_version"]
    assert look(defs, instance, cursor)[0] == []
    # Whatever the cursor says, what Dagster has is not told again.
    for event in events:
        instance.report_runless_asset_event(event)
    assert look(defs, instance)[0] == []
    world["start"] = 2
    assert dg.materialize(build_assets(flow, config=any_store), instance=instance).success
    assert look(defs, instance, cursor)[0] == []


def test_what_others_ran_is_what_dagster_would_have_noted(flow, world, config, instance):
    assert flow.run(config=config).successful
    events, _ = look(build_definitions(flow, config=config), instance)
    done = dg.materialize(build_assets(flow, config=config), instance=instance)
    own = {event.asset_key: event.materialization for event in done.get_asset_materialization_events()}
    for event in events:
        assert event.tags["dagster/data_version"] == own[event.asset_key].tags["dagster/data_version"]
        assert {*event.metadata} - {"pipedag/run_id"} == {*own[event.asset_key].metadata} - {"seconds"}


@pytest.mark.parametrize(("status", "state"), [("FAILURE", "failed"), ("CANCELED", "aborted")])
def test_a_run_that_could_not_end_gives_its_stages_back(flow, config, instance, status, state):
    defs = build_definitions(flow, config=config)
    plan = flow.plan("default")
    execute(plan, "open:raw", run_id="ours", flow=flow, config=config)
    tags = {"pipedag/run_id": "ours", "pipedag/flow": "shop", "pipedag/instance": "default"}
    job = defs.resolve_job_def("shop_default")
    run = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus[status])
    sensor = next(sensor for sensor in defs.sensors if sensor.name == f"shop_default_ends_{state}")
    event = dg.DagsterEvent(getattr(dg.DagsterEventType, f"PIPELINE_{status}").value, run.job_name)

    def tick():
        with dg.build_run_status_sensor_context("any", event, instance, run) as context:
            sensor(context)
        with open_session(config) as session:
            return session.catalog.runs(1)[0].state, session.catalog.leases()

    # While it is executed again, it is not over.
    again = instance.create_run_for_job(
        job,
        tags={**tags, "dagster/root_run_id": run.run_id},
        status=dg.DagsterRunStatus.STARTED,
        parent_run_id=run.run_id,
        root_run_id=run.run_id,
    )
    assert tick()[0] == "running"
    instance.delete_run(again.run_id)
    assert tick() == (state, [])
