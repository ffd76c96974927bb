"""DAG files that people write: flow_to_dag, flow_to_task_group, own operators around a stage; and what Airflow makes of our operators."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap

import pytest

from pipedag_core import PipedagConfig
from tests.adapters.airflow import flows
from tests.adapters.airflow.conftest import environment

pytestmark = pytest.mark.usefixtures("modules")


@pytest.fixture
def project(tmp_path, pipedag):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "small_flow.py").write_text(flows.SMALL)
    (folder / "pipedag.yaml").write_text(flows.PARQUET)
    (folder / "small.plan.json").write_text(pipedag(folder, "plan", "small_flow:flow", "--instance", "full", "--json"))
    return folder


@pytest.fixture
def dag_file(project, load_dag):
    def load(text):
        (project / "dags").mkdir(exist_ok=True)
        (project / "dags" / "own.py").write_text(textwrap.dedent(text))
        bag = load_dag(project / "dags")
        assert bag.import_errors == {}
        (dag,) = bag.dags.values()
        return dag

    return load


def tables(project, tables_of):
    found = tables_of(PipedagConfig(project / "pipedag.yaml").get("full", "small"))
    return {stage: {name: frame.to_dicts() for name, frame in some.items()} for stage, some in found.items()}


def test_a_dag_from_a_plan_has_the_tasks_of_a_generated_one(project, dag_file, load_dag, pipedag):
    own = dag_file(
        """
        from pipedag_airflow import flow_to_dag

        dag = flow_to_dag(
            "small_flow:flow",
            "full",
            plan="../small.plan.json",
            project="..",
            tags=["own"],
            settings={"stages": {"features": {"pool": "features"}}},
        )
        """
    )
    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "generated")
    (generated,) = load_dag(project / "generated").dags.values()

    def shape(dag):
        return {
            task.task_id: (
                task.step,
                sorted(task.upstream_task_ids),
                sorted(task.downstream_task_ids),
                task.is_setup,
                task.is_teardown,
                task.trigger_rule,
                [asset.uri for asset in task.outlets],
                task.doc_md,
                task.task_display_name,
                (task.flow, task.instance, task.digest, task.project),
            )
            for task in dag.tasks
        }

    assert (own.dag_id, own.max_active_runs, own.catchup) == (generated.dag_id, 1, False) == ("small_full", 1, False)
    assert shape(own) == shape(generated)
    assert {task.pool for task in own.tasks if task.task_id.startswith("features.")} == {"features"}


def test_without_a_plan_one_operator_carries_out_the_flow(project, dag_file, run_dag, tables_of):
    made = dag_file(
        f"""
        from pipedag_airflow import flow_to_dag

        dag = flow_to_dag("small_flow:flow", "full", project={str(project)!r}, dag_id="whole")
        """
    )
    assert [task.step for task in made.tasks] == ["flow"]
    done, _ = run_dag(made)
    assert str(done.state) == "success"
    assert tables(project, tables_of)["features"]["total"] == [{"total": 12}]


def test_own_operators_stand_around_a_stage_and_can_keep_it_from_being_committed(project, dag_file, run_dag, tables_of):
    made = dag_file(
        f"""
        from airflow.sdk import dag, task
        from pipedag_airflow import flow_to_task_group, stage_tasks

        @dag(schedule=None, catchup=False)
        def around():
            @task
            def before():
                return "before"

            @task
            def check():
                raise ValueError("not good enough")

            @task
            def after():
                return "after"

            group = flow_to_task_group("small_flow:flow", "full", group_id="small", plan="../small.plan.json", project={str(project)!r})
            features = stage_tasks(group, "features")
            before() >> group >> after()
            features.tasks["total"] >> check() >> features.commit

        around()
        """
    )
    assert made.get_task("small.raw.open_stage").upstream_task_ids == {"before"}
    assert "check" in made.get_task("small.features.commit_stage").upstream_task_ids
    done, found = run_dag(made)
    states = {id: str(item.state) for id, item in found.items()}
    assert str(done.state) == "failed"
    assert (states["before"], states["check"], states["small.features.commit_stage"]) == ("success", "failed", "upstream_failed")
    assert states["small.features.close_stage"] == states["small.finish_run"] == "success"
    assert set(tables(project, tables_of)) == {"raw"}


def test_what_is_not_there_is_said(project):
    from pipedag_airflow import flow_to_dag, stage_tasks
    from pipedag_core.errors import ConfigError, PlanMismatch

    with pytest.raises(ConfigError, match=r"pipedag plan small_flow:flow --json"):
        flow_to_dag("small_flow:flow", "full", granularity="task")
    plan = project / "small.plan.json"
    with pytest.raises(ConfigError, match=r"The plan is for instance 'full'"):
        flow_to_dag("small_flow:flow", "mini", plan=plan)
    with pytest.raises(ConfigError, match=r"There are: raw, features"):
        stage_tasks(flow_to_dag("small_flow:flow", "full", plan=plan), "raw2")
    with pytest.raises(TypeError, match=r"has no argument 'pyton'"):
        flow_to_dag("small_flow:flow", "full", plan=plan, default_args={}, operator=_misspelt)
    (project / "broken.json").write_text("{}")
    with pytest.raises(PlanMismatch):
        flow_to_dag("small_flow:flow", "full", plan=project / "broken.json")


def _misspelt(**arguments):
    from pipedag_airflow import PipedagStepOperator

    return PipedagStepOperator(**arguments, default_args={"pipedag": {"flow": "f", "pyton": "x"}})


def test_parsing_a_file_loads_airflow_and_one_module_of_ours(project, pipedag):
    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags")
    script = """
