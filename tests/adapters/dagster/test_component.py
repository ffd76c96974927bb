"""A flow described in YAML, in a folder of definitions as `dg` makes them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from dagster.components.testing.utils import component_defs

from pipedag_core import PipedagConfig
from pipedag_core.errors import ConfigError
from pipedag_dagster import PipedagFlowComponent, PipedagScoringComponent
from pipedag_dagster.scoring_component import ScoringPartitions
from tests.adapters.dagster.test_definitions import CONFIG, PIPELINE
from tests.architecture.house import ROOT
from tests.flows.production.delays import FLIGHTS, make

#: Flights to be scored.
ROWS = FLIGHTS.with_columns(pl.col("minutes").fill_null(0.0)).filter(pl.col("id") < 3)


@pytest.fixture
def sandbox():
    with create_defs_folder_sandbox() as made:
        (made.project_root / "src" / "small_pipe.py").write_text(PIPELINE)
        (made.project_root / "conf").mkdir()
        (made.project_root / "conf" / "pipedag.yaml").write_text(CONFIG)
        yield made


# Dagster 1.13 uses these itself, for what stands in YAML.
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated", "ignore::dagster_shared.utils.warnings.BetaWarning")
def test_a_flow_in_yaml_is_loaded_from_its_kept_plan(sandbox, instance):
    attributes = {
        "flow": "small_pipe:flow",
        "instance": "mini",
        "config_file": "conf/pipedag.yaml",
        "key_prefix": ["lake"],
        "owners": {"raw": ["team:data"]},
        "schedules": {"features": "0 4 * * *"},
        "granularity": {"features": "task"},
    }
    yaml = {"type": "pipedag_dagster.PipedagFlowComponent", "attributes": attributes}
    path = sandbox.scaffold_component(component_cls=PipedagFlowComponent, defs_yaml_contents=yaml)
    with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
        assert not list(defs.assets or ())
        asyncio.run(component.refresh_state(sandbox.project_root))
    with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
        graph = defs.resolve_asset_graph()
        assert {key.to_user_string() for key in graph.materializable_asset_keys} == {"lake/raw/inputs", "lake/features/doubled"}
        assert graph.get(dg.AssetKey(["lake", "raw", "inputs"])).owners == ["team:data"]
        assert [schedule.name for schedule in defs.schedules] == ["small_mini_features_schedule"]
        assert "small_pipe" not in sys.modules
        result = defs.resolve_job_def("small_mini").execute_in_process(instance=instance)
        assert len(result.get_asset_materialization_events()) == 2
        steps = [event.step_key for event in result.all_events if event.is_step_success]
        assert steps == ["small__mini__raw", *(f"small__mini__features.{name}" for name in ("open", "task_doubled", "commit"))]
    assert (sandbox.project_root / "conf" / ".pipedag" / "mini" / "catalog.sqlite").is_file()
    sys.modules.pop("small_pipe", None)


def test_a_new_component_is_scaffolded_with_what_has_to_be_filled_in(sandbox):
    path = sandbox.scaffold_component(component_cls=PipedagFlowComponent)
    text = (path / "defs.yaml").read_text()
    assert "type: pipedag_dagster." in text
    assert "flow: package.module:flow" in text


@pytest.fixture
def scores(sandbox):
    """A component that scores with a bundle, whose inputs and outputs are files beside the configuration."""
    flow, spec = make()
    config = PipedagConfig(sandbox.project_root / "conf" / "pipedag.yaml").get("mini")
    assert flow.run(config=config).successful
    flow.extract(spec, config=config).save(sandbox.project_root / "conf" / "delays")
    places = {
        "inputs": {"clean.flights": "requests/{partition}.parquet", "clean.places": "table:cleaned.places"},
        "outputs": {"predict": "scores/{partition}.parquet"},
    }
    (sandbox.project_root / "conf" / "requests").mkdir()

    def of(**attributes):
        yaml = {"bundle": "delays", "instance": "mini", "config_file": "conf/pipedag.yaml", "key_prefix": ["lake"], **places, **attributes}
        contents = {"type": "pipedag_dagster.PipedagScoringComponent", "attributes": yaml}
        return sandbox.scaffold_component(component_cls=PipedagScoringComponent, defs_yaml_contents=contents)

    return of


@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated", "ignore::dagster_shared.utils.warnings.BetaWarning")
def test_a_bundle_in_yaml_scores_each_day_once(sandbox, scores, instance):
    path = scores(partitions={"type": "daily", "start_date": "2026-01-01"}, schedule="0 4 * * *", owners=["team:data"])
    ROWS.write_parquet(sandbox.project_root / "conf" / "requests" / "2026-01-02.parquet")
    with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
        [asset] = defs.assets
        [spec] = asset.specs
        assert (spec.key.to_user_string(), list(spec.owners)) == ("lake/delays_scoring/predict", ["team:data"])
        assert [dep.asset_key.to_user_string() for dep in spec.deps] == ["lake/cleaned/places"]
        repository = defs.get_repository_def()

        def tick(moment):
            with dg.build_schedule_context(instance, scheduled_execution_time=moment, repository_def=repository) as context:
                return defs.schedules[0].evaluate_tick(context)

        [request] = tick(datetime(2026, 1, 3, 4, tzinfo=UTC)).run_requests
        assert (request.run_key, request.partition_key) == ("2026-01-02", "2026-01-02")
        assert tick(datetime(2026, 1, 1, 4, tzinfo=UTC)).skip_message == "No partition is over yet."
        job = defs.resolve_job_def("delays_scoring_job")
        for _ in range(2):
            assert job.execute_in_process(instance=instance, partition_key=request.partition_key).success
    assert [file.name for file in (sandbox.project_root / "conf" / "scores").iterdir()] == ["2026-01-02.parquet"]


@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated", "ignore::dagster_shared.utils.warnings.BetaWarning")
def test_a_bundle_in_yaml_scores_files_as_they_come(sandbox, scores, instance):
    path = scores(on_arrival=True)
    requests = sandbox.project_root / "conf" / "requests"
    ROWS.write_parquet(requests / "first.parquet")
    (requests / "notes.txt").touch()
    with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
        [sensor] = defs.sensors

        def look(cursor=None):
            with dg.build_sensor_context(instance, cursor=cursor) as context:
                found = sensor(context)
            for asked in found.dynamic_partitions_requests or ():
                instance.add_dynamic_partitions(asked.partitions_def_name, asked.partition_keys)
            return [request.partition_key for request in found.run_requests], found.cursor

        keys, cursor = look()
        assert keys == ["first"]
        ROWS.head(1).write_parquet(requests / "second.parquet")
        keys, cursor = look(cursor)
        assert keys == ["second"]
        assert look(cursor) == ([], cursor)
        job = defs.resolve_job_def("delays_scoring_job")
        for key in ("first", "second", "first"):
            assert job.execute_in_process(instance=instance, partition_key=key).success
        # What was sent once more, with other rows, is scored once more.
        ROWS.head(0).write_parquet(requests / "second.parquet")
        assert look(cursor)[0] == ["second"]
    assert sorted(file.name for file in (sandbox.project_root / "conf" / "scores").iterdir()) == ["first.parquet", "second.parquet"]
    assert pl.read_parquet(sandbox.project_root / "conf" / "scores" / "second.parquet").height == 1


def test_a_new_scoring_component_is_scaffolded_with_what_has_to_be_filled_in(sandbox):
    text = (sandbox.scaffold_component(component_cls=PipedagScoringComponent) / "defs.yaml").read_text()
    assert "bundle: bundle" in text
    assert "output: scores/{partition}.parquet" in text


def test_loading_a_bundle_in_yaml_imports_no_dataframe_library(tmp_path):
    code = (
        "from dagster.components.testing.utils import component_defs; from pipedag_dagster import PipedagScoringComponent; import sys\n"
        "made = component_defs(component=PipedagScoringComponent(bundle='delays', outputs={'predict': 'late.parquet'}, eager=True))\n"
        "made.resolve_asset_graph()\n"
        "print({'pandas', 'polars', 'pyarrow', 'duckdb'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"partitions": {"type": "daily"}}, "daily need `start_date`"),
        ({"partitions": {"type": "static"}}, "static need `keys`"),
        ({"on_arrival": True, "schedule": "@daily"}, "partitions of its own, and no schedule"),
        ({"on_arrival": True, "outputs": {"predict": "late_{partition}.csv"}}, "no input has {partition}"),
    ],
)
def test_what_cannot_start_runs_is_refused_when_it_is_loaded(options, told):
    partitions = options.get("partitions")
    given = {"bundle": "delays", "outputs": {"predict": "late.csv"}, **options}
    if partitions is not None:
        given["partitions"] = ScoringPartitions(**partitions)
    with pytest.raises(ConfigError, match=told):
        component_defs(component=PipedagScoringComponent(**given))
