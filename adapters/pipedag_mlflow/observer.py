"""`MlflowObserver`: one MLflow run per run of a flow, written beside the run and never in its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipedag_core.errors import ConfigError, ObserverFailed
from pipedag_core.ports.events import Event, RunFinished, RunLeft, RunStarted, StepEnded
from pipedag_mlflow import current, library
from pipedag_mlflow.background import Background
from pipedag_mlflow.runlog import Ended, RunLog, Start
from pipedag_mlflow.tracked import Target

log = logging.getLogger(__name__)

#: What `nested` can be.
NESTED = ("none", "stages")


@final
class _Finished:
    """A run has ended in a state, at Unix seconds `at`."""

    def __init__(self, run_id: str, state: str, at: float) -> None:
        self.run_id, self.state, self.at = run_id, state, at


@final
class _Wanted:
    """A task of a run needs its MLflow run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id


@final
class _Left:
    """This process has nothing more to log of a run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id


@final
class MlflowObserver:
    """Logs runs to MLflow: parameters, seconds and rows of tasks, tables as datasets, the graph, the SQL.

    Given to `flow.run(observers=[...])`, or named under `observers:` in `pipedag.yaml`, which also covers `pipedag step` and orchestrators: all
    processes of one run log to the same MLflow run. An MLflow run that the caller has opened with `mlflow.start_run` is taken, and left open.

    Logging happens in a thread of its own. If MLflow is slow or gone, the run neither waits nor fails: it is said once, tried again while
    the process lives, and given up at its end.

    Args:
        tracking_uri: Server or database; None: what MLflow is set to. A relative SQLite file starts from the configuration's folder.
        experiment_name: The experiment, made if need be; None: the flow's name.
        artifact_location: Where a new experiment keeps its files; by default as the server says, beside the file for SQLite.
        run_name: Name of MLflow runs; by default flow, instance and time.
        nested: "stages": a nested MLflow run per stage.
        tags: Tags for every MLflow run.
        strict: Do not run without MLflow: `ObserverFailed` before the run if it cannot be reached, after it if anything could not be logged.
        exit_wait_s: Seconds that the end of the process waits for what is left to log.

    Raises:
        ConfigError: `nested` is neither "none" nor "stages".
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        *,
        artifact_location: str | None = None,
        run_name: str | None = None,
        nested: str | bool | None = None,
        tags: Mapping[str, str] | None = None,
        strict: bool = False,
        exit_wait_s: float = 30.0,
    ) -> None:
        chosen = {True: "stages", False: "none", None: "none"}.get(nested, nested) if not isinstance(nested, str) else nested
        if chosen not in NESTED:
            raise ConfigError(f"MlflowObserver takes nested={' or '.join(map(repr, NESTED))}, not {nested!r}.")
        self.target = Target(tracking_uri, experiment_name, artifact_location)
        self._run_name, self._nested, self._tags = run_name, chosen == "stages", dict(tags or {})
        self._strict = strict
        self._logs: dict[str, RunLog] = {}
        self._told: set[str] = set()
        self._last_error: Exception | None = None
        self._background = Background(self._work, self._failed, "pipedag-mlflow", exit_wait_s)

    def on_event(self, event: Event) -> None:
        """Take note of an event; see `RunObserver`."""
        now = time.time()
        match event:
            case RunStarted(run_id=run_id, plan=plan, config=config) if plan is not None:
                current.begin(run_id, current.Tracking(self, self.target, lambda: self._begin(run_id)))
                self._background.put(Start(run_id, plan, config, library.active_run_id(), now))
                if self._strict:
                    self._require("could not be reached, so the run was not begun")
            case StepEnded(run_id=run_id, report=report):
                self._background.put(Ended(run_id, report, now))
            case RunFinished(run_id=run_id, state=state):
                self._background.put(_Finished(run_id, state, now))
            case RunLeft(run_id=run_id):
                current.end(run_id, self)
                self._background.put(_Left(run_id))
                if self._strict:
                    self._require("does not hold all of the run, which itself has ended as its steps say")
            case _:
                pass

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that has happened is logged.

        Returns:
            Whether it is; False if MLflow cannot take it, or not within `timeout_s`.
        """
        return self._background.flush(timeout_s)

    def _begin(self, run_id: str) -> None:
        """Wait until a run's MLflow run is there, for a task that cannot do without it."""
        self._background.put(_Wanted(run_id))
        if not self._background.flush() and self._last_error is not None:
            raise self._last_error

    def _require(self, what: str) -> None:
        if not self._background.flush():
            where = self.target.tracking_uri or "MLflow"
            raise ObserverFailed(f"{where} {what}: {self._last_error}. Look at the server, or leave out strict=True.") from self._last_error

    def _work(self, items: Sequence[object]) -> None:
        """Log a batch; of several runs in turn."""
        steps: dict[str, list[Ended]] = {}
        finished: list[_Finished] = []
        for item in items:
            if isinstance(item, Start) and not (item.run_id in self._logs and self._logs[item.run_id].start is item):
                # A later start in the same process finds the MLflow run by its note.
                self._logs[item.run_id] = RunLog(self.target, item, nested=self._nested, run_name=self._run_name, tags=self._tags)
                if self._strict:
                    self._logs[item.run_id].begin()
            if isinstance(item, _Wanted) and item.run_id in self._logs:
                self._logs[item.run_id].begin()
            if isinstance(item, Ended):
                steps.setdefault(item.run_id, []).append(item)
            elif isinstance(item, _Finished):
                finished.append(item)
        for run_id, ended in steps.items():
            if run_id in self._logs:
                self._logs[run_id].ended(ended)
        ending = {end.run_id for end in finished}
        for run_id, log_ in self._logs.items():
            # The end of a run is logged together with what came before it.
            if run_id not in ending:
                log_.write()
        for end in finished:
            if end.run_id in self._logs:
                self._logs[end.run_id].finished(end.state, end.at)
        for item in items:
            if isinstance(item, _Left):
                self._logs.pop(item.run_id, None)
                self._told.discard(item.run_id)

    def _failed(self, error: Exception) -> None:
        self._last_error = error
        for run_id in self._logs or {"": None}:
            if run_id not in self._told:
                self._told.add(run_id)
                # Once per run, however often it is tried again.
                log.warning(
                    "Run %s is not, or not completely, logged to MLflow at %s: %s: %s. The run goes on; logging is tried again until the process ends.",
                    run_id,
                    _where(self.target),
                    type(error).__name__,
                    _first_line(error),
                )

    def __repr__(self) -> str:
        return f"MlflowObserver({_where(self.target)})"


def _where(target: Target) -> str:
    from pipedag_core.config.settings import mask

    return mask(target.tracking_uri or "its default address")


def _first_line(error: Any) -> str:
    return str(error).partition("\n")[0][:300]