import sys
import airflow.sdk
from airflow.sdk import DAG, Asset, BaseOperator, BaseOperatorLink, Param, TaskGroup
with DAG(dag_id="x", schedule=None, params={"a": Param(None, type=["null", "string"])}):
    BaseOperator(task_id="y", outlets=[Asset("x-pipedag://a/b/c/d")])
before = set(sys.modules)
import runpy
runpy.run_path(sys.argv[1])
new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names}
print(sorted(new))
print(sorted({"pandas", "polars", "pyarrow", "duckdb", "small_flow", "pipedag_core"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(project / "dags" / "small_full.py")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    new, heavy = done.stdout.strip().splitlines()[-2:]
    # Airflow may have looked for providers before, of which the package is one.
    assert set(ast.literal_eval(new)) | {"pipedag_airflow"} == {"pipedag_airflow", "pipedag_airflow.operators"}
    assert heavy == "[]"


def test_what_airflow_stores_of_a_dag_does_not_change_with_its_place(project, pipedag, load_dag, tmp_path):
    import shutil

    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags")
    shutil.copytree(project, tmp_path / "elsewhere")
    found = []
    for folder in (project, tmp_path / "elsewhere"):
        (dag,) = load_dag(folder / "dags").dags.values()
        found.append(LazyDeserializedDAG.from_dag(dag).hash)
    assert found[0] == found[1]


def test_the_link_leads_to_the_report(project, pipedag, load_dag):
    from types import SimpleNamespace

    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags")
    (dag,) = load_dag(project / "dags").dags.values()
    task = dag.get_task("raw.numbers")
    (link,) = task.operator_extra_links
    key = SimpleNamespace(dag_id="small_full", run_id="r", task_id="raw.numbers", map_index=-1)
    assert link.name == "What happened"
    assert link.get_link(task, ti_key=key) == "http://airflow.test/dags/small_full/runs/r/tasks/raw.numbers/xcom"


def test_airflow_lists_the_provider(airflow_home):
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert "pipedag-core" in manager.providers
    assert "pipedag_airflow.operators.WhatHappened" in manager.extra_links_class_names


def test_openlineage_is_told_what_was_read_and_made(project, pipedag, load_dag):
    pipedag(project, "airflow", "generate", "small_flow:flow", "--instance", "full", "-o", "dags")
    (dag,) = load_dag(project / "dags").dags.values()
    lineage = dag.get_task("features.commit_stage").get_openlineage_facets_on_complete(None)
    assert [(item.namespace, item.name) for item in lineage.inputs] == [("x-pipedag://small/full", "raw.numbers")]
    assert [item.name for item in lineage.outputs] == ["features.doubled", "features.total"]
    assert dag.get_task("features.total").get_openlineage_facets_on_complete(None) is None


@pytest.fixture
def reading(tmp_path):
    """A project whose flow reads tables of others."""
    import pandas as pd

    folder = tmp_path / "reading"
    (folder / "others").mkdir(parents=True)
    (folder / "reading_flow.py").write_text(flows.READING)
    (folder / "pipedag.yaml").write_text(flows.READING_CONFIG)
    pd.DataFrame({"customer": [1, 2], "name": ["a", "b"]}).to_parquet(folder / "others" / "customers.parquet")
    pd.DataFrame({"customer": [1, 1], "sum": [3.0, 4.0]}).to_parquet(folder / "others" / "orders.parquet")
    return folder


def inlets(dag):
    return {task.task_id: [asset.uri for asset in task.inlets] for task in dag.tasks if task.inlets}


def test_tables_of_others_are_inlets_and_those_that_a_run_shows_can_be_learned(reading, pipedag, load_dag, run_dag, tables_of):
    generate = ("airflow", "generate", "reading_flow:flow", "--instance", "full", "-o", "dags")
    pipedag(reading, *generate)
    (dag,) = load_dag(reading / "dags").dags.values()
    assert inlets(dag) == {"raw.joined": ["x-pipedag-external://full/shop/customers"]}
    done, _ = run_dag(dag)
    assert str(done.state) == "success"
    found = tables_of(PipedagConfig(reading / "pipedag.yaml").get("full", "reading"))
    assert found["raw"]["joined"].to_dicts() == [{"customer": 1, "name": "a", "sum": 3.0}, {"customer": 1, "name": "a", "sum": 4.0}]
    pipedag(reading, *generate, "--learn", "full")
    (dag,) = load_dag(reading / "dags").dags.values()
    assert inlets(dag) == {
        "raw.orders": ["x-pipedag-external://full/shop/orders"],
        "raw.joined": ["x-pipedag-external://full/shop/customers"],
    }
    lineage = dag.get_task("raw.commit_stage").get_openlineage_facets_on_complete(None)
    assert [(item.namespace, item.name) for item in lineage.inputs] == [
        ("x-pipedag-external://full", "shop.orders"),
        ("x-pipedag-external://full", "shop.customers"),
    ]
    assert [item.name for item in lineage.outputs] == ["raw.joined"]


def test_a_flow_runs_when_somebody_announces_the_table_that_it_reads(reading, pipedag, load_dag):
    settings = "    adapters: {airflow: {external: {shop.customers: x-shop://crm/customers}}}\n"
    (reading / "pipedag.yaml").write_text(flows.READING_CONFIG + settings)
    pipedag(reading, "airflow", "generate", "reading_flow:flow", "--instance", "full", "--on-asset", "x-shop://crm/customers", "-o", "dags")
    (dag,) = load_dag(reading / "dags").dags.values()
    assert inlets(dag) == {"raw.joined": ["x-shop://crm/customers"]}
    assert [asset.uri for asset in dag.schedule] == ["x-shop://crm/customers"]


# --- Kubernetes ---------------------------------------------------------------------------------------------------------------------


KUBE_CONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
"""


def test_a_pod_gets_the_same_command_line(project, airflow_home, monkeypatch, tmp_path):
    import pendulum

    from pipedag_airflow import PipedagKubernetesStepOperator, flow_to_dag

    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://user:secret-word@host/db")
    # The operator looks into it while it makes the pod, and calls nobody.
    (tmp_path / "kube.yaml").write_text(KUBE_CONFIG)
    place = {"image": "registry/small:1", "namespace": "jobs", "config_file": str(tmp_path / "kube.yaml")}
    dag = flow_to_dag(
        "small_flow:flow",
        "full",
        plan=project / "small.plan.json",
        operator=lambda **arguments: PipedagKubernetesStepOperator(**place, **arguments),
        connections={"STORE_URL": "warehouse"},
    )
    task = dag.get_task("features.total")

    class Instance:
        dag_id, run_id, task_id, try_number, map_index, max_tries = "small_full", "manual", "features.total", 1, -1, 1

    context = {"ti": Instance(), "params": {"cache_validation_mode": "force_cache_invalid", "stages": []}, "dag": dag, "run_id": "manual"}
    context["task_instance"] = context["ti"]
    context["dag_run"] = type("Run", (), {"run_id": "manual", "logical_date": pendulum.datetime(2026, 1, 1), "dag_id": "small_full"})()
    context["logical_date"] = pendulum.datetime(2026, 1, 1)
    context["task"] = task
    monkeypatch.setattr(type(task), "get_ti_pod_labels", lambda *_, **__: {}, raising=False)
    task.do_xcom_push = True
    pod = task.build_pod_request_obj(context)
    base = next(container for container in pod.spec.containers if container.name == "base")
    assert (base.image, pod.metadata.namespace, base.command) == ("registry/small:1", "jobs", ["pipedag"])
    run_id = base.args[base.args.index("--run-id") + 1]
    assert base.args[:3] == ["step", "small_flow:flow", "task:features.total"]
    assert base.args[base.args.index("--instance") + 1] == "full"
    assert base.args[base.args.index("--mode") + 1] == "force_cache_invalid"
    assert base.args[base.args.index("--report") + 1] == "/airflow/xcom/return.json"
    assert base.args[base.args.index("--digest") + 1] == task.digest
    assert run_id.startswith("airflow-")
    assert {item.name: item.value for item in base.env}["STORE_URL"] == "postgres://user:secret-word@host/db"
    assert "word" not in " ".join(base.args)
    assert len(pod.spec.containers) == 2  # the other one brings the report back


@pytest.mark.parametrize(("code", "error"), [(75, "AirflowRescheduleException"), (2, "AirflowFailException")])
def test_a_pod_tells_by_its_exit_code_that_it_has_to_wait_or_that_no_try_can_help(project, airflow_home, monkeypatch, code, error):
    from airflow.sdk import exceptions
    from kubernetes.client import models as k8s

    from pipedag_airflow import PipedagKubernetesStepOperator

    task = PipedagKubernetesStepOperator(task_id="x", step="open:raw", flow="m:f", image="i")
    state = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=code))
    status = k8s.V1ContainerStatus(name="base", state=state, image="i", image_id="i", ready=False, restart_count=0)
    pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name="p"), status=k8s.V1PodStatus(container_statuses=[status], phase="Failed"))
    removed = []
    monkeypatch.setattr(task, "process_pod_deletion", lambda pod, **_: removed.append(pod), raising=False)
    with pytest.raises(getattr(exceptions, error)):
        task.cleanup(pod, pod)
    assert removed == [pod]
