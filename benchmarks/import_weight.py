"""What it costs to import the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from timing import Row, in_turns, interpreter, row

#: At most this many milliseconds above a bare interpreter.
LIMIT_MS = 60

#: What is imported, its code, and what it may cost.
IMPORTS = (
    ("import pipedag_core", "import pipedag_core", LIMIT_MS),
    ("... and what flows are declared with", "from pipedag_core import Flow, Stage, Table, materialize", None),
)

#: Prints what was loaded from where packages are installed, other than by the interpreter's own start.
THIRD_PARTY = """
import json, sys
before = set(sys.modules)
{imports}
paths = {{name: str(getattr(sys.modules[name], "__file__", "")) for name in set(sys.modules) - before}}
print(json.dumps(sorted({{name.partition(".")[0] for name, path in paths.items() if "site-packages" in path}} - {{"pipedag_core"}})))
"""


def measure(quick: bool) -> list[Row]:
    """Start interpreters with and without the import, in turns."""
    # As after an installation: modules are compiled once, by the round that does not count.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    runs = {"bare": interpreter("pass", environment=environment)}
    runs |= {name: interpreter(code, environment=environment) for name, code, _ in IMPORTS}
    timings = in_turns(runs, 7 if quick else 21)
    rows = []
    for name, code, limit in IMPORTS:
        shown = subprocess.run(
            (sys.executable, "-c", THIRD_PARTY.format(imports=code)), env=environment, check=True, capture_output=True, text=True
        )
        loaded = json.loads(shown.stdout)
        note = f"LOADS {', '.join(loaded)}" if loaded else "no third-party module loaded"
        rows.append(
            row(
                name,
                timings[name],
                raw=timings["bare"],
                raw_what="bare Python",
                compared="above",
                limit=limit,
                note=note,
                holds=not loaded,
            )
        )
    return rows
