"""The one way to MLflow: loaded when it is first needed, which takes seconds, and never by its global active run."""

from __future__ import annotations

import socket
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

#: Seconds in which a tracking server must take a connection.
CONNECT_S = 3.0


def entities() -> Any:
    """Return `mlflow.entities`."""
    return import_module("mlflow.entities")


def client(tracking_uri: str | None) -> Any:
    """Return a client of a tracking server or database; None: the one that MLflow is set to."""
    return import_module("mlflow.tracking").MlflowClient(tracking_uri=tracking_uri)


def default_uri() -> str:
    """Return the address that MLflow is set to."""
    return import_module("mlflow").get_tracking_uri()


def active_run_id() -> str | None:
    """Return the id of the MLflow run that the caller's thread has opened, if any; loads nothing."""
    import sys

    mlflow = sys.modules.get("mlflow")
    run = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
    return None if run is None else run.info.run_id


def absolute(tracking_uri: str | None, base_dir: Path) -> str | None:
    """Return an address whose relative SQLite file starts from the configuration's folder."""
    prefix = "sqlite:///"
    if tracking_uri is None or not tracking_uri.startswith(prefix):
        return tracking_uri
    path = Path(tracking_uri.removeprefix(prefix))
    if path.is_absolute() or not path.name or path.name == ":memory:":
        return tracking_uri
    full = base_dir / path
    full.parent.mkdir(parents=True, exist_ok=True)
    return f"{prefix}{full}"


def require_listener(tracking_uri: str) -> None:
    """Find out at once whether a tracking server is there; MLflow itself would try again for minutes.

    Raises:
        OSError: Nobody takes connections there.
    """
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if getproxies().get(parts.scheme) and not proxy_bypass(parts.hostname):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname, port), timeout=CONNECT_S):
        pass
