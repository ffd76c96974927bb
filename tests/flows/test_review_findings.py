"""What a review found: wrong hits, lost names, hidden exceptions, runs that would wait for each other for ever."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gc
import os
import sqlite3
import threading
import time
import weakref
import zoneinfo
from contextlib import contextmanager
from enum import Flag

import duckdb
import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import (
    AUTO_VERSION,
    Blob,
    ExternalTableReference,
    Flow,
    RawSql,
    SequentialEngine,
    Stage,
    Table,
    ThreadEngine,
    View,
    materialize,
)
from pipedag_core.cache import codec
from pipedag_core.config.wire import catalog_path, open_session
from pipedag_core.errors import PipedagError, RunError, StoredDataMissing, UnsupportedValue
from pipedag_core.ports.events import Outcome, PointReached, StepReport


def run(config, *wire, **options):
    with Flow("f") as flow, Stage("s"):
        for make in wire:
            make()
    return flow.run(config=config, **options)


def good(config, *wire, **options):
    result = run(config, *wire, **options)
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task is not None}


def x(frame):
    return frame["x"].to_list()


@materialize(version="1", name="source")
def source(value=1):
    return pl.DataFrame({"x": [value]})


# --- wrong hits ---------------------------------------------------------------------------------------------------------------------


def test_tables_that_swap_their_names_are_read_under_their_new_names(config, tables_of):
    """Stored tables are found by content, so that after a swap of names the tables are the old ones, each under the other's name."""

    def wire(version, first, second):
        @materialize(version=version)
        def two():
            return Table(pl.DataFrame({"x": [first]}), "a"), Table(pl.DataFrame({"x": [second]}), "b")

        @materialize(lazy=True, input_type=sa.Table)
        def query(tables):
            return sa.text("SELECT x FROM s.a")

        @materialize(lazy=True, input_type=sa.Table)
        def script(tables):
            return RawSql("CREATE TABLE made AS SELECT x FROM s.a")

        tables = two()
        query(tables)
        script(tables)

    good(config, lambda: wire("1", 1, 2))
    good(config, lambda: wire("2", 2, 1))
    found = tables_of(config)["s"]
    assert [x(found[name]) for name in ("a", "b", "query", "made")] == [[2], [1], [2], [2]]


def test_a_renamed_table_with_equal_content_can_be_named_in_sql(config, tables_of):
    def wire(name):
        @materialize(version=name)
        def one():
            return Table(pl.DataFrame({"x": [1]}), name)

        @materialize(lazy=True, input_type=sa.Table)
        def query(table):
            return sa.text(f"SELECT x FROM s.{name}")

        query(one())

    for name in ("before", "after"):
        good(config, lambda name=name: wire(name))
        assert x(tables_of(config)["s"]["query"]) == [1]


def test_a_table_passed_through_an_auto_version_task_takes_its_new_name(config, tables_of):
    def wire(name):
        @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
        def passed(table):
            return Table(table, name), table.with_columns(y=1)

        passed(source())

    for name in ("before", "after"):
        good(config, lambda name=name: wire(name))
        assert set(tables_of(config)["s"]) == {"source", name, "passed_1"}


@pytest.mark.parametrize("what", ["value", "frame", "name", "lazy frame"])
def test_what_a_lazy_task_returns_beside_a_script_counts(config, tables_of, what):
    def wire(number):
        @materialize(lazy=True)
        def mixed():
            beside = {
                "value": number,
                "frame": pl.DataFrame({"x": [number]}),
                "name": Table(pl.DataFrame({"x": [0]}), f"name_{number}"),
                "lazy frame": pl.LazyFrame({"x": [number]}),
            }
            return {"script": RawSql("CREATE TABLE made AS SELECT 1 AS x"), "beside": beside[what]}

        @materialize(version="1", input_type=pl.DataFrame)
        def use(beside):
            return beside if isinstance(beside, pl.DataFrame) else pl.DataFrame({"x": [beside]})

        use(mixed()["beside"])

    for number in (1, 2):
        good(config, lambda number=number: wire(number))
        found = tables_of(config)["s"]
        if what == "name":
            assert f"name_{number}" in found
        else:
            assert x(found["use"]) == [number]


def test_what_ignore_task_version_made_is_what_the_next_run_finds(config, tables_of):
    good(config, lambda: unstable_query(1))
    good(config, lambda: unstable_query(2), ignore_task_version=True)
    for _ in range(2):
        found = tables_of(config)["s"]
        assert x(found["plain"]) == [2]
        assert x(found["random_number"]) == x(found["consumer"])
        assert set(good(config, lambda: unstable_query(2)).values()) == {"cached"}


