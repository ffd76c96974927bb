"""A real tracking server, and tracking databases that need no server; only where MLflow is installed (`make test-mlflow`)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

# MLflow takes no pyarrow that the other tests run with, so it is in an environment of its own: see `make test-mlflow`.
collect_ignore_glob = [] if find_spec("mlflow") else ["test_*.py"]

#: No news to anybody while tests run, no job queues beside the server, and failures told at once.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}
os.environ.update(QUIET)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # What MLflow does to other libraries is not ours to mend.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning:mlflow"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            if "server" in getattr(item, "fixturenames", ()):
                # One server for all that need one.
                item.add_marker(pytest.mark.xdist_group("mlflow server"))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port, process, seconds=120):
    """Wait until a server answers, or say what it said."""
    for _ in range(seconds * 10):
        assert process.poll() is None, "the server has ended"
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def stop(process):
    """End a server with all of its workers."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A tracking database with its tables made, which takes seconds, so it is copied for each test."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database, tmp_path):
    """Address of a tracking database of the test's own."""
    path = tmp_path / "tracking" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def by_default(database):
    """MLflow is set to the test's own database, as with MLFLOW_TRACKING_URI."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(database)
    yield database
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def server(empty_database, tmp_path_factory):
    """Address of a tracking server, the same for all tests of a process."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
        "--serve-artifacts",
    ]
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)
        log.close()


@pytest.fixture
def client():
    """Makes clients of MLflow."""
    from mlflow.tracking import MlflowClient

    return MlflowClient


@pytest.fixture
def runs_of(client):
    """All MLflow runs of an experiment, oldest first; also deleted ones if asked for."""
    from mlflow.entities import ViewType

    def find(uri, experiment, view=ViewType.ACTIVE_ONLY):
        found = client(uri).get_experiment_by_name(experiment)
        if found is None:
            return []
        return client(uri).search_runs([found.experiment_id], run_view_type=view, order_by=["attributes.start_time ASC"])

    return find


class Wire:
    """A way to a server that can be cut, and on which everything can be held up."""

    def __init__(self, port):
        self._to = port
        self._open = threading.Event()
        self._open.set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.connections = 0
        self._pairs = []
        self._cut = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def hold(self):
        self._open.clear()

    def let_go(self):
        self._open.set()

    def cut(self):
        self._cut = True
        # Wakes the thread that waits for connections, which a mere close would not.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._open.set()
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self):
        while not self._cut:
            try:
                here, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            there = socket.create_connection(("127.0.0.1", self._to))
            self._pairs += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one, other):
        try:
            while data := one.recv(65536):
                self._open.wait()
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def wire(server):
    """A way to the tracking server that can be cut."""
    made = Wire(int(server.rpartition(":")[2]))
    yield made
    made.cut()
