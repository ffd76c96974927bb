"""The MLflow run of a run: made by whichever process comes first, found by all others, by a note in the run's catalog."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from pipedag_core.config.settings import mask
from pipedag_core.config.wire import open_catalog
from pipedag_mlflow import library


@final
@dataclass(frozen=True, slots=True)
class Target:
    """Where runs are tracked.

    Attributes:
        tracking_uri: Address of a server or database; None: what MLflow is set to. A relative SQLite file starts from the configuration's folder.
        experiment_name: The experiment; None: the flow's name.
        artifact_location: Where a new experiment keeps its files; by default as the server says, beside the file for SQLite.
    """

    tracking_uri: str | None = None
    experiment_name: str | None = None
    artifact_location: str | None = None


@final
class Tracked:
    """The connection of one process to the MLflow run of one run.

    Args:
        target: Where it is tracked.
        config: The instance's configuration.
        run_id, flow: Which run.
    """

    def __init__(self, target: Target, config: Any, run_id: str, flow: str) -> None:
        self.config, self.run_id, self.flow = config, run_id, flow
        self.uri = library.absolute(target.tracking_uri, config.base_dir) or library.default_uri()
        self.experiment_name = target.experiment_name or flow
        self._location = target.artifact_location
        library.require_listener(self.uri)
        self.client: Any = library.client(self.uri)
        self._ids: dict[str, str] = {}
        self._experiment: str | None = None

    def note(self, part: str = "") -> str:
        """Return the name of the note that holds the id of the MLflow run, or of a part of it."""
        return " ".join(filter(None, ("mlflow run", part, "in", self.experiment_name, "at", mask(self.uri))))

    def known(self, part: str = "") -> str | None:
        """Return the id of the MLflow run, if some process has made one."""
        if part not in self._ids:
            catalog = open_catalog(self.config)
            try:
                found = catalog.notes(self.run_id).get(self.note(part))
            finally:
                catalog.close()
            if found is None:
                return None
            self._ids[part] = found
        return self._ids[part]

    def adopt(self, mlflow_run_id: str) -> bool:
        """Take an MLflow run that somebody has opened; return whether this process was the first to name one."""
        return self._stand("", mlflow_run_id) == mlflow_run_id

    def ensure(self, tags: Mapping[str, str], part: str = "", name: str | None = None) -> tuple[str, bool]:
        """Return the id of the MLflow run, and whether this process has just made it.

        Args:
            tags: What it is tagged with if it has to be made.
            part: A part of the run, which is a nested MLflow run; "" for the run itself.
            name: Name of the MLflow run.
        """
        known = self.known(part)
        if known is not None:
            return known, False
        nested = {"mlflow.parentRunId": self._ids[""]} if part else {}
        made = self.client.create_run(
            self.experiment(),
            start_time=int(time.time() * 1000),
            tags={**origin(), **tags, **nested},
            run_name=name,
        ).info.run_id
        stands = self._stand(part, made)
        if stands != made:
            # Another process was faster; what is logged has to come together in one place.
            self.client.delete_run(made)
        return stands, stands == made

    def experiment(self) -> str:
        """Return the id of the experiment; it is made if need be."""
        if self._experiment is None:
            self._experiment = experiment_of(self.client, self.uri, self.experiment_name, self._location)
        return self._experiment

    def end(self, mlflow_run_id: str, status: str) -> None:
        """Give an MLflow run its end, or open it again (`RUNNING`)."""
        entities = library.entities()
        ended = None if status == "RUNNING" else int(time.time() * 1000)
        # The client's own way prints an address, and our commands' standard output is read by programs.
        self.client._tracking_client.store.update_run_info(mlflow_run_id, entities.RunStatus.from_string(status), ended, None)

    def url(self, mlflow_run_id: str) -> str:
        """Return where the run can be looked at; "" where there is no server."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return ""
        experiment = self.client.get_run(mlflow_run_id).info.experiment_id
        return f"{mask(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_run_id}"

    def _stand(self, part: str, mlflow_run_id: str) -> str:
        catalog = open_catalog(self.config)
        try:
            self._ids[part] = catalog.note(self.run_id, self.note(part), mlflow_run_id)
        finally:
            catalog.close()
        return self._ids[part]


def experiment_of(client: Any, uri: str, name: str, location: str | None = None) -> str:
    """Return the id of an experiment; it is made if need be.

    Args:
        client: Of the server or database.
        uri: Its address.
        name: Of the experiment.
        location: Where a new one keeps its files; by default as the server says, beside the file for SQLite.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    if location is None and uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        location = (file.parent / f"{file.stem}-artifacts").absolute().as_uri()
    try:
        # Without it MLflow's pages take the experiment for one of generative AI.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return client.create_experiment(name, artifact_location=location, tags=tags)
    except Exception:
        # Two processes may be the first at the same time.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def origin() -> dict[str, str]:
    """Return who runs what, as MLflow's own client would tag it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
