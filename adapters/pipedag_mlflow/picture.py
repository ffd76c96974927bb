"""A page that shows a flow's tasks, from left to right, in the colour of what became of each in a run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import TaskResult

_COLOURS: Final = {"ran": "#ffe0a3", "cached": "#cdeccd", "failed": "#f5b5b5", "skipped": "#e4e4e4", "": "#ffffff"}
_WIDTH, _HEIGHT, _GAP, _ROW = 230, 32, 60, 44


def page(plan: Plan, results: Mapping[str, TaskResult]) -> str:
    """Return one HTML page that needs nothing else; names are escaped, so that none of them can say anything but itself."""
    ids = [task.id for task in plan.tasks]
    column = dict.fromkeys(ids, 0)
    # Tasks stand in wiring order, so what a task needs comes before it.
    for task in plan.tasks:
        column[task.id] = max((column[other] + 1 for other in task.upstream if other in column), default=0)
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for id in ids:
        row = rows[column[id]] = rows.get(column[id], -1) + 1
        place[id] = (20 + column[id] * (_WIDTH + _GAP), 20 + row * _ROW)
    width = 40 + (max(rows, default=0) + 1) * (_WIDTH + _GAP)
    height = 40 + (max(rows.values(), default=0) + 1) * _ROW
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    for task in plan.tasks:
        for other in task.upstream:
            if other in place:
                (x1, y1), (x2, y2) = place[other], place[task.id]
                x1, y1, y2 = x1 + _WIDTH, y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
                parts.append(f'<path d="M{x1} {y1} C{x1 + 30} {y1} {x2 - 30} {y2} {x2} {y2}" fill="none" stroke="#999"/>')
    for id in ids:
        x, y = place[id]
        result = results.get(id)
        outcome = "" if result is None else result.outcome
        told = escape(f"{id}: {outcome or 'not part of this run'}{f', {result.reason}' if result and result.reason else ''}")
        shown = id if len(id) <= 34 else f"{id[:16]}…{id[-16:]}"
        parts.append(
            f'<g><title>{told}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
            f'fill="{_COLOURS.get(outcome, "#ffffff")}" stroke="#666"/><text x="{x + 8}" y="{y + 20}">{escape(shown)}</text></g>'
        )
    legend = " ".join(
        f'<span style="background:{colour};padding:2px 8px;border:1px solid #666">{name}</span>'
        for name, colour in _COLOURS.items()
        if name
    )
    title = f"Flow {escape(plan.flow)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body style="font-family:sans-serif">'
        f'<h1>{title}</h1><p>{legend}</p><div style="overflow:auto">{"".join(parts)}</svg></div></body></html>\n'
    )