def unstable_query(value):
    @materialize(version="1")
    def plain():
        return pl.DataFrame({"x": [value]})

    @materialize(version="1", lazy=True)
    def random_number():
        return sa.text("SELECT random() AS x")

    @materialize(lazy=True, input_type=sa.Table)
    def consumer(table):
        return sa.select(table.c.x)

    plain()
    consumer(random_number())


def test_a_stored_result_without_the_declared_outputs_does_not_stand_in(config, tables_of):
    def wire(name):
        @materialize(version="1", outputs=[name])
        def one():
            return Table(pl.DataFrame({"x": [1]}), name)

        one()

    for name in ("before", "after"):
        good(config, lambda name=name: wire(name))
        assert set(tables_of(config)["s"]) == {name}


def test_a_configuration_as_an_argument_counts_with_its_attrs(config):
    @materialize(version="1")
    def number(configuration):
        return configuration.attrs["token_limit"]

    for value in (1, 2):
        with Flow("f") as flow, Stage("s"):
            out = number(config.evolve(attrs={"token_limit": value}))
        assert flow.run(config=config).get(out) == value


def test_keywords_with_dots_do_not_take_the_place_of_nested_tables(config, tables_of):
    @materialize(lazy=True, input_type=sa.Table)
    def query(a, **others):
        return sa.union_all(sa.select(a["b"].c.x), sa.select(others["a.b"].c.x))

    good(config, lambda: query({"b": source(1)}, **{"a.b": source(2)}))
    assert x(tables_of(config)["s"]["query"]) == [1, 2]


# --- values -------------------------------------------------------------------------------------------------------------------------


class Colour(Flag):
    RED = 1
    BLUE = 2


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2020, 1, 1, tzinfo=BERLIN),
        dt.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        dt.time(12, tzinfo=zoneinfo.ZoneInfo("UTC")),
        Colour.RED | Colour.BLUE,
        "half of a pair \ud800",
    ],
)
def test_values_come_back_as_they_were(config, value):
    @materialize(version="1")
    def give():
        return [value]

    with Flow("f") as flow, Stage("s"):
        out = give()
    (found,) = flow.run(config=config).get(out)
    assert (found, repr(found)) == (value, repr(value))


def test_a_time_zone_is_another_argument_than_its_offset_of_today(config):
    @materialize(version="1")
    def later(moment):
        return moment + dt.timedelta(days=180)

    moment = dt.datetime(2020, 1, 1, tzinfo=BERLIN)
    assert good(config, lambda: later(moment)) == {"later": "ran"}
    assert good(config, lambda: later(moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))))) == {"later": "ran"}


@pytest.mark.parametrize("value", [pd.NaT, pd.Timestamp(1), pd.Timedelta(1)])
def test_times_that_would_be_rounded_or_are_none_are_refused(config, value):
    @materialize(version="1")
    def give():
        return {"when": value}

    error = run(config, give).exception
    assert isinstance(error, UnsupportedValue)
    assert "s.give" in str(error)
    assert "when" in str(error)


def test_a_stored_value_of_a_class_that_changed_says_so():
    fields = {"$": "dataclass", "type": "pipedag_core.ports.data:Column", "fields": {"name": "x"}}
    member = {"$": "enum", "type": "pipedag_core.ports.data:Form", "name": "NO_SUCH"}
    for stored in (fields, member):
        with pytest.raises(UnsupportedValue, match="Change the version"):
            codec.decode(stored, dict)


# --- exceptions ---------------------------------------------------------------------------------------------------------------------


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Noted(Exception):
    __notes__ = "not a list"


class Panic(BaseException):
    """Like the panics of libraries that are written in Rust: no `Exception`, and yet nothing that ends the program."""


@pytest.mark.parametrize("error", [Wordless(), Noted(), Panic(), GeneratorExit()])
@pytest.mark.parametrize("engine", [SequentialEngine, ThreadEngine])
def test_the_users_exception_is_never_hidden_and_fails_its_task_only(config, engine, error):
    @materialize
    def fails():
        raise error

    with Flow("f") as flow:
        with Stage("bad"):
            fails()
        with Stage("fine"):
            source()
    result = flow.run(config=config, orchestration_engine=engine())
    assert result.exception is error
    outcomes = {report.step: report.outcome.value for report in result.reports}
    assert outcomes["task:bad.fails"] == "failed"
    assert outcomes["commit:fine"] == "committed"


