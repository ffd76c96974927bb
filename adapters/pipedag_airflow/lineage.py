"""What OpenLineage is told, where Airflow's provider for it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipedag_airflow.names import EXTERNAL, SCHEME, split_asset_uri, split_external_uri


def lineage_of(operator: Any) -> Any:
    """Return the tables that a step has made visible, and those that its stage reads; None for steps that commit nothing.

    Args:
        operator: An operator of ours, in its DAG.
    """
    outputs = list(_places(operator))
    if not outputs:
        return None
    try:
        from airflow.providers.common.compat.openlineage.facet import Dataset
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    inputs = [place for other in _read(operator) for place in _places(other)]
    inputs += [place for task in _own(operator) for place in _external(task)]
    return OperatorLineage(
        inputs=[Dataset(namespace=space, name=name) for space, name in dict.fromkeys(inputs)],
        outputs=[Dataset(namespace=space, name=name) for space, name in outputs],
    )


def _places(operator: Any) -> Iterator[tuple[str, str]]:
    for outlet in operator.outlets or ():
        place = split_asset_uri(getattr(outlet, "uri", "") or "")
        if place is not None:
            flow, instance, stage, table = place
            yield f"{SCHEME}://{flow}/{instance}", f"{stage}.{table}"


def _external(operator: Any) -> Iterator[tuple[str, str]]:
    for inlet in operator.inlets or ():
        place = split_external_uri(getattr(inlet, "uri", "") or "")
        if place is not None:
            yield f"{EXTERNAL}://{place[0]}", place[1]


def _own(operator: Any) -> Iterator[Any]:
    """Yield the operators that make what a commit makes visible: those of its outermost group; or the operator of all of it."""
    kind = operator.step.partition(":")[0]
    if kind != "commit":
        yield operator
        return
    group = operator.task_id.rpartition(".")[0]
    yield from (task for task in operator.dag.tasks if task.task_id.startswith(f"{group}.") and hasattr(task, "step"))


def _read(operator: Any) -> Iterator[Any]:
    """Yield the operators whose tables a stage reads: those that come before its opening, or before the operator of all of it."""
    kind, _, stage = operator.step.partition(":")
    first = operator if kind in ("stage", "flow") else _opening(operator, stage)
    for other in [] if first is None else first.upstream_list:
        if hasattr(other, "step") and other.outlets:
            yield other


def _opening(operator: Any, stage: str) -> Any:
    return next((task for task in operator.dag.tasks if getattr(task, "step", "") == f"open:{stage}" and task.flow == operator.flow), None)
