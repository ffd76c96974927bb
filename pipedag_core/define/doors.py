"""The doors through which a definition reaches up: verbs of users' objects that live on higher floors.

`flow.run(...)` is how users know it, but running is not the definition's business. Each door imports its target by name, when called.
No other file of this floor, or below, may look up.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Door -> "module:function". An architecture test compares this table with what the functions below open.
TARGETS = {
    "run_flow": "pipedag_core.runner:run_flow",
    "plan_flow": "pipedag_core.plan.compile:plan_flow",
    "subflow": "pipedag_core.plan.selection:subflow",
    "draw_flow": "pipedag_core.plan.draw:draw_flow",
    "output_from_store": "pipedag_core.looking:output_from_store",
    "extract_flow": "pipedag_core.production.extract:extract_flow",
    "materialize_table": "pipedag_core.runner:materialize_table",
}


def _open(door: str) -> Any:
    module, _, name = TARGETS[door].partition(":")
    return getattr(import_module(module), name)


def run_flow(flow: Any, *components: Any, **options: Any) -> Any:
    """`flow.run(...)`."""
    return _open("run_flow")(flow, *components, **options)


def plan_flow(flow: Any, **options: Any) -> Any:
    """`flow.plan(...)`."""
    return _open("plan_flow")(flow, **options)


def subflow(flow: Any, *components: Any) -> Any:
    """`flow.get_subflow(...)`."""
    return _open("subflow")(flow, *components)


def draw_flow(flow: Any, **options: Any) -> Any:
    """`flow.graph(...)`."""
    return _open("draw_flow")(flow, **options)


def output_from_store(reference: Any, **options: Any) -> Any:
    """`task_output.get_output_from_store(...)`."""
    return _open("output_from_store")(reference, **options)


def extract_flow(flow: Any, specification: Any, **options: Any) -> Any:
    """`flow.extract(...)`."""
    return _open("extract_flow")(flow, specification, **options)


def materialize_table(table: Any, **options: Any) -> Any:
    """`Table(...).materialize(...)`."""
    return _open("materialize_table")(table, **options)