def test_what_is_wrong_with_a_cache_function_is_said_of_the_cache_function(config):
    def wire(cache):
        @materialize(version="1", cache=cache)
        def task():
            return 1

        task()

    refused = run(config, lambda: wire(object)).exception
    assert "cache function of task s.task" in str(refused)
    raised = run(config, lambda: wire(lambda: 1 / 0)).exception
    assert isinstance(raised, ZeroDivisionError)
    assert "cache function of task s.task" in "".join(raised.__notes__)


@pytest.mark.parametrize("make", [lambda table: View(table, columns=["no"]), lambda _: ExternalTableReference("a", "b")])
def test_arguments_that_cannot_be_loaded_are_refused_with_their_place(config, make):
    @materialize(version="1", input_type=pl.DataFrame)
    def use(tables):
        raise AssertionError("must not be called")

    error = run(config, lambda: use({"first": make(source())})).exception
    assert isinstance(error, PipedagError)
    told = "".join([str(error), *getattr(error, "__notes__", ())])
    assert "s.use" in told
    assert "tables.first" in told


# --- how runs go on -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [SequentialEngine, ThreadEngine])
def test_a_run_started_while_an_exception_is_handled_is_not_aborted(config, engine):
    with Flow("f") as flow, Stage("s"):
        source()
    try:
        raise KeyError
    except KeyError:
        result = flow.run(config=config, orchestration_engine=engine())
    assert result.reports[-1].reason == "succeeded"


