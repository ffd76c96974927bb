"""Arrows point down only, also those that are drawn by name when the program runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module

import pytest

from pipedag_core.define import doors
from tests.architecture.house import ROOT, floors, room, sources

#: The files that may name modules of higher floors.
LOOKING_UP = {"pipedag_core/define/doors.py"}


def test_the_contracts_of_the_floors_are_kept():
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "adapters")))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "source", [source for source in sources() if source.path.startswith("pipedag_core/")], ids=lambda source: source.path
)
def test_what_is_loaded_by_name_lies_below_or_in_the_same_room(source):
    here = room(source.module)
    if source.path in LOOKING_UP or not here:
        return
    floor = floors()
    above = {name for name in source.named_modules() if room(name) != here and floor[room(name)] >= floor[here]}
    assert not above, f"{source.path} looks up to {sorted(above)}; doors are in define/doors.py only"


def test_every_door_is_in_the_table_and_opens_under_its_own_name():
    tree = ast.parse((ROOT / "pipedag_core/define/doors.py").read_text(encoding="utf-8"))
    opened = {}
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_open"]
            opened[function.name] = [call.args[0].value for call in calls]
    assert opened == {name: [name] for name in doors.TARGETS}


@pytest.mark.parametrize("door", doors.TARGETS)
def test_behind_every_door_there_is_something(door):
    module, _, name = doors.TARGETS[door].partition(":")
    assert callable(getattr(import_module(module), name))


def test_only_the_definition_looks_up_through_its_doors():
    users = {source.path.split("/")[1] for source in sources() if "pipedag_core.define.doors" in source.imports()}
    assert users <= {"define"}
