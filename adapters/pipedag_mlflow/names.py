"""Names under which things stand in MLflow."""

from __future__ import annotations

import hashlib
import re
from typing import Final

#: Tags of ours.
FLOW: Final = "pipedag.flow"
INSTANCE: Final = "pipedag.instance"
RUN_ID: Final = "pipedag.run_id"
FINGERPRINT: Final = "pipedag.fingerprint"
PLAN: Final = "pipedag.plan"
STATE: Final = "pipedag.state"
STAGE: Final = "pipedag.stage"
ORCHESTRATOR: Final = "pipedag.orchestrator"
ORCHESTRATOR_URL: Final = "pipedag.orchestrator_url"
LINKED_RUN: Final = "pipedag.linked_run"
TRAINING_RUN: Final = "pipedag.training_run"
BUNDLE: Final = "pipedag.bundle"

#: How metrics begin that the observer logs.
OBSERVED: Final = ("seconds/", "rows/", "tasks/", "bytes_written")

#: Run status of MLflow -> by the state in which our run ended.
STATUS: Final = {"succeeded": "FINISHED", "failed": "FAILED", "aborted": "KILLED"}

#: What MLflow takes: keys, values of parameters and of tags, digests of datasets.
KEY_LENGTH: Final = 250
PARAM_LENGTH: Final = 6000
TAG_LENGTH: Final = 8000
DIGEST_LENGTH: Final = 36

_FORBIDDEN: Final = re.compile(r"[^\w\-./: ]", re.ASCII)


def key(text: str) -> str:
    """Return a name that MLflow takes for parameters and metrics; two names never become one by being changed."""
    clean = _FORBIDDEN.sub("_", text).strip("/ ").replace("//", "/_/")
    clean = re.sub(r"(^|/)(\.\.?)(?=/|$)", r"\1_\2_", clean) or "_"
    if clean == text and len(clean) <= KEY_LENGTH:
        return clean
    return f"{clean[: KEY_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def cut(text: str, length: int) -> str:
    """Return a text of at most this length, with dots where something was left out."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def digest_of(content_hash: str | None, identity: str) -> str:
    """Return our hash of a table's content, else of what made it, as MLflow can keep it."""
    text = (content_hash or identity).partition("#")[0]
    return text.rpartition(":")[2][:DIGEST_LENGTH]


def literal(text: str) -> str:
    """Return a text as it stands between single quotes in what MLflow searches for."""
    return text.replace("'", "''")