def test_two_runs_whose_stages_fail_do_not_wait_for_each_other(config):
    """Each holds a stage that failed while the other one waits for it, until the lease of what will not be committed is given back."""
    both = threading.Barrier(2)
    results = {}

    def go(first, second):
        @materialize
        def fails():
            both.wait(60)
            raise ValueError("meant to fail")

        with Flow(first) as flow:
            with Stage(first):
                fails()
            with Stage(second):
                source()
        results[first] = flow.run(config=config, orchestration_engine=SequentialEngine())

    threads = [threading.Thread(target=go, args=stages, daemon=True) for stages in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(results) == {"a", "b"}
    for result in results.values():
        assert isinstance(result.exception, ValueError)
        assert [report.outcome.value for report in result.reports if report.task == "source"] == ["ran"]


def test_siblings_of_a_failed_task_are_recorded_before_its_stage_is_given_back(config):
    @materialize(version="1")
    def fails():
        raise ValueError("meant to fail")

    def wire():
        fails()
        source(1)
        source(2)

    assert not run(config, wire).successful
    again = run(config, wire)
    assert [report.outcome.value for report in again.reports if (report.task or "").startswith("source")] == ["cached", "cached"]
    with open_session(config) as session:
        assert not session.catalog.leases()


def test_a_long_chain_of_tasks_is_skipped_when_its_first_one_fails(config):
    @materialize(version="1")
    def step(value):
        raise ValueError("meant to fail")

    with Flow("f") as flow, Stage("s"):
        value = step(0)
        for _ in range(1500):
            value = step(value)
    result = flow.run(config=config)
    assert isinstance(result.exception, ValueError)
    assert sum(report.outcome.value == "skipped" for report in result.reports) == 1501


def test_a_heartbeat_that_fails_is_repeated(config, caplog):
    def expires():
        with open_session(config) as session:
            return session.catalog.leases()[0].expires

    def until(condition):
        for _ in range(3000):
            if condition():
                return True
            time.sleep(0.01)
        return False

    @materialize
    def slow():
        database = sqlite3.connect(catalog_path(config), isolation_level=None)
        database.execute("ALTER TABLE runs RENAME TO away")
        warned = until(lambda: "could not renew its leases" in caplog.text)
        database.execute("ALTER TABLE away RENAME TO runs")
        database.close()
        before = expires()
        return warned and until(lambda: expires() > before)

    with Flow("f") as flow, Stage("s"):
        out = slow()
    result = flow.run(config=config.evolve(lease_ttl=3.0))
    assert result.successful, result.exception
    assert result.get(out) is True


def test_inputs_and_outputs_are_let_go_of_as_soon_as_they_are_not_needed(config):
    held = []
    alive = []

    class Watch:
        def on_event(self, event):
            if isinstance(event, PointReached) and event.point == "before_record" and held:
                gc.collect()
                alive.append([reference() is not None for reference in held])

    @materialize(version="1", input_type=pd.DataFrame)
    def use(table):
        result = pd.DataFrame({"y": [1]})
        held.extend([weakref.ref(table), weakref.ref(result)])
        return result

    good(config, lambda: use(source()), observers=[Watch()], orchestration_engine=SequentialEngine())
    assert alive == [[False, False]]


def test_assert_no_fresh_input_accepts_lazy_frames_whose_rows_are_stored(config, store_folder):
    def wire(value):
        @materialize(lazy=True)
        def frame():
            return pl.LazyFrame({"x": [value]})

        frame()

    good(config, lambda: wire(1))
    assert good(config, lambda: wire(1), cache_validation_mode="assert_no_fresh_input") == {"frame": "cached"}
    files = sorted(store_folder.glob("s/**/*.parquet"))
    assert "s.frame" in str(run(config, lambda: wire(2), cache_validation_mode="assert_no_fresh_input").exception)
    assert sorted(store_folder.glob("s/**/*.parquet")) == files


def test_a_relation_from_a_result_outlives_the_run(config):
    with Flow("f") as flow, Stage("s"):
        out = source(3)
    relation = flow.run(config=config).get(out, as_type=duckdb.DuckDBPyRelation)
    assert relation.fetchall() == [(3,)]


def test_unknown_options_of_get_output_from_store_are_no_secret_wish(config):
    def flow(value):
        with Flow("f") as flow, Stage("s"):
            out = source(value)
        return flow, out

    flow(1)[0].run(config=config)
    rewired = flow(2)[1]
    with pytest.raises(PipedagError, match="Run stage s first"):
        rewired.get_output_from_store(config=config)
    assert x(rewired.get_output_from_store(as_type=pl.DataFrame, config=config, ignore_position_hashes=True)) == [1]
    with pytest.raises(TypeError, match="ignore_positions"):
        rewired.get_output_from_store(config=config, ignore_positions=True)


def test_frozen_classes_are_kept_and_found(config):
    value = dataclasses.replace(Kept(1), number=2)

    @materialize(version="1")
    def give():
        return value

    with Flow("f") as flow, Stage("s"):
        out = give()
    assert flow.run(config=config).get(out) == value


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    number: int


@pytest.mark.parametrize("engine", [SequentialEngine, ThreadEngine])
def test_a_plan_whose_steps_need_each_other_ends_with_an_error(engine):
    with Flow("f") as flow, Stage("s"):
        source(1)
        source(2)
    plan = flow.plan()
    first, second = (step for step in plan.steps if step.task is not None)
    circle = {first.id: second.id, second.id: first.id}
    steps = tuple(
        dataclasses.replace(step, upstream=(*step.upstream, circle[step.id])) if step.id in circle else step for step in plan.steps
    )

    def done(step, computed=None):
        return StepReport(step.id, Outcome.RAN)

    with pytest.raises(RunError, match="need each other"):
        engine().run(dataclasses.replace(plan, steps=steps), done, lambda step, because: done(step), fail_fast=False)


def test_the_call_context_is_open_while_the_function_runs(config):
    seen = []

    @contextmanager
    def around():
        seen.append("before")
        yield
        seen.append("after")

    @materialize(version="1", call_context=around)
    def task():
        seen.append("task")

    good(config, task)
    assert seen == ["before", "task", "after"]


def test_a_damaged_blob_is_made_again_by_the_next_run(config, store_folder):
    @materialize(version="1")
    def give():
        return Blob({"a": 1})

    @materialize(version="1")
    def use(blob, number):
        return blob["a"] + number

    good(config, give)
    (file,) = (path for path in store_folder.glob("blobs/**/*") if path.is_file())
    file.write_bytes(bytes(file.stat().st_size))
    assert isinstance(run(config, lambda: use(give(), 1)).exception, StoredDataMissing)
    assert good(config, lambda: use(give(), 1)) == {"give": "ran", "use": "ran"}


def test_the_error_of_a_damaged_table_says_which_file_to_delete(config, store_folder):
    @materialize(version="1", input_type=pl.DataFrame)
    def use(table):
        return table

    good(config, source)
    (file,) = store_folder.glob("s/g*/source*.parquet")
    # As a failing disk does it: nothing but the bytes changes.
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(bytes(file.stat().st_size))
    os.utime(file, ns=times)
    error = run(config, lambda: use(source())).exception
    assert str(file.relative_to(store_folder)) in "".join(error.__notes__)
    file.unlink()
    assert good(config, lambda: use(source())) == {"source": "ran", "use": "ran"}
