"""DAG files from plans: names, layout, options, text. None of this needs Airflow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_airflow.generate import Request, generate
from pipedag_airflow.layout import Granularity, Role, lay_out
from pipedag_airflow.names import Ids, asset_uri, external_uri, identifier, run_id_of, safe_id, split_asset_uri, split_external_uri
from pipedag_airflow.options import Options, read_options
from pipedag_airflow.render import literal
from pipedag_core import ExternalTableReference, Flow, GroupNode, Stage, View, materialize
from pipedag_core.errors import ConfigError, FlowError

PIPELINE = textwrap.dedent(
    '''
    import pandas as pd
    from pipedag_core import Flow, Stage, Table, materialize

    @materialize(version="1.0", outputs=["a", "b"])
    def source():
        """Read "two" tables, with a \\\\ in it."""

    @materialize(version="1.0", group_node_tag="heavy")
    def work(x) -> pd.DataFrame:
        """Work hard."""

    @materialize(version="1.0")
    def model(x):
        pass

    def make(attrs):
        with Flow("demo") as flow:
            with Stage("raw"):
                tables = source()
            with Stage("outer"):
                first = work(tables["a"])
                with Stage("inner"):
                    second = work(first)
                model(second)
            with Stage("beside"):
                work(tables["b"])
        return flow
    '''
)

CONFIG = """
name: demo
instances:
  full: {}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "demo_flow.py").write_text(PIPELINE)
    (folder / "pipedag.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("demo_flow", None)
    while str(folder) in sys.path:
        sys.path.remove(str(folder))


def ask(project, **options):
    return generate(Request(**{"flow": "demo_flow:make", "instance": "full", "folder": project / "dags", **options}))


@pytest.fixture
def plan(project):
    from pipedag_core.config.flows import load_flow

    return load_flow("demo_flow:make", {})[0].plan("full")


# --- names --------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=90), max_size=12))
def test_ids_are_what_airflow_takes_and_unique(names):
    ids = Ids()
    given_ids = [ids.give(name) for name in names]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,70}", id) for id in given_ids)
    assert len({id.casefold() for id in given_ids}) == len(names)


def test_an_id_that_airflow_takes_stays_as_it_is():
    assert safe_id("01_raw-Input") == "01_raw-Input"
    assert safe_id("größe (cm)") == f"gr__e__cm__{safe_id('größe (cm)')[-8:]}"
    assert safe_id("größe (cm)") != safe_id("gräße (cm)")


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_an_assets_uri_can_be_read_back(flow, stage, table):
    uri = asset_uri(flow, "full", stage, table)
    assert uri.isascii()
    assert split_asset_uri(uri) == (flow, "full", stage, table)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1).filter(lambda name: "." not in name))
def test_a_uri_of_a_table_of_others_can_be_read_back(instance, schema, name):
    uri = external_uri(instance, f"{schema}.{name}")
    assert uri.isascii()
    assert split_external_uri(uri) == (instance, f"{schema}.{name}")
    assert split_asset_uri(uri) is None


def test_a_foreign_uri_is_none_of_ours():
    assert split_asset_uri("s3://bucket/a/b/c") is None
    assert split_external_uri("s3://bucket/a/b") is None


@given(st.text(min_size=1))
def test_variables_are_python_names(name):
    assert identifier("9", name).isidentifier()


def test_run_ids_differ_by_deployment_dag_run_and_flow():
    base = ("a", "dag", "run", "m:f", "full")
    ids = {run_id_of(*base), *(run_id_of(*base[:i], "other", *base[i + 1 :]) for i in range(5))}
    assert len(ids) == 6
    assert run_id_of(*base) == run_id_of(*base)


# --- layout -------------------------------------------------------------------------------------------------------------------------


def before(layout, node):
    return {other for edge in layout.edges if node in edge.after for other in edge.before}


def test_a_stage_is_a_group_of_its_opening_tasks_commit_and_closing(plan):
    layout = lay_out(plan)
    assert [node.full_id for node in layout.nodes if node.group[:1] == ("raw",)] == [
        "raw.open_stage",
        "raw.source",
        "raw.commit_stage",
        "raw.close_stage",
    ]
    roles = {node.full_id: node.role for node in layout.nodes}
    assert (roles["raw.open_stage"], roles["raw.close_stage"], roles["finish_run"]) == (Role.SETUP, Role.TEARDOWN, Role.TEARDOWN)
    assert before(layout, "raw.source") == {"raw.open_stage"}
    assert before(layout, "raw.commit_stage") == {"raw.source"}


