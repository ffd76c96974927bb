"""What parsing costs per node, beside Astronomer Cosmos on a dbt project of as many models, in an environment of its own with the same Airflow."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import airflow_dags
import environments
from timing import Row, Unavailable

HERE = Path(__file__).resolve().parent
MODELS = 100
#: At least ten times faster, per node.
LIMIT_TIMES = 0.1

#: It would tell its makers that it is used.
QUIET = {"AIRFLOW__COSMOS__ENABLE_TELEMETRY": "False", "DO_NOT_TRACK": "1", "DBT_SEND_ANONYMOUS_USAGE_STATS": "False"}

DAG = """
from pathlib import Path

from airflow.sdk import DAG
from cosmos import DbtDag, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import LoadMode

HERE = Path(__file__).resolve().parents[1]

dag = DbtDag(
    dag_id="{name}",
    project_config=ProjectConfig(HERE{manifest}),
    profile_config=ProfileConfig(profile_name="hundred", target_name="dev", profiles_yml_filepath=HERE / "profiles.yml"),
    execution_config=ExecutionConfig(dbt_executable_path="{dbt}"),
    render_config=RenderConfig(load_method=LoadMode.{mode}),
    schedule=None,
)
"""


def project(folder: Path, dbt: Path) -> None:
    """Write a dbt project of models that all need the first one, and its manifest."""
    (folder / "models").mkdir(parents=True)
    (folder / "dags").mkdir()
    (folder / "dbt_project.yml").write_text('name: hundred\nversion: "1.0"\nconfig-version: 2\nprofile: hundred\nmodel-paths: [models]\n')
    (folder / "profiles.yml").write_text("hundred:\n  target: dev\n  outputs:\n    dev: {type: duckdb, path: hundred.duckdb}\n")
    for number in range(MODELS):
        text = "select x + 1 as x from {{ ref('model_000') }}" if number else "select 1 as x"
        (folder / "models" / f"model_{number:03}.sql").write_text(text)
    done = subprocess.run((str(dbt), "parse", "--profiles-dir", "."), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"dbt could not parse its project: {done.stdout.strip().splitlines()[-1:]}")


def dag_file(folder: Path, dbt: Path, name: str, mode: str) -> Path:
    """Write a DAG file for Cosmos into the project's folder."""
    manifest = ', manifest_path=HERE / "target" / "manifest.json"' if mode == "DBT_MANIFEST" else ""
    file = folder / "dags" / f"{name}.py"
    file.write_text(DAG.format(name=name, manifest=manifest, dbt=dbt, mode=mode), encoding="utf-8")
    return file


def measure(quick: bool) -> list[Row]:
    """Measure ours, and Cosmos in each way in which it can learn of the project, in processes of their own one after the other."""
    if importlib.util.find_spec("airflow") is None:
        raise Unavailable("Airflow has an environment of its own: make bench-airflow.")
    # A virtual environment is made from the Python that this one was made from.
    base = getattr(sys, "_base_executable", sys.executable)
    python = environments.environment(HERE / ".cosmos", HERE / "cosmos-constraints.txt", lambda: base, "Cosmos and dbt")
    os.environ.update(QUIET)
    dbt = python.with_name("dbt")
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        project(folder / "dbt", dbt)
        ours = airflow_dags.generated(folder / "ours", MODELS)
        ways = {
            "that runs dbt ls": ("DBT_LS", 2 if quick else 6),
            "whose dbt ls is cached": ("AUTOMATIC", 4 if quick else 12),
            "from a manifest": ("DBT_MANIFEST", 4 if quick else 12),
        }
        rows: list[Row] = []
        mine = airflow_dags.measured("parse", folder / "home", {"ours": ours}, 4 if quick else 24)["ours"]
        per_node = [seconds * 1000 / mine["tasks"] for seconds in mine["parse"]]
        for what, (mode, repeats) in ways.items():
            os.environ["AIRFLOW__COSMOS__ENABLE_CACHE"] = str(mode == "AUTOMATIC")
            files = {"cosmos": dag_file(folder / "dbt", dbt, mode.casefold(), mode)}
            theirs = airflow_dags.measured("parse", folder / f"home-{mode}", files, repeats, python=str(python), database=True)["cosmos"]
            per_model = [seconds * 1000 / theirs["tasks"] for seconds in theirs["parse"]]
            rows.append(
                Row(
                    "parse a generated DAG file, per node",
                    statistics.median(per_node),
                    "ms",
                    f"Cosmos {what}",
                    statistics.median(per_model),
                    "times",
                    LIMIT_TIMES,
                    samples=tuple(per_node),
                    raw_samples=tuple(per_model),
                    note=f"{mine['tasks']} and {theirs['tasks']} nodes",
                )
            )
        return rows
