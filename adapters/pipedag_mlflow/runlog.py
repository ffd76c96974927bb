"""Everything that is logged of one run by one process: events in, calls of MLflow's client out, in batches."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from pipedag_core.config.wire import open_catalog
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import GenerationRow, TaskResult
from pipedag_core.ports.data import ExternalTable, StoredObject, StoredTable
from pipedag_core.ports.events import Outcome, StepReport
from pipedag_mlflow import facts, library, links, names, picture, tables
from pipedag_mlflow.compare import PARTS
from pipedag_mlflow.sweep import end_lost_runs
from pipedag_mlflow.tracked import Target, Tracked


@final
@dataclass(frozen=True, slots=True)
class Start:
    """A process takes part in a run.

    Attributes:
        run_id, plan, config: Which run.
        adopted: Id of the MLflow run that the caller had opened, or None.
        at: Unix seconds.
    """

    run_id: str
    plan: Plan
    config: Any
    adopted: str | None
    at: float


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """A step of a run has ended, at Unix seconds `at`."""

    run_id: str
    report: StepReport
    at: float


@final
class RunLog:
    """Logs one run. Every method can be called again with what it was given before; then the same is logged once more, and nothing else.

    Args:
        target: Where runs are tracked.
        start: The run.
        nested: One nested MLflow run per stage.
        run_name: Name of the MLflow run; None: made of flow, instance and time.
        tags: Tags of the user's own.
    """

    def __init__(self, target: Target, start: Start, *, nested: bool, run_name: str | None, tags: Mapping[str, str]) -> None:
        self._target, self.start, self._nested, self._own_tags = target, start, nested, tags
        self._run_name = run_name
        self._tracked: Tracked | None = None
        self._begun = self._makes = False
        self._adopted = start.adopted
        self._waiting: dict[str, _Waiting] = {}

    @property
    def _plan(self) -> Plan:
        return self.start.plan

    def begin(self) -> Tracked:
        """Find or make the MLflow run, and log what is known before anything runs."""
        start, plan = self.start, self._plan
        if self._tracked is None:
            self._tracked = Tracked(self._target, start.config, start.run_id, plan.flow)
        tracked = self._tracked
        library.require_listener(tracked.uri)
        if self._begun:
            return tracked
        tags = {**self._own_tags, **facts.tags(plan, start.config, start.run_id)}
        first = tracked.adopt(start.adopted) if start.adopted is not None and tracked.known() is None else False
        name = self._run_name or f"{plan.flow} {start.config.instance_name} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(start.at))}"
        id, made = tracked.ensure(tags, name=name)
        # Remembered, since what follows may fail and be tried again.
        self._makes = self._makes or made or first
        if self._makes:
            self._log(id, params=facts.params(plan, start.config), tags=tags if start.adopted == id else {})
            end_lost_runs(tracked, start.config, plan.flow)
        elif start.adopted is None and self._is_over(id):
            # A step is executed again after the run's end.
            tracked.end(id, "RUNNING")
        self._begun = True
        return tracked

    def ended(self, steps: Sequence[Ended]) -> None:
        """Log how steps have ended."""
        worth = [step for step in steps if step.report.task is not None or step.report.outcome in (Outcome.COMMITTED, Outcome.UNCHANGED)]
        worth = [step for step in worth if step.report.outcome is not Outcome.WAITING]
        if not worth:
            return
        tracked = self.begin()
        by_run: dict[str, dict[str, tuple[float, float]]] = {}
        for step in worth:
            report = step.report
            if report.task is None:
                continue
            where = self._place(tracked, report.stage or "")
            values = {"seconds": report.seconds} | ({} if report.rows is None else {"rows": float(report.rows)})
            for what, value in values.items():
                by_run.setdefault(where, {})[f"{what}/{report.stage}.{report.task}"] = (value, step.at)
        for where, metrics in by_run.items():
            self._log(where, metrics=metrics)
        stages = [step.report.stage for step in worth if step.report.task is None and step.report.stage is not None]
        if stages:
            self._committed(tracked, stages)

    def finished(self, state: str, at: float) -> None:
        """Log what is known when the run has ended, and end the MLflow run."""
        tracked = self.begin()
        id = tracked.known()
        assert id is not None
        start, plan = self.start, self._plan
        catalog = open_catalog(start.config)
        try:
            log, notes = catalog.task_log(start.run_id), catalog.notes(start.run_id)
            own = [row for row in catalog.generations() if row.run_id == start.run_id]
            written = sum(_bytes(catalog.entries(row.stage, row.number), row) for row in own)
        finally:
            catalog.close()
        results = facts.last_results(log)
        metrics = {name: (value, at) for name, value in facts.summary(results).items()}
        metrics["bytes_written"] = (float(written), at)
        others = links.noted(notes)
        note = facts.description(plan, start.config, start.run_id, state, results)
        told = {
            names.STATE: state,
            names.FINGERPRINT: facts_digest(results),
            "mlflow.note.content": note + (f"\n\nBelongs to {links.described(tracked, others)}." if others else ""),
            **{tag: notes[note] for note, tag in _NOTED.items() if note in notes},
        }
        self._log(id, metrics=metrics, tags=told)
        self.write()
        client = tracked.client
        client.log_text(id, picture.page(plan, results), "pipedag/graph.html")
        client.log_text(id, table_of(plan, results), "pipedag/tasks.json")
        client.log_text(
            id, json.dumps({task.id: dict(results[task.id].parts) for task in plan.tasks if task.id in results}, indent=1), PARTS
        )
        for stage in plan.stages if self._nested else ():
            part = tracked.known(f"stage {stage.name}")
            if part is not None and not self._is_over(part):
                tracked.end(part, names.STATUS.get(state, "FAILED"))
        if self._adopted is None:
            tracked.end(id, names.STATUS.get(state, "FAILED"))

    # --- inside -------------------------------------------------------------------------------------------------------------------

    def _place(self, tracked: Tracked, stage: str) -> str:
        """Return the MLflow run in which what happens in a stage is logged."""
        whole = tracked.known()
        assert whole is not None
        if not self._nested:
            return whole
        tags = {names.STAGE: stage, names.RUN_ID: self.start.run_id, names.FLOW: self._plan.flow}
        return tracked.ensure(tags, f"stage {stage}", stage)[0]

    def _committed(self, tracked: Tracked, outermost: Sequence[str]) -> None:
        """Log the tables of stages, and of those committed with them, as datasets, and the queries that made them."""
        start = self.start
        sources = {f"{task.stage}.{task.task}" for task in self._plan.tasks if not task.upstream}
        catalog = open_catalog(start.config)
        try:
            shown = {
                stage: (catalog.entries(stage, number), catalog.results(stage, number))
                for unit in dict.fromkeys(outermost)
                for stage in self._plan.unit(unit)
                if (number := catalog.current(stage)) is not None
            }
        finally:
            catalog.close()
        by_run: dict[str, list[tuple[str, StoredTable, str]]] = {}
        for stage, (entries, results) in shown.items():
            makers = {name: result.task for result in results for name in result.entries}
            found = [
                (f"{stage}.{name}", table, "input" if f"{stage}.{makers.get(name)}" in sources else "output")
                for name, table in entries.items()
                if isinstance(table, StoredTable)
            ]
            id = self._place(tracked, stage)
            by_run.setdefault(id, []).extend(found)
            queries = [f"-- {name}\n{table.query.rstrip(';')};\n" for name, table, _ in found if table.query]
            if queries:
                tracked.client.log_text(id, "\n".join(queries), f"sql/{stage.replace('/', '_')}.sql")
        for id, found in by_run.items():
            # All in one call: each is a transaction of its own, which on SQLite waits for the disk.
            if found:
                tracked.client.log_inputs(id, tables.inputs(found, self._plan.flow, start.config.instance_name))
            if self._nested:
                tracked.end(id, "FINISHED")

    def _is_over(self, id: str) -> bool:
        assert self._tracked is not None
        return self._tracked.client.get_run(id).info.status != "RUNNING"

    def _log(
        self,
        id: str,
        *,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Take note of what is to be logged, metrics as (value, Unix seconds); `write` logs it."""
        waiting = self._waiting.setdefault(id, _Waiting())
        waiting.params.update(params or {})
        waiting.tags.update(tags or {})
        waiting.metrics.update(metrics or {})

    def write(self) -> None:
        """Log all that waits, in one call per MLflow run: each is a transaction, for which SQLite waits for the disk."""
        if not self._waiting:
            return
        assert self._tracked is not None
        entities = library.entities()
        for id in list(self._waiting):
            waiting = self._waiting[id]
            metrics = [entities.Metric(names.key(key), value, int(at * 1000), 0) for key, (value, at) in waiting.metrics.items()]
            params = [entities.Param(key, value) for key, value in waiting.params.items()]
            tags = [entities.RunTag(key, names.cut(value, names.TAG_LENGTH)) for key, value in waiting.tags.items()]
            for part in range(max(1, -(-len(metrics) // _MOST_METRICS), -(-len(params) // _MOST_PARAMS))):
                self._tracked.client.log_batch(
                    id,
                    params=params[part * _MOST_PARAMS : (part + 1) * _MOST_PARAMS],
                    tags=tags if part == 0 else [],
                    metrics=metrics[part * _MOST_METRICS : (part + 1) * _MOST_METRICS],
                )
            # Only now: what fails is tried again, with what came since.
            del self._waiting[id]


@final
@dataclass(slots=True)
class _Waiting:
    """What is to be logged to one MLflow run."""

    params: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


#: What one call takes: MLflow allows 1000 items in all, of which 100 are parameters.
_MOST_METRICS: Final = 800
_MOST_PARAMS: Final = 100

#: Note that an orchestrator's adapter keeps with a run -> tag.
_NOTED = {"orchestrator": names.ORCHESTRATOR, "orchestrator url": names.ORCHESTRATOR_URL}


def _bytes(entries: Mapping[str, StoredObject], row: GenerationRow) -> int:
    """Return the bytes that were written for a generation, not those of what it only points to."""
    written = [item for item in entries.values() if not isinstance(item, ExternalTable)]
    return sum(item.size or 0 for item in written if (item.stage, item.generation) == (row.stage, row.number))


def facts_digest(results: Mapping[str, TaskResult]) -> str:
    """Return a hash of what all tasks of a run did: equal runs of equal code on equal data have the same."""
    import hashlib

    text = json.dumps(sorted((id, result.fingerprint, sorted(result.parts.items())) for id, result in results.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table_of(plan: Plan, results: Mapping[str, TaskResult]) -> str:
    """Return the outcomes as MLflow shows tables."""
    columns = ["task", "outcome", "why", "rows", "seconds"]
    order = [task.id for task in plan.tasks if task.id in results] or list(results)
    data = [[id, results[id].outcome, results[id].reason, results[id].rows, round(results[id].seconds, 4)] for id in order]
    return json.dumps({"columns": columns, "data": data})