def test_a_nested_stage_is_a_group_in_a_group_and_commits_with_it(plan):
    layout = lay_out(plan)
    assert [group.path for group in layout.groups] == [("raw",), ("outer",), ("outer", "inner"), ("beside",)]
    assert layout.node("outer.inner.work").step == "task:inner.work"
    assert {node.step for node in layout.nodes if node.step.startswith("commit:")} == {"commit:raw", "commit:outer", "commit:beside"}
    assert before(layout, "outer.inner.work") == {"outer.work"}


def test_a_stage_opens_after_the_commits_of_what_it_reads(plan):
    layout = lay_out(plan)
    assert before(layout, "outer.open_stage") == before(layout, "beside.open_stage") == {"raw.commit_stage"}


def test_a_stage_closes_after_every_task_not_only_the_last(plan):
    # The commit is given up as soon as one task fails, while another one may still be at work.
    layout = lay_out(plan)
    assert before(layout, "outer.close_stage") == {"outer.work", "outer.inner.work", "outer.model", "outer.commit_stage"}
    assert layout.node("outer.close_stage").setups == ("outer.open_stage",)


def test_the_run_is_finished_after_all_stages_are_closed(plan):
    layout = lay_out(plan)
    assert before(layout, "finish_run") == {"raw.close_stage", "outer.close_stage", "beside.close_stage"}
    # It tears down no stage itself, so that clearing a task opens none but its own stage again.
    assert layout.node("finish_run").setups == ()


def test_tables_are_assets_of_the_commit_and_a_task_stands_for_unknown_ones(plan):
    layout = lay_out(plan)
    assert layout.node("raw.commit_stage").outlets == ("x-pipedag://demo/full/raw/a", "x-pipedag://demo/full/raw/b")
    assert layout.node("outer.commit_stage").outlets == (
        "x-pipedag://demo/full/outer/work",
        "x-pipedag://demo/full/inner/work",
        "x-pipedag://demo/full/outer/model",
    )


@pytest.fixture
def reading_plan():
    """A flow that reads tables of others, one of them in a view."""

    @materialize
    def load(table):
        pass

    customers, orders = ExternalTableReference("customers", "crm"), ExternalTableReference("orders", "/data/shop")
    with Flow("reading") as flow, Stage("raw"):
        load({"a": [customers, customers]})
        load(View(src=orders, limit=10))
        load(1)
    return flow.plan("full")


CUSTOMERS, ORDERS = "x-pipedag-external://full/crm/customers", "x-pipedag-external://full/%2Fdata%2Fshop/orders"


@pytest.mark.parametrize(
    ("granularity", "inlets"),
    [
        ("task", {"raw.load": (CUSTOMERS,), "raw.load_2": (ORDERS,)}),
        ("stage", {"raw": (CUSTOMERS, ORDERS)}),
        ("flow", {"reading": (CUSTOMERS, ORDERS)}),
    ],
)
def test_tables_of_others_are_assets_that_go_into_what_reads_them(reading_plan, granularity, inlets):
    layout = lay_out(reading_plan, Granularity(granularity))
    assert {node.full_id: node.inlets for node in layout.nodes if node.inlets} == inlets


def test_the_configuration_says_under_which_uri_others_announce_a_table(reading_plan):
    options = read_options({"external": {"crm.customers": "postgres://crm:5432/sales/crm/customers"}}, reading_plan)
    assert lay_out(reading_plan, options=options).node("raw.load").inlets == ("postgres://crm:5432/sales/crm/customers",)
    with pytest.raises(ConfigError, match=r"external\.crm\.customers must be the URI of an Asset"):
        read_options({"external": {"crm.customers": "customers"}}, reading_plan)
    with pytest.raises(ConfigError, match=r"external must be a mapping"):
        read_options({"external": ["crm.customers"]}, reading_plan)


def test_the_order_is_that_of_the_plan(plan):
    steps = [node.step for node in lay_out(plan).nodes if not node.step.startswith("close:")]
    assert steps == [step.id for step in plan.steps]


