"""Measure this package beside the raw limit of each thing: `python benchmarks/run.py [--quick] [--only NAME]`.

Prints a table and writes `benchmarks/results/latest.json`. Each figure is the median of several runs, taken in turns with its raw limit, on
the same machine in the same minute; so compare within one run, and not between runs. The exit status says whether all limits were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import Row, Unavailable

RESULTS = Path(__file__).resolve().parent / "results"

#: Name -> module with `measure(quick) -> rows`, in the order in which they run.
FIGURES = {
    "import": "import_weight",
    "plan": "planning",
    "tasks": "lazy_sql",
    "frames": "small_frames",
    "beside": "beside_cached",
    "tpch": "tpch_flow",
    "table": "large_table",
    "streaming": "streaming",
    "postgres": "postgres",
    "duckdb": "duckdb_file",
    "production": "production",
    "mlflow": "with_mlflow",
    "dagster": "dagster_assets",
    "airflow": "airflow_dags",
    "cosmos": "airflow_cosmos",
    "reference": "reference",
}

VERSIONS = ("duckdb", "sqlalchemy", "polars", "pyarrow")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure this package beside the raw limit of each thing.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, fewer tasks and rows: to see that it works, not for figures")
    parser.add_argument("--only", action="append", choices=[*FIGURES], metavar="NAME", help=f"one of {', '.join(FIGURES)}; may be repeated")
    return parser.parse_args(arguments)


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """Return the row as the table shows it."""
    raw = "" if row.raw is None else f"{number(row.raw)} {row.unit}"
    unit = "x" if row.compared == "times" else f" {row.unit}"
    sign = "+" if row.compared == "above" and row.figure >= 0 else ""
    compared = f"{sign}{number(row.figure)}{unit}"
    limit = "" if row.limit is None else f"{sign}{number(row.limit)}{unit}"
    verdict = {None: "", True: "[green]kept[/]", False: "[red]MISSED[/]"}[row.within]
    return row.what, f"{number(row.value)} {row.unit}", raw, row.raw_what, compared, limit, verdict, row.note


def load() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def facts(quick: bool) -> dict[str, Any]:
    """Return what the figures depend on, without naming the machine."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load_before": load(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 0 if all limits were kept."""
    options = parse(arguments)
    # A file or a pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 170)
    # Before anything is measured: what else the machine was doing.
    report = facts(options.quick)
    table = Table(title="Benchmarks" + (" (quick: not for figures)" if options.quick else ""))
    for name in ("figure", "median", "raw limit", "which is", "compared", "allowed", "", "note"):
        table.add_column(name, justify="right" if name in {"median", "raw limit", "compared", "allowed"} else "left")
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for name, module in FIGURES.items():
        if options.only and name not in options.only:
            continue
        console.print(f"Measuring {name} ...")
        try:
            measured = import_module(module).measure(options.quick)
        except Unavailable as error:
            skipped[name] = str(error)
            continue
        for row in measured:
            table.add_row(*cells(row))
        rows += measured
    if rows:
        console.print(table)
    for name, reason in skipped.items():
        console.print(f"Skipped {name}: {reason}")
    # What is measured here keeps about one core busy, or all of them where polars is at work.
    if (before := report["load_before"]) is not None and before > 1:
        console.print(
            f"The machine was busy before this started (load {before:.1f} on {report['cores']} cores), so the figures are too high."
        )
    report |= {"rows": [row.to_dict() for row in rows], "skipped": skipped}
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / "latest.json"
    target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"Written: {target.relative_to(RESULTS.parent.parent)}")
    return 0 if all(row.within is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
