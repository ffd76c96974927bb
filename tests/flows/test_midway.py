"""Tables that a task writes in the middle of its work, on every kind of store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, ConfigContext, Flow, InOutSpecification, PipedagError, RawSql, Stage, Table, materialize
from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import open_session
from pipedag_core.errors import DuplicateName, ExtractionRefused, MaterializationError, UnsupportedByStore
from pipedag_core.run.doctor import examine


@materialize(version="1")
def numbers():
    return pa.table({"i": [1, 2, 3, 4]})


def shown(config):
    """Return stage -> readable names."""
    with open_session(config) as session:
        assert examine(session, lives, grace_s=0).findings == []
        return {stage: set(entries) for stage, entries in session.catalog.shown().items()}


def make_flow(task, *args):
    with Flow("f") as flow:
        with Stage("raw"):
            source = numbers()
        with Stage("mart"):
            out = task(source, *args)
    return flow, out


def run(config, task, *args):
    """Run a flow with the task; return its outcome and its table's rows."""
    flow, out = make_flow(task, *args)
    result = flow.run(config=config, fail_fast=True)
    [outcome] = [report.outcome.value for report in result.reports if report.stage == "mart" and report.task]
    return outcome, sorted(result.get(out, as_type=pl.DataFrame).rows())


def evens_and_sum(name="evens", rest=0):
    @materialize(lazy=True, input_type=sa.Table)
    def total(source, limit):
        evens = Table(sa.select(source.c.i).where(source.c.i % 2 == rest, source.c.i <= limit), name=name).materialize()
        return sa.select(sa.cast(sa.func.sum(evens.c.i), sa.BigInteger).label("total"))

    return total


def test_later_queries_read_what_was_written_and_it_is_shown_beside_the_output(each_store):
    assert run(each_store, evens_and_sum(), 4) == ("ran", [(6,)])
    assert shown(each_store)["mart"] == {"total", "evens"}
    assert run(each_store, evens_and_sum(), 4) == ("cached", [(6,)])
    assert shown(each_store)["mart"] == {"total", "evens"}
    assert run(each_store, evens_and_sum(), 3) == ("ran", [(2,)])
    assert run(each_store, evens_and_sum(), 4) == ("cached", [(6,)])
    # Another name is another table to look at, of the same rows.
    assert run(each_store, evens_and_sum("pairs"), 4)[1] == [(6,)]
    assert shown(each_store)["mart"] == {"total", "pairs"}


def test_a_table_without_a_name_has_one_of_its_task(each_store):
    assert run(each_store, evens_and_sum(None), 4) == ("ran", [(6,)])
    assert shown(each_store)["mart"] == {"total", "total_materialized_0"}


@pytest.mark.parametrize("how", ["reference", "table"])
def test_what_is_returned_as_well_is_written_once_and_has_its_own_name(each_store, how):
    @materialize(lazy=True, input_type=sa.Table)
    def two(source):
        table = Table(sa.select(source.c.i).where(source.c.i > 2), name="large", primary_key="i")
        reference = table.materialize()
        return {
            "rows": table if how == "table" else reference,
            "count": Table(sa.select(sa.func.count().label("n")).select_from(reference), name="count"),
        }

    flow, out = make_flow(two)
    for outcome in ("ran", "cached"):
        result = flow.run(config=each_store, fail_fast=True)
        assert [report.outcome.value for report in result.reports if report.task == "two"] == [outcome]
        assert result.get(out["rows"], as_type=pl.DataFrame)["i"].sort().to_list() == [3, 4]
        assert result.get(out["count"], as_type=pl.DataFrame)["n"].to_list() == [2]
        assert shown(each_store)["mart"] == {"large", "count"}


def test_a_versioned_task_in_pandas_writes_and_reads_with_sql_and_takes_several_types(each_store):
    calls = []

    @materialize(version="1", input_type=pd.DataFrame)
    def squares(source):
        calls.append(1)
        table, frame = Table(source.assign(square=source["i"] ** 2), name="all_squares").materialize(
            return_as_type=(sa.Table, pl.DataFrame)
        )
        assert frame["square"].sort().to_list() == [1, 4, 9, 16]
        return sa.select(table.c.square).where(table.c.square > 4)

    assert run(each_store, squares) == ("ran", [(9,), (16,)])
    assert run(each_store, squares) == ("cached", [(9,), (16,)])
    assert calls == [1]
    assert shown(each_store)["mart"] == {"squares", "all_squares"}


