"""A production flow as a model of MLflow: logged, loaded, asked, registered."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from pipedag_core.errors import ConfigError, InputMismatch, ProductionError, VerificationFailed
from pipedag_mlflow import MlflowObserver, log_production_flow
from tests.adapters.mlflow import served
from tests.adapters.mlflow.served import PLACES, TRIPS, one_table, two_tables


@pytest.fixture(autouse=True)
def _as_written():
    yield
    served.WEIGHT[0], served.EXTRA[0] = 2.0, 0.0


def trained(make, config, *observers):
    """Train, and return the production flow."""
    flow, spec = make()
    result = flow.run(config=config, observers=observers)
    assert result.successful, result.exception
    for observer in observers:
        assert observer.flush()
    return flow.extract(spec, config=config)


def load(info_or_uri):
    import mlflow

    return mlflow.pyfunc.load_model(getattr(info_or_uri, "model_uri", info_or_uri))


def rows(answer):
    """What an answer says, whatever it is made of."""
    from pipedag_mlflow.asking import _told

    return _told(answer.to_dicts() if isinstance(answer, pl.DataFrame) else answer)


@pytest.fixture
def one(config, by_default):
    return trained(one_table, config)


@pytest.fixture
def two(config, by_default):
    return trained(two_tables, config)


def test_a_model_of_one_table_is_asked_with_a_frame_and_params(one):
    model = load(log_production_flow(one))
    asked = TRIPS.to_pandas()
    assert rows(model.predict(asked, params={"hurry": 3.0})) == rows(one.run({"trips": TRIPS, "hurry": 3.0}))
    # What training had is the default.
    assert rows(model.predict(asked)) == rows(one.run({"trips": TRIPS, "hurry": 1.5}))
    assert isinstance(model.predict(asked), pd.DataFrame)


def test_its_signature_says_what_training_had(one):
    signature = load(log_production_flow(one)).metadata.signature
    # Decimals, dates and integers with gaps have no word in MLflow that all of their values fit.
    assert [(item.name, str(item.type)) for item in signature.inputs] == [
        ("id", "DataType.long"),
        ("day", "Any"),
        ("leaves", "DataType.datetime"),
        ("fare", "Any"),
        ("bags", "Any"),
        ("place", "DataType.string"),
        ("km", "DataType.double"),
    ]
    assert [(item.name, str(item.dtype), item.default) for item in signature.params] == [("hurry", "DataType.double", 1.5)]
    assert [item.name for item in signature.outputs] == ["id", "minutes", "arrives", "year"]


def test_a_model_of_several_tables_is_asked_with_a_dict_of_them(two):
    model = load(log_production_flow(two))
    expected = two.run({"read": {"trips": TRIPS, "places": PLACES}})
    frames = {"read.trips": TRIPS, "read.places": PLACES.to_pandas()}
    answer = model.predict(frames)
    assert all(isinstance(table, pd.DataFrame) for table in answer.values())
    assert rows(answer) == rows({name: table.to_dicts() for name, table in expected.items()})
    records = {name: json.loads(json.dumps(pl.DataFrame(table).to_dicts(), default=str)) for name, table in frames.items()}
    assert isinstance(model.predict(records)["times"], list)
    assert rows(model.predict(records)) == rows(answer)
    assert list(model.predict({**frames, "outputs": ["tolls"]})) == ["tolls"]
    assert [str(item.type) for item in model.metadata.signature.inputs] == ["Any", "Any", "Array(string)"]


def test_tables_that_are_kept_with_the_model_need_not_be_sent(two):
    model = load(log_production_flow(two, fixed_inputs={"read": {"places": PLACES}}))
    assert [item.name for item in model.metadata.signature.inputs] == TRIPS.columns
    answer = model.predict(TRIPS.to_pandas())
    assert sorted(row["toll"] or 0 for row in answer["tolls"]) == [0, 0.5, 0.5, 1.0]


def test_rows_of_one_table_come_in_every_form_that_json_and_csv_have(one):
    # As MLflow hands them over after its own look at them, without it.
    model = load(log_production_flow(one)).unwrap_python_model()
    expected = rows(one.run({"trips": TRIPS, "hurry": 1.5}))
    records = json.loads(json.dumps(TRIPS.to_dicts(), default=str))
    columns = {name: [row[name] for row in records] for name in TRIPS.columns}
    split = {"columns": TRIPS.columns, "data": [list(row.values()) for row in records]}
    for form in (records, columns, split, TRIPS, TRIPS.to_arrow(), pd.DataFrame(records)):
        assert rows(model.predict(None, form, {"hurry": 1.5})) == expected


def test_what_is_no_input_is_told_as_prod_run_tells_it(one):
    model = load(log_production_flow(one)).unwrap_python_model()
    with pytest.raises(InputMismatch, match="missing column 'km'"):
        model.predict(None, TRIPS.drop("km"), {"hurry": 1.5})
    with pytest.raises(InputMismatch, match="column 'day': expected date32"):
        model.predict(None, [{**TRIPS.to_dicts()[0], "day": "some day"}], {"hurry": 1.5})
    with pytest.raises(InputMismatch, match="missing hurry"):
        model.predict(None, TRIPS)


def test_the_model_belongs_to_the_run_in_which_it_was_trained(config, by_default, runs_of, client):
    trained(one_table, config, MlflowObserver(by_default))
    served.EXTRA[0] = 0.25
    # Another run, in which the training is cache-valid.
    flow, spec = one_table()
    assert flow.run("evaluation", config=config, ignore_task_version=True, observers=[MlflowObserver(by_default)]).successful
    first = runs_of(by_default, "trips")[0]
    info = log_production_flow(flow.extract(spec, config=config))
    assert info.run_id == first.info.run_id
    logged = client(by_default).get_logged_model(info.model_id)
    assert logged.source_run_id == first.info.run_id
    assert str(logged.status) == "READY"
    assert (logged.tags["pipedag.training_run"], logged.tags["pipedag.flow"]) == (first.info.run_id, "trips")
    assert [item.key for item in logged.metrics] == ["mean"]
    assert [item.model_id for item in client(by_default).get_run(first.info.run_id).outputs.model_outputs] == [info.model_id]


def test_a_registered_version_has_an_alias_and_its_origin(one, by_default, client):
    info = log_production_flow(one, registered_model_name="trips", alias="champion", tags={"team": "storks"})
    version = client(by_default).get_model_version_by_alias("trips", "champion")
    assert (int(version.version), version.source) == (info.registered_model_version, f"models:/{info.model_id}")
    assert (version.tags["team"], version.tags["pipedag.instance"], version.run_id) == ("storks", "default", info.run_id)
    assert "predict" in version.description
    tags = client(by_default).get_logged_model(info.model_id).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": "trips", "version": version.version}]
    assert "predict" in tags["mlflow.note.content"]
    assert rows(load("models:/trips@champion").predict(TRIPS.to_pandas())) == rows(one.run({"trips": TRIPS, "hurry": 1.5}))
    again = log_production_flow(one, registered_model_name="trips", alias="champion")
    assert client(by_default).get_model_version_by_alias("trips", "champion").source == f"models:/{again.model_id}"


def test_what_does_not_give_what_training_gave_is_neither_registered_nor_logged(one, by_default, client):
    served.EXTRA[0] = 0.5
    with pytest.raises(VerificationFailed):
        log_production_flow(one, registered_model_name="trips", alias="champion")
    experiments = [item.experiment_id for item in client(by_default).search_experiments()]
    assert client(by_default).search_registered_models() == []
    assert client(by_default).search_logged_models(experiments) == []


def test_an_example_on_which_the_model_fails_is_told_before_anything_is_logged(one, by_default, client):
    with pytest.raises(InputMismatch, match="missing column 'km'"):
        log_production_flow(one, input_example={"trips": TRIPS.drop("km"), "hurry": 1.0})
    experiments = [item.experiment_id for item in client(by_default).search_experiments()]
    assert client(by_default).search_logged_models(experiments) == []


def test_an_example_of_ones_own_is_kept_with_the_model(one):
    info = log_production_flow(one, input_example={"trips": TRIPS.filter(pl.col("id") == 2), "hurry": 1.0})
    model = load(info)
    assert model.input_example["id"].tolist() == [2]


def test_a_bundle_from_elsewhere_is_logged_without_what_training_had(one, tmp_path, by_default):
    from pipedag_core import ProductionFlow

    loaded = ProductionFlow.load(one.save(tmp_path / "bundle"))
    with pytest.raises(ProductionError, match="hurry is a value that is not known here"):
        log_production_flow(loaded)
    info = log_production_flow(loaded, fixed_inputs={"hurry": 1.5})
    assert rows(load(info).predict(TRIPS.to_pandas())) == rows(one.run({"trips": TRIPS, "hurry": 1.5}))


def test_an_alias_needs_a_registered_model(one):
    with pytest.raises(ConfigError, match="registered_model_name"):
        log_production_flow(one, alias="champion")


def test_a_server_that_is_gone_is_told_at_once(one):
    with pytest.raises(ConfigError, match="No tracking server takes connections"):
        log_production_flow(one, tracking_uri="http://127.0.0.1:9")


def test_a_model_is_logged_and_loaded_through_a_server(one, server, client):
    import mlflow

    info = log_production_flow(one, registered_model_name="trips", alias="served", tracking_uri=server, experiment_name="models")
    version = client(server).get_model_version_by_alias("trips", "served")
    assert int(version.version) == info.registered_model_version
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    try:
        answer = load("models:/trips@served").predict(TRIPS.to_pandas())
    finally:
        mlflow.set_tracking_uri(before)
    assert rows(answer) == rows(one.run({"trips": TRIPS, "hurry": 1.5}))


def test_the_model_names_all_that_it_needs(one, by_default):
    import mlflow

    told = mlflow.artifacts.download_artifacts(log_production_flow(one).model_uri)
    lines = Path(told, "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "pipedag-core", "polars", "pyarrow"}
    assert all("==" in line for line in lines)


def test_the_model_carries_its_code_and_runs_where_the_flow_is_not(one, by_default, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    TRIPS.write_parquet(folder / "trips.parquet")
    info = log_production_flow(one)
    code = f"""
