"""A production flow as assets, from files and tables to files and tables."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest

from pipedag_core.errors import ConfigError
from pipedag_core.looking import stored_value
from pipedag_dagster import build_assets, build_scoring_assets, build_scoring_definitions
from tests.architecture.house import ROOT
from tests.flows.production.delays import FLIGHTS, make

CLEAN = {"clean.flights": "table:cleaned.flights", "clean.places": "table:cleaned.places"}
TWO = FLIGHTS.with_columns(pl.col("minutes").fill_null(0.0)).filter(pl.col("id") < 3)


@pytest.fixture
def bundle(any_store, tmp_path):
    """A bundle of a flow that was trained on each kind of store."""
    flow, spec = make()
    assert flow.run(config=any_store).successful
    flow.extract(spec, config=any_store).save(tmp_path / "delays")
    return tmp_path / "delays"


@pytest.fixture
def requests(tmp_path):
    (tmp_path / "requests").mkdir()
    TWO.write_parquet(tmp_path / "requests" / "2026-01-02.parquet")
    return str(tmp_path / "requests" / "{partition}.parquet")


def test_scores_are_an_asset_behind_the_tables_that_they_are_made_from(bundle, any_store, instance, materialized):
    flow, _ = make()
    scores = build_scoring_assets(bundle, inputs=CLEAN, outputs={"predict": "table:served.late"}, config=any_store)
    [spec] = scores.specs
    assert spec.key == dg.AssetKey(["served", "late"])
    assert [dep.asset_key.to_user_string() for dep in spec.deps] == ["cleaned/flights", "cleaned/places"]
    assets = [*build_assets(flow, config=any_store), scores]
    result = dg.materialize(assets, instance=instance)
    assert result.success
    found = materialized(result)["served/late"]
    facts = {key: value.value for key, value in found.metadata.items()}
    assert (facts["dagster/row_count"], facts["pipedag/flow"]) == (6, "delays")
    assert [column.name for column in facts["dagster/column_schema"].columns] == ["id", "score"]
    assert facts["dagster/table_name"].endswith("served.late")
    assert stored_value("served", "late", pl.DataFrame, config=any_store).shape == (6, 2)
    # The same rows once more are the same version, and no new generation.
    again = dg.materialize([scores], instance=instance)
    assert materialized(again)["served/late"].tags["dagster/data_version"] == found.tags["dagster/data_version"]


def test_each_day_has_a_file_that_a_repetition_replaces(bundle, any_store, instance, requests, tmp_path, materialized):
    scores = build_scoring_assets(
        bundle,
        inputs={**CLEAN, "clean.flights": requests},
        outputs={"predict": str(tmp_path / "scores" / "{partition}.parquet")},
        config=any_store,
        key_prefix="lake",
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
    )
    assert [spec.key.to_user_string() for spec in scores.specs] == ["lake/delays_scoring/predict"]
    for _ in range(2):
        result = dg.materialize([scores], instance=instance, partition_key="2026-01-02")
        assert materialized(result)["lake/delays_scoring/predict"].metadata["dagster/row_count"].value == 2
        assert [path.name for path in (tmp_path / "scores").iterdir()] == ["2026-01-02.parquet"]
    assert sorted(pl.read_parquet(tmp_path / "scores" / "2026-01-02.parquet")["id"]) == [1, 2]
    missing = dg.materialize([scores], instance=instance, partition_key="2026-01-03", raise_on_error=False)
    assert not missing.success
    [failure] = [event for event in missing.all_events if event.is_step_failure]
    assert "There is no file" in failure.step_failure_data.error_display_string
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["2026-01-02.parquet"]


def test_partitions_keep_their_rows_apart_in_a_table(bundle, any_store, instance, requests, tmp_path):
    scores = build_scoring_assets(
        bundle,
        inputs={**CLEAN, "clean.flights": requests},
        outputs={"predict": "table:served.late"},
        config=any_store,
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
        partition_column="day",
    )
    TWO.head(1).write_parquet(tmp_path / "requests" / "2026-01-03.parquet")
    for day in ("2026-01-02", "2026-01-03", "2026-01-02"):
        assert dg.materialize([scores], instance=instance, partition_key=day).success
    found = stored_value("served", "late", pl.DataFrame, config=any_store)
    assert sorted(found.select("day", "id").rows()) == [("2026-01-02", 1), ("2026-01-02", 2), ("2026-01-03", 1)]


def test_a_partition_cannot_lead_to_another_folder(config, tmp_path, instance):
    partitions = dg.StaticPartitionsDefinition(["../late", "fine"])
    places = {"inputs": {}, "outputs": {"predict": str(tmp_path / "scores" / "{partition}.parquet")}}
    scores = build_scoring_assets(tmp_path / "delays", **places, config=config, partitions_def=partitions)
    result = dg.materialize([scores], instance=instance, partition_key="../late", raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "'../late' cannot stand in the name of a file" in failure.step_failure_data.error_display_string


def test_a_schedule_scores_every_static_partition(config, tmp_path):
    partitions = dg.StaticPartitionsDefinition(["north", "south"])
    places = {"inputs": {}, "outputs": {"predict": str(tmp_path / "{partition}.parquet")}}
    defs = build_scoring_definitions(tmp_path / "delays", **places, config=config, partitions_def=partitions, schedule="0 4 * * *")
    moment, repository = datetime(2026, 1, 3, 4, tzinfo=UTC), defs.get_repository_def()
    (tmp_path / "home").mkdir()
    with (
        dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance,
        dg.build_schedule_context(instance, scheduled_execution_time=moment, repository_def=repository) as context,
    ):
        asked = defs.schedules[0].evaluate_tick(context).run_requests
    assert [request.partition_key for request in asked] == ["north", "south"]
    assert len({request.run_key for request in asked}) == 2


def test_what_training_gives_later_is_used_without_new_definitions(config, tmp_path, instance):
    scores = build_scoring_assets(tmp_path / "delays", inputs=CLEAN, outputs={"predict": str(tmp_path / "late.csv")}, config=config)
    assert not dg.materialize([scores], instance=instance, raise_on_error=False).success
    flow, spec = make()
    flow.run(config=config)
    flow.extract(spec, config=config).save(tmp_path / "delays")
    assert dg.materialize([scores], instance=instance).success
    assert len(pl.read_csv(tmp_path / "late.csv")) == 6
    # Definitions that are loaded now know which bundle it is.
    [known] = build_scoring_assets(tmp_path / "delays", inputs=CLEAN, outputs={"predict": "late.csv"}, config=config).specs
    assert known.code_version is not None


@pytest.mark.parametrize(
    ("inputs", "outputs", "days", "told"),
    [
        ({}, {}, False, "Say where the outputs"),
        ({}, {"predict": "scores.parquet"}, True, "for every partition"),
        ({}, {"predict": "table:served.late"}, True, "each partition would replace"),
        ({"clean.flights": "{partition}.csv"}, {"predict": "a.csv"}, False, "no partitions_def"),
        ({"clean.flights": "table:flights"}, {"predict": "a.csv"}, False, "write table:STAGE.TABLE"),
    ],
)
def test_places_that_cannot_be_are_refused_when_definitions_are_loaded(config, inputs, outputs, days, told):
    partitions = dg.DailyPartitionsDefinition("2026-01-01") if days else None
    with pytest.raises(ConfigError, match=told):
        build_scoring_assets("delays", inputs=inputs, outputs=outputs, config=config, partitions_def=partitions)


def test_loading_imports_no_dataframe_library(tmp_path):
    code = (
        "from pipedag_dagster import build_scoring_assets; import sys\n"
        "build_scoring_assets('delays', inputs={}, outputs={'predict': 'late.parquet'})\n"
        "print({'pandas', 'polars', 'pyarrow', 'duckdb'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
