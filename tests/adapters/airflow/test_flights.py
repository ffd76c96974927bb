"""The example's DAGs: training in Airflow, and scoring with what was trained."""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psycopg
import pytest
from polars.testing import assert_frame_equal

from pipedag_core import PipedagConfig
from tests.adapters.airflow.conftest import ROOT
from tests.postgres_server import url_with

pytestmark = pytest.mark.usefixtures("modules")

DAGS = ROOT / "dags"
FLOW = "pipelines.flights:get_pipeline"
EVE = datetime(2013, 12, 24, tzinfo=UTC)
SCORE = (
    *("airflow", "generate-scoring", "bundle", "--instance", "mini", "-o", "airflow", "--dag-id", "flights_scoring"),
    *("--input", "clean.flights=requests/{{ ds }}.parquet", "--output", "model_predict=scores/{{ ds }}.parquet"),
    *(word for name in ("weather", "planes", "airports") for word in ("--input", f"clean.{name}=table:02_early_cleaning.{name}")),
)


def copied(folder):
    """Put the example into a folder."""
    folder.mkdir()
    shutil.copytree(DAGS / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DAGS / "pipedag.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The example, run in one process."""
    import subprocess
    import sys

    from tests.adapters.airflow.conftest import environment

    folder = copied(tmp_path_factory.mktemp("flights") / "dags")
    words = ["run", FLOW, "--instance", "mini"]
    subprocess.run([sys.executable, "-m", "pipedag_core.cli", *words], cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


@pytest.fixture
def project(tmp_path):
    return copied(tmp_path / "dags")


def only_dag(bag):
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()
    return dag


def states(tasks):
    return {str(task.state) for task in tasks.values()}


def evaluation(folder, tables_of):
    tables = tables_of(PipedagConfig(folder / "pipedag.yaml").get("mini", "flights"))
    return {name: tables["06_model_evaluation"][name] for name in ("evaluation", "reliability", "output")}


def test_the_files_of_the_example_are_read_without_errors(load_dag):
    bag = load_dag(DAGS / "airflow")
    assert bag.import_errors == {}
    assert set(bag.dags) == {"flights_full", "flights_scoring"}


def test_airflow_trains_as_one_process_does_and_finds_it_the_second_time(project, trained, pipedag, load_dag, run_dag, tables_of):
    pipedag(project, "airflow", "generate", FLOW, "--instance", "mini", "-o", "airflow")
    dag = only_dag(load_dag(project / "airflow"))
    done, tasks = run_dag(dag)
    assert (str(done.state), states(tasks)) == ("success", {"success"})
    made, wanted = evaluation(project, tables_of), evaluation(trained, tables_of)
    for name, frame in wanted.items():
        assert_frame_equal(made[name], frame, check_row_order=False)
    done, tasks = run_dag(dag)
    assert str(done.state) == "success"
    outcomes = {id: task.xcom_pull(task_ids=id)["outcome"] for id, task in tasks.items() if task.operator == "PipedagStepOperator"}
    of_tasks = {outcome for id, outcome in outcomes.items() if not id.endswith(("_stage", "_run"))}
    assert of_tasks == {"cached"}


def test_airflow_trains_in_postgresql_as_in_files(project, trained, pipedag, load_dag, run_dag, tables_of, postgres_url, monkeypatch):
    name = f"flights_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("FLIGHTS_DATABASE", url_with(postgres_url, database=name))
    try:
        pipedag(project, "airflow", "generate", FLOW, "--instance", "postgres", "-o", "airflow")
        dag = only_dag(load_dag(project / "airflow"))
        for outcome in ("ran", "cached"):
            done, tasks = run_dag(dag)
            assert (str(done.state), states(tasks)) == ("success", {"success"})
            outcomes = {id: task.xcom_pull(task_ids=id)["outcome"] for id, task in tasks.items() if task.operator == "PipedagStepOperator"}
            assert {found for id, found in outcomes.items() if not id.endswith(("_stage", "_run"))} == {outcome}
        wanted = evaluation(trained, tables_of)["output"]
        with psycopg.connect(os.environ["FLIGHTS_DATABASE"]) as connection:
            made = connection.execute('SELECT flight_id FROM "flights_postgres_06_model_evaluation".output ORDER BY 1').fetchall()
        assert [flight for (flight,) in made] == sorted(wanted["flight_id"])
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def scoring(trained, pipedag, load_dag, tmp_path, tables_of):
    """The trained example in a folder of its own, with a bundle, its scoring DAG, and the flights of Christmas Eve."""
    if not (trained / "bundle").exists():
        pipedag(trained, "extract", FLOW, "--instance", "mini", "-o", "bundle")
        pipedag(trained, *SCORE)
    folder = tmp_path / "scoring"
    shutil.copytree(trained, folder)
    flights = tables_of(PipedagConfig(folder / "pipedag.yaml").get("mini", "flights"))["02_early_cleaning"]["flights"]
    (folder / "requests").mkdir()
    flights.filter(pl.col("scheduled_departure").dt.date() == EVE.date()).write_parquet(folder / "requests" / "2013-12-24.parquet")
    return folder, only_dag(load_dag(folder / "airflow"))


def test_a_run_scores_the_requests_of_its_day_and_one_that_is_repeated_replaces_its_own(scoring, run_dag):
    folder, dag = scoring
    wanted = pl.read_parquet(folder / "requests" / "2013-12-24.parquet")
    assert len(wanted) > 5
    done, tasks = run_dag(dag, logical_date=EVE)
    assert str(done.state) == "success"
    assert tasks["score"].xcom_pull(task_ids="score") == {
        "outputs": {"model_predict": len(wanted)},
        "places": {"model_predict": "scores/2013-12-24.parquet"},
    }
    scores = folder / "scores"
    found = pl.read_parquet(scores / "2013-12-24.parquet")
    assert sorted(found["flight_id"]) == sorted(wanted["flight_id"])
    before = (scores / "2013-12-24.parquet").read_bytes()
    # Cleared and run again, as people do: the same file, and no other one.
    (scores / "2013-12-24.parquet").write_bytes(b"half of a file")
    done, _ = run_dag(dag, logical_date=EVE)
    assert str(done.state) == "success"
    assert (scores / "2013-12-24.parquet").read_bytes() == before
    # A run that somebody has started has no logical date: the moment at which it was due stands for it.
    shutil.copy(folder / "requests" / "2013-12-24.parquet", folder / "requests" / "2013-12-25.parquet")
    done, _ = run_dag(dag, logical_date=None, run_after=datetime(2013, 12, 25, 8, tzinfo=UTC))
    assert (str(done.state), done.logical_date) == ("success", None)
    assert sorted(path.name for path in scores.iterdir()) == ["2013-12-24.parquet", "2013-12-25.parquet"]


def test_a_day_in_a_table_is_replaced_by_its_own_run_and_the_other_days_stay(scoring, pipedag, load_dag, run_dag, tables_of):
    folder, _ = scoring
    shutil.copy(folder / "requests" / "2013-12-24.parquet", folder / "requests" / "2013-12-25.parquet")
    words = [word.replace("=scores/{{ ds }}.parquet", "=table:scores.delays").replace("flights_scoring", "into_tables") for word in SCORE]
    pipedag(folder, *words, "--slice", "day={{ ds }}")
    dag = load_dag(folder / "airflow").dags["into_tables"]
    for day in (24, 25, 24):
        done, tasks = run_dag(dag, logical_date=datetime(2013, 12, day, tzinfo=UTC))
        assert str(done.state) == "success"
    assert tasks["score"].xcom_pull(task_ids="score")["places"] == {"model_predict": "table:scores.delays"}
    found = tables_of(PipedagConfig(folder / "pipedag.yaml").get("mini", "flights"))["scores"]["delays"]
    count = len(pl.read_parquet(folder / "requests" / "2013-12-24.parquet"))
    assert dict(found["day"].value_counts().iter_rows()) == {"2013-12-24": count, "2013-12-25": count}
    assert "for outputs that are tables" in pipedag(folder, *SCORE, "--slice", "day={{ ds }}", code=2)


def test_scores_are_assets(scoring, run_dag):
    from tests.adapters.airflow.test_running import asset_events

    _, dag = scoring
    dag.dag_id = "scores_as_assets"
    run_dag(dag, logical_date=EVE)
    (extra,) = asset_events("scores_as_assets")["flights_scoring/default/scores/model_predict"]
    assert extra["place"] == "scores/2013-12-24.parquet"
    assert extra["rows"] > 5


def test_requests_that_are_not_there_fail_at_once_and_write_nothing(scoring, run_dag):
    folder, dag = scoring
    (task,) = dag.tasks
    task.retries = 5
    done, tasks = run_dag(dag, logical_date=datetime(2013, 12, 26, tzinfo=UTC))
    assert (str(done.state), str(tasks["score"].state), tasks["score"].try_number) == ("failed", "failed", 1)
    assert not (folder / "scores").exists()


def test_names_that_the_bundle_does_not_have_are_refused_at_generation(scoring, pipedag):
    folder, _ = scoring
    told = pipedag(folder, *[word.replace("clean.planes=", "clean.plains=").replace("model_predict", "predict") for word in SCORE], code=2)
    assert "there is no input 'clean.plains'; there are: clean.flights, clean.weather, clean.planes, clean.airports" in told
    assert "there is no output 'predict'; there are: model_predict" in told
    told = pipedag(folder, *SCORE, "--schedule", "sometimes", code=2)
    assert "neither a cron expression" in told


def test_the_check_tells_a_file_that_is_stale(scoring, pipedag):
    folder, _ = scoring
    assert "up to date" in pipedag(folder, *SCORE, "--check")
    assert "says something else" in pipedag(folder, *SCORE, "--tag", "new", "--check", code=1)
    assert Path(folder / "airflow" / "flights_scoring.py").is_file()
