"""Runs a flow in a folder that is made read-only in between; `test_read_only_folder.py` starts it in a process of its own.

Arguments: the folder, and a command that makes its part read-only. Prints one line of JSON per run, then what a reader gets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl

from pipedag_core import Flow, PipedagConfig, Stage, materialize
from pipedag_core.config.wire import open_catalog, open_table_store
from pipedag_core.errors import PipedagError
from pipedag_core.ports.data import Form

FOLDER = Path(sys.argv[1])
CONFIG = PipedagConfig(
    {"instances": {"__any__": {"table_store": {"class": "parquet", "args": {"base_path": f"{FOLDER}/{{instance_id}}"}}}}}
).get()


def run(version: str) -> None:
    """Run a flow of one task and print what came of it."""

    @materialize(version=version)
    def table():
        return pl.DataFrame({"x": [version]})

    with Flow("shop") as flow, Stage("raw"):
        table()
    try:
        error = flow.run(config=CONFIG).exception
    except PipedagError as raised:
        error = raised
    told = "\n".join([str(error), *getattr(error, "__notes__", ())])
    print(json.dumps({"error": type(error).__name__, "text": told}), flush=True)


run("1")
subprocess.run(["sh", "-c", sys.argv[2]], check=True)
run("2")
catalog = open_catalog(CONFIG, read_only=True)
with open_table_store(CONFIG).session("reader") as access:
    path = access.read(catalog.shown()["raw"]["table"], Form.FILES).paths[0]
    print(json.dumps({"rows": pl.read_parquet(path).to_dicts()}))
