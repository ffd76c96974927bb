"""What a run leaves in MLflow, and that MLflow is never in its way."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import polars as pl
import pytest

from pipedag_core import Blob, Flow, PipedagConfig, RawSql, Stage, materialize
from pipedag_core.config.wire import open_catalog
from pipedag_core.errors import ConfigError, ObserverFailed
from pipedag_core.ports.events import StepEnded
from pipedag_mlflow import MlflowObserver


@materialize(version="1.0")
def read():
    """Read what there is."""
    return pl.DataFrame({"x": [1, 2, 3], "name": ["a", "b", None]})


@materialize(lazy=True, input_type=pl.LazyFrame)
def double(table):
    return table.with_columns(y=pl.col("x") * 2)


@materialize(version="1.0", input_type=pl.DataFrame)
def fit(table):
    return Blob({"weight": 2.0}, name="model")


@materialize(lazy=True)
def script(stage):
    return RawSql(f'CREATE TABLE "{stage.transaction_name}"."made" AS SELECT 1 AS a')


@materialize
def fails():
    raise ZeroDivisionError("as it happens")


def make_flow(name="numbers", more=()):
    with Flow(name) as flow:
        with Stage("raw"):
            table = read()
        with Stage("features"):
            doubled = double(table)
            fit(doubled)
            for task in more:
                task()
    return flow


@pytest.fixture
def config(tmp_path):
    attrs = {"model": {"depth": 3, "layers": [1, 2]}, "input": {"password": "hush", "url": "postgresql://me:hush@host/db"}}
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "store" / "{instance_id}")}}
    return PipedagConfig({"instances": {"full": {"instance_id": "full", "attrs": attrs, "table_store": store}}}).get("full")


def only(found):
    assert len(found) == 1
    return found[0]


def artifact(client, uri, run, path):
    return Path(client(uri).download_artifacts(run.info.run_id, path)).read_text(encoding="utf-8")


def test_a_run_is_documented_by_itself(config, database, runs_of, client):
    observer = MlflowObserver(database, tags={"team": "storks"})
    result = make_flow().run(config=config, observers=[observer])
    assert observer.flush()
    run = only(runs_of(database, "numbers"))
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("numbers full 2")
    # MLflow's pages show it among experiments of models.
    assert client(database).get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert (params["flow"], params["instance"], params["attrs/model.depth"], params["attrs/model.layers"]) == (
        "numbers",
        "full",
        "3",
        "1, 2",
    )
    assert (params["version/raw.read"], params["version/features.double"]) == ("1.0", "lazy")
    assert params["package/polars"] == pl.__version__
    assert "hush" not in repr((run.data, tags))
    assert (params["attrs/input.password"], params["attrs/input.url"]) == ("***", "***")
    assert metrics["rows/features.double"] == 3
    assert metrics["seconds/raw.read"] > 0
    assert (metrics["tasks/ran"], metrics["tasks/cached"], metrics["tasks/hit_ratio"]) == (3, 0, 0)
    assert metrics["bytes_written"] > 0
    assert (tags["pipedag.flow"], tags["pipedag.instance"], tags["pipedag.run_id"]) == ("numbers", "full", result.run_id)
    assert (tags["team"], tags["pipedag.state"]) == ("storks", "succeeded")
    assert "raw.read | ran | first run" in tags["mlflow.note.content"]
    assert len(tags["pipedag.fingerprint"]) == 16
    tasks = json.loads(artifact(client, database, run, "pipedag/tasks.json"))
    assert [row[:2] for row in tasks["data"]] == [["raw.read", "ran"], ["features.double", "ran"], ["features.fit", "ran"]]
    assert "features.double" in artifact(client, database, run, "pipedag/graph.html")


def test_tables_are_datasets_known_by_their_content_and_nobody_reads_them_for_that(config, database, runs_of):
    observer = MlflowObserver(database)
    make_flow().run(config=config, observers=[observer])
    observer.flush()
    found = {item.dataset.name: item for item in only(runs_of(database, "numbers")).inputs.dataset_inputs}
    assert set(found) == {"raw.read", "features.double"}
    raw = found["raw.read"]
    catalog = open_catalog(config)
    stored = catalog.shown()["raw"]["read"]
    catalog.close()
    assert stored.content_hash.partition("#")[0].rpartition(":")[2].startswith(raw.dataset.digest)
    assert [(tag.key, tag.value) for tag in raw.tags] == [("mlflow.data.context", "input")]
    assert [tag.value for tag in found["features.double"].tags] == ["output"]
    schema = json.loads(raw.dataset.schema)["mlflow_colspec"]
    assert [(column["name"], column["type"]) for column in schema] == [("x", "long"), ("name", "string")]
    assert json.loads(raw.dataset.profile)["num_rows"] == 3
    assert json.loads(raw.dataset.source)["uri"] == "pipedag://full/raw/read?generation=1"


def test_the_sql_of_lazy_tasks_is_kept(config, database, runs_of, client):
    import sqlalchemy as sa

    @materialize(lazy=True, input_type=sa.Table)
    def counted(table):
        return sa.select(sa.func.count().label("n")).select_from(table)

    with Flow("sql") as flow, Stage("s"):
        counted(read())
    observer = MlflowObserver(database)
    assert flow.run(config=config, observers=[observer]).successful
    observer.flush()
    text = artifact(client, database, only(runs_of(database, "sql")), "sql/s.sql")
    assert text.startswith("-- s.counted\nSELECT")


def test_a_second_run_is_a_second_mlflow_run_and_says_that_all_was_valid(config, database, runs_of):
    for _ in range(2):
        observer = MlflowObserver(database)
        make_flow().run(config=config, observers=[observer])
        observer.flush()
    first, second = runs_of(database, "numbers")
    assert second.data.metrics["tasks/hit_ratio"] == 1
    assert second.data.metrics["bytes_written"] == 0
    assert second.data.tags["pipedag.fingerprint"] == first.data.tags["pipedag.fingerprint"]


def test_a_failed_run_is_failed(config, database, runs_of):
    observer = MlflowObserver(database)
    make_flow(more=[fails]).run(config=config, observers=[observer])
    observer.flush()
    run = only(runs_of(database, "numbers"))
    assert run.info.status == "FAILED"
    assert "as it happens" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["tasks/failed"] == 1


def test_an_interrupted_run_is_killed(config, database, runs_of):
    @materialize
    def interrupted():
        raise KeyboardInterrupt

    observer = MlflowObserver(database)
    with pytest.raises(KeyboardInterrupt):
        make_flow(more=[interrupted]).run(config=config, observers=[observer])
    observer.flush()
    assert only(runs_of(database, "numbers")).info.status == "KILLED"


def test_a_run_that_the_caller_has_opened_is_taken_and_left_open(config, database, runs_of):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(database)
    try:
        mlflow.set_experiment("mine")
        observer = MlflowObserver(database)
        with mlflow.start_run(run_name="by hand") as opened:
            make_flow().run(config=config, observers=[observer])
            observer.flush()
            assert mlflow.active_run().info.run_id == opened.info.run_id
            assert only(runs_of(database, "mine")).info.status == "RUNNING"
        run = only(runs_of(database, "mine"))
        assert (run.info.status, run.info.run_name) == ("FINISHED", "by hand")
        assert run.data.params["flow"] == "numbers"
        assert run.data.metrics["tasks/ran"] == 3
        assert runs_of(database, "numbers") == []
    finally:
        mlflow.set_tracking_uri(before)


def test_the_active_run_of_a_thread_is_never_changed(config, database):
    import mlflow

    observer = MlflowObserver(database)
    make_flow().run(config=config, observers=[observer])
    observer.flush()
    assert mlflow.active_run() is None


def test_stages_can_be_nested_runs(config, database, runs_of):
    observer = MlflowObserver(database, nested="stages")
    make_flow().run(config=config, observers=[observer])
    observer.flush()
    found = {run.info.run_name: run for run in runs_of(database, "numbers")}
    whole = next(run for name, run in found.items() if name.startswith("numbers"))
    assert {name for name, run in found.items() if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id} == {"raw", "features"}
    assert all(run.info.status == "FINISHED" for run in found.values())
    assert found["features"].data.metrics["rows/features.double"] == 3
    with pytest.raises(ConfigError, match="stages"):
        MlflowObserver(nested="tasks")


def test_two_runs_in_two_threads_are_kept_apart(config, database, runs_of):
    observer = MlflowObserver(database, "both")
    at_once = threading.Barrier(2, timeout=30)

    def make(name, rows):
        @materialize(name=f"rows_{name}")
        def rows_of():
            at_once.wait()
            return pl.DataFrame({"x": range(rows)})

        with Flow(name) as flow, Stage(name):
            rows_of()
        return flow

    threads = [
        threading.Thread(target=make(name, rows).run, kwargs={"config": config, "observers": [observer]})
        for name, rows in (("a", 1), ("b", 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observer.flush()
    found = {run.data.params["flow"]: run for run in runs_of(database, "both")}
    assert found["a"].data.metrics["rows/a.rows_a"] == 1
    assert found["b"].data.metrics["rows/b.rows_b"] == 2
    assert not any(name.endswith("rows_b") for name in found["a"].data.metrics)


def test_many_who_come_first_make_one_run(config, database, runs_of):
    """As when an orchestrator starts several first steps at once."""
    from mlflow.entities import ViewType

    from pipedag_core.testing.catalog_samples import run_info
    from pipedag_mlflow.tracked import Target, Tracked

    catalog = open_catalog(config)
    catalog.begin_run(run_info("r1"))
    catalog.close()
    ready = threading.Barrier(4, timeout=60)
    ids = []

    def first():
        tracked = Tracked(Target(database), config, "r1", "numbers")
        ready.wait()
        ids.append(tracked.ensure({}))

    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for id, _ in ids}) == 1
    assert sum(made for _, made in ids) == 1
    assert [run.info.run_id for run in runs_of(database, "numbers")] == [ids[0][0]]
    assert all(run.data.params == {} for run in runs_of(database, "numbers", ViewType.DELETED_ONLY))


# --- when MLflow is in trouble ------------------------------------------------------------------------------------------------------


def warnings_of(caplog):
    return [record for record in caplog.records if record.name.startswith("pipedag") and record.levelno >= logging.WARNING]


def test_a_run_without_a_server_succeeds_with_one_warning(config, caplog):
    observer = MlflowObserver("http://127.0.0.1:9")
    assert make_flow().run(config=config, observers=[observer]).successful
    assert not observer.flush()
    assert not observer.flush()
    (warning,) = warnings_of(caplog)
    assert "http://127.0.0.1:9" in warning.getMessage()


def test_a_server_that_dies_in_mid_run_does_not_fail_the_run(config, wire, caplog):
    observer = MlflowObserver(wire.uri, "dies in mid-run")

    class Cutter:
        def on_event(self, event):
            if isinstance(event, StepEnded) and event.report.step == "commit:raw":
                assert observer.flush()
                wire.cut()

    assert make_flow().run(config=config, observers=[observer, Cutter()]).successful
    assert not observer.flush()
    assert wire.connections > 0
    assert len(warnings_of(caplog)) == 1


def test_what_could_not_be_logged_is_logged_when_the_server_is_back(config, database, server, runs_of, monkeypatch):
    from pipedag_mlflow import library

    gone = True

    def require_listener(uri):
        if gone:
            raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(library, "require_listener", require_listener)
    observer = MlflowObserver(server, "comes back")
    make_flow().run(config=config, observers=[observer])
    assert not observer.flush()
    gone = False
    assert observer.flush()
    run = only(runs_of(server, "comes back"))
    assert (run.info.status, run.data.metrics["tasks/ran"], run.data.params["flow"]) == ("FINISHED", 3, "numbers")


def test_a_run_does_not_wait_for_a_slow_server(config, wire, runs_of, server):
    wire.hold()
    observer = MlflowObserver(wire.uri, "slow")
    assert make_flow().run(config=config, observers=[observer]).successful  # comes back although nothing is answered
    assert not observer.flush(0.1)
    wire.let_go()
    assert observer.flush()
    assert only(runs_of(server, "slow")).info.status == "FINISHED"


def test_strict_runs_do_not_begin_without_mlflow(config):
    calls = []

    @materialize
    def noted():
        calls.append(1)

    with Flow("strict") as flow, Stage("s"):
        noted()
    with pytest.raises(ObserverFailed, match="not begun"):
        flow.run(config=config, observers=[MlflowObserver("http://127.0.0.1:9", strict=True)])
    assert calls == []


def test_strict_runs_fail_if_not_all_could_be_logged(config, wire):
    calls = []

    @materialize
    def noted():
        calls.append(1)
        wire.cut()

    with Flow("strict") as flow, Stage("s"):
        noted()
    with pytest.raises(ObserverFailed, match="does not hold all"):
        flow.run(config=config, observers=[MlflowObserver(wire.uri, strict=True)])
    assert calls == [1]
    catalog = open_catalog(config)
    assert catalog.runs()[0].state == "succeeded"
    catalog.close()


def test_with_strict_all_is_logged_when_the_run_is_back(config, database, runs_of):
    make_flow().run(config=config, observers=[MlflowObserver(database, strict=True)])
    assert only(runs_of(database, "numbers")).info.status == "FINISHED"


def test_a_flow_of_more_tasks_than_one_call_takes_parameters_is_logged_whole(config, server, runs_of):
    @materialize(version="1.0")
    def number(value):
        return value

    with Flow("many tasks") as flow, Stage("s"):
        for value in range(130):
            number(value)
    observer = MlflowObserver(server)
    assert flow.run(config=config, observers=[observer]).successful
    assert observer.flush()
    run = only(runs_of(server, "many tasks"))
    assert sum(name.startswith("version/") for name in run.data.params) == 130
    assert sum(name.startswith("seconds/") for name in run.data.metrics) == 130
    assert (run.data.metrics["tasks/ran"], run.info.status) == (130, "FINISHED")
