"""The example's definitions, by Dagster's own command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.architecture.house import ROOT

DAGS = ROOT / "dags"


def test_the_flights_are_materialized_from_any_folder(tmp_path):
    dags = tmp_path / "dags"
    for name in ("pipelines", "dagster"):
        shutil.copytree(DAGS / name, dags / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DAGS / "pipedag.yaml", dags)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
    words = ["asset", "materialize", "-f", str(dags / "dagster" / "definitions.py"), "--select", "*"]
    done = subprocess.run([sys.executable, "-m", "dagster", *words], cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ASSET_MATERIALIZATION - Materialized value 06_model_evaluation evaluation." in done.stderr
    assert (dags / ".pipedag" / "mini" / "06_model_evaluation").is_dir()
