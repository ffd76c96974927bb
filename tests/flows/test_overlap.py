"""The thread engine writes one table while the next is computed."""

from __future__ import annotations

import threading

import polars as pl
import sqlalchemy as sa

from pipedag_core import Blob, Flow, PipedagConfig, Stage, materialize
from pipedag_core.engines.threads import ThreadEngine
from pipedag_core.ports.events import PointReached


class HoldWriting:
    """Lets the first table's writing end only when the next task computes."""

    def __init__(self):
        self.computes = threading.Event()
        self.held: list[bool] = []

    def on_event(self, event):
        if isinstance(event, PointReached) and event.point == "after_write" and not self.held:
            self.held.append(self.computes.wait(20))


def run(tmp_path, returned, *, lazy=False):
    watcher = HoldWriting()

    @materialize(lazy=lazy, version=None if lazy else "1")
    def first():
        return returned()

    @materialize(version="1")
    def second():
        watcher.computes.set()
        return 1

    with Flow("f") as flow, Stage("s"):
        first()
        second()
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "{instance_id}")}}
    config = PipedagConfig({"name": "p", "instances": {"i": {"instance_id": "i", "table_store": store}}}).get("i")
    result = flow.run(config=config, orchestration_engine=ThreadEngine(max_workers=1), observers=[watcher], fail_fast=True)
    return result, watcher


def test_a_frame_is_written_while_the_next_task_computes(tmp_path):
    result, watcher = run(tmp_path, lambda: pl.DataFrame({"x": [1, 2]}))
    assert (result.successful, watcher.held) == (True, [True])


def test_so_is_a_frame_of_a_lazy_task_and_a_blob(tmp_path):
    for number, (returned, lazy) in enumerate([(lambda: pl.DataFrame({"x": [3]}), True), (lambda: Blob({"a": 1}), False)]):
        result, watcher = run(tmp_path / str(number), returned, lazy=lazy)
        assert (result.successful, watcher.held) == (True, [True])


def test_a_query_computes_while_it_writes_so_nothing_else_begins(tmp_path):
    began = []

    @materialize(lazy=True)
    def first():
        return sa.text("SELECT 1 AS x")

    @materialize(version="1")
    def second():
        began.append("second")
        return 1

    class Watch:
        def on_event(self, event):
            if isinstance(event, PointReached) and event.point == "after_write":
                began.append("written")

    with Flow("f") as flow, Stage("s"):
        first()
        second()
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "{instance_id}")}}
    config = PipedagConfig({"name": "p", "instances": {"i": {"instance_id": "i", "table_store": store}}}).get("i")
    flow.run(config=config, orchestration_engine=ThreadEngine(max_workers=1), observers=[Watch()], fail_fast=True)
    assert began == ["written", "second"]
