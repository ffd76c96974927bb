"""A flow described in YAML, in a folder of definitions as `dg` makes them."""

from __future__ import annotations

import asyncio
import sys

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from pipedag_dagster import PipedagFlowComponent
from tests.adapters.dagster.test_definitions import CONFIG, PIPELINE


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
