"""Links between MLflow runs: an evaluation's run names the one in which the model was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipedag_core.config.wire import open_catalog
from pipedag_mlflow import names
from pipedag_mlflow.tracked import Tracked

#: How notes of a run begin that name the MLflow runs that its own is linked to.
_NOTE: Final = "linked mlflow run "


def link(tracked: Tracked, mlflow_run_id: str, others: Sequence[str]) -> None:
    """Say of an MLflow run which others it belongs to, in a tag: beside those that it names already."""
    wanted = [other for other in others if other and other != mlflow_run_id]
    if not wanted:
        return
    tag = tracked.client.get_run(mlflow_run_id).data.tags.get(names.LINKED_RUN, "")
    before = [id for id in tag.split(", ") if id]
    after = list(dict.fromkeys([*before, *wanted]))
    if after != before:
        tracked.client.set_tag(mlflow_run_id, names.LINKED_RUN, names.cut(", ".join(after), names.TAG_LENGTH))
    if mlflow_run_id == tracked.known():
        # For whoever describes the run when it has ended, in whichever process.
        catalog = open_catalog(tracked.config)
        try:
            for other in after:
                catalog.note(tracked.run_id, f"{_NOTE}{other}", mlflow_run_id)
        finally:
            catalog.close()


def noted(notes: Mapping[str, str]) -> list[str]:
    """Return the MLflow runs that the one of a run was linked to, from the run's notes in the catalog."""
    return [note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)]


def described(tracked: Tracked, others: Sequence[str]) -> str:
    """Return links to MLflow runs as Markdown, as MLflow's own pages resolve them."""
    return ", ".join(_link(tracked, other) for other in others)


def _link(tracked: Tracked, other: str) -> str:
    try:
        info = tracked.client.get_run(other).info
    except Exception:  # noqa: BLE001 -- a run that is gone, or somewhere else, is named and that is all
        return f"`{other}`"
    name = (info.run_name or other).translate({ord(char): None for char in "[]()"})
    return f"[{name}](#/experiments/{info.experiment_id}/runs/{other})"
