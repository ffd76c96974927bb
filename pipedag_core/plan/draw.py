"""Pictures of a plan as text: Mermaid and Graphviz. Names are escaped, so that none of them can say anything else than itself."""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from itertools import count
from typing import Any, Final

from pipedag_core.define.flow import Flow
from pipedag_core.errors import FlowError
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.model import Plan, StepKind

#: Formats that users ask for.
FORMATS: Final = ("mermaid", "dot")

_KROKI: Final = "https://kroki.io"


@dataclass
class _Box:
    """A stage or a group with what is drawn inside: tasks as (node, label)."""

    label: str
    tasks: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    boxes: dict[tuple[str, str], _Box] = field(default_factory=dict[tuple[str, str], "_Box"])


@dataclass
class _Picture:
    """Boxes in boxes, and edges (from, to, whether data flows along it)."""

    root: _Box
    edges: list[tuple[str, str, bool]]


def _picture(plan: Plan) -> _Picture:
    """Return what is drawn of a plan: its task steps; groups as boxes inside each stage that they touch."""
    root = _Box(plan.flow)
    running = {f"{step.stage}.{step.task}": step for step in plan.steps if step.kind is StepKind.TASK}
    stages: dict[str, _Box] = {}
    units = {step.stage for step in plan.steps if step.kind is StepKind.OPEN}
    for stage in plan.stages:
        if stage.unit in units:
            around = root if stage.parent is None else stages[stage.parent]
            stages[stage.name] = around.boxes.setdefault(("stage", stage.name), _Box(stage.name))
    nodes: dict[str, str] = {}
    for task in plan.tasks:
        if task.id in running:
            nodes[task.id] = f"t{len(nodes)}"
            box = stages[task.stage]
            for label in task.groups:
                box = box.boxes.setdefault(("group", label), _Box(label))
            box.tasks.append((nodes[task.id], task.task))
    edges: list[tuple[str, str, bool]] = []
    for task in plan.tasks:
        if task.id in running:
            edges += [(nodes[other], nodes[task.id], True) for other in task.upstream if other in nodes]
            waits = [other.removeprefix("task:") for other in running[task.id].upstream if other.startswith("task:")]
            edges += [(nodes[other], nodes[task.id], False) for other in waits if other not in task.upstream]
    return _Picture(root, edges)


def mermaid_text(label: str) -> str:
    """Return a label that says nothing else than itself in Mermaid text."""
    # Mermaid reads "#60;" as the character with that number; letters and digits of any script are safe.
    return "".join(char if char.isalnum() or char in " _-." else f"#{ord(char)};" for char in label)


def dot_text(label: str) -> str:
    """Return a label that says nothing else than itself in Graphviz text."""
    text = " ".join(label.split())
    return text.replace("\\", "\\\\").replace('"', '\\"')


def mermaid(plan: Plan) -> str:
    """Return the plan's graph as Mermaid text: a subgraph per stage, a node per task; dotted edges are mere order."""
    picture = _picture(plan)
    lines = ["flowchart LR"]
    numbers = count()

    def box(item: _Box, indent: str) -> Iterator[str]:
        for node, label in item.tasks:
            yield f'{indent}{node}["{mermaid_text(label)}"]'
        for inside in item.boxes.values():
            yield f'{indent}subgraph s{next(numbers)}["{mermaid_text(inside.label)}"]'
            yield from box(inside, indent + "  ")
            yield f"{indent}end"

    lines += box(picture.root, "  ")
    lines += [f"  {first} {'-->' if data else '-.->'} {second}" for first, second, data in picture.edges]
    return "\n".join(lines) + "\n"


def dot(plan: Plan) -> str:
    """Return the plan's graph as Graphviz text: a cluster per stage, a node per task; dotted edges are mere order."""
    picture = _picture(plan)
    lines = [f'digraph "{dot_text(plan.flow)}" {{', "  rankdir=LR;", "  node [shape=box];"]
    numbers = count()

    def box(item: _Box, indent: str) -> Iterator[str]:
        for node, label in item.tasks:
            yield f'{indent}{node} [label="{dot_text(label)}"];'
        for inside in item.boxes.values():
            yield f"{indent}subgraph cluster_{next(numbers)} {{"
            yield f'{indent}  label="{dot_text(inside.label)}";'
            yield from box(inside, indent + "  ")
            yield f"{indent}}}"

    lines += box(picture.root, "  ")
    lines += [f"  {first} -> {second}{'' if data else ' [style=dotted]'};" for first, second, data in picture.edges]
    return "\n".join([*lines, "}"]) + "\n"


def outline(plan: Plan) -> str:
    """Return the plan's stages and tasks as nested HTML lists."""

    def box(item: _Box) -> str:
        tasks = "".join(f"<li>{escape(label)}</li>" for _, label in item.tasks)
        boxes = "".join(f"<li><b>{escape(inside.label)}</b>{box(inside)}</li>" for inside in item.boxes.values())
        return f"<ul>{tasks}{boxes}</ul>"

    return f"<div><b>{escape(plan.flow)}</b>{box(_picture(plan).root)}</div>"


def url(plan: Plan, service: str = _KROKI) -> str:
    """Return the address under which a Kroki service draws the plan; nothing is sent before somebody opens it."""
    packed = urlsafe_b64encode(zlib.compress(dot(plan).encode(), 9)).decode("ascii")
    return f"{service.rstrip('/')}/graphviz/svg/{packed}"


def _pydot(plan: Plan) -> Any:
    try:
        library = import_module("pydot")
    except ImportError as error:
        raise FlowError("visualize_pydot() needs the library pydot. Install it, or use flow.graph('dot').", flow=plan.flow) from error
    return library.graph_from_dot_data(dot(plan))[0]


def draw_flow(flow: Flow, format: str = "mermaid") -> Any:
    """Return a picture of a flow: what `flow.graph(...)` and `flow.visualize...()` call.

    Args:
        flow: A flow whose declaration has ended.
        format: "mermaid" or "dot"; for the other verbs "url", "outline" (HTML lists) or "pydot".

    Raises:
        FlowError: The format is not known.
    """
    makers = {"mermaid": mermaid, "dot": dot, "url": url, "outline": outline, "pydot": _pydot}
    if format not in makers:
        raise FlowError(f"A flow cannot be drawn as {format!r}. Formats are: {', '.join(FORMATS)}.", flow=flow.name)
    return makers[format](compile_flow(flow))
