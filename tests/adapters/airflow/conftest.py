"""Airflow with a home of its own; these tests run where Airflow is installed (`make test-airflow`), and are left out elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("airflow") else ["test_*.py"]

ROOT = Path(__file__).parents[3]


def pytest_collection_modifyitems(items):
    # What Airflow and its libraries warn of is not ours to mend; what we cause is seen by tests that look for it.
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session", autouse=True)
def airflow_home():
    """Airflow's own folder and database, made once; set before anything imports Airflow."""
    assert "airflow.settings" not in sys.modules, "Airflow was imported before its home was set"
    home = Path(tempfile.mkdtemp(prefix="pipedag-airflow-"))
    (home / "dags").mkdir()
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__DAGS_FOLDER=str(home / "dags"),
        AIRFLOW__CORE__UNIT_TEST_MODE="False",
        AIRFLOW__LOGGING__LOGGING_LEVEL="INFO",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
        AIRFLOW__API__BASE_URL="http://airflow.test",
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.utils.db import initdb

        initdb()
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def run_dag(airflow_home):
    """Runs a DAG in this process: `run_dag(dag, run_conf=..., ...)`, returns the run and task id -> task instance."""

    def run(dag, **options):
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.collection import update_dag_parsing_results_in_db
        from airflow.serialization.serialized_objects import LazyDeserializedDAG
        from airflow.utils.session import create_session

        with create_session() as session:
            DagBundlesManager().sync_bundles_to_db(session=session)
            session.commit()
            found = [LazyDeserializedDAG.from_dag(dag)]
            update_dag_parsing_results_in_db("dags-folder", None, found, {}, None, set(), session=session)
            session.commit()
        done = dag.test(**options)
        return done, {item.task_id: item for item in done.get_task_instances()}

    return run


@pytest.fixture
def load_dag(airflow_home):
    """Loads the DAGs of a file or folder as Airflow does: returns the DagBag."""

    def load(path):
        from airflow.dag_processing.dagbag import DagBag

        # As the dag-processor does, which knows the folder of the bundle.
        return DagBag(dag_folder=str(path), bundle_path=Path(path))

    return load


@pytest.fixture
def modules():
    """Removes what tests import from folders of their own."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and "/pytest-" in file:
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def pipedag():
    """Runs the command: `pipedag(folder, "airflow", "generate", ...)`; returns what it wrote to standard output."""
    import subprocess

    def call(folder, *words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "pipedag_core.cli", *words], cwd=folder, capture_output=True, text=True, check=False, env=environment()
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    return call


def environment():
    """Return the environment for processes that use this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
