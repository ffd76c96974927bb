"""MLflow runs of runs whose process was killed: the next run of the flow gives them their end."""

from __future__ import annotations

from typing import Any

from pipedag_core.config.wire import open_catalog
from pipedag_core.looking import dead_runs
from pipedag_mlflow import names
from pipedag_mlflow.tracked import Tracked


def end_lost_runs(tracked: Tracked, config: Any, flow: str) -> list[str]:
    """End MLflow runs of this flow and instance that still count as running though their run is over or dead; return their ids."""
    # Few run at the same time, so their tags are looked at here: a search for them takes the database longer than all else.
    running = tracked.client.search_runs([tracked.experiment()], "attributes.status = 'RUNNING'")
    ours = {names.FLOW: flow, names.INSTANCE: config.instance_name}
    candidates = {
        run.data.tags[names.RUN_ID]: run.info.run_id
        for run in running
        if names.RUN_ID in run.data.tags and ours.items() <= run.data.tags.items()
    }
    candidates.pop(tracked.run_id, None)
    if not candidates:
        return []
    dead = set(dead_runs(config))
    catalog = open_catalog(config)
    try:
        alive = {row.info.run_id for row in catalog.unfinished()} - dead
        ended = {row.info.run_id: row.state for row in catalog.runs(10_000)}
    finally:
        catalog.close()
    lost = {run_id: id for run_id, id in candidates.items() if run_id not in alive}
    for run_id, id in lost.items():
        # The state of a dead run is `running` still, or that of whoever cleaned up after it, and nobody stopped it on purpose.
        tracked.end(id, "KILLED" if run_id in dead else names.STATUS.get(ended.get(run_id, ""), "KILLED"))
    return list(lost.values())
