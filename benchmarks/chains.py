"""The chain of small tasks that is taken through a production flow, through Apache Hamilton, and by hand. Needs polars and pandas only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Tasks, each of which takes the frame of the one before.
NODES = 50


def first(library: str) -> Any:
    """Return the frame that goes in: one row."""
    import pandas as pd
    import polars as pl

    return {"polars": pl, "pandas": pd}[library].DataFrame({"id": [1], "value": [1]})


def in_polars(frame: Any) -> Any:
    """What a task in polars does."""
    return frame.slice(0, 1)


def in_pandas(frame: Any) -> Any:
    """What a task in pandas does."""
    return frame.iloc[0:1]


def step(library: str) -> Callable[[Any], Any]:
    """Return what each task does."""
    return {"polars": in_polars, "pandas": in_pandas}[library]
