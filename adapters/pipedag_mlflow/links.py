"""Links between MLflow runs: an evaluation's run names the one in which the model was trained."""

from __future__ import annotations

from collections.abc import Sequence

from pipedag_mlflow import names
from pipedag_mlflow.tracked import Tracked


def link(tracked: Tracked, mlflow_run_id: str, others: Sequence[str]) -> None:
    """Say of an MLflow run which others it belongs to, in a tag: beside those that it names already."""
    wanted = [other for other in others if other and other != mlflow_run_id]
    if not wanted:
        return
    before = linked(tracked.client.get_run(mlflow_run_id).data.tags.get(names.LINKED_RUN, ""))
    after = list(dict.fromkeys([*before, *wanted]))
    if after != before:
        tracked.client.set_tag(mlflow_run_id, names.LINKED_RUN, names.cut(", ".join(after), names.TAG_LENGTH))


def linked(tag: str) -> list[str]:
    """Return the ids that the tag names."""
    return [id for id in tag.split(", ") if id]


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
