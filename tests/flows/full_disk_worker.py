"""Runs flows in a folder that has room for small tables only; `test_full_disk.py` starts it in a process of its own.

Arguments: how the room is limited ("tmpfs", where the folder is a small file system, or "rlimit"), and the folder. Prints one line of JSON per attempt.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import polars as pl
import sqlalchemy as sa

from pipedag_core import Flow, PipedagConfig, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import PipedagError

ROOM = 2**20
HOW, FOLDER = sys.argv[1], Path(sys.argv[2])
FILLER = FOLDER / "filler"
CONFIG = PipedagConfig(
    {"instances": {"__any__": {"table_store": {"class": "parquet", "args": {"base_path": f"{FOLDER}/{{instance_id}}"}}}}}
).get()

KINDS = ("polars", "lazy", "pandas", "pyarrow", "query")

# Values that no file format makes small: 8 MB.
LARGE = {kind: pl.DataFrame({"x": np.random.default_rng(seed).random(1_000_000)}) for seed, kind in enumerate(KINDS)}
SMALL = pl.DataFrame({"x": [1.0]})


def limit(room: int | None) -> None:
    """Leave room for so many bytes; for as many as there are with None."""
    if HOW == "rlimit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1 if room is None else room, -1))
        return
    FILLER.unlink(missing_ok=True)
    if room is not None:
        disk = os.statvfs(FOLDER)
        FILLER.write_bytes(bytes(max(disk.f_bavail * disk.f_frsize - room, 0)))


def make(kind: str, frame: pl.DataFrame):
    """Return the frame as this kind of table."""
    match kind:
        case "lazy":
            return frame.lazy()
        case "pandas":
            return frame.to_pandas()
        case "pyarrow":
            return frame.to_arrow()
        case "query":
            return sa.text(f"SELECT random() AS x FROM range({frame.height})")
    return frame


def run(kind: str, frame: pl.DataFrame, version: str):
    """Run the flow, and return its result; what is raised counts as its exception."""

    @materialize(lazy=kind == "query", version=None if kind == "query" else version)
    def table():
        return make(kind, frame)

    with Flow("shop") as flow, Stage("raw"):
        table()
    try:
        return flow.run(config=CONFIG).exception
    except PipedagError as error:
        return error


def rows() -> int:
    """Return how many rows a reader sees."""
    with open_session(CONFIG) as session:
        return session.catalog.shown()["raw"]["table"].rows


def attempt(kind: str, frame: pl.DataFrame, version: str, room: int) -> None:
    """Run with little room, then again with enough, and print what came of it."""
    files = set(FOLDER.rglob("*.parquet"))
    limit(room)
    error = run(kind, frame, version)
    limit(None)
    told = "\n".join([str(error), *getattr(error, "__notes__", ())])
    line = {"kind": kind, "error": type(error).__name__, "text": told, "rows": rows(), "left": len(set(FOLDER.rglob("*.parquet")) - files)}
    again = run(kind, frame, version)
    print(json.dumps({**line, "again": str(again), "rows_again": rows()}), flush=True)


for kind in KINDS:
    assert run(kind, SMALL, f"{kind} small") is None
    attempt(kind, LARGE[kind], f"{kind} large", ROOM)
# Not even the catalog has room.
attempt("polars", SMALL, "none", 0)
