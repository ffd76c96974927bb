"""What a generated DAG file imports: the operator that carries out one step, and the parameters of a run.

Parsing a DAG file must be light, so all that is needed to work is imported when there is work: `pipedag_airflow.work`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.sdk import BaseOperator, BaseOperatorLink, Param

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from pipedag_airflow.work import Worker

#: Names of the parameters of a run.
MODE: Final = "cache_validation_mode"
STAGES: Final = "stages"

_MODES: Final = ("normal", "assert_no_fresh_input", "ignore_fresh_input", "force_fresh_input", "force_cache_invalid")


def run_params(stages: Sequence[str] = ()) -> dict[str, Param]:
    """Return the parameters that somebody may set when triggering a run: the cache validation mode, and which stages run.

    Args:
        stages: Names of the flow's stages; without them the choice is not offered.
    """
    mode = _Schema(type=["null", "string"], enum=[None, *_MODES], title="Cache validation mode")
    found = {MODE: Param(None, "How strictly stored results are trusted; empty: as the configuration says.", schema=mode)}
    if stages:
        names = list(stages)
        some = _Schema(type="array", items={"type": "string", "enum": names}, examples=names, title="Stages")
        found[STAGES] = Param(
            [], "Run and commit these stages only, with what the store has of the others; empty: all of them.", schema=some
        )
    return found


class _Schema(dict[str, Any]):
    """A schema that nobody changes. Airflow copies a DAG's parameters deeply for each task, which took an eighth of the time of parsing a DAG file."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Schema:
        return self


class WhatHappened(BaseOperatorLink):
    """Leads from a task to the report of its step: ran or cached, why, rows, seconds."""

    name = "What happened"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] -- as Airflow's own links have it

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address of the task's XCom, which is the report."""
        from airflow.sdk.configuration import conf

        base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        mapped = f"/mapped/{ti_key.map_index}" if (ti_key.map_index if ti_key.map_index is not None else -1) >= 0 else ""
        return f"{base}/dags/{ti_key.dag_id}/runs/{ti_key.run_id}/tasks/{ti_key.task_id}{mapped}/xcom"


