"""`mlflow models serve`, the real thing: what it answers over HTTP is what the production flow gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import polars as pl
import pytest

from pipedag_mlflow import log_production_flow
from tests.adapters.mlflow.conftest import free_port, stop, wait_for
from tests.adapters.mlflow.served import PLACES, TRIPS, one_table, two_tables
from tests.adapters.mlflow.test_models import rows, trained
from tests.architecture.house import ROOT

pytestmark = pytest.mark.slow


@contextmanager
def serving(info, uri, folder):
    """A model behind HTTP, in a folder in which the flow's code is not."""
    port = free_port()
    words = ["models", "serve", "-m", info.model_uri, "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local", "--workers", "1"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": f"{ROOT / 'adapters'}{os.pathsep}{ROOT}"}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(port, process)
            yield lambda body, kind="application/json": ask(f"http://127.0.0.1:{port}/invocations", body, kind)
        finally:
            stop(process)


def ask(url, body, kind):
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    request = urllib.request.Request(url, text.encode(), {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def records(frame):
    return json.loads(json.dumps(frame.to_dicts(), default=str))


def test_one_table_over_http_gives_what_the_production_flow_gives(config, by_default, tmp_path):
    prod = trained(one_table, config)
    expected = rows(prod.run({"trips": TRIPS, "hurry": 3.0}))
    with serving(log_production_flow(prod), by_default, tmp_path) as answer:
        split = {"columns": TRIPS.columns, "data": [list(row.values()) for row in records(TRIPS)]}
        assert rows(answer({"dataframe_split": split, "params": {"hurry": 3.0}})) == expected
        assert rows(answer({"dataframe_records": records(TRIPS), "params": {"hurry": 3.0}})) == expected
        single = TRIPS.filter(pl.col("id") == 2)
        assert rows(answer({"dataframe_records": records(single)})) == rows(prod.run({"trips": single, "hurry": 1.5}))
        code, told = answer({"dataframe_records": records(TRIPS.drop("km"))})
        assert code == 400
        assert "Model is missing inputs ['km']" in told


def test_a_batch_from_file_to_file_gives_what_the_production_flow_gives(config, by_default, tmp_path):
    prod = trained(one_table, config)
    info = log_production_flow(prod)
    (tmp_path / "trips.json").write_text(json.dumps({"dataframe_records": records(TRIPS)}))
    words = ["models", "predict", "-m", info.model_uri, "-i", "trips.json", "-o", "answer.json", "-t", "json", "--env-manager", "local"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": by_default, "PYTHONPATH": f"{ROOT / 'adapters'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert rows(json.loads((tmp_path / "answer.json").read_text())["predictions"]) == rows(prod.run({"trips": TRIPS, "hurry": 1.5}))


def test_several_tables_over_http_give_what_the_production_flow_gives(config, by_default, tmp_path):
    prod = trained(two_tables, config)
    expected = rows({name: table.to_dicts() for name, table in prod.run({"read": {"trips": TRIPS, "places": PLACES}}).items()})
    with serving(log_production_flow(prod, registered_model_name="trips", alias="champion"), by_default, tmp_path) as answer:
        asked = {"read.trips": records(TRIPS), "read.places": records(PLACES)}
        assert rows(answer({"inputs": asked})) == expected
        assert rows(answer({"inputs": {**asked, "outputs": ["times"]}})) == {"times": expected["times"]}
        columns = {name: {column: [row[column] for row in table] for column in table[0]} for name, table in asked.items()}
        assert rows(answer({"inputs": columns})) == expected
