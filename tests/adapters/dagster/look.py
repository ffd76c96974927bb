"""Look at the flights in Dagster, and take the pictures for the docs: `make look-dagster`. Chromium has to be installed.

`dagster dev` runs on the definitions of the example, a run is launched as its pages do (GraphQL), and the pages are Dagster's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.architecture.house import ROOT
from tests.browser import Browser

JOB = "flights_mini"
STAGES = ("01_raw_input", "02_early_cleaning", "03_economic_representation", "04_features", "05_model_training", "06_model_evaluation")
TABLE = ("04_features", "late_rate_by_carrier")
PATIENCE_S = 240.0


class DagsterDev:
    """A running `dagster dev`: webserver, daemon and code server, with a home of their own, on this machine only.

    Args:
        home: Its folder.
        definitions: The file.
    """

    def __init__(self, home: Path, definitions: Path) -> None:
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = home / "log.txt"
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        words = [sys.executable, "-m", "dagster", "dev", "-f", str(definitions), "-h", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(
            words, cwd=home, env=environment, stdout=self._log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
        )
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.ask("{ version }")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError(f"dagster dev does not answer:\n{self._log.read_text()[-3000:]}") from None
                time.sleep(1)

    def ask(self, query: str, **variables: object) -> dict:
        """Send a query or mutation, and return its data."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{query}: {error.read().decode()}") from error
        if found.get("errors"):
            raise RuntimeError(f"{query}: {found['errors']}")
        return found["data"]

    def launch(self, job: str) -> str:
        """Launch a job, wait for its end, and return the id of its run."""
        [place] = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }")[
            "repositoriesOrError"
        ]["nodes"]
        selector = {"repositoryName": place["name"], "repositoryLocationName": place["location"]["name"], "jobName": job}
        launched = self.ask(
            "mutation($what: ExecutionParams!) { launchRun(executionParams: $what) "
            "{ __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
            what={"selector": selector, "runConfigData": {}, "mode": "default"},
        )["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise RuntimeError(f"{job} was not launched: {launched}")
        run = launched["run"]["runId"]
        end = time.monotonic() + PATIENCE_S
        while (
            status := self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run)["runOrError"]["status"]
        ) != "SUCCESS":
            if status in ("FAILURE", "CANCELED") or time.monotonic() > end:
                raise RuntimeError(f"The run {run} of {job} is {status}:\n{self._log.read_text()[-5000:]}")
            time.sleep(1)
        return run

    def stop(self) -> None:
        """End it with all of its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(30)


def main(graph: Path, page: Path) -> None:
    """Look, and save both pictures."""
    with tempfile.TemporaryDirectory(prefix="flights-", ignore_cleanup_errors=True) as name:
        place = Path(name).resolve()
        dags = place / "dags"
        for folder in ("pipelines", "dagster"):
            shutil.copytree(ROOT / "dags" / folder, dags / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "dags" / "pipedag.yaml", dags)
        dagster = DagsterDev(place / "home", dags / "dagster" / "definitions.py")
        try:
            # Else a greeting lies over every page.
            dagster.ask("mutation { setNuxSeen }")
            dagster.launch(JOB)
            check(dagster)
            browser = Browser(place / "browser", (1900, 720))
            try:
                browser.read(f"{dagster.url}/asset-groups", "Global asset lineage", *STAGES)
                time.sleep(3)
                graph.write_bytes(browser.picture())
                browser.resize(1500, 1300)
                address = f"{dagster.url}/assets/{'/'.join(TABLE)}"
                browser.read(address, TABLE[1], "carrier", "primary key", "SELECT")
                time.sleep(3)
                page.write_bytes(browser.picture())
            finally:
                browser.close()
        finally:
            dagster.stop()


def check(dagster: DagsterDev) -> None:
    """Make sure that Dagster has all tables, and calls none of them stale."""
    nodes = dagster.ask("{ assetNodes { assetKey { path } groupName staleStatus assetMaterializations(limit: 1) { runId } } }")[
        "assetNodes"
    ]
    groups = {node["groupName"] for node in nodes}
    if groups != set(STAGES):
        raise RuntimeError(f"The groups are {sorted(groups)}.")
    if absent := [node["assetKey"]["path"] for node in nodes if not node["assetMaterializations"]]:
        raise RuntimeError(f"Not materialized: {absent}")
    if stale := [node["assetKey"]["path"] for node in nodes if node["staleStatus"] != "FRESH"]:
        raise RuntimeError(f"Stale right after the run: {stale}")
    # Dagster+ draws these; others find them with the event.
    lineage = dagster.ask(
        "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { assetMaterializations(limit: 1) { metadataEntries "
        "{ ... on TableColumnLineageMetadataEntry { lineage { columnName columnDeps { assetKey { path } columnName } } } } } } } }",
        key={"path": list(TABLE)},
    )["assetNodeOrError"]["assetMaterializations"][0]["metadataEntries"]
    columns = {column["columnName"] for entry in lineage for column in entry.get("lineage", ())}
    if columns != {"carrier", "late_rate"}:
        raise RuntimeError(f"Columns that are traced: {sorted(columns)}")
    print(f"{len(nodes)} assets in {len(groups)} groups, all materialized and fresh")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
