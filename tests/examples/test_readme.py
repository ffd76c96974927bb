"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def hello(tmp_path, monkeypatch):
    (tmp_path / "hello.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout


def test_hello_world_prints_the_join_and_a_second_run_executes_only_the_printing(hello):
    first, second = python("hello.py"), python("hello.py")
    assert "Charlie   60" in first
    assert "tasks: 3 ran" in first
    assert "Charlie   60" in second
    assert "tasks: 2 cached, 1 ran" in second


def test_the_command_tells_of_each_task(hello):
    python("hello.py")
    told = python("-m", "pipedag_core.cli", "run", "hello:flow")
    shown = [re.split(r"  +", line.strip())[:2] for line in README.splitlines() if re.match(r"    (cached|ran|unchanged) ", line)]
    assert shown
    assert [re.split(r"  +", line.strip())[:2] for line in told.splitlines() if re.match(r"(cached|ran|unchanged) ", line)] == shown


def test_the_explore_file_has_a_view_for_every_table(hello):
    python("hello.py")
    query = "import duckdb; print(duckdb.connect('.pipedag/default/explore.duckdb', read_only=True).sql('FROM features.join_tables').fetchall())"
    assert "(3, 'Charlie', 60)" in python("-c", query)


def test_all_python_blocks_run_one_after_the_other(hello, config):
    space: dict[str, object] = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), space)
    styles = space["styles"]
    result = styles.run(config=config)
    assert result.successful, result.exception
    frames = [
        result.get(task, as_type=space["pl"].DataFrame).select("id", "name", "age", "age2").sort("id") for task in styles["joined"].tasks
    ]
    assert len(frames) == 4
    assert all(frame.equals(frames[0]) for frame in frames)


def test_documents_link_to_what_is_there():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
