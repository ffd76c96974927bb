"""The flights pipeline as Dagster assets: `dagster dev -f dags/dagster/definitions.py` shows them, from any folder.

Another instance: `FLIGHTS_INSTANCE=full dagster dev ...`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipedag_dagster import build_definitions

DAGS = Path(__file__).resolve().parents[1]

# Dagster looks for code in the folder in which it was started.
sys.path.append(str(DAGS))

defs = build_definitions(
    "pipelines.flights:get_pipeline",
    os.environ.get("FLIGHTS_INSTANCE", "mini"),
    config=DAGS / "pipedag.yaml",
    preview_rows=5,
    schedules={"*": "0 6 * * *"},
    report_outside_runs=True,
)
