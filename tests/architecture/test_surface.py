"""What the outside sees: public names, light imports, errors that travel."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys

import pytest

import pipedag_core
from pipedag_core import errors
from tests.architecture.house import ROOT

#: Names that users import from `pipedag_core`.
PUBLIC = [
    "AUTO_VERSION",
    "Blob",
    "CacheValidationMode",
    "ConfigContext",
    "ExternalTableReference",
    "Flow",
    "GroupNode",
    "InOutSpecification",
    "InputSource",
    "LazyDict",
    "PipedagConfig",
    "PipedagError",
    "Plan",
    "ProductionFlow",
    "RawSql",
    "Result",
    "RunObserver",
    "Schema",
    "SequentialEngine",
    "SortCol",
    "SortOrder",
    "Stage",
    "StageLockContext",
    "Step",
    "StepReport",
    "Table",
    "Task",
    "TaskGetItem",
    "ThreadEngine",
    "View",
    "VisualizationStyle",
    "create_basic_pipedag_config",
    "execute",
    "input_stage_versions",
    "materialize",
]

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PipedagError)]


def loaded_by(code):
    """Return the third-party packages that some code loads in a new process."""
    report = "import sys; print(' '.join({name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))"
    code = f"import sys; before = {{name.partition('.')[0] for name in sys.modules}}; {code}; {report}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - {"pipedag_core"}


def test_importing_the_package_loads_no_other():
    assert loaded_by("import pipedag_core") == set()


def test_declaring_a_flow_loads_no_other_package():
    declaration = "from pipedag_core import Flow, Stage, materialize, Table, RawSql, Blob, GroupNode; f = Flow('f'); f.__enter__(); f.__exit__(None, None, None)"
    assert loaded_by(declaration) == set()


def test_the_help_of_the_command_loads_none_of_the_heavy_libraries():
    heavy = {"pandas", "polars", "pyarrow", "duckdb", "sqlalchemy", "sqlglot", "numpy", "yaml"}
    assert not heavy & loaded_by("from pipedag_core.cli import app")


def test_all_public_names_are_listed_and_there():
    assert sorted(pipedag_core.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(pipedag_core, name) is not None


def test_type_checkers_see_the_same_public_names():
    tree = ast.parse((ROOT / "pipedag_core/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.asname for node in block.body for alias in node.names) == sorted(PUBLIC)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipedag_core.nothing


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_survives_pickling_with_its_facts(cls):
    error = cls("It broke. Mend it.", stage="features", rows=3)
    error.add_note("in task x")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is cls
    assert (str(copied), copied.stage, copied.rows, copied.__notes__) == ("It broke. Mend it.", "features", 3, ["in task x"])


@pytest.mark.parametrize("cls", ERRORS)
def test_the_tree_of_errors_is_drawn_in_their_module(cls):
    assert cls.__name__ in (errors.__doc__ or "")
    assert cls.__doc__
