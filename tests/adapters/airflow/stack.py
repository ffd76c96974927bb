"""A running Airflow: api-server, scheduler and dag-processor as processes of their own, with a home of their own, on this machine only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 180.0


class Stack:
    """A running Airflow.

    Args:
        home: Its folder; DAG files belong into `home / "dags"`.
        environment: What its processes get beside their own settings.
        slots: Tasks at the same time.
    """

    def __init__(self, home: Path, environment: dict[str, str], slots: int = 2) -> None:
        self.home = home
        self.dags = home / "dags"
        self.dags.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._environment = {
            **environment,
            "HOME": str(home),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(slots),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": self.url.rpartition(":")[2],
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": "only for tests",
            "AIRFLOW__API_AUTH__JWT_SECRET": "only for tests, but long enough to be taken as a key by all that sign with it",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        for name in [name for name in self._environment if name.startswith("AIRFLOW__LOGGING")]:
            del self._environment[name]
        self._processes: list[subprocess.Popen] = []
        self._token = ""

    def start(self) -> None:
        """Make the database, start all processes and wait until they answer."""
        subprocess.run([*_AIRFLOW, "db", "migrate"], env=self._environment, check=True, capture_output=True)
        for name in ("api-server", "scheduler", "dag-processor"):
            with (self.home / f"{name}.log").open("w") as log:
                self._processes.append(
                    subprocess.Popen([*_AIRFLOW, name], env=self._environment, stdout=log, stderr=log, start_new_session=True)
                )
        self.until(self._is_healthy, "Airflow to be up")

    def stop(self) -> None:
        """End all processes that were started here."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    def call(self, path: str, body: object = None, method: str | None = None) -> dict:
        """Call the REST API."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()[:1000]}") from error
        return json.loads(text) if text else {}

    def until(self, fact, what: str, patience_s: float = PATIENCE_S):
        """Wait until something is true, and return it."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            for process in self._processes:
                assert process.poll() is None, f"a process of Airflow has ended: {process.args}"
            found = fact()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"waited {patience_s} s for {what}")

    def knows(self, dag_id: str) -> None:
        """Wait until a DAG has been read."""

        def known():
            assert not self.call("/api/v2/importErrors")["import_errors"]
            return any(dag["dag_id"] == dag_id for dag in self.call("/api/v2/dags?limit=100")["dags"])

        self.until(known, f"DAG {dag_id}")

    def trigger(self, dag_id: str, **conf) -> str:
        """Start a run of a DAG; return its id."""
        return self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def runs(self, dag_id: str) -> list[dict]:
        """Return all runs of a DAG."""
        return self.call(f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]

    def end(self, dag_id: str, run_id: str) -> str:
        """Wait for the end of a run; return its state."""

        def ended():
            state = self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state if state in ("success", "failed") else None

        return self.until(ended, f"the end of run {run_id} of {dag_id}")

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict]:
        """Return the tasks of a run by id."""
        found = self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=200")["task_instances"]
        return {item["task_id"]: item for item in found}

    def report(self, dag_id: str, run_id: str, task_id: str) -> dict:
        """Return what a task has put into XCom."""
        value = self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value")["value"]
        return json.loads(value) if isinstance(value, str) else value

    def _is_healthy(self) -> bool:
        try:
            if not self._token:
                self._token = self.call("/auth/token")["access_token"]
            health = self.call("/api/v2/monitor/health")
        except (OSError, AssertionError):
            return False
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))


_AIRFLOW = [str(Path(sys.executable).parent / "airflow")]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
