"""What is said of a run in parameters, tags and words: plain data, made from the plan, the configuration and the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Final

from pipedag_core.config.settings import Secret, conceal
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import TaskResult
from pipedag_mlflow import names

#: Packages whose versions are worth a parameter, if they are there.
PACKAGES: Final = ("pipedag-core", "duckdb", "numpy", "pandas", "polars", "pyarrow", "scikit-learn", "sqlalchemy")

#: Seconds that git may take.
_GIT_S: Final = 5.0


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) of all leaves of a nest; what can be a secret by its key, or is a URL with a password, is `***`."""
    concealed = conceal(value, path.rpartition(".")[2])
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flattened(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for number, item in enumerate(value):
            yield from flattened(item, f"{path}.{number}")
    elif isinstance(concealed, Secret):
        yield path, "***"
    else:
        yield path, ", ".join(map(_masked, value)) if isinstance(value, (list, tuple)) else str(value)


def _masked(item: object) -> str:
    concealed = conceal(item)
    return "***" if isinstance(concealed, Secret) else str(item)


def params(plan: Plan, config: Any) -> dict[str, str]:
    """Return the parameters of a run: flow, instance, the instance's attrs, versions of tasks and of packages, the state of the code."""
    found = {"flow": plan.flow, "instance": config.instance_name}
    if config.instance_id != config.instance_name:
        found["instance_id"] = config.instance_id
    found |= {f"attrs/{path}": text for path, text in flattened(config.attrs)}
    found |= {f"version/{task.id}": task.version if task.cached_by == "version" else task.cached_by for task in plan.tasks}
    found |= {f"package/{name}": text for name, text in packages().items()}
    commit, dirty = git_state(str(config.base_dir))
    if commit:
        found |= {"git/commit": commit, "git/dirty": str(dirty).lower()}
    return {names.key(name): names.cut(text, names.PARAM_LENGTH) for name, text in found.items()}


def tags(plan: Plan, config: Any, run_id: str) -> dict[str, str]:
    """Return the tags by which a run is found."""
    found = {names.FLOW: plan.flow, names.INSTANCE: config.instance_name, names.RUN_ID: run_id, names.PLAN: plan.digest}
    if plan.source:
        found["mlflow.source.name"] = plan.source
    commit, _ = git_state(str(config.base_dir))
    if commit:
        found["mlflow.source.git.commit"] = commit
    return {**found, **orchestrator()}


def orchestrator() -> dict[str, str]:
    """Return which orchestrator has started this process, as far as the environment tells."""
    environment = os.environ
    if "AIRFLOW_CTX_DAG_ID" in environment:
        dag, run = environment["AIRFLOW_CTX_DAG_ID"], environment.get("AIRFLOW_CTX_DAG_RUN_ID", "")
        base = environment.get("AIRFLOW__API__BASE_URL", "").rstrip("/")
        url = {names.ORCHESTRATOR_URL: f"{base}/dags/{dag}/runs/{run}"} if base and run else {}
        return {names.ORCHESTRATOR: "airflow", **url}
    if "DAGSTER_RUN_ID" in environment:
        return {names.ORCHESTRATOR: "dagster"}
    return {}


@lru_cache(maxsize=1)
def packages() -> Mapping[str, str]:
    """Return Python and the packages that matter to data, with their versions."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=64)
def git_state(folder: str) -> tuple[str, bool]:
    """Return the commit of the code in a folder, and whether files were changed since; ("", False) outside of a repository."""

    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 -- no text of a user's is part of it
                ["git", "-C", folder, *command],  # noqa: S607 -- the git of whoever runs this
                capture_output=True,
                text=True,
                timeout=_GIT_S,
                check=False,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD") if Path(folder).is_dir() else None
    return (commit or "", bool(commit and ask("status", "--porcelain", "--untracked-files=no")))


def last_results(log: Sequence[tuple[str, TaskResult]]) -> dict[str, TaskResult]:
    """Return the last outcome of each task of a run, by full id."""
    return {f"{stage}.{result.task}": result for stage, result in log}


def summary(results: Mapping[str, TaskResult]) -> dict[str, float]:
    """Return how often what happened, the share of tasks whose stored result stood in, and the seconds of all."""
    count = {name: sum(result.outcome == name for result in results.values()) for name in ("ran", "cached", "failed", "skipped")}
    decided = count["ran"] + count["cached"]
    seconds = sum(result.seconds for result in results.values())
    return {
        **{f"tasks/{name}": float(number) for name, number in count.items()},
        "tasks/hit_ratio": count["cached"] / decided if decided else 0.0,
        "tasks/seconds": seconds,
    }


def description(plan: Plan, config: Any, run_id: str, state: str, results: Mapping[str, TaskResult]) -> str:
    """Return what a person would write about the run, as Markdown."""
    told = summary(results)
    counts = ", ".join(f"{int(told[f'tasks/{name}'])} {name}" for name in ("ran", "cached", "failed", "skipped") if told[f"tasks/{name}"])
    lines = [f"Flow **{_plain(plan.flow)}**, instance **{_plain(config.instance_name)}**: {state}. Tasks: {counts or 'none'}.", ""]
    worth = [(id, result) for id, result in results.items() if result.outcome != "cached"]
    if worth:
        lines += ["| task | | why |", "|---|---|---|"]
        lines += [f"| {_plain(id)} | {result.outcome} | {_plain(result.reason)} |" for id, result in worth[:50]]
        lines += [f"| and {len(worth) - 50} more | | |"] if len(worth) > 50 else []
        lines.append("")
    lines.append(f"`pipedag` run `{run_id}`")
    return names.cut("\n".join(lines), names.TAG_LENGTH)


def _plain(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\`*_{}[]<>#|!" else char for char in " ".join(text.split()))
