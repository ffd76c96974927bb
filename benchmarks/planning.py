"""What it costs to declare and plan a large flow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from timing import Row, Stopwatch, in_turns, row

from pipedag_core import Flow, Stage, materialize

STAGES, TASKS = 10, 100
LIMIT_MS = 150


@materialize(version="1.0")
def combine(before: Any, further: Any, number: int) -> Any:
    """Stands for any task; never called."""


def declare_and_plan(watch: Stopwatch) -> None:
    """1,000 tasks, each with two inputs."""
    with watch:
        with Flow("large") as flow:
            earlier: list[Any] = [None, None]
            for stage in range(STAGES):
                with Stage(f"stage_{stage}"):
                    for number in range(TASKS):
                        earlier = [earlier[-1], combine(earlier[-1], earlier[-2], number)]
        plan = flow.plan()
    if len(plan.tasks) != STAGES * TASKS:
        raise RuntimeError(f"The plan has {len(plan.tasks)} tasks.")


@dataclass(frozen=True)
class Node:
    """What any library has to keep of a task."""

    name: str
    inputs: tuple[str, ...]
    digest: str


def by_hand(watch: Stopwatch) -> None:
    """The same with nothing but a record, a hash and a place in the order for each task."""
    with watch:
        nodes: dict[str, Node] = {}
        earlier: list[Node] = []
        for number in range(STAGES * TASKS):
            inputs = earlier[-2:]
            digest = hashlib.sha256("/".join((str(number), *(node.digest for node in inputs))).encode()).hexdigest()
            node = Node(f"task_{number}", tuple(node.name for node in inputs), digest)
            nodes[node.name] = node
            earlier = [*inputs[-1:], node]
        order = list(TopologicalSorter({node.name: node.inputs for node in nodes.values()}).static_order())
    if len(order) != STAGES * TASKS:
        raise RuntimeError("The order is not whole.")


def measure(quick: bool) -> list[Row]:
    """Declare and plan the flow, and do the least of it by hand, in turns."""
    timings = in_turns({"flow": declare_and_plan, "by hand": by_hand}, 5 if quick else 15)
    return [
        row(
            f"declare and plan {STAGES * TASKS:,} tasks",
            timings["flow"],
            raw=timings["by hand"],
            raw_what="records, hashes, sorting",
            limit=LIMIT_MS,
        )
    ]
