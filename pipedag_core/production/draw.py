"""Pictures and descriptions of a production flow. Names are escaped, so that none of them can say anything else than itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final, final

from pipedag_core.define.walk import join, segment
from pipedag_core.errors import ProductionError
from pipedag_core.hashing import digest
from pipedag_core.plan.draw import dot_text, mermaid_text
from pipedag_core.plan.model import Plan, PlanStage, PlanTask, Step, StepKind
from pipedag_core.production.program import Program, uses
from pipedag_core.production.shapes import readable

#: Kind of a node -> colour of its box.
_COLOURS: Final = {"cut": "#ffffff", "input": "#cfe8ff", "const": "#ffe9b8", "ignored": "#e4e4e4", "task": "#d8f3d8", "output": "#f6d5ee"}


@final
@dataclass(frozen=True)
class _Picture:
    """Nodes (key -> (label, kind)) and edges (from, to)."""

    nodes: Mapping[str, tuple[str, str]]
    edges: tuple[tuple[str, str], ...]


def _picture(program: Program) -> _Picture:
    nodes: dict[str, tuple[str, str]] = {}
    keys: dict[int, str] = {}
    for name, slot in program.inputs.items():
        keys[slot] = f"s{slot}"
        nodes[keys[slot]] = (name, "input")
    for slot, name in program.consts.items():
        keys[slot] = f"s{slot}"
        nodes[keys[slot]] = (name, "const")
    for node in program.nodes:
        keys[node.slot] = f"s{node.slot}"
        nodes[keys[node.slot]] = (node.full_id, "task")
    edges: dict[tuple[str, str], None] = {}
    tasks: dict[str, str] = {}
    for slot, task in program.cut.items():
        # The training flow ends here: what it would compute is supplied or frozen instead.
        key = tasks.setdefault(task, f"c{len(tasks)}")
        nodes[key] = (task, "cut")
        edges[key, keys[slot]] = None
    for node in program.nodes:
        for value in node.parameters.values():
            for use in uses(value):
                if use.slot is not None:
                    edges[keys[use.slot], keys[node.slot]] = None
    for number, (name, value) in enumerate(program.outputs.items()):
        nodes[f"o{number}"] = (name, "output")
        for use in uses(value):
            if use.slot is not None:
                edges[keys[use.slot], f"o{number}"] = None
    for number, name in enumerate(program.ignored):
        nodes[f"i{number}"] = (name, "ignored")
    return _Picture(nodes, tuple(edges))


def draw(prod: Any, format: str) -> str:
    """Return a picture as text; see `ProductionFlow.graph`."""
    makers = {"html": _html, "mermaid": _mermaid, "dot": _dot}
    if format not in makers:
        raise ProductionError(f"A production flow cannot be drawn as {format!r}. Formats are: {', '.join(makers)}.")
    return makers[format](prod.parts.program)


def _mermaid(program: Program) -> str:
    picture = _picture(program)
    lines = ["flowchart LR"]
    lines += [f'  {key}["{mermaid_text(label)}"]:::{kind}' for key, (label, kind) in picture.nodes.items()]
    lines += [f"  {first} --> {second}" for first, second in picture.edges]
    lines += [f"  classDef {kind} fill:{colour}" for kind, colour in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def _dot(program: Program) -> str:
    picture = _picture(program)
    lines = [f'digraph "{dot_text(program.flow)}" {{', "  rankdir=LR;", "  node [shape=box, style=filled];"]
    lines += [f'  {key} [label="{dot_text(label)}", fillcolor="{_COLOURS[kind]}"];' for key, (label, kind) in picture.nodes.items()]
    lines += [f"  {first} -> {second};" for first, second in picture.edges]
    return "\n".join([*lines, "}"]) + "\n"


#: Sizes of the picture, in pixels.
_WIDTH, _HEIGHT, _GAP, _ROW = 220, 30, 60, 44


def _html(program: Program) -> str:
    """Return one page: the nodes in columns by how many tasks come before them, edges as curves."""
    picture = _picture(program)
    column: dict[str, int] = dict.fromkeys(picture.nodes, 0)
    for _ in picture.nodes:
        moved = [(second, column[first] + 1) for first, second in picture.edges if column[second] <= column[first]]
        if not moved:
            break
        column.update(moved)
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for key in picture.nodes:
        row = rows[column[key]] = rows.get(column[key], -1) + 1
        place[key] = (20 + column[key] * (_WIDTH + _GAP), 20 + row * _ROW)
    width = 40 + (max(rows, default=0) + 1) * (_WIDTH + _GAP)
    height = 40 + (max(rows.values(), default=0) + 1) * _ROW
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    for first, second in picture.edges:
        (x1, y1), (x2, y2) = place[first], place[second]
        x1, y1, y2 = x1 + _WIDTH, y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
        parts.append(f'<path d="M{x1} {y1} C{x1 + _GAP // 2} {y1} {x2 - _GAP // 2} {y2} {x2} {y2}" fill="none" stroke="#888"/>')
    for key, (label, kind) in picture.nodes.items():
        x, y = place[key]
        shown = label if len(label) <= 32 else f"{label[:15]}…{label[-15:]}"
        parts.append(
            f'<g><title>{escape(kind)}: {escape(label)}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
            f'fill="{_COLOURS[kind]}" stroke="#666"/><text x="{x + 8}" y="{y + 19}">{escape(shown)}</text></g>'
        )
    legend = " ".join(
        f'<span style="background:{colour};padding:2px 8px;border:1px solid #666">{kind}</span>' for kind, colour in _COLOURS.items()
    )
    title = f"Production flow of {escape(program.flow)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body style="font-family:sans-serif">'
        f'<h1>{title}</h1><p>{legend}</p><div style="overflow:auto">{"".join(parts)}</svg></div></body></html>\n'
    )


def describe(prod: Any) -> str:
    """Return all of a production flow as text; see `ProductionFlow.describe`."""
    parts = prod.parts
    program: Program = parts.program
    lines = [f"production flow of {program.flow}"]
    for title, shapes in (("inputs", parts.inputs), ("outputs", {name: parts.outputs.get(name) for name in program.outputs})):
        lines.append(f"{title}:")
        for name, shape in shapes.items():
            lines += [f"  {name}: not committed by training"] if shape is None else _told(name, readable(shape))
    lines.append("frozen:")
    lines += [f"  {name}" for name in program.consts.values()] or ["  nothing"]
    lines.append("ignored:")
    lines += [f"  {name}" for name in program.ignored] or ["  nothing"]
    lines.append("runs:")
    lines += [f"  {node.full_id}" for node in program.nodes]
    origin = parts.provenance
    stages = ", ".join(f"{stage} g{row['generation']}" for stage, row in origin["stages"].items())
    git = origin.get("git")
    commit = f"; commit {git['commit'][:12]}{' (changed since)' if git['changed'] else ''}" if git else ""
    lines.append(f"from: instance {origin['instance']}; {stages}{commit}")
    return "\n".join(lines)


def _told(path: str, shape: Any) -> list[str]:
    """Return a line for each leaf of a readable shape."""
    if isinstance(shape, (list, tuple)):
        shape = dict(enumerate(shape))
    if isinstance(shape, Mapping):
        return [line for key, value in shape.items() for line in _told(join(path, segment(key)), value)]
    names = getattr(shape, "names", None)
    return [f"  {path}: " + (f"table({', '.join(f'{item.name} {item.type}' for item in shape)})" if names is not None else str(shape))]


def to_plan(program: Program) -> Plan:
    """Return the tasks of a program as a plan; see `ProductionFlow.to_plan`."""
    by_slot = {node.slot: node for node in program.nodes}
    tasks: list[PlanTask] = []
    steps: list[Step] = []
    for node in program.nodes:
        before = dict.fromkeys(
            use.slot for value in node.parameters.values() for use in uses(value) if use.slot is not None and use.slot in by_slot
        )
        upstream = tuple(by_slot[slot].full_id for slot in before)
        options = node.options
        tasks.append(
            PlanTask(
                node.stage,
                node.id,
                options.name,
                digest("production", node.full_id, *upstream),
                upstream,
                "never",
                description=node.function.description,
            )
        )
        steps.append(Step(f"task:{node.full_id}", StepKind.TASK, node.stage, node.id, tuple(f"task:{other}" for other in upstream)))
    stages = dict.fromkeys(node.stage for node in program.nodes)
    wiring = digest(
        "production", *(repr((step.id, step.upstream)) for step in steps), repr(tuple(program.inputs)), repr(tuple(program.consts.values()))
    )
    return Plan(program.flow, None, None, wiring, tuple(PlanStage(name, name) for name in stages), tuple(tasks), tuple(steps))
