"""What tables promise about their rows, as asset checks: the store has looked before the table counted as one, so a committed table has passed."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

import dagster as dg

from pipedag_core.errors import MaterializationError
from pipedag_core.ports.events import StageReport, StepReport
from pipedag_dagster.jobs import FlowJob
from pipedag_dagster.props import TableProps

PRIMARY_KEY: Final = "primary_key"
NOT_NULL: Final = "not_null"
CONTRACT: Final = "contract"


def check_specs(key: dg.AssetKey, table: TableProps) -> list[dg.AssetCheckSpec]:
    """Return the checks of a table: what it is known to promise."""
    found: list[dg.AssetCheckSpec] = []
    if table.facts.primary_key:
        told = f"No two rows have the same values of {', '.join(table.facts.primary_key)}."
        found.append(dg.AssetCheckSpec(PRIMARY_KEY, asset=key, description=told, blocking=True, metadata=_columns(table.facts.primary_key)))
    if table.facts.non_nullable:
        told = f"No nulls in {', '.join(table.facts.non_nullable)}."
        found.append(dg.AssetCheckSpec(NOT_NULL, asset=key, description=told, blocking=True, metadata=_columns(table.facts.non_nullable)))
    if table.facts.contract:
        told = f"The rows keep the contract {table.facts.contract}."
        found.append(dg.AssetCheckSpec(CONTRACT, asset=key, description=told, blocking=True, metadata={"contract": table.facts.contract}))
    return found


def _columns(names: tuple[str, ...]) -> dict[str, list[str]]:
    return {"columns": list(names)}


def passed(key: dg.AssetKey, table: TableProps, selected: AbstractSet[dg.AssetCheckKey]) -> list[dg.AssetCheckResult]:
    """Return the results of the checks of a committed table."""
    return [
        dg.AssetCheckResult(passed=True, asset_key=key, check_name=spec.name, metadata={**_said(spec), "failing_rows": 0})
        for spec in check_specs(key, table)
        if dg.AssetCheckKey(key, spec.name) in selected
    ]


def _said(spec: dg.AssetCheckSpec) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in spec.metadata.items()}


def failed(job: FlowJob, report: StageReport, selected: AbstractSet[dg.AssetCheckKey]) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of checks that tables did not pass, which is why their tasks failed."""
    for failure in report.failures:
        for check, counts, told in _not_passed(job, failure, selected):
            yield dg.AssetCheckResult(passed=False, asset_key=check.asset_key, check_name=check.name, metadata=counts, description=told)


def failed_midway(job: FlowJob, failure: StepReport, selected: AbstractSet[dg.AssetCheckKey]) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the same for one task, from an op that does not give its tables."""
    for check, counts, told in _not_passed(job, failure, selected):
        yield dg.AssetCheckEvaluation(
            asset_key=check.asset_key,
            check_name=check.name,
            passed=False,
            metadata=counts,
            description=told,
            blocking=True,
        )


def _not_passed(
    job: FlowJob, failure: StepReport, selected: AbstractSet[dg.AssetCheckKey]
) -> Iterator[tuple[dg.AssetCheckKey, dict[str, Any], str]]:
    """Yield checks that a failed task's tables did not pass, with counts and words."""
    found = _broken(failure)
    if found is None:
        return
    name, counts, table = found
    for key, known in job.tables.items():
        fits = known.task.id == f"{failure.stage}.{failure.task}" and (known.kind == "task" or table in (None, known.name))
        fits &= name != CONTRACT or counts["contract"] == known.facts.contract
        check = dg.AssetCheckKey(key, name)
        if fits and check in selected:
            yield check, counts, failure.message.partition("\n")[0]


def _broken(failure: StepReport) -> tuple[str, dict[str, Any], str | None] | None:
    """Return which promise was broken, how often, and by which table; None if the task failed because of something else."""
    error = failure.error
    if not isinstance(error, MaterializationError):
        return None
    facts = vars(error)
    table = facts.get("table")
    if isinstance(contract := facts.get("contract"), str):
        # Without counts, the columns are others.
        rules: dict[str, int] = facts.get("failing", {})
        counts = (
            {"failing_rows": max(rules.values()), **{f"rows that break {rule}": count for rule, count in rules.items()}} if rules else {}
        )
        return CONTRACT, {"contract": contract, **counts}, table
    if isinstance(nulls := facts.get("nulls"), dict):
        return NOT_NULL, {"failing_rows": max(nulls.values()), **{f"nulls in {column}": count for column, count in nulls.items()}}, table
    if "keys" in facts and "key" in facts:
        return PRIMARY_KEY, {"failing_keys": facts["keys"]}, table
    return None
