"""A flow is found by its import reference."""

from __future__ import annotations

import importlib
import pickle
import sys

import pytest

from pipedag_core.config.context import PipedagConfig
from pipedag_core.config.flows import find_flow, load_flow
from pipedag_core.errors import ConfigError, FlowError

CODE = """
from dataclasses import dataclass
from pipedag_core import Flow, Stage, materialize

@dataclass
class Point:
    x: int

@materialize
def one():
    return 1

with Flow("constant") as flow:
    with Stage("s"):
        one()

calls = []

def make(attrs):
    calls.append(dict(attrs))
    with Flow(attrs.get("name", "made")) as made:
        with Stage("s"):
            one()
    return made

def make_without():
    return make({})

def make_default(attrs=None, other=1):
    return make(attrs or {})

def make_with_spec(attrs):
    return make(attrs), "specification"

def make_nothing():
    return None

def make_from_two(a, b):
    return None

number = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a package, a script and a module that does not import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "probe_pkg").mkdir()
    (tmp_path / "probe_pkg" / "__init__.py").write_text("")
    (tmp_path / "probe_pkg" / "flows.py").write_text(CODE)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "demo.py").write_text("import probe_sibling\n" + CODE)
    (tmp_path / "scripts" / "probe_sibling.py").write_text("")
    (tmp_path / "probe_broken.py").write_text("import probe_is_not_there\n")
    (tmp_path / "probe_raises.py").write_text("raise RuntimeError('from the user')\n")
    before, path = set(sys.modules), list(sys.path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("probe_", "pipedag_flow_")):
            del sys.modules[name]
    sys.path[:] = path


def test_a_flow_is_found_in_a_module(project):
    flow, spec = load_flow("probe_pkg.flows:flow")
    assert (flow.name, spec, flow.source) == ("constant", None, "probe_pkg.flows:flow")


@pytest.mark.parametrize(
    ("name", "expected"), [("make", "mine"), ("make_default", "mine"), ("make_without", "made"), ("make_with_spec", "mine")]
)
def test_a_factory_is_called_with_attrs_if_it_takes_them(project, name, expected):
    flow, spec = load_flow(f"probe_pkg.flows:{name}", {"name": "mine"})
    assert flow.name == expected
    assert spec == ("specification" if name == "make_with_spec" else None)


def test_a_file_is_found_by_its_path_and_can_import_its_neighbours(project):
    assert load_flow("scripts/demo.py:flow")[0].source == "scripts/demo.py:flow"
    assert load_flow(f"{project}/scripts/demo.py:flow")[0] is load_flow("scripts/demo.py:flow")[0]


def test_what_a_file_defines_can_be_pickled_under_a_name_without_its_folder(project):
    load_flow("scripts/demo.py:flow")
    module = sys.modules["pipedag_flow_demo"]
    assert pickle.loads(pickle.dumps(module.Point(3))) == module.Point(3)


def test_a_file_of_a_package_is_imported_as_part_of_it(project):
    flow, _ = load_flow("probe_pkg/flows.py:flow")
    assert flow is load_flow("probe_pkg.flows:flow")[0]


def test_two_files_of_one_name_are_kept_apart(project):
    (project / "other").mkdir()
    (project / "other" / "demo.py").write_text(CODE.replace("constant", "another"))
    assert load_flow("scripts/demo.py:flow")[0].name == "constant"
    assert load_flow("other/demo.py:flow")[0].name == "another"
    assert load_flow("scripts/demo.py:flow")[0].name == "constant"


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("probe_pkg.flows", ConfigError, "does not name a flow"),
        (":flow", ConfigError, "does not name a flow"),
        ("probe_nowhere:flow", ConfigError, "there is no module 'probe_nowhere'"),
        ("probe_pkg.nowhere:flow", ConfigError, "there is no module 'probe_pkg.nowhere'"),
        ("scripts/dmo.py:flow", ConfigError, "there is no file .*Did you mean 'demo.py'"),
        ("probe_pkg.flows:flw", ConfigError, "has no 'flw'. Did you mean flow"),
        ("probe_pkg.flows:number", FlowError, "is int, not a flow"),
        ("probe_pkg.flows:Point", FlowError, "is type, not a flow"),
        ("probe_pkg.flows:one", FlowError, "not a flow"),
        ("probe_pkg.flows:make_nothing", FlowError, "returns NoneType, not a flow"),
        ("probe_pkg.flows:make_from_two", FlowError, "takes a, b"),
    ],
)
def test_what_cannot_be_found_is_told(project, reference, error, message):
    with pytest.raises(error, match=message):
        load_flow(reference)


def test_errors_of_the_users_own_code_pass_through(project):
    with pytest.raises(ModuleNotFoundError, match="probe_is_not_there"):
        load_flow("probe_broken:flow")
    with pytest.raises(RuntimeError, match="from the user"):
        load_flow("probe_raises.py:flow")
    assert "pipedag_flow_probe_raises" not in sys.modules


def test_the_flows_own_attributes_reach_its_factory(project):
    config = PipedagConfig({"instances": {"__any__": {"attrs": {"name": "churn", "n": 1}}}, "flows": {"churn": {"attrs": {"n": 2}}}})
    flow, _, context = find_flow("probe_pkg.flows:make", config)
    assert (flow.name, context.attrs.n) == ("churn", 2)
    assert sys.modules["probe_pkg.flows"].calls[-1] == {"name": "churn", "n": 2}