import mlflow, pandas as pd, sys
mlflow.set_tracking_uri({by_default!r})
answer = mlflow.pyfunc.load_model({info.model_uri!r}).predict(pd.read_parquet("trips.parquet"))
assert sys.modules["tests.adapters.mlflow.served"].__file__ == "code/tests/adapters/mlflow/served.py"
assert not sys.modules["pipedag_mlflow"].__file__.startswith("code/")
print(answer["minutes"].sum())
"""
    from tests.architecture.house import ROOT

    env = {"PYTHONPATH": f"{ROOT}/adapters", "PATH": "", "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(sum(one.run({"trips": TRIPS, "hurry": 1.5})["minutes"]))


def test_many_threads_ask_one_model(one):
    model = load(log_production_flow(one))
    asked = TRIPS.to_pandas()
    wrong = []

    def ask(hurry):
        expected = rows(one.run({"trips": TRIPS, "hurry": hurry}))
        wrong.extend(hurry for _ in range(20) if rows(model.predict(asked, params={"hurry": hurry})) != expected)

    threads = [threading.Thread(target=ask, args=(number + 1.0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_date_that_no_timestamp_of_pandas_can_be_stays_what_it_is(one):
    model = load(log_production_flow(one))
    asked = TRIPS.filter(pl.col("day") == date(9999, 12, 31)).to_pandas()
    assert model.predict(asked)["year"].tolist() == [9999]
