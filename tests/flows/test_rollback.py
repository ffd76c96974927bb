"""Going back to an earlier generation: what readers see, what the next run does, and what is refused."""

from __future__ import annotations

import threading

import duckdb
import polars as pl
import pytest

from pipedag_core import Blob, CacheValidationMode, Flow, Stage, Table, materialize
from pipedag_core.config.wire import catalog_path, open_session
from pipedag_core.errors import LeaseHeld, RunError, StoredDataMissing
from pipedag_core.housekeeping import roll_back
from pipedag_core.ports.catalogs import Retention


class Demo:
    """A flow over a number: stage `raw` has a table and a blob, stage `mart` doubles the table."""

    def __init__(self, config):
        self.config = config
        self.calls = []

    def run(self, number, *components, **options):
        """Run the flow, and return the names of the tasks that were called."""

        @materialize(version=f"{number}", nout=2)
        def source():
            self.calls.append("source")
            return Table(pl.DataFrame({"x": [number]}), "t"), Blob(number, "b")

        @materialize(version="1", input_type=pl.DataFrame)
        def double(t):
            self.calls.append("double")
            return t * 2

        with Flow("demo") as flow:
            with Stage("raw"):
                table, _ = source()
            with Stage("mart"):
                double(table)
        self.calls.clear()
        flow.run(*components, config=self.config, fail_fast=True, **options)
        return list(self.calls)

    def explored(self):
        """Return what `explore.duckdb` shows: (raw, mart)."""
        with duckdb.connect(str(catalog_path(self.config).parent / "explore.duckdb"), read_only=True) as connection:
            return tuple(connection.execute(f"FROM {name}").fetchone()[0] for name in ("raw.t", "mart.double"))


@pytest.fixture
def demo(config):
    demo = Demo(config)
    for number in (1, 2):
        demo.run(number)
    return demo


def test_readers_see_the_earlier_tables_and_other_stages_stay(demo):
    assert demo.explored() == (2, 4)
    done = roll_back("Raw", config=demo.config)
    assert (done.generations, done.changed) == ({"raw": 3}, True)
    assert demo.explored() == (1, 4)
    roll_back("raw", config=demo.config)
    assert demo.explored() == (2, 4)


def test_the_code_of_then_finds_everything_and_nothing_is_committed(demo):
    roll_back("raw", config=demo.config)
    roll_back("mart", config=demo.config)
    assert demo.explored() == (1, 2)
    assert demo.run(1) == []
    with open_session(demo.config) as session:
        assert {row.stage: row.number for row in session.catalog.generations() if row.current} == {"raw": 3, "mart": 3}


def test_todays_code_makes_its_results_current_again_without_computing_them(demo):
    roll_back("raw", config=demo.config)
    assert demo.run(2) == []
    assert demo.explored() == (2, 4)


def test_a_selected_consumer_takes_what_was_gone_back_to(demo):
    roll_back("raw", config=demo.config)
    demo.run(2, "mart")
    assert demo.explored() == (1, 2)


def test_a_forced_result_that_was_bad_stays_away(config, tables_of):
    numbers = iter([1, 2])

    @materialize(version="1")
    def task():
        return pl.DataFrame({"x": [next(numbers)]})

    with Flow("f") as flow, Stage("s"):
        task()
    flow.run(config=config, fail_fast=True)
    flow.run(config=config, fail_fast=True, cache_validation_mode=CacheValidationMode.FORCE_CACHE_INVALID)
    roll_back("s", config=config)
    flow.run(config=config, fail_fast=True)
    assert tables_of(config)["s"]["task"]["x"].to_list() == [1]


def test_what_clean_up_has_removed_is_refused_with_what_is_there(demo):
    demo.run(3)
    with open_session(demo.config) as session:
        session.catalog.expire(Retention(2, 1, 0.0))
    with pytest.raises(RunError, match=r"Generation 1 of stage 'raw' cannot be made current again.*Current is 3\. Kept are: 2"):
        roll_back("raw", 1, config=demo.config)
    assert roll_back("raw", 2, config=demo.config).changed


def test_lost_files_are_refused_and_made_again_by_the_next_run(demo):
    with open_session(demo.config) as session:
        lost = session.catalog.entries("raw", 1)
    base = catalog_path(demo.config).parent
    for item in lost.values():
        next(base.rglob(item.location)).unlink()
    with pytest.raises(StoredDataMissing, match=r"raw\.b, raw\.t is gone or damaged\. Nothing was changed"):
        roll_back("raw", config=demo.config)
    assert demo.explored() == (2, 4)
    assert demo.run(1) == ["source"]
    assert demo.explored() == (1, 2)


def test_a_run_at_work_is_not_disturbed(config):
    started, go_on = threading.Event(), threading.Event()

    def flow_of(number, wait=False):
        @materialize(version=f"{number}")
        def task():
            if wait:
                started.set()
                assert go_on.wait(60)
            return pl.DataFrame({"x": [number]})

        with Flow("f") as flow, Stage("s"):
            task()
        return flow

    for number in (1, 2):
        flow_of(number).run(config=config, fail_fast=True)
    results = []
    worker = threading.Thread(target=lambda: results.append(flow_of(3, wait=True).run(config=config)))
    worker.start()
    try:
        assert started.wait(60)
        with pytest.raises(LeaseHeld, match="is being written by flow f"):
            roll_back("s", config=config)
    finally:
        go_on.set()
        worker.join()
    assert results[0].successful
    assert roll_back("s", config=config).changed


def test_a_rollback_shows_as_a_run(demo):
    roll_back("raw", config=demo.config)
    with pytest.raises(RunError):
        roll_back("raw", 99, config=demo.config)
    with open_session(demo.config) as session:
        assert [(row.info.flow, row.state, row.info.owner.note) for row in session.catalog.runs(2)] == [
            ("rollback of raw", "failed", "pipedag rollback"),
            ("rollback of raw", "succeeded", "pipedag rollback"),
        ]
        assert list(session.catalog.leases()) == []
