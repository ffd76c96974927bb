"""Tables on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import typer


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers: boxed on a terminal, as aligned columns elsewhere, so that other programs can read them."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left")
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in texts:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    if title:
        typer.echo(f"{title}:")
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    for row in [list(headers), *texts]:
        typer.echo("  ".join(cell.replace("\n", " ").ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def moment(seconds: float | None) -> str:
    """Return a Unix time as local date and time."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def span(seconds: float | None) -> str:
    """Return a duration in seconds as short text."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def count(number: int | None, noun: str) -> str:
    """Return `1 row`, `1,234 rows`, or nothing where the number is not known."""
    return "" if number is None else f"{number:,} {noun}{'' if number == 1 else 's'}"
