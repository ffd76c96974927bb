"""The same lazy SQL tasks with the reference library, pydiverse-pipedag, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import environments
import lazy_sql
from timing import Row, Timing, Unavailable, row

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".reference"
CONSTRAINTS = HERE / "reference-constraints.txt"

#: The least Python that the reference library takes.
LEAST_PYTHON = (3, 11, 14)

#: Names one to use.
VARIABLE = "PYTHON_REFERENCE"


def candidates() -> Iterator[str]:
    """Yield interpreters that may do."""
    if named := os.environ.get(VARIABLE):
        yield named
    yield sys.executable
    for name in ("python3.12", "python3.13", "python3.11"):
        if found := shutil.which(name):
            yield found


def find_python() -> str:
    """Return an interpreter that the reference library can use."""
    for python in candidates():
        try:
            shown = subprocess.run(
                (python, "-c", "import sys; print(*sys.version_info[:3])"), capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            continue
        version = tuple(int(part) for part in shown.stdout.split())
        # Its pins have wheels up to 3.13.
        if LEAST_PYTHON <= version < (3, 14):
            return python
    least = ".".join(str(part) for part in LEAST_PYTHON)
    raise Unavailable(f"No Python from {least} to 3.13 was found. Put python3.12 on the PATH, or name one in {VARIABLE}.")


def environment() -> Path:
    """Return the Python of the reference library's environment; make the environment if it is not there or has other versions."""
    return environments.environment(ENVIRONMENT, CONSTRAINTS, find_python, "the reference library")


def measure(quick: bool) -> list[Row]:
    """Measure in the other environment, and return rows that stand beside those of `lazy_sql` and `import_weight`."""
    python = environment()
    tasks = lazy_sql.tasks_per_stage(quick)
    total = lazy_sql.STAGES * tasks
    counts = {"stages": lazy_sql.STAGES, "tasks": tasks, "repeats": 1 if quick else 3, "import-repeats": 3 if quick else 7}
    options = [text for name, value in counts.items() for text in (f"--{name}", str(value))]
    shown = subprocess.run((str(python), str(HERE / "reference_worker.py"), *options), capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        raise Unavailable(f"The reference library failed: {shown.stderr.strip().splitlines()[-1]}")
    raw = json.loads(shown.stdout.splitlines()[-1])
    timings = {name: Timing(tuple(seconds)) for name, seconds in raw.items()}
    store = "in its DuckDB store"
    return [
        row("reference: import", timings["import"], raw=timings["bare"], raw_what="bare Python", compared="above"),
        row(f"reference: lazy SQL task, all {total} cached", timings["cached"], per=total, note=store),
        row(f"reference: lazy SQL task, none of {total} cached", timings["fresh"], per=total, note=store),
    ]