def test_tasks_keep_their_ids_beside_the_steps_around_them():
    @materialize
    def open_stage():
        pass

    with Flow("f") as flow:
        with Stage("Größe (cm)"):
            open_stage()
            open_stage()
    layout = lay_out(flow.plan())
    (group,) = layout.groups
    assert re.fullmatch(r"gr_sse__cm__[0-9a-f]{8}", group.id)
    assert [node.task_id for node in layout.nodes if node.group] == [
        "open_stage__2",
        "open_stage",
        "open_stage_2",
        "commit_stage",
        "close_stage",
    ]


def test_an_operator_per_stage_follows_those_it_reads(plan):
    layout = lay_out(plan, Granularity.STAGE)
    assert [(node.full_id, node.step) for node in layout.nodes] == [
        ("raw", "stage:raw"),
        ("outer", "stage:outer"),
        ("beside", "stage:beside"),
        ("finish_run", "finish"),
    ]
    assert before(layout, "outer") == {"raw"}
    assert before(layout, "finish_run") == {"raw", "outer", "beside"}


def test_one_operator_for_a_flow_has_all_tables(plan):
    (node,) = lay_out(plan, Granularity.FLOW).nodes
    assert (node.step, len(node.outlets)) == ("flow", 6)


# --- options ------------------------------------------------------------------------------------------------------------------------


def test_more_special_options_win_and_the_hook_has_the_last_word(plan):
    settings = {
        "default_args": {"retries": 1},
        "tags": {"heavy": {"pool": "big", "queue": "slow"}},
        "stages": {"outer": {"queue": "outer"}},
        "tasks": {"outer.work": {"retry_delay": "5m"}},
        "lifecycle": {"queue": "quick", "pool": "small"},
    }

    def hook(step, task, arguments):
        return {**arguments, "priority_weight": 7} if task is not None and task.task == "model" else arguments

    layout = lay_out(plan, options=read_options(settings, plan, hook))
    assert layout.node("outer.work").arguments["pool"] == "big"
    assert layout.node("outer.work").arguments["queue"] == "outer"
    assert layout.node("outer.work").arguments["retry_delay"].total_seconds() == 300
    assert layout.node("beside.work").arguments == {"pool": "big", "queue": "slow"}
    assert layout.node("outer.open_stage").arguments == {"queue": "outer", "pool": "small", "trigger_rule": "none_failed"}
    assert layout.node("outer.model").arguments == {"queue": "outer", "priority_weight": 7}
    assert layout.node("finish_run").arguments == {"queue": "quick", "pool": "small"}


def test_wrong_options_are_all_told_at_once(plan):
    with pytest.raises(ConfigError) as caught:
        read_options(
            {"stage": {}, "stages": {"ouder": {"pol": "x"}}, "tasks": {"outer.work": {"retry_delay": "soon"}}, "default_args": 3}, plan
        )
    told = str(caught.value)
    for text in (
        "adapters.airflow.stage is",
        "Did you mean 'outer'?",
        "Did you mean 'pool'?",
        "a duration",
        "default_args must be a mapping",
    ):
        assert text in told


# --- text ---------------------------------------------------------------------------------------------------------------------------


def test_the_file_says_what_made_it_and_nothing_of_when(project):
    made = ask(project, words=["airflow", "generate", "demo_flow:make", "--instance", "full", "-o", "dags"])
    lines = made.text.splitlines()
    assert made.path == project / "dags" / "demo_full.py"
    assert lines[0].startswith('"""Flow `demo`, instance `full`, as an Airflow DAG.')
    assert "Command: pipedag airflow generate demo_flow:make --instance full -o dags" in lines
    assert made.text == ask(project, words=["airflow", "generate", "demo_flow:make", "--instance", "full", "-o", "dags"]).text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", made.text)


