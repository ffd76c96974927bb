"""All of docs/dagster.md runs, and gives what it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import polars as pl
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from pipedag_dagster import PipedagScoringComponent
from tests.architecture.house import ROOT

#: (language, text) of all blocks, in order.
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "dagster.md").read_text("utf-8"), re.DOTALL)
MODULES = {"pipedag": "pipedag_core.cli", "dagster": "dagster"}


def commands():
    """Return the commands, and the lines that are shown below each."""
    found = []
    for line in (line for language, text in BLOCKS if language == "console" for line in text.splitlines()):
        if line.startswith("$ "):
            found.append((shlex.split(line[2:]), []))
        else:
            found[-1][1].append(line)
    return found


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's files, and a day's orders."""
    for text in (text for language, text in BLOCKS if language in ("python", "yaml")):
        name = re.match(r"# (\S+)\n", text)[1]
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "2026-01-02.csv").write_text("number,customer,amount\n7,d,85.0\n8,d,85.0\n")
    return tmp_path


def test_the_page_runs_from_the_first_line_to_the_last(folder):
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    env = {**os.environ, "DAGSTER_HOME": str(folder / "home"), "PYTHONPATH": path}
    for words, shown in commands():
        done = subprocess.run(
            [sys.executable, "-m", MODULES[words[0]], *words[1:]], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert [line for line in shown if line not in done.stdout.splitlines()] == []
    assert (folder / ".pipedag" / "full" / "reports").is_dir()
    # What is usual in training is (40 + 40 + 5) / 3.
    scored = pl.read_parquet(folder / "scores" / "2026-01-02.parquet")
    assert scored.rows() == [("d", pytest.approx(170 / (85 / 3)))]


@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated", "ignore::dagster_shared.utils.warnings.BetaWarning")
def test_the_component_of_the_page_is_one(folder):
    contents = yaml.safe_load((folder / "defs.yaml").read_text())
    with create_defs_folder_sandbox() as sandbox:
        shutil.copy(folder / "pipedag.yaml", sandbox.project_root)
        path = sandbox.scaffold_component(component_cls=PipedagScoringComponent, defs_yaml_contents=contents)
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            assert [sensor.name for sensor in defs.sensors] == ["bundle_scoring_on_arrival"]
            assert [job.name for job in defs.jobs] == ["bundle_scoring_job"]
