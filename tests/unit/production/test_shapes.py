"""Inputs of a production flow, held against what training had."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.hooks.registry import Hooks
from pipedag_core.production.frames import Frames
from pipedag_core.production.shapes import TableShape

FLIGHTS = pl.DataFrame({"id": [1, 2], "carrier": ["AA", "UA"]})


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, lambda frame: frame, lambda frame: frame.lazy().filter(pl.col("id") > 0)])
def test_frames_that_fit_are_handed_on_as_they_are_however_often(form):
    frames, shape = Frames(Hooks()), TableShape(from_arrow(FLIGHTS.to_arrow().schema))
    for _ in range(3):
        problems: list[str] = []
        # What has to be cast becomes an Arrow table.
        assert type(shape.check(form(FLIGHTS), frames, "flights", problems)) is pl.DataFrame
        assert problems == []


def test_streams_that_fit_are_handed_on_as_tables_without_a_cast():
    arrow = FLIGHTS.to_arrow()
    frames, shape = Frames(Hooks()), TableShape(from_arrow(arrow.schema))
    for _ in range(2):
        handed = shape.check(pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches()), frames, "flights", [])
        assert handed.column("id").chunk(0).buffers()[1].address == arrow.column("id").chunk(0).buffers()[1].address


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, lambda frame: frame])
def test_frames_that_do_not_fit_say_so_however_often(form):
    frames, shape = Frames(Hooks()), TableShape(from_arrow(FLIGHTS.to_arrow().schema))
    for _ in range(2):
        problems: list[str] = []
        shape.check(form(FLIGHTS.drop("carrier")), frames, "flights", problems)
        assert problems == ["flights: missing column 'carrier' (large_string); got: id"]
