"""Measures Apache Hamilton's driver, in its own environment: `production.py` starts this with that environment's Python.

For each line that it reads it takes the same chain of small frames through the driver and by hand, in turns, and prints both as seconds, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import Any

# Before it is imported: it would tell its makers that it is used.
os.environ["HAMILTON_TELEMETRY_ENABLED"] = "false"

from chains import NODES, first, step
from hamilton import driver
from timing import in_turns


def chain(library: str) -> tuple[Any, list[Any]]:
    """Return a driver for the chain, and its functions."""
    module = ModuleType(f"chain_in_{library}")
    sys.modules[module.__name__] = module
    vars(module)["step"] = step(library)
    kind = "pl.DataFrame" if library == "polars" else "pd.DataFrame"
    lines = ["import pandas as pd", "import polars as pl"]
    for number in range(NODES):
        before = f"node_{number - 1}" if number else "start"
        lines.append(f"def node_{number}({before}: {kind}) -> {kind}:\n    return step({before})")
    exec("\n".join(lines), vars(module))
    return driver.Builder().with_modules(module).build(), [getattr(module, f"node_{number}") for number in range(NODES)]


def main() -> None:
    """Measure once per line."""
    chains = {library: (*chain(library), first(library)) for library in ("polars", "pandas")}
    last = f"node_{NODES - 1}"
    for line in sys.stdin:
        library, repeats = line.split()
        dr, functions, frame = chains[library]

        def by_driver(watch: Any, dr: Any = dr, frame: Any = frame) -> None:
            with watch:
                dr.execute([last], inputs={"start": frame})

        def by_hand(watch: Any, functions: Any = functions, frame: Any = frame) -> None:
            with watch:
                for function in functions:
                    frame = function(frame)

        timings = in_turns({"driver": by_driver, "hand": by_hand}, int(repeats))
        print(json.dumps({name: timing.seconds for name, timing in timings.items()}), flush=True)


if __name__ == "__main__":
    main()
