"""Tasks that get two versions of tables, on every kind of store."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import (
    AUTO_VERSION,
    Blob,
    Flow,
    InOutSpecification,
    PipedagConfig,
    RawSql,
    Stage,
    Table,
    View,
    execute,
    input_stage_versions,
    materialize,
)
from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import has_catalog, open_session
from pipedag_core.errors import DuplicateName, ExtractionRefused, FlowError, OtherVersionMissing, UnsupportedByStore
from pipedag_core.housekeeping import clean_up
from pipedag_core.ports.catalogs import Retention
from pipedag_core.ports.events import StepEnded
from pipedag_core.run.doctor import examine


def numbers(values, name="numbers"):
    """Return a task that makes a table of one column."""

    @materialize(name=name, version=str(values))
    def make():
        return Table(pa.table({"i": pa.array(values, pa.int64())}), name=name)

    return make


def contents(tables):
    """Return what a task was given: name -> values, or 'missing'."""
    return {
        name: "missing"
        if isinstance(item, OtherVersionMissing)
        else sorted(item["i"].to_list() if hasattr(item, "height") else list(item["i"]))
        for name, item in tables.items()
    }


class Seen:
    """Collects what a comparing task has been given, call by call."""

    def __init__(self, **options):
        self.calls = []
        self.task = input_stage_versions(name="check", **{"input_type": pl.DataFrame, "version": "1", **options})(self.check)

    def check(self, now, before):
        self.calls.append((contents(now), contents(before)))
        return pa.table({"i": [len(self.calls)]})


def run(config, *tables, check, **options):
    """Run a flow with one stage; return the outcomes of its tasks."""
    with Flow("f") as flow, Stage("s"):
        for values, name in tables:
            numbers(values, name)()
        check()
    result = flow.run(config=config, fail_fast=True, **options)
    with open_session(config) as session:
        assert examine(session, lives, grace_s=0).findings == []
    return {report.task: report.outcome.value for report in result.reports if report.task}


# --- what is compared -------------------------------------------------------------------------------------------------------------------


def test_without_arguments_it_gets_the_stage_as_far_as_it_is_written_and_as_it_was_before(each_store):
    seen = Seen()
    assert run(each_store, ([1, 2], "a"), ([3], "b"), check=seen.task)["check"] == "ran"
    assert seen.calls.pop() == ({"a": [1, 2], "b": [3]}, {"a": "missing", "b": "missing"})
    assert run(each_store, ([1, 2, 3], "a"), ([3], "b"), check=seen.task)["check"] == "ran"
    assert seen.calls.pop() == ({"a": [1, 2, 3], "b": [3]}, {"a": [1, 2], "b": [3]})


def test_it_runs_again_exactly_when_something_on_either_side_has_changed(each_store):
    seen = Seen()
    for values, outcome in [([1], "ran"), ([1], "ran"), ([1], "cached"), ([2], "ran"), ([2], "ran"), ([2], "cached"), ([1], "ran")]:
        assert run(each_store, (values, "a"), check=seen.task)["check"] == outcome
    assert seen.calls == [
        ({"a": [1]}, {"a": "missing"}),
        ({"a": [1]}, {"a": [1]}),
        ({"a": [2]}, {"a": [1]}),
        ({"a": [2]}, {"a": [2]}),
        ({"a": [1]}, {"a": [2]}),
    ]


def test_a_table_that_is_made_no_more_is_in_the_other_version_only_and_what_comes_later_in_none(each_store):
    seen = Seen()
    run(each_store, ([1], "a"), ([2], "old"), check=seen.task)
    run(each_store, ([1], "a"), check=seen.task)
    assert seen.calls[-1] == ({"a": [1]}, {"a": [1], "old": [2]})
    run(each_store, ([1], "a"), check=seen.task)
    assert seen.calls[-1] == ({"a": [1]}, {"a": [1]})

    with Flow("f") as flow, Stage("s"):
        numbers([1], "a")()
        seen.task()
        numbers([5], "later")()
    for _ in range(2):
        flow.run(config=each_store, fail_fast=True)
        assert seen.calls[-1] == ({"a": [1]}, {"a": [1]})


def test_what_is_missing_says_where_it_was_looked_for(each_store):
    said = []

    @input_stage_versions(input_type=pl.DataFrame, lazy=True)
    def check(now, before):
        said.append(before.get("a"))

    run(each_store, check=check)
    run(each_store, ([1], "a"), check=check)
    error = said.pop()
    assert (error.stage, error.table, error.generation) == ("s", "a", 1)
    assert "Table s.a is not in the version of stage s (generation 1) that was committed before this run" in str(error)


def test_arguments_in_any_nest_name_the_tables_and_those_of_other_stages_have_their_stage_before_them(each_store):
    def pair(n):
        return Table(pa.table({"i": [n]}), name="one"), {"deep": Table(pa.table({"i": [n + 1]}), name="two")}

    @materialize(version="1", input_type=pl.DataFrame)
    def copied(table, n):
        return Table(table.with_columns(i=pl.col("i") + n), name="Copied")

    seen = Seen()

    def flow_of(n):
        with Flow("f") as flow:
            with Stage("raw"):
                one, rest = materialize(pair, version="1", nout=2)(n)
            with Stage("mart"):
                mine = copied(one, n)
                seen.task({"x": [mine, rest]}, tables=(one,))
        return flow

    flow_of(1).run(config=each_store, fail_fast=True)
    assert seen.calls.pop()[0] == {"copied": [2], "raw.two": [2], "raw.one": [1]}
    flow_of(5).run(config=each_store, fail_fast=True)
    # The other stage is committed by the time that the task runs; what was there before the run is compared all the same.
    assert seen.calls.pop() == ({"copied": [10], "raw.two": [6], "raw.one": [5]}, {"copied": [2], "raw.two": [2], "raw.one": [1]})
    result = flow_of(5).run("mart", config=each_store, fail_fast=True)
    assert result.successful
    # Where the other stage is only read, there is no second version of it.
    assert seen.calls.pop() == ({"copied": [10], "raw.two": [6], "raw.one": [5]}, {"copied": [10], "raw.two": [6], "raw.one": [5]})


def test_a_stage_as_an_argument_stands_for_all_its_tables(each_store):
    @materialize(lazy=True)
    def script():
        return RawSql("CREATE TABLE made AS SELECT CAST(7 AS BIGINT) AS i")

    seen = Seen()
    for values in ([1], [2]):
        with Flow("f") as flow:
            with Stage("raw") as raw:
                numbers(values)()
                script()
                with Stage("inner"):
                    numbers([0], "hidden")()
            with Stage("mart"):
                seen.task(raw)
        flow.run(config=each_store, fail_fast=True)
    assert seen.calls == [
        ({"raw.numbers": [1], "raw.made": [7]}, {"raw.numbers": "missing", "raw.made": "missing"}),
        ({"raw.numbers": [2], "raw.made": [7]}, {"raw.numbers": [1], "raw.made": [7]}),
    ]


def test_keywords_of_pass_args_reach_the_function_and_count(each_store):
    got = []

    @input_stage_versions(input_type=pl.DataFrame, version="1", pass_args=["limit", "extra"])
    def check(now, before, *, limit, extra=None, more="d"):
        got.append((sorted(now), limit, None if extra is None else extra["i"].to_list(), more))

    def flow_of(limit):
        with Flow("f") as flow, Stage("s"):
            a, b = numbers([1], "a")(), numbers([2], "b")()
            check(a, limit=limit, extra=b)
        return flow

    for limit in (1, 1, 2):
        flow_of(limit).run(config=each_store, fail_fast=True)
    assert got == [(["a"], 1, [2], "d"), (["a"], 1, [2], "d"), (["a"], 2, [2], "d")]
    flow_of(2).run(config=each_store, fail_fast=True)
    assert len(got) == 3


def test_a_cache_function_is_asked_about_both_versions(each_store):
    asked = []

    def rows_of(tables):
        return {name: "missing" if isinstance(item, Exception) else item.rows for name, item in tables.items()}

    def known(now, before, *, limit):
        asked.append((rows_of(now), rows_of(before), limit))
        return limit

    @input_stage_versions(input_type=pl.DataFrame, version="1", cache=known, pass_args=["limit"])
    def check(now, before, *, limit):
        pass

    for values in ([1], [1, 2]):
        run(each_store, (values, "a"), check=lambda: check(limit=3))
    assert asked == [({"a": 1}, {"a": "missing"}, 3), ({"a": 2}, {"a": 1}, 3)]


def test_blobs_are_compared_where_they_are_named(each_store):
    got = []

    @input_stage_versions(version="1")
    def check(now, before):
        got.append((now, before))

    for value in ("x", "y"):
        with Flow("f") as flow, Stage("s"):
            check(materialize(lambda value=value: Blob(value, "model"), name="model", version=value)())
        flow.run(config=each_store, fail_fast=True)
    assert got[0][0] == {"model": "x"}
    assert isinstance(got[0][1]["model"], OtherVersionMissing)
    assert got[1] == ({"model": "y"}, {"model": "x"})


def test_what_is_gone_from_the_store_is_missing(each_store):
    seen = Seen()
    run(each_store, ([1], "a"), ([2], "b"), check=seen.task)
    with open_session(each_store) as session:
        session.tables.drop([session.catalog.entries("s", 1)["a"].location])
    run(each_store, ([3], "a"), ([2], "b"), check=seen.task)
    assert seen.calls[-1] == ({"a": [3], "b": [2]}, {"a": "missing", "b": [2]})


# --- queries ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["expression", "text"])
def test_a_query_reads_both_versions(each_store, how):
    @input_stage_versions(input_type=sa.Table, lazy=True)
    def changes(now, before):
        if isinstance(before["a"], Exception):
            return sa.select(sa.literal(0).label("i"))
        new, old = now["a"], before["a"]
        if how == "expression":
            return sa.select(new.c.i).select_from(new.outerjoin(old, new.c.i == old.c.i)).where(old.c.i.is_(None))
        names = [f'"{table.original.schema}"."{table.original.name}"' for table in (new, old)]
        return sa.text(f"SELECT i FROM {names[0]} AS n WHERE i NOT IN (SELECT i FROM {names[1]} AS o)")

    def run_with(values):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            out = changes()
        result = flow.run(config=each_store, fail_fast=True)
        [outcome] = [report.outcome.value for report in result.reports if report.task == "changes"]
        return outcome, sorted(result.get(out, as_type=pl.DataFrame)["i"].to_list())

    assert run_with([1, 2]) == ("ran", [0])
    assert run_with([1, 2, 3, 4]) == ("ran", [3, 4])
    assert run_with([1, 2, 3, 4]) == ("ran", [])
    assert run_with([1, 2, 3, 4]) == ("cached", [])


def test_long_names_of_tables_stay_apart_in_queries(each_store):
    name = "n" * 60

    @input_stage_versions(input_type=sa.Table, lazy=True)
    def check(now, before):
        old = before[name] if not isinstance(before[name], Exception) else now[name]
        return sa.select(now[name].c.i, old.c.i.label("j"))

    for _ in range(2):
        run(each_store, ([1], name), check=check)


def test_two_tables_under_one_key_are_an_error(each_store):
    with Flow("f") as flow:
        with Stage("raw"):
            one = numbers([1], "x")()
        with Stage("s"):
            Seen().task(one, numbers([2], "raw.x")())
    with pytest.raises(DuplicateName, match=r"under the key 'raw\.x': 'x' of stage 'raw' and 'raw\.x' of stage 's'"):
        flow.run(config=each_store, fail_fast=True)


def test_a_script_means_this_runs_table_by_its_readable_name(each_store):
    @input_stage_versions(input_type=sa.Table, lazy=True)
    def script(now, before):
        return RawSql("CREATE TABLE total AS SELECT CAST(sum(i) AS BIGINT) AS i FROM s.a")

    for values, total in (([1], 1), ([2, 3], 5)):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            out = script()
        assert flow.run(config=each_store, fail_fast=True).get(out["total"], as_type=pl.DataFrame)["i"].to_list() == [total]


def test_a_table_of_the_other_version_that_is_returned_is_pointed_to(each_store):
    @input_stage_versions(input_type=sa.Table, version="1")
    def keep(now, before):
        return Table(now["a"] if isinstance(before["a"], Exception) else before["a"], name="kept")

    for values, kept in (([1], [1]), ([2], [1])):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            out = keep()
        assert flow.run(config=each_store, fail_fast=True).get(out, as_type=pl.DataFrame)["i"].to_list() == kept
    with open_session(each_store) as session:
        clean_up(each_store)
        assert session.catalog.shown()["s"]["kept"].id == session.catalog.entries("s", 1)["a"].id


def test_an_auto_version_task_sees_both_versions(each_store):
    @input_stage_versions(input_type=pl.LazyFrame, version=AUTO_VERSION)
    def both(now, before):
        old = now["a"].head(0) if isinstance(before["a"], Exception) else before["a"]
        return pl.concat([now["a"], old])

    def run_with(values):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            out = both()
        result = flow.run(config=each_store, fail_fast=True)
        [outcome] = [report.outcome.value for report in result.reports if report.task == "both"]
        return outcome, sorted(result.get(out, as_type=pl.DataFrame)["i"].to_list())

    assert run_with([1]) == ("ran", [1])
    assert run_with([2]) == ("ran", [1, 2])
    assert run_with([2]) == ("ran", [2, 2])
    assert run_with([2]) == ("cached", [2, 2])


@pytest.mark.parametrize("as_type", [pd.DataFrame, pa.Table, pl.LazyFrame])
def test_tables_come_in_the_type_that_was_asked_for(each_store, as_type):
    got = []

    @input_stage_versions(input_type=as_type, version="1")
    def check(now, before):
        got.append([type(item) for item in (now["a"], before["a"])])

    run(each_store, ([1], "a"), check=check)
    run(each_store, ([1], "a"), check=check)
    assert got == [[as_type, OtherVersionMissing], [as_type, as_type]]


def test_a_comparison_that_raises_keeps_the_stage_as_it_was(each_store):
    @input_stage_versions(input_type=pl.DataFrame, version="1.0")
    def nothing_shrinks(now, before):
        for name, table in now.items():
            old = before[name]
            if not isinstance(old, Exception) and table.height < 0.9 * old.height:
                raise ValueError(f"{name} has {table.height} rows, and had {old.height}")

    run(each_store, ([1, 2, 3], "a"), check=nothing_shrinks)
    with pytest.raises(ValueError, match="a has 1 rows, and had 3"):
        run(each_store, ([1], "a"), check=nothing_shrinks)
    with open_session(each_store) as session:
        assert session.catalog.shown()["s"]["a"].rows == 3
    # What was refused is no other version of anything.
    run(each_store, ([1, 2, 3, 4], "a"), check=nothing_shrinks)


# --- what is kept -----------------------------------------------------------------------------------------------------------------------


class At:
    """An observer that does something at a step, or at a point of it."""

    def __init__(self, matches, action):
        self.matches, self.action, self.done = matches, action, 0

    def on_event(self, event):
        if self.matches(event):
            self.done += 1
            self.action()


def test_clean_up_leaves_the_other_version_alone_until_the_run_has_ended(make_store):
    config = make_store(retention={"committed": 1, "failed": 0, "minimum_age": "0s"})
    seen = Seen()

    def flow_of(values):
        with Flow("f") as flow:
            with Stage("raw") as raw:
                numbers(values)()
            with Stage("mart"):
                seen.task(raw)
        return flow

    flow_of([1]).run(config=config, fail_fast=True)
    at = At(lambda event: isinstance(event, StepEnded) and event.report.step == "commit:raw", lambda: clean_up(config))
    flow_of([2]).run(config=config, fail_fast=True, observers=[at])
    assert at.done == 1
    assert seen.calls[-1] == ({"raw.numbers": [2]}, {"raw.numbers": [1]})
    with open_session(config) as session:
        assert {row.number for row in session.catalog.generations() if row.stage == "raw" and row.state == "committed"} == {2}


def test_a_step_that_is_executed_again_after_the_commit_compares_with_the_same(each_store):
    seen = Seen()

    def flow_of(values):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            seen.task()
        return flow

    flow_of([1]).run(config=each_store, fail_fast=True)
    flow = flow_of([2])
    plan = flow.plan()
    for step in [step for step in plan.steps if step.id != "finish"]:
        assert execute(plan, step, run_id="r", flow=flow, config=each_store).outcome.is_good
    for step in ("task:s.check", "commit:s", "finish"):
        assert execute(plan, step, run_id="r", flow=flow, config=each_store, cache_validation_mode="FORCE_CACHE_INVALID").outcome.is_good
    for step in plan.steps:
        assert execute(plan, step, run_id="r", flow=flow, config=each_store).outcome.is_good
    assert seen.calls[1:] == [({"a": [2]}, {"a": [1]})] * (len(seen.calls) - 1)
    assert len(seen.calls) >= 2


def test_a_task_that_is_run_by_name_compares_with_what_is_committed(each_store):
    seen = Seen()

    def flow_of(values):
        with Flow("f") as flow, Stage("s"):
            numbers(values, "a")()
            seen.task()
        return flow

    flow_of([1]).run(config=each_store, fail_fast=True)
    flow = flow_of([1])
    flow.run("s.check", config=each_store, fail_fast=True)
    assert seen.calls[-1] == ({"a": [1]}, {"a": [1]})
    flow = flow_of([2])
    flow.run("s.a", "s.check", config=each_store, fail_fast=True)
    assert seen.calls[-1] == ({"a": [2]}, {"a": [1]})
    with open_session(each_store) as session:
        assert session.catalog.current("s") == 1


def test_what_is_supplied_to_a_run_is_compared_with_what_is_committed(each_store):
    seen = Seen()
    with Flow("f") as flow, Stage("s"):
        a = numbers([1], "a")()
        seen.task()
    flow.run(config=each_store, fail_fast=True)
    flow.run(config=each_store, fail_fast=True, inputs={a: pl.DataFrame({"i": [9]})})
    assert seen.calls[-1] == ({"a": [9]}, {"a": [1]})


# --- another instance -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def instances(make_store):
    """Two instances on each kind of store: the one that runs, and the other one."""
    return make_store(instance_id="mini"), make_store(instance_id="full")


def run_both(instances, check, mine, theirs, extra=()):
    """Fill the other instance, run the flow in the first one, and return outcome and result of the comparing task."""
    config, other = instances
    if theirs is not None:
        run(other, (theirs, "a"), *extra, check=lambda: None)
    with Flow("f") as flow, Stage("s"):
        numbers(mine, "a")()
        out = check(other)
    result = flow.run(config=config, fail_fast=True)
    [outcome] = [report.outcome.value for report in result.reports if report.task == "check"]
    with open_session(other) as session:
        assert [row.info.flow for row in session.catalog.unfinished()] == []
    return outcome, lambda: sorted(result.get(out, as_type=pl.DataFrame)["i"].to_list())


@pytest.mark.parametrize("as_type", [pl.DataFrame, pd.DataFrame, pl.LazyFrame])
def test_the_other_version_may_be_that_of_another_instance(instances, as_type):
    calls = []

    @input_stage_versions(input_type=as_type, version="1")
    def check(now, other, config):
        assert config.instance_id == "full"
        both = [table.lazy().collect() if as_type is pl.LazyFrame else table for table in (now["a"], other["a"])]
        calls.append([sorted(table["i"].to_list()) for table in both])

    assert run_both(instances, check, [1], [2, 3])[0] == "ran"
    assert run_both(instances, check, [1], [2, 3])[0] == "cached"
    assert run_both(instances, check, [1], [4])[0] == "ran"
    assert run_both(instances, check, [5], [4])[0] == "ran"
    assert calls == [[[1], [2, 3]], [[1], [4]], [[5], [4]]]


def test_a_stage_of_another_instance_has_tables_that_are_not_here(instances):
    seen = Seen()
    run_both(instances, seen.task, [1], [2], extra=[([3], "b")])
    assert seen.calls == [({"a": [1]}, {"a": [2], "b": [3]})]


def test_an_instance_that_never_ran_has_nothing_and_is_not_made(instances):
    seen = Seen()
    run_both((instances[0], instances[0].evolve(instance_name="x")), seen.task, [1], None)
    assert seen.calls.pop() == ({"a": [1]}, {"a": "missing"})
    with Flow("f") as flow, Stage("s"):
        numbers([1], "a")()
        seen.task(instances[1])
    flow.run(config=instances[0], fail_fast=True)
    assert not has_catalog(instances[1])


def test_queries_reach_another_instance_in_the_same_database_and_are_refused_elsewhere(instances, store_kind):
    @input_stage_versions(input_type=sa.Table, lazy=True)
    def check(now, other):
        return sa.select(other["a"].c.i).except_(sa.select(now["a"].c.i))

    if store_kind == "duckdb":
        with pytest.raises(UnsupportedByStore, match=r"(?s)asks for references.*do not reach.*input_type=pl\.DataFrame"):
            run_both(instances, check, [1, 2], [2, 3])
        return
    for outcome, rows in (("ran", [3]), ("cached", [3])):
        found = run_both(instances, check, [1, 2], [2, 3])
        assert (found[0], found[1]()) == (outcome, rows)
    found = run_both(instances, check, [1, 2], [2, 4])
    assert (found[0], found[1]()) == ("ran", [4])


def test_a_table_of_another_instance_that_is_returned_is_copied(instances, store_kind):
    @input_stage_versions(input_type=pl.DataFrame if store_kind == "duckdb" else sa.Table, version="1")
    def check(now, other):
        return other["a"]

    assert run_both(instances, check, [1], [2, 3])[1]() == [2, 3]
    with open_session(instances[0]) as session:
        assert session.catalog.shown()["s"]["check"].stage == "s"
        assert session.tables.missing([session.catalog.shown()["s"]["check"]]) == []


def test_instances_on_different_kinds_of_stores_are_compared_as_rows(each_store, tmp_path):
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "elsewhere" / "{instance_id}"), "threads": 1}}
    other = PipedagConfig({"instances": {"beside": {"table_store": store}}}).get("beside")
    seen = Seen(input_type=pl.DataFrame)
    run_both((each_store, other), seen.task, [1], [2])
    assert seen.calls == [({"a": [1]}, {"a": [2]})]


def test_other_rows_under_one_query_in_two_instances_are_not_taken_for_each_other(make_store):
    @materialize(lazy=True)
    def a():
        return sa.text("SELECT CAST(random() * 1000000000 AS BIGINT) AS i")

    def fill(config):
        with Flow("f") as flow, Stage("s"):
            out = a()
        return flow.run(config=config, fail_fast=True).get(out, as_type=pl.DataFrame)["i"].to_list()

    configs = [make_store(instance_id=name) for name in ("mini", "full", "third")]
    rows = [fill(config) for config in configs]
    assert rows[1] != rows[2]
    seen = Seen()
    for other in (1, 2, 1):
        with Flow("f") as flow, Stage("s"):
            a()
            seen.task(configs[other])
        flow.run(config=configs[0], fail_fast=True)
    assert seen.calls == [({"a": rows[0]}, {"a": rows[1]}), ({"a": rows[0]}, {"a": rows[2]})]


def test_clean_up_of_another_instance_waits_while_it_is_read(instances):
    config, other = (instance.evolve(retention=Retention(1, 0, 0.0)) for instance in instances)
    found = []

    @input_stage_versions(input_type=pl.DataFrame, version="1")
    def check(now, theirs):
        run(other, ([7], "a"), check=lambda: None)
        clean_up(other)
        with open_session(other) as session:
            found.append({row.number for row in session.catalog.generations() if row.state == "committed"})

    run_both((config, other), check, [1], [2])
    assert found == [{1, 2}]
    clean_up(other)
    with open_session(other) as session:
        assert {row.number for row in session.catalog.generations() if row.state == "committed"} == {2}


def test_another_instance_may_be_read_without_writing_to_its_catalog(instances):
    seen = Seen(lock_source_stages=False)
    run_both(instances, seen.task, [1], [2])
    assert seen.calls == [({"a": [1]}, {"a": [2]})]
    with open_session(instances[1]) as session:
        assert [row.info.owner.note for row in session.catalog.runs()] == ["flow f"]


def test_a_blob_of_another_instance_is_read_there(instances):
    config, other = instances
    got = []

    @input_stage_versions(version="1")
    def check(now, theirs):
        got.append((now["model"], theirs["model"]))

    def flow_of(value):
        with Flow("f") as flow, Stage("s"):
            check(materialize(lambda: Blob(value, "model"), name="model", version=value)(), other)
        return flow

    run_model = materialize(lambda: Blob("theirs", "model"), name="model", version="theirs")
    with Flow("f") as flow, Stage("s"):
        run_model()
    flow.run(config=other, fail_fast=True)
    flow_of("mine").run(config=config, fail_fast=True)
    assert got == [("mine", "theirs")]


# --- elsewhere --------------------------------------------------------------------------------------------------------------------------


def test_a_production_flow_refuses_it(each_store):
    seen = Seen()
    with Flow("f") as flow, Stage("s"):
        a = numbers([1], "a")()
        out = seen.task(a)
    flow.run(config=each_store, fail_fast=True)
    with pytest.raises(ExtractionRefused, match=r"s\.check would run in production, but compares two versions of tables"):
        flow.extract(InOutSpecification(input={"a": a}, output=out), config=each_store)


@pytest.mark.parametrize("options", [{"version": "1"}, {"lazy": True}])
def test_what_a_comparison_has_given_may_be_frozen_for_production(each_store, options):
    def flow_of(values, **changed):
        @materialize(version="1", input_type=pl.DataFrame)
        def scale(table, report):
            return table.with_columns(j=pl.lit(report["i"].item()))

        @input_stage_versions(input_type=pl.DataFrame, **{**options, **changed})
        def check(now, before):
            return pa.table({"i": [now["a"].height]})

        with Flow("f") as flow, Stage("s"):
            a = numbers(values, "a")()
            report = check(a)
            out = scale(a, report)
        return flow, InOutSpecification(input={"a": a}, const=report, output=out)

    for values in ([1], [1, 2]):
        flow, specification = flow_of(values)
        flow.run(config=each_store, fail_fast=True)
        made = flow.extract(specification, config=each_store)
        assert made.run({"a": pl.DataFrame({"i": [7]})})["j"].to_list() == [len(values)]
    flow, specification = flow_of([1, 2], version="2")
    with pytest.raises(ExtractionRefused, match=r"s\.check is not what the code makes of the same inputs today"):
        flow.extract(specification, config=each_store)


def test_a_view_has_no_other_version(each_store):
    @materialize(version="1", input_type=sa.Table)
    def view(table):
        return View(table, columns=["i"])

    with Flow("f") as flow, Stage("s"):
        Seen().task(view(numbers([1], "a")()))
    with pytest.raises(FlowError, match="which has no name in a stage and so no other version"):
        flow.run(config=each_store, fail_fast=True)
