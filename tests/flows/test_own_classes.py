"""Values of the user's own classes, stored by one process and read by another that was started in another way."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pipedag_core import Flow, Stage, materialize

FLOW = """
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import polars as pl

from pipedag_core import Blob, Flow, Stage, materialize


class Kind(Enum):
    A = 1


@dataclass
class Parts:
    table: object
    kind: Kind


class Model:
    pass


def note(name):
    with Path("calls.txt").open("a") as file:
        file.write(name + " ")


@materialize(version="1")
def make():
    note("make")
    return Parts(pl.DataFrame({"i": [1]}), Kind.A), Blob(Model())


@materialize(input_type=pl.DataFrame)
def use(parts):
    note("use")
    assert parts.kind is Kind.A
    return parts.table


@materialize
def unpickle(model):
    assert type(model) is Model


with Flow("f") as flow:
    with Stage("s"):
        made = make()
        use(made[0])
    with Stage("blobs"):
        if not Path("without").exists():
            unpickle(made[1])

if __name__ == "__main__":
    result = flow.run()
    assert result.successful, result.exception
"""

SCRIPT = ("pkg/own.py",)
MODULE = ("-m", "pkg.own")
BY_NAME = ("-m", "pipedag_core", "run", "pkg.own:flow")
BY_FILE = ("-m", "pipedag_core", "run", "pkg/own.py:flow")


@pytest.fixture
def start(tmp_path):
    """Starts the flow in a process and returns which of its functions have been called until then, in all processes."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "own.py").write_text(FLOW)

    def start(*command):
        environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return (tmp_path / "calls.txt").read_text().split()

    return start


@pytest.mark.parametrize("is_package", [True, False], ids=["package", "folder"])
@pytest.mark.parametrize(
    ("one", "other"),
    [(SCRIPT, BY_FILE), (BY_FILE, SCRIPT), (MODULE, BY_NAME), (BY_NAME, MODULE)],
    ids=["file", "file back", "module", "module back"],
)
def test_what_a_script_has_stored_is_read_by_the_command_and_back(start, tmp_path, one, other, is_package):
    (tmp_path / "without").touch()
    if is_package:
        (tmp_path / "pkg" / "__init__.py").touch()
    assert start(*one) == ["make", "use"]
    assert start(*other) == ["make", "use", "use"]


def test_an_object_of_a_class_of_a_script_says_to_others_where_the_class_should_be(start):
    start(*SCRIPT)
    with pytest.raises(RuntimeError, match="define them in a module that it imports"):
        start(*BY_FILE)


class Moving:
    """Stands for a class that its author changes between two runs."""


@pytest.mark.parametrize("fields", [["a", "b"], None], ids=["other fields", "gone"])
def test_a_stored_value_whose_class_is_gone_or_changed_is_made_again(config, monkeypatch, caplog, fields):
    made = []

    @materialize(version="1")
    def make():
        made.append(1)
        return globals()["Moving"](*[1] * (len(fields or []) if len(made) > 1 else 1)) if "Moving" in globals() else None

    with Flow("f") as flow, Stage("s"):
        value = make()
    this = sys.modules[__name__]
    monkeypatch.setattr(this, "Moving", dataclasses.make_dataclass("Moving", ["a"], namespace={"__module__": __name__}))
    for _ in range(2):
        assert flow.run(config=config).successful
    assert made == [1]
    if fields is None:
        monkeypatch.delattr(this, "Moving")
    else:
        monkeypatch.setattr(this, "Moving", dataclasses.make_dataclass("Moving", fields, namespace={"__module__": __name__}))
    result = flow.run(config=config)
    assert result.successful, result.exception
    assert made == [1, 1]
    assert "its stored result cannot be read any more" in caplog.text
    assert result.get(value) == (None if fields is None else this.Moving(1, 1))
