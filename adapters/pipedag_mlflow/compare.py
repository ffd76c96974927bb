"""Two MLflow runs beside each other: which tasks differed and why, which tables, parameters and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from pipedag_core.config.settings import mask
from pipedag_core.errors import ConfigError
from pipedag_mlflow import names

#: Where the observer leaves what each task was made from.
PARTS: Final = "pipedag/parts.json"

#: How a part begins that says what a task got without a say in whether it ran.
_GOT: Final = "got from "


@final
@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs.

    Attributes:
        id, name, status: As MLflow has them.
        run_id: Our own id of it.
        started: Unix seconds.
        params, metrics: As logged.
        parts: Task -> what it was made from, in wiring order; None where the run has not left that.
        tables: Table -> (digest, rows).
    """

    id: str
    name: str
    status: str
    run_id: str
    started: float
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    parts: Mapping[str, Mapping[str, str]] | None
    tables: Mapping[str, tuple[str, int | None]]


@final
@dataclass(frozen=True, slots=True)
class TaskDifference:
    """A task that was made from something else, or is in one of the runs only; seconds and rows of both."""

    task: str
    why: str
    seconds: tuple[float | None, float | None]
    rows: tuple[int | None, int | None]


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """Something that has two values; None where one side has none."""

    name: str
    values: tuple[Any, Any]


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        sides: The runs.
        tasks: In wiring order, so that what changed first stands first.
        tables: Rows of tables whose content differs.
        params: Parameters but for versions of tasks.
        metrics: What tasks and evaluations have logged, equal ones too; and how long all took.
    """

    sides: tuple[Side, Side]
    tasks: tuple[TaskDifference, ...]
    tables: tuple[Difference, ...]
    params: tuple[Difference, ...]
    metrics: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        runs = [{"id": side.id, "name": side.name, "status": side.status, "run_id": side.run_id} for side in self.sides]
        return {
            "runs": runs,
            **{name: [asdict(item) for item in getattr(self, name)] for name in ("tasks", "tables", "params", "metrics")},
        }


def compare(client: Any, one: str, other: str) -> Comparison:
    """Compare two runs.

    Args:
        client: Of the server or database that has them.
        one, other: Ids of MLflow runs, or our own run ids, or the beginning of one.

    Raises:
        ConfigError: There is no such run, or more than one.
    """
    left, right = (_side(client, _find(client, text)) for text in (one, other))
    return Comparison((left, right), _tasks(left, right), _tables(left, right), _params(left, right), _metrics(left, right))


# --- one run --------------------------------------------------------------------------------------------------------------------------


def _find(client: Any, text: str) -> Any:
    try:
        return client.get_run(text)
    except Exception:  # noqa: BLE001 -- no id of MLflow's, or of no run
        experiments = [item.experiment_id for item in client.search_experiments()]
    found = [
        run
        for run in client.search_runs(experiments, f"tags.`{names.RUN_ID}` LIKE '{names.literal(text)}%'", max_results=10)
        if "mlflow.parentRunId" not in run.data.tags
    ]
    if len(found) != 1:
        what = "There is no run" if not found else f"There are {len(found)} runs or more"
        raise ConfigError(
            f"{what} {text!r} in MLflow at {mask(client.tracking_uri)}. Name an MLflow run, or a run as `pipedag status` lists it; --tracking-uri says where to look.",
            run_id=text,
        )
    return found[0]


def _side(client: Any, run: Any) -> Side:
    tables = {
        item.dataset.name: (item.dataset.digest, json.loads(item.dataset.profile or "{}").get("num_rows"))
        for item in (run.inputs.dataset_inputs if run.inputs else ())
    }
    return Side(
        run.info.run_id,
        run.info.run_name or run.info.run_id,
        run.info.status,
        run.data.tags.get(names.RUN_ID, ""),
        run.info.start_time / 1000,
        run.data.params,
        run.data.metrics,
        _parts(client, run.info.run_id),
        tables,
    )


def _parts(client: Any, mlflow_run_id: str) -> dict[str, dict[str, str]] | None:
    folder, _, name = PARTS.rpartition("/")
    if not any(item.path == PARTS for item in client.list_artifacts(mlflow_run_id, folder)):
        return None
    return json.loads(Path(client.download_artifacts(mlflow_run_id, f"{folder}/{name}")).read_text(encoding="utf-8"))


# --- both -----------------------------------------------------------------------------------------------------------------------------


def _tasks(left: Side, right: Side) -> tuple[TaskDifference, ...]:
    before, now = _made_from(left), _made_from(right)
    found: list[TaskDifference] = []
    for task in _union(now, before):
        why = explained(before.get(task), now.get(task))
        if why:
            seconds = tuple(side.metrics.get(names.key(f"seconds/{task}")) for side in (left, right))
            rows = tuple(side.metrics.get(names.key(f"rows/{task}")) for side in (left, right))
            found.append(TaskDifference(task, why, _pair(seconds), _pair(None if row is None else int(row) for row in rows)))
    return tuple(found)


def _made_from(side: Side) -> Mapping[str, Mapping[str, str]]:
    if side.parts is not None:
        return side.parts
    # A run that has not come to its end, or was logged otherwise, tells at least the versions.
    start = "version/"
    return {name.removeprefix(start): {"version": text} for name, text in side.params.items() if name.startswith(start)}


def explained(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """Say how what a task was made from differs; "" if it does not."""
    if before is None or now is None:
        return "only in the second run" if before is None else "only in the first run"
    reasons: list[str] = []
    for part in _union(now, before):
        old, new = before.get(part), now.get(part)
        if old == new or part.startswith(_GOT):
            continue
        told = f"version {old or 'none'} -> {new or 'none'}"
        reasons.append(told if part == "version" else f"{part} {'is new' if old is None else 'is gone' if new is None else 'differs'}")
    return ", ".join(reasons)


def _tables(left: Side, right: Side) -> tuple[Difference, ...]:
    return tuple(
        Difference(name, (one[1] if one else None, other[1] if other else None))
        for name in _union(right.tables, left.tables)
        if (one := left.tables.get(name)) != (other := right.tables.get(name)) and (one is None or other is None or one[0] != other[0])
    )


def _params(left: Side, right: Side) -> tuple[Difference, ...]:
    return tuple(
        Difference(name, (left.params.get(name), right.params.get(name)))
        for name in sorted({*left.params, *right.params})
        if not name.startswith("version/") and left.params.get(name) != right.params.get(name)
    )


def _metrics(left: Side, right: Side) -> tuple[Difference, ...]:
    shown = sorted(name for name in {*left.metrics, *right.metrics} if not name.startswith(names.OBSERVED))
    return tuple(Difference(name, (left.metrics.get(name), right.metrics.get(name))) for name in [*shown, "tasks/ran", "tasks/seconds"])


def _union(first: Iterable[str], then: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *then]))


def _pair(values: Iterable[Any]) -> tuple[Any, Any]:
    one, other = values
    return one, other


def lines(comparison: Comparison) -> Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    """Return the comparison as tables: (title, headers, rows)."""
    from pipedag_core.cli.tables import moment, span

    names_ = ["first", "second"]
    runs = [
        [which, side.name, side.status.lower(), moment(side.started), side.run_id, side.id]
        for which, side in zip(names_, comparison.sides, strict=True)
    ]
    tasks = [[item.task, item.why, *map(span, item.seconds), *map(_number, item.rows)] for item in comparison.tasks]
    return [
        ("runs", ["", "name", "status", "started", "run", "MLflow run"], runs),
        ("tasks that differ", ["task", "why", "took", "second", "rows", "second"], tasks),
        ("rows of tables that differ", ["table", *names_], [[item.name, *map(_number, item.values)] for item in comparison.tables]),
        ("parameters that differ", ["parameter", *names_], [[item.name, *item.values] for item in comparison.params]),
        (
            "metrics",
            ["metric", *names_, "difference"],
            [[item.name, *map(_number, item.values), _gap(item.values)] for item in comparison.metrics],
        ),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _gap(values: tuple[Any, Any]) -> str:
    return "" if None in values else f"{values[1] - values[0]:+.6g}"