def test_the_file_imports_airflow_and_one_module_of_ours(project):
    tree = ast.parse(ask(project).text)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "airflow.sdk", "pipedag_airflow.operators"}


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("length", [88, 100, 140])
def test_formatters_leave_the_file_as_it_is(project, granularity, length):
    ruff = pytest.importorskip("ruff", reason="formatters come with what `make check` needs").find_ruff_bin()
    settings = {
        "default_args": {"retries": 2, "retry_delay": 90},
        "stages": {"outer": {"executor_config": {"a": [1, 2], "b": {"c": None}}}},
    }
    (project / "pipedag.yaml").write_text(
        f"{CONFIG}    adapters: {{airflow: {settings!r}}}\n".replace("full: {}", "full:").replace("None", "null")
    )
    made = ask(
        project,
        granularity=granularity,
        words=["airflow"],
        schedule="@daily",
        start_date="2026-01-31",
        tags=["nightly", "a rather long tag " * 5],
    )
    for words in (["format", "--line-length", str(length), "-"], ["check", "--select", "E,F,I,B,UP", "--ignore", "E501", "--fix", "-"]):
        done = subprocess.run([ruff, *words], input=made.text, capture_output=True, text=True, check=False, cwd="/")
        assert done.stdout == made.text, done.stderr


def test_quotes_and_backslashes_survive(project):
    namespace = {}
    text = ask(project).text
    assert "doc_md='Read \"two\" tables, with a \\\\ in it.'" in text
    exec(compile(f"x = {literal({'a': ['it', 3.5, None, (1,)], 'b' * 90: 'q' * 90})}", "x", "exec"), namespace)
    assert namespace["x"] == {"a": ["it", 3.5, None, (1,)], "b" * 90: "q" * 90}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
        max_leaves=12,
    )
)
def test_a_value_written_down_is_that_value(value):
    assert ast.literal_eval(literal(value)) == value
    assert ast.literal_eval(literal(value, 1, 10)) == value


def test_a_value_that_a_file_cannot_show_is_refused():
    with pytest.raises(ConfigError, match="flow_to_dag"):
        literal({"a": [object()]})


def test_a_file_is_fresh_until_the_flow_is_wired_differently(project):
    made = ask(project)
    assert not made.is_fresh
    assert made.write()
    assert made.is_fresh
    assert not made.write()
    (project / "demo_flow.py").write_text(PIPELINE.replace('Flow("demo")', 'Flow("demo2")'))
    sys.modules.pop("demo_flow")
    assert not ask(project, dag_id="demo_full").is_fresh


def test_a_schedule_may_be_a_change_of_tables(project):
    text = ask(project, on_assets=[asset_uri("other", "full", "raw", "a")]).text
    assert 'schedule=[Asset("x-pipedag://other/full/raw/a")],' in text


# --- bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"flow": "__main__:flow"}, FlowError, "cannot be imported by Airflow's workers"),
        ({"flow": "flow"}, FlowError, "package.module:flow"),
        ({"instance": "fool"}, ConfigError, "There are: full."),
        ({"schedule": "daily"}, ConfigError, "neither a cron expression"),
        ({"start_date": "soon"}, ConfigError, "Write it as"),
        ({"dag_id": "my dag"}, ConfigError, "use letters, digits"),
        ({"override": "nowhere:hook"}, ConfigError, "package.module:function"),
        ({"override": "demo_flow:CONFIG"}, ConfigError, "is no function"),
        ({"executor": "CeleryExecutor"}, ConfigError, "SQLite file"),
        ({"learn": "full"}, ConfigError, "it has not run yet"),
    ],
)
def test_what_cannot_work_is_refused_at_generation(project, options, error, told):
    with pytest.raises(error, match=re.escape(told)):
        ask(project, **options)


def test_a_duckdb_file_is_refused_for_workers_on_many_machines(project):
    (project / "pipedag.yaml").write_text(
        'instances: {full: {table_store: {class: sql, args: {url: "duckdb:///data/{instance_id}.duckdb"}}}}'
    )
    with pytest.raises(ConfigError, match="DuckDB file"):
        ask(project, executor="airflow.providers.cncf.kubernetes.executors.KubernetesExecutor")
    (note,) = ask(project, executor="LocalExecutor").notes
    assert "one after the other" in note


def test_group_nodes_change_nothing():
    @materialize
    def one():
        pass

    with Flow("f") as flow:
        with Stage("s"), GroupNode("g"):
            one()
    assert [node.full_id for node in lay_out(flow.plan(), options=Options()).nodes if node.group] == [
        "s.open_stage",
        "s.one",
        "s.commit_stage",
        "s.close_stage",
    ]
