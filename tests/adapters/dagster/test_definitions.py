"""What definitions are made of, and what is said when they cannot be made."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import dagster as dg
import pandas as pd
import polars as pl
import pytest

from pipedag_core import Flow, PipedagConfig, Plan, Stage, materialize
from pipedag_core.errors import ConfigError, DuplicateName, PlanMismatch
from pipedag_dagster import PipedagTranslator, build_assets, build_definitions
from tests.architecture.house import ROOT

PIPELINE = textwrap.dedent(
    """
    import pandas as pd
    import polars as pl
    from pipedag_core import Flow, Stage, materialize

    print("imported")

    @materialize(version="1.0")
    def inputs() -> pd.DataFrame:
        \"\"\"Return the numbers.

        Nobody reads this paragraph.
        \"\"\"
        return pd.DataFrame({"x": [1, 2, 3]})

    @materialize(version="1.0", input_type=pl.DataFrame)
    def doubled(table) -> pl.DataFrame:
        return table * 2

    with Flow("small") as flow:
        with Stage("raw"):
            table = inputs()
        with Stage("features"):
            doubled(table)
    """
)
CONFIG = "instances:\n  full: {instance_id: full}\n  mini: {instance_id: mini}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a flow and a configuration, in which the test works."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "small_pipe.py").write_text(PIPELINE)
    (folder / "pipedag.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("small_pipe", None)


def specs(assets):
    return [spec for asset in assets for spec in asset.specs]


def keys(assets):
    return [spec.key.to_user_string() for spec in specs(assets)]


def loaded_by(code, folder):
    """Return the top packages that some code loads in a new process."""
    report = "import sys; print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    done = subprocess.run([sys.executable, "-c", f"{code}; {report}"], cwd=folder, env=env, capture_output=True, text=True, check=True)
    assert "imported" not in done.stdout
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_loading_imports_neither_the_flow_nor_any_dataframe_library(project):
    code = "from pipedag_dagster import build_definitions; d = build_definitions('small_pipe:flow', 'mini'); d.resolve_asset_graph()"
    heavy = {"small_pipe", "pandas", "polars", "pyarrow", "duckdb", "numpy", "sqlalchemy", "sqlglot"}
    assert not heavy & loaded_by(code, project)
    assert not heavy & loaded_by(code, project)


def test_an_asset_says_where_it_comes_from(project):
    [raw, features] = build_assets("small_pipe:flow", "mini", translator=PipedagTranslator("lake", owners={"raw": ["team:data"]}))
    [inputs], [doubled] = raw.specs, features.specs
    assert inputs.key == dg.AssetKey(["lake", "raw", "inputs"])
    assert (inputs.group_name, inputs.description, inputs.code_version) == ("raw", "Return the numbers.", "1.0")
    assert list(inputs.owners) == ["team:data"]
    assert inputs.kinds == {"python", "parquet"}
    assert doubled.kinds == {"python", "polars", "parquet"}
    assert [dep.asset_key for dep in doubled.deps] == [inputs.key]
    assert inputs.metadata == {
        "pipedag/task": "raw.inputs of flow small, instance mini",
        "dagster/uri": f"file://{project}/.pipedag/mini/raw/inputs",
    }


def test_the_translator_has_the_last_word(project):
    class Ours(PipedagTranslator):
        def get_asset_key(self, table):
            return dg.AssetKey(f"{table.instance}_{table.name}")

        def get_group_name(self, table):
            return "everything"

    assets = build_assets("small_pipe:flow", "mini", translator=Ours())
    assert keys(assets) == ["mini_inputs", "mini_doubled"]
    assert [spec.group_name for spec in specs(assets)] == ["everything"] * 2
    assert [dep.asset_key.to_user_string() for dep in specs(assets)[1].deps] == ["mini_inputs"]


def test_code_is_found_again_after_dagster_has_taken_its_folder_back(project, instance, monkeypatch):
    monkeypatch.chdir(project.parent)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])
    assets = build_assets("small_pipe:flow", "mini", config=project / "pipedag.yaml")
    sys.path.remove(str(project))
    assert dg.materialize(assets, instance=instance).success


def test_a_plan_that_is_kept_is_made_anew_when_the_code_changes(project):
    assert keys(build_assets("small_pipe:flow", "mini")) == ["raw/inputs", "features/doubled"]
    [kept] = (project / ".pipedag" / "plans").iterdir()
    before = kept.stat().st_mtime_ns
    build_assets("small_pipe:flow", "mini")
    assert kept.stat().st_mtime_ns == before
    (project / "small_pipe.py").write_text(PIPELINE.replace("def doubled", "def twice").replace("doubled(table)", "twice(table)"))
    assert keys(build_assets("small_pipe:flow", "mini")) == ["raw/inputs", "features/twice"]


def pipedag(*arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", "pipedag_core", *arguments], env=env, capture_output=True, text=True, check=True).stdout


def test_a_plan_may_come_from_a_file(project):
    text = pipedag("plan", "small_pipe:flow", "--instance", "mini", "--json")
    (project / "plan.json").write_text(text[text.index("{") :])
    assert keys(build_assets("small_pipe:flow", "mini", plan="plan.json")) == ["raw/inputs", "features/doubled"]
    assert keys(build_assets(Plan.from_json((project / "plan.json").read_text()))) == ["raw/inputs", "features/doubled"]
    with pytest.raises(PlanMismatch, match=r"is for instance 'mini', but the definitions are asked for with 'full'.*pipedag plan"):
        build_assets("small_pipe:flow", "full", plan="plan.json")


def test_a_plan_that_the_code_has_left_behind_is_refused_when_it_is_loaded(project):
    build_assets("small_pipe:flow", "mini")
    [kept] = (project / ".pipedag" / "plans").iterdir()
    kept.rename(project / "plan.json")
    (project / "small_pipe.py").write_text(PIPELINE.replace('    with Stage("features")', '        inputs()\n    with Stage("features")'))
    with pytest.raises(PlanMismatch, match=r"wired differently from its plan 'plan.json' \(new: raw.inputs_2\)"):
        build_assets("small_pipe:flow", "mini", plan="plan.json")
    # What changes a task, and not the wiring, is taken over.
    (project / "small_pipe.py").write_text(PIPELINE.replace('"1.0"', '"1.1"'))
    assert specs(build_assets("small_pipe:flow", "mini", plan="plan.json"))[0].code_version == "1.1"


def test_tables_keep_their_keys_until_names_are_learned(config):
    @materialize(nout=2)
    def pair():
        return {"a": pl.DataFrame({"x": [1]}), "b": pd.DataFrame({"y": [1]})}, 3

    @materialize(input_type=pl.DataFrame)
    def reader(table) -> pl.DataFrame:
        return table

    with Flow("learning") as flow:
        with Stage("first"):
            tables, _ = pair()
        with Stage("second"):
            reader(tables["b"])
    with pytest.raises(ConfigError, match="has not run yet"):
        build_assets(flow, config=config, learn="default")
    assert keys(build_assets(flow, config=config)) == ["first/pair", "second/reader"]
    assert flow.run(config=config).successful
    assert keys(build_assets(flow, config=config)) == ["first/pair", "second/reader"]
    learned = build_assets(flow, config=config, learn="default")
    assert keys(learned) == ["first/pair_0_a", "first/pair_0_b", "second/reader"]
    # What was really read is known now, too.
    assert [dep.asset_key.to_user_string() for dep in specs(learned)[2].deps] == ["first/pair_0_b"]


def ops_of(assets):
    """Return name of an op -> its definition, of a stage that is a graph of ops."""
    graph = assets.node_def
    return {alias: graph.node_named(alias).definition for alias in (node.name for node in graph.nodes)}


def test_a_stage_may_have_an_op_for_each_task(config):
    @materialize(version="1")
    def type() -> pl.DataFrame:
        """Return what is there."""
        return pl.DataFrame({"x": [1]})

    @materialize(version="1", input_type=pl.DataFrame, group_node_tag="heavy")
    def fit(table) -> pl.DataFrame:
        return table

    @materialize(version="1", input_type=pl.DataFrame, group_node_tag="heavy")
    def ner_fit(table) -> pl.DataFrame:
        return table

    with Flow("spread") as flow:
        with Stage("raw"):
            table = type()
        with Stage("models"):
            fit(table)
            with Stage("in"):
                ner_fit(table)
            with Stage("in_ner"):
                fit(table)

    class Heavy(PipedagTranslator):
        def get_op_tags(self, task):
            return {"dagster-k8s/config": {"container_config": {"resources": {"limits": {"cpu": "8"}}}}} if task.tag == "heavy" else {}

        def get_pool(self, task):
            return "big" if task.tag == "heavy" else None

    options = {"op_tags": {"team": "data"}, "pool": "usual", "retry_policy": dg.RetryPolicy(max_retries=1)}
    [raw, models] = build_assets(flow, config=config, translator=Heavy(), granularity="task", **options)
    assert sorted(ops_of(raw)) == ["commit", "open", "task_type"]
    ops = ops_of(models)
    assert sorted(ops) == ["commit", "open", "task_fit", "task_in_ner_fit", "task_in_ner_fit_2"]
    assert ops_of(raw)["task_type"].description == "Return what is there."
    assert {name: op.pool for name, op in ops.items()} == {name: "big" if name.startswith("task_") else "usual" for name in ops}
    assert all(op.retry_policy.max_retries == 1 and op.tags["team"] == "data" for op in ops.values())
    assert all(("dagster-k8s/config" in op.tags) == name.startswith("task_") for name, op in ops.items())
    whole = build_assets(flow, config=config, translator=Heavy())
    assert {key: spec.deps for asset in (raw, models) for key, spec in asset.specs_by_key.items()} == {
        key: spec.deps for asset in whole for key, spec in asset.specs_by_key.items()
    }


def test_stages_may_be_chosen_to_have_an_op_for_each_task(config):
    @materialize(version="1")
    def one() -> pl.DataFrame:
        return pl.DataFrame({"x": [1]})

    with Flow("mixed") as flow:
        with Stage("light"):
            one()
        with Stage("heavy"), Stage("inner"):
            one()

    light, heavy = build_assets(flow, config=config, granularity={"inner": "task"})
    assert (type(light.node_def), type(heavy.node_def)) == (dg.OpDefinition, dg.GraphDefinition)
    with pytest.raises(ConfigError, match=r"no stage 'hevy' to choose a granularity for\. Did you mean 'heavy'"):
        build_assets(flow, config=config, granularity={"hevy": "task"})
    with pytest.raises(ConfigError, match=r"no granularity 'tasks' for the steps of flow 'mixed'\. There are: 'stage', 'task'"):
        build_assets(flow, config=config, granularity="tasks")
    with pytest.raises(ConfigError, match=r"'heavy' and 'inner' .* are committed together.*Name stage 'heavy' only"):
        build_assets(flow, config=config, granularity={"heavy": "stage", "inner": "task"})


def test_two_tables_that_want_one_key_are_both_named(config):
    @materialize(outputs=["mine"], version="1")
    def theirs():
        return pl.DataFrame({"x": [1]})

    @materialize(nout=2)
    def mine():
        return pl.DataFrame({"x": [1]}), 1

    with Flow("clash") as flow, Stage("one"):
        theirs()
        mine()
    with pytest.raises(DuplicateName, match=r"table one\.mine \(task one\.theirs\) and task one\.mine \(task one\.mine\).*'one/mine'"):
        build_assets(flow, config=config)


def test_what_is_not_there_is_said_when_definitions_are_loaded(project):
    with pytest.raises(ConfigError, match="The instance 'fulll' is named nowhere"):
        build_definitions("small_pipe:flow", "fulll")
    with pytest.raises(ConfigError, match=r"There is no plan 'none.json'. Make it: `pipedag plan small_pipe:flow --instance mini"):
        build_definitions("small_pipe:flow", "mini", plan="none.json")
    with pytest.raises(ConfigError, match="no module 'nothing'"):
        build_definitions("nothing:flow", "mini")
    (project / "broken.json").write_text("{")
    with pytest.raises(PlanMismatch, match=r"broken\.json is not a plan"):
        build_definitions("small_pipe:flow", "mini", plan="broken.json")
    with pytest.raises(ConfigError, match="need a configuration in a file"):
        build_definitions("small_pipe:flow", "mini", config=PipedagConfig({"instances": {"mini": {}}}))


def test_a_flow_of_a_notebook_cannot_be_planned_without_its_code(config):
    with Flow("loose") as flow, Stage("one"):
        pass
    with pytest.raises(PlanMismatch, match="does not say where its code is"):
        build_assets(flow.plan(), config=config)
    assert build_assets(flow, config=config) == []