def test_an_auto_version_task_sees_the_same_type_when_it_is_looked_at_and_when_it_runs(each_store):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def doubled(source, factor):
        half_way = Table(source.with_columns(twice=pl.col("i") * factor), name="half_way").materialize()
        assert isinstance(half_way, pl.LazyFrame)
        return half_way.select(pl.col("twice") + 1)

    assert run(each_store, doubled, 2) == ("ran", [(3,), (5,), (7,), (9,)])
    assert run(each_store, doubled, 2)[0] == "cached"
    assert run(each_store, doubled, 3) == ("ran", [(4,), (7,), (10,), (13,)])
    assert shown(each_store)["mart"] == {"doubled", "half_way"}


def test_a_script_reads_it_under_its_readable_name(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def script(source):
        Table(sa.select(source.c.i).where(source.c.i > 1), name="many").materialize()
        return RawSql("CREATE TABLE made AS SELECT count(*) AS n FROM mart.many")

    flow, out = make_flow(script)
    for outcome in ("ran", "cached"):
        result = flow.run(config=each_store, fail_fast=True)
        assert [report.outcome.value for report in result.reports if report.task == "script"] == [outcome]
        assert result.get(out["made"], as_type=pl.DataFrame).rows() == [(3,)]
        assert shown(each_store)["mart"] == {"made", "many"}


def test_a_task_that_fails_later_leaves_nothing_behind(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def fails(source):
        Table(sa.select(source.c.i), name="early").materialize()
        raise ZeroDivisionError

    flow, _ = make_flow(fails)
    with pytest.raises(ZeroDivisionError):
        flow.run(config=each_store, fail_fast=True)
    with open_session(each_store) as session:
        assert {item.stage for item in session.tables.deposits()} == {"raw"}


def test_a_query_that_fails_names_the_table(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def fails(source):
        Table(sa.select(sa.literal_column("nonsense")).select_from(source), name="early").materialize()

    flow, _ = make_flow(fails)
    with pytest.raises(PipedagError, match="nonsense") as caught:
        flow.run(config=each_store, fail_fast=True)
    assert "early" in "\n".join([str(caught.value), *caught.value.__notes__])


def test_names_that_clash_are_refused(config):
    @materialize(lazy=True, input_type=sa.Table)
    def twice(source):
        for limit in (1, 2):
            Table(sa.select(source.c.i).where(source.c.i > limit), name="same").materialize()

    @materialize(lazy=True, input_type=sa.Table)
    def also_returned(source):
        Table(sa.select(source.c.i), name="same").materialize()
        return Table(sa.select((source.c.i + 1).label("j")), name="Same")

    for task in (twice, also_returned):
        with pytest.raises(DuplicateName, match="same"):
            make_flow(task)[0].run(config=config, fail_fast=True)


def test_outputs_that_are_declared_name_it_too(config):
    @materialize(lazy=True, input_type=sa.Table, outputs=["last", "early"])
    def task(source):
        early = Table(sa.select(source.c.i), name="early").materialize()
        return Table(sa.select((early.c.i + 1).label("j")), name="last")

    for outcome in ("ran", "cached"):
        result = make_flow(task)[0].run(config=config, fail_fast=True)
        assert [report.outcome.value for report in result.reports if report.task == "task"] == [outcome]


def test_outside_of_a_run_it_is_what_it_wraps():
    frame = pl.DataFrame({"x": [1]})
    assert Table(frame, name="x").materialize() is frame
    assert Table(frame).materialize(return_as_type=(sa.Table, pl.DataFrame)) == (frame, frame)
    with pytest.raises(UnsupportedByStore, match="outside of a run"):
        Table(frame).materialize(schema="mine")


def test_where_it_means_nothing_it_is_refused(config):
    @materialize(lazy=True, input_type=sa.Table)
    def elsewhere(source):
        Table(sa.select(source.c.i)).materialize(schema="mine")

    @materialize(version="1", cache=lambda source: Table(pa.table({"x": [1]})).materialize(), input_type=sa.Table)
    def in_cache_function(source):
        return source

    for task in (elsewhere, in_cache_function):
        with pytest.raises(UnsupportedByStore):
            make_flow(task)[0].run(config=config, fail_fast=True)


def test_in_production_nothing_is_written_and_the_answer_is_the_same(each_store):
    total = evens_and_sum()
    with Flow("f") as flow:
        with Stage("raw"):
            source = numbers()
        with Stage("mart"):
            out = total(source, 4)
    assert flow.run(config=each_store, fail_fast=True).successful
    prod = flow.extract(InOutSpecification(input={"source": source}, output=out), config=each_store)
    assert prod.run({"source": pa.table({"i": [2, 3, 4]})}, as_type=pa.Table).to_pydict() == {"total": [6]}
    assert prod.verify().changes == ()


def test_in_production_sql_text_is_refused(config):
    @materialize(lazy=True, input_type=sa.Table)
    def of_text(source):
        return Table(sa.text(f'SELECT i FROM "{source.original.schema}"."{source.original.name}"')).materialize()

    flow, out = make_flow(of_text)
    assert flow.run(config=config, fail_fast=True).successful
    with pytest.raises(ExtractionRefused, match="SQL text"):
        flow.extract(InOutSpecification(input={"source": flow["raw"]["numbers"]}, output=out), config=config)


def test_whether_a_frozen_result_is_stale_is_found_out_without_writing(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def shares(source, total):
        return sa.select((source.c.i * 100 / total.c.total).label("share"))

    def wire(rest):
        with Flow("f") as flow:
            with Stage("raw"):
                source = numbers()
            with Stage("mart"):
                total = evens_and_sum(rest=rest)(source, 4)
            with Stage("out"):
                out = shares(source, total)
        return flow, InOutSpecification(input={"source": source}, const=total, output=out)

    def written():
        with open_session(each_store) as session:
            return sorted(item.location for item in session.tables.deposits())

    flow, specification = wire(0)
    assert flow.run(config=each_store, fail_fast=True).successful
    before = written()
    flow.extract(specification, config=each_store)
    changed, specification = wire(1)
    with pytest.raises(ExtractionRefused, match="query"):
        changed.extract(specification, config=each_store)
    assert written() == before


def test_a_name_like_that_of_an_argument_stands_for_what_was_written(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def task(source):
        large = Table(sa.select(source.c.i).where(source.c.i > 2), name="source").materialize()
        return sa.select(source.c.i).where(~sa.exists(sa.select(1).where(large.c.i == source.c.i)))

    assert run(each_store, task) == ("ran", [(1,), (2,)])


def test_two_names_for_equal_rows_stay_two_names(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def task(source):
        query = sa.select(source.c.i).where(source.c.i > 2)
        first, second = Table(query, name="first").materialize(), Table(query, name="second").materialize()
        Table(query, name="third").materialize()
        return {"a": first, "b": second}

    flow, out = make_flow(task)
    for outcome in ("ran", "cached", "cached"):
        result = flow.run(config=each_store, fail_fast=True)
        assert [report.outcome.value for report in result.reports if report.task == "task"] == [outcome]
        assert shown(each_store)["mart"] == {"first", "second", "third"}
        assert result.get(out["b"], as_type=pl.DataFrame)["i"].sort().to_list() == [3, 4]


def test_an_input_can_be_shown_under_another_name_and_returned(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def task(source):
        Table(source, name="copy").materialize()
        return source

    assert run(each_store, task)[1] == [(1,), (2,), (3,), (4,)]
    assert shown(each_store)["mart"] == {"task", "copy"}


def test_what_is_returned_at_a_path_like_its_own_is_another_table(config):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def task(source):
        hundred = Table(source.select(pl.col("i") * 100), name="hundred").materialize()
        return {"big": hundred, "materialized_0": Table(source, name="small")}

    @materialize(version="1", input_type=pl.DataFrame)
    def total(table):
        return pl.DataFrame({"total": [table["i"].sum()]})

    with Flow("f") as flow, Stage("s"):
        made = task(numbers())
        totals = total(made["big"]), total(made["materialized_0"])
    result = flow.run(config=config, fail_fast=True)
    assert [result.get(one, as_type=pl.DataFrame)["total"].to_list() for one in totals] == [[1000], [10]]


def test_a_task_that_only_writes_names_its_table_like_the_file(each_store):
    @materialize(lazy=True, input_type=sa.Table)
    def task(source):
        Table(sa.select(source.c.i)).materialize()

    flow, _ = make_flow(task)
    for _ in range(2):
        flow.run(config=each_store, fail_fast=True)
        assert shown(each_store)["mart"] == {"task_materialized_0"}


def test_several_types_are_several_when_an_auto_version_task_is_looked_at_and_in_production(each_store):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def task(source):
        lazy, again = Table(source.select(pl.col("i") + 1), name="half_way").materialize(return_as_type=(pl.LazyFrame, pl.LazyFrame))
        return pl.concat([lazy, again])

    flow, out = make_flow(task)
    assert flow.run(config=each_store, fail_fast=True).successful
    prod = flow.extract(InOutSpecification(input={"source": flow["raw"]["numbers"]}, output=out), config=each_store)
    assert sorted(prod.run({"source": pa.table({"i": [1]})}, as_type=pa.Table)["i"].to_pylist()) == [2, 2]


def test_a_frozen_result_with_a_cache_function_is_not_stale(each_store):
    @materialize(lazy=True, input_type=sa.Table, cache=lambda source: "today")
    def total(source):
        large = Table(sa.select(source.c.i).where(source.c.i > 2), name="large").materialize()
        return sa.select(sa.cast(sa.func.sum(large.c.i), sa.BigInteger).label("total"))

    @materialize(lazy=True, input_type=sa.Table)
    def shares(source, total):
        return sa.select((source.c.i * 100 / total.c.total).label("share"))

    with Flow("f") as flow:
        with Stage("raw"):
            source = numbers()
        with Stage("mart"):
            frozen = total(source)
        with Stage("out"):
            out = shares(source, frozen)
    assert flow.run(config=each_store, fail_fast=True).successful
    flow.extract(InOutSpecification(input={"source": source}, const=frozen, output=out), config=each_store)


# --- threads of a task's own --------------------------------------------------------------------------------------------------------


def test_threads_to_which_the_context_is_handed_on_write_tables_as_the_task_does(each_store):
    @materialize(version="1", input_type=pl.DataFrame)
    def parts(source):
        def write(rest):
            Table(source.filter(pl.col("i") % 4 == rest), f"part{rest}").materialize(return_as_type=pl.DataFrame)
            return rest

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(copy_context().run, write, rest) for rest in range(4)]
            return pl.DataFrame({"rest": [item.result() for item in done]})

    assert run(each_store, parts) == ("ran", [(0,), (1,), (2,), (3,)])
    assert shown(each_store)["mart"] == {"parts", "part0", "part1", "part2", "part3"}
    assert run(each_store, parts)[0] == "cached"


def test_a_thread_that_does_not_know_its_task_is_refused_with_what_to_do(config):
    @materialize(version="1", input_type=pl.DataFrame)
    def lost(source):
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            return pool.submit(Table(source, "part").materialize).result()

    flow, _ = make_flow(lost)
    error = flow.run(config=config).exception
    assert type(error) is MaterializationError
    assert all(word in str(error) for word in ("thread 'mine_0'", "mart.lost of flow 'f'", "Nothing was written", "copy_context().run"))
    assert "mart" not in shown(config)


def test_a_thread_that_goes_on_after_its_task_has_returned_is_refused(config):
    go_on, errors = threading.Event(), []

    @materialize(version="1", input_type=pl.DataFrame)
    def early(source):
        def late():
            assert go_on.wait(60)
            try:
                Table(source, "part").materialize()
            except MaterializationError as error:
                errors.append(error)

        thread = threading.Thread(target=copy_context().run, args=(late,))
        threads.append(thread)
        thread.start()
        return source

    threads = []
    flow, _ = make_flow(early)
    assert flow.run(config=config, fail_fast=True).successful
    go_on.set()
    threads[0].join()
    assert "mart.early has returned already" in str(errors[0])
    assert shown(config)["mart"] == {"early"}


def test_a_task_that_is_called_by_hand_in_a_thread_is_not_mistaken_for_one_at_work(config):
    frame = pl.DataFrame({"i": [1]})

    @materialize(version="1")
    def by_hand(source):
        return Table(source, "part").materialize()

    @materialize(version="1", input_type=pl.DataFrame)
    def calls(source):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(by_hand, frame).result() is frame
        return source

    assert run(config, calls)[0] == "ran"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(Table(frame, "part").materialize).result() is frame


def test_the_configuration_is_refused_in_such_a_thread_with_what_to_do(config):
    @materialize
    def asks():
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(copy_context().run, ConfigContext.get).result() is ConfigContext.get()
            return pool.submit(ConfigContext.get).result()

    with Flow("f") as flow, Stage("s"):
        asks()
    assert "copy_context().run" in str(flow.run(config=config).exception)