class PipedagStepOperator(BaseOperator):
    """Carries out one step of a flow's plan, or several in one.

    All state is in the flow's own catalog, so a step may be tried again, cleared, or carried out by any worker that reaches the stores. A step whose
    stage is being written by another run frees its slot and comes back later. An error of the configuration fails at once; others are retried.

    Every argument but `step` may stand in `default_args={"pipedag": {...}}`, once for all tasks of a DAG.

    Args:
        step: `open:features`, `task:features.joined`, `commit:features`, `finish`; or several in one: `stage:features`, `flow`; or `close:features`,
            which gives back a stage that was not committed.
        flow: Import reference of the flow: `package.module:flow_or_factory`, or `path/file.py:flow_or_factory`.
        instance: Name of the instance.
        digest: Digest of the plan that the DAG was made from; a flow that is wired differently is refused. None: any wiring will do.
        allow_drift: Carry out what the code says now, whatever the digest.
        project: Folder in which the flow's code and its `pipedag.yaml` are; it is importable, and commands run in it. A relative
            path begins at the folder of the DAG file.
        config: Path of the configuration, if it is not to be looked for. Relative to `project`.
        python: Interpreter with the flow's own dependencies; without it (and `command`) the worker's own interpreter does the work, in-process.
        command: Instead of `python`: the words before `step ...`, such as `["docker", "run", "--rm", "image", "pipedag"]`, or one text.
        environment: Environment variables for the work.
        connections: Environment variable -> id of an Airflow connection, whose URI it is given; `pipedag.yaml` reads it as `{$NAME}`.
        deployment: Names this Airflow installation in run ids, where several write the same stores. By default the option `deployment` in section
            `pipedag` of Airflow's configuration, else its `[api] base_url`.
        events: "always": Asset events after each commit; "changed": only for tables that a commit changed.
        wait_interval: Seconds until a step that has to wait is tried again.
        wait_timeout: Seconds for which a step waits for other runs before it fails.
    """

    # Without `project`: template fields are part of what Airflow stores of a DAG, and a path that moves with each deployment would make each a new version.
    template_fields: Collection[str] = ("flow", "instance", "config", "python", "command", "environment")
    template_fields_renderers: ClassVar[dict[str, str]] = {"environment": "json"}
    ui_color = "#e3f1ec"
    operator_extra_links = (WhatHappened(),)

    step: str = ""
    flow: str = ""
    instance: str | None = None
    digest: str | None = None
    allow_drift: bool = False
    project: str | None = None
    config: str | None = None
    python: str | None = None
    command: str | Sequence[str] | None = None
    environment: Mapping[str, str] | None = None
    connections: Mapping[str, str] | None = None
    deployment: str | None = None
    events: str = "always"
    wait_interval: float = 30.0
    wait_timeout: float = 24 * 3600.0
    _worker: Worker | None = None

    if TYPE_CHECKING:

        def __init__(self, *, step: str, task_id: str, **kwargs: Any) -> None: ...

    def _hook_apply_defaults(self, *, default_args: dict[str, Any], **kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        # Instead of a constructor, which for each of thousands of tasks would cost a fifth more of parsing time: Airflow wraps every one.
        params = kwargs.get("params")
        if params and all(params.get_param(name).source == "dag" for name in params):
            # A run's parameters come from the DAG in any case. A copy of them in each task would be checked again for each, and a DAG of
            # 1,000 tasks would take seconds to store.
            del kwargs["params"]
        if "_is_ready" in self.__dict__:
            # A parent class has a constructor of its own, for which this is called once more.
            return (), {**kwargs, "default_args": default_args}
        put = object.__setattr__
        put(self, "_is_ready", True)
        for name, value in (default_args.get("pipedag") or {}).items():
            if name not in OWN:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}. It has: {', '.join(sorted(OWN))}.")
            put(self, name, value)
        for name in [name for name in kwargs if name in OWN]:
            put(self, name, kwargs.pop(name))
        if not self.step or not self.flow:
            raise TypeError(f"{type(self).__name__} {kwargs.get('task_id')!r} needs step= and flow= (or flow in default_args['pipedag']).")
        return (), {**kwargs, "default_args": default_args}

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Fill the templates in. Fields of ours in which nothing is to be filled in are left out, so that a try does not store them once more."""
        rendered = tuple(name for name in type(self).template_fields if name not in OWN or _is_template(getattr(self, name, None)))
        object.__setattr__(self, "template_fields", rendered)
        super().render_template_fields(context, jinja_env)

    def execute(self, context: Context) -> Any:
        """Carry out the step; the report is what it returns."""
        from pipedag_airflow.work import Worker

        self._worker = Worker(self, context)
        return self._worker.work()

    def on_kill(self) -> None:
        """End the command that is at work. What it had open is given back by the stage's closing, or taken over by the next try."""
        if self._worker is not None:
            self._worker.stop()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Tell OpenLineage which tables were made, and from which; None where its provider is not installed."""
        from pipedag_airflow.lineage import lineage_of

        return lineage_of(self)


#: Arguments that are ours.
OWN: Final = frozenset(
    {
        "step",
        "flow",
        "instance",
        "digest",
        "allow_drift",
        "project",
        "config",
        "python",
        "command",
        "environment",
        "connections",
        "deployment",
        "events",
        "wait_interval",
        "wait_timeout",
    }
)


def _is_template(value: Any) -> bool:
    """Return whether Airflow may have something to fill in: in a text with braces, or in what is no text, such as an XComArg."""
    match value:
        case None:
            return False
        case str():
            return "{" in value
        case Mapping():
            return any(_is_template(item) for item in value.values())
        case list() | tuple():
            return any(_is_template(item) for item in value)
    return True


def seconds_of(value: float | timedelta) -> float:
    """Return a duration as seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
