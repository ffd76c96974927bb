"""From a production flow back to where it was trained: the MLflow runs, and what else is worth a tag."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pipedag_core import ProductionFlow
from pipedag_core.config.settings import conceal
from pipedag_mlflow import names

#: How parts of a task's result begin that say what it got when it ran.
_GOT: Final = "got from "


def training_runs(prod: ProductionFlow, client: Any) -> list[str]:
    """Return the ids of the MLflow runs in which what is frozen was trained: those that the training got as ids, else those of the runs that committed it."""
    provenance = prod.provenance
    told = [text for task in provenance["tasks"].values() for part, text in task["parts"].items() if part.startswith(_GOT)]
    found = [id for id in dict.fromkeys(told) if _is_there(client, id)]
    if found:
        return found
    # In wiring order, so what was trained last comes first.
    stages = dict.fromkeys(task.rpartition(".")[0] for task in reversed(provenance["tasks"]))
    runs = dict.fromkeys(provenance["stages"][stage]["run"] for stage in stages if provenance["stages"].get(stage, {}).get("run"))
    experiments = [item.experiment_id for item in client.search_experiments()] if runs else []
    return [
        run.info.run_id
        for run_id in runs
        # A run that is nested in another is only a part of it.
        for run in client.search_runs(experiments, f"tags.`{names.RUN_ID}` = '{run_id}'")
        if "mlflow.parentRunId" not in run.data.tags
    ]


def _is_there(client: Any, mlflow_run_id: str) -> bool:
    try:
        client.get_run(mlflow_run_id)
    except Exception:  # noqa: BLE001 -- gone, or on another server
        return False
    return True


def tags(prod: ProductionFlow, bundle: Path) -> dict[str, str]:
    """Return what a model says of where it comes from."""
    provenance = prod.provenance
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    found = {
        names.FLOW: provenance["flow"],
        names.INSTANCE: provenance["instance"],
        names.PLAN: provenance["wiring"],
        names.BUNDLE: manifest["digest"],
    }
    git = provenance.get("git")
    if git:
        found["mlflow.source.git.commit"] = git["commit"]
    return {key: names.cut(str(conceal(text)), names.TAG_LENGTH) for key, text in found.items()}


def requirements(bundle: Path, mlflow_version: str) -> list[str]:
    """Return what a bundle needs to be served, as lines for pip."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    found = {"pipedag-core": version("pipedag-core"), **manifest["packages"], "mlflow": mlflow_version}
    if any(name.endswith(".skops") for name in manifest["files"]):
        found["skops"] = version("skops")
    return [f"{name}=={text}" for name, text in sorted(found.items())]
