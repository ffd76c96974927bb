"""What operators are given beyond their step: from the configuration (`adapters: airflow:`), by task, stage and tag, and from a hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Final, final

from pipedag_core.errors import ConfigError
from pipedag_core.plan.model import Plan, PlanTask, Step, StepKind

#: Arguments of operators that may be configured: Airflow's own, then ours.
OPERATOR: Final = (
    "owner",
    "pool",
    "pool_slots",
    "queue",
    "priority_weight",
    "weight_rule",
    "retries",
    "retry_delay",
    "retry_exponential_backoff",
    "max_retry_delay",
    "execution_timeout",
    "max_active_tis_per_dag",
    "max_active_tis_per_dagrun",
    "executor",
    "executor_config",
    "run_as_user",
    "depends_on_past",
    "doc_md",
    "inlets",
    "python",
    "command",
    "environment",
    "connections",
    "wait_interval",
    "wait_timeout",
)
_TIMES: Final = ("retry_delay", "max_retry_delay", "execution_timeout", "dagrun_timeout")
_DAG: Final = (
    "schedule",
    "start_date",
    "catchup",
    "max_active_runs",
    "max_active_tasks",
    "dagrun_timeout",
    "tags",
    "description",
    "owner_links",
)
_SECTIONS: Final = ("dag", "default_args", "tags", "stages", "tasks", "lifecycle", "external")

#: Changes what an operator is given: called with the step, its task (None for open, commit, close and finish) and the arguments; returns arguments.
Override = Callable[[Step | None, PlanTask | None, dict[str, Any]], Mapping[str, Any]]


@final
@dataclass(frozen=True)
class Options:
    """Arguments for operators, by what they are for; more special ones win.

    Attributes:
        dag: Arguments of the DAG.
        default_args: For all operators.
        tags, stages, tasks: By the task's tag, by stage (for all its steps), by task (`stage.task`).
        lifecycle: For the steps that are no tasks of the flow: open, commit, close, finish.
        external: URIs of the Assets of tables of others (`schema.name`), where they are not to be ours: another DAG may announce them under its own.
        override: Has the last word.
    """

    dag: Mapping[str, Any] = field(default_factory=dict[str, Any])
    default_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    lifecycle: Mapping[str, Any] = field(default_factory=dict[str, Any])
    external: Mapping[str, str] = field(default_factory=dict[str, str])
    override: Override | None = None

    def of(self, step: Step | None, task: PlanTask | None, stage: str | None) -> dict[str, Any]:
        """Return the arguments for one operator.

        Args:
            step: Its step; None for one that stands for several.
            task: The task of a task step.
            stage: The stage that it belongs to, if any.
        """
        found: dict[str, Any] = {}
        if task is None and (step is None or step.kind is not StepKind.TASK):
            found.update(self.lifecycle)
        if task is not None and task.tag:
            found.update(self.tags.get(task.tag, {}))
        if stage is not None:
            found.update(self.stages.get(stage, {}))
        if task is not None:
            found.update(self.tasks.get(task.id, {}))
        return dict(self.override(step, task, found)) if self.override is not None else found


def read_options(settings: Mapping[str, Any], plan: Plan, override: Override | None = None) -> Options:
    """Return the options that a configuration asks for.

    Args:
        settings: What stands under `adapters: airflow:`.
        plan: The plan whose stages, tasks and tags are named there.
        override: The hook, if there is one.

    Raises:
        ConfigError: A key, stage, task or tag is not known, or a duration is none; all of them are told at once.
    """
    faults = [f"adapters.airflow.{key} is not a known key. {_near(str(key), _SECTIONS)}" for key in settings if key not in _SECTIONS]
    known = {
        "tags": sorted({task.tag for task in plan.tasks if task.tag}),
        "stages": [stage.name for stage in plan.stages],
        "tasks": [task.id for task in plan.tasks],
    }
    found: dict[str, Any] = {
        "dag": _arguments(settings.get("dag") or {}, "dag", _DAG, faults),
        "default_args": _arguments(settings.get("default_args") or {}, "default_args", OPERATOR, faults),
        "lifecycle": _arguments(settings.get("lifecycle") or {}, "lifecycle", OPERATOR, faults),
    }
    for section, names in known.items():
        found[section] = {}
        for name, arguments in (settings.get(section) or {}).items():
            if name not in names:
                faults.append(
                    f"adapters.airflow.{section}.{name}: there is no such {section[:-1]} in flow {plan.flow!r}. {_near(name, names)}"
                )
            found[section][name] = _arguments(arguments, f"{section}.{name}", OPERATOR, faults)
    found["external"] = _external(settings.get("external") or {}, faults)
    if faults:
        raise ConfigError("\n".join(["What the configuration says for Airflow cannot be used:", *(f"  {fault}" for fault in faults)]))
    return Options(**found, override=override)


def _external(given: Any, faults: list[str]) -> dict[str, str]:
    if not isinstance(given, Mapping):
        faults.append(f"adapters.airflow.external must be a mapping of schema.name to the URI of an Asset, not {given!r}.")
        return {}
    # A table that only a run has shown is no error while nobody learns of it.
    found: dict[str, str] = {}
    for table, uri in given.items():
        if not isinstance(uri, str) or "://" not in uri:
            faults.append(
                f"adapters.airflow.external.{table} must be the URI of an Asset, such as postgres://host:5432/db/schema/name, not {uri!r}."
            )
        else:
            found[str(table)] = uri
    return found


def _arguments(given: Any, path: str, known: tuple[str, ...], faults: list[str]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        faults.append(f"adapters.airflow.{path} must be a mapping, not {given!r}.")
        return {}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            faults.append(f"adapters.airflow.{path}.{key} is not a known key. {_near(str(key), known)}")
        elif key in _TIMES:
            seconds = _seconds(value)
            if seconds is None:
                faults.append(f"adapters.airflow.{path}.{key} must be a duration (30s, 45m, 1h, or a number of seconds), not {value!r}.")
            else:
                found[key] = timedelta(seconds=seconds)
        else:
            found[key] = plain(value)
    return found


def _seconds(value: Any) -> float | None:
    from pipedag_core.config.settings import parse_duration

    return value.total_seconds() if isinstance(value, timedelta) else parse_duration(value)


def plain(value: Any) -> Any:
    """Return a value of the configuration as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _near(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(list(known)[:20]) or 'none'}."
