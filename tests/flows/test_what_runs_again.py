"""When a stored result stands in, and when a task runs again: every row of the table in docs/caching.md."""

from __future__ import annotations

from collections import Counter
from functools import partial

import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Blob, CacheValidationMode, Flow, Stage, Table, materialize

CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh_counter():
    CALLS.clear()


def source(version="1.0", values=(1, 2, 3), name="source", **options):
    @materialize(version=version, name=name, **options)
    def task():
        CALLS[name] += 1
        return pl.DataFrame({"x": list(values)})

    return task()


def consumer(upstream, version="1.0", name="consumer"):
    @materialize(version=version, name=name, input_type=pl.DataFrame)
    def task(table):
        CALLS[name] += 1
        return table.with_columns(y=pl.col("x") + 1)

    return task(upstream)


def query(upstream, constant="1", name="query", lazy=True):
    @materialize(lazy=lazy, name=name, input_type=sa.Table)
    def task(table):
        CALLS[name] += 1
        return sa.text(f'SELECT x, {constant} AS c FROM "{table.original.schema}"."{table.original.name}" AS t')

    return task(upstream)


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task is not None}


def reasons(result):
    return {report.task: report.reason for report in result.reports if report.task is not None}


def run(config, *wire, **options):
    with Flow("f") as flow, Stage("s"):
        for make in wire:
            make()
    return flow.run(config=config, **options)


# --- version="1.0" ----------------------------------------------------------------------------------------------------------------------


def test_a_version_keeps_a_result_until_it_changes(config):
    run(config, lambda: source("1.0"))
    again = run(config, lambda: source("1.0", values=(7,)))
    assert outcomes(again) == {"source": "cached"}
    assert reasons(again) == {"source": "cache valid"}
    bumped = run(config, lambda: source("1.1", values=(7,)))
    assert outcomes(bumped) == {"source": "ran"}
    assert reasons(bumped) == {"source": "version 1.0 -> 1.1"}
    assert CALLS["source"] == 2


def test_equal_content_from_a_new_version_leaves_consumers_valid(config):
    run(config, lambda: consumer(source("1.0")))
    again = run(config, lambda: consumer(source("2.0")))
    assert outcomes(again) == {"source": "ran", "consumer": "cached"}


def test_other_content_runs_consumers_and_says_which_input(config):
    run(config, lambda: consumer(source("1.0")))
    again = run(config, lambda: consumer(source("2.0", values=(9,))))
    assert outcomes(again) == {"source": "ran", "consumer": "ran"}
    assert reasons(again)["consumer"] == "input table changed"


def test_going_back_to_an_earlier_version_runs_nothing(config, tables_of):
    run(config, lambda: consumer(source("1.0", values=(1,))))
    run(config, lambda: consumer(source("2.0", values=(2,))))
    CALLS.clear()
    back = run(config, lambda: consumer(source("1.0", values=(1,))))
    assert set(outcomes(back).values()) == {"cached"}
    assert not CALLS
    assert tables_of(config)["s"]["consumer"].to_dicts() == [{"x": 1, "y": 2}]


def test_deleting_a_task_hides_its_table_without_running_anything(config, tables_of):
    run(config, lambda: consumer(source()), lambda: source(name="other"))
    assert set(tables_of(config)["s"]) == {"consumer", "source", "other"}
    CALLS.clear()
    run(config, lambda: consumer(source()))
    assert not CALLS
    assert set(tables_of(config)["s"]) == {"consumer", "source"}


def test_an_unchanged_stage_is_not_committed_again(config):
    first = run(config, lambda: consumer(source()))
    second = run(config, lambda: consumer(source()))
    commits = [[report.outcome.value for report in result.reports if report.step == "commit:s"] for result in (first, second)]
    assert commits == [["committed"], ["unchanged"]]


def test_an_argument_that_changes_runs_the_task(config):
    @materialize(version="1.0")
    def years(year, options):
        CALLS["years"] += 1
        return pl.DataFrame({"year": [year]})

    run(config, lambda: years(2013, {"a": [1, 2]}))
    assert outcomes(run(config, lambda: years(2013, {"a": [1, 2]}))) == {"years": "cached"}
    changed = run(config, lambda: years(2014, {"a": [1, 2]}))
    assert reasons(changed) == {"years": "argument year changed"}
    assert outcomes(run(config, lambda: years(2014, {"a": [1, True]}))) == {"years": "ran"}


def test_equal_calls_in_one_run_are_executed_once(config, tables_of):
    run(config, source, source)
    assert CALLS["source"] == 1
    assert set(tables_of(config)["s"]) == {"source", "source_2"}


# --- no version -------------------------------------------------------------------------------------------------------------------------


def test_without_a_version_a_task_always_runs_and_its_content_decides(config):
    run(config, lambda: consumer(source(None)))
    again = run(config, lambda: consumer(source(None)))
    assert outcomes(again) == {"source": "ran", "consumer": "cached"}
    assert reasons(again)["source"] == "no version, always runs"
    changed = run(config, lambda: consumer(source(None, values=(4,))))
    assert outcomes(changed) == {"source": "ran", "consumer": "ran"}


def test_equal_content_of_an_unversioned_query_leaves_consumers_valid(config):
    run(config, lambda: consumer(query(source(), lazy=False)))
    again = run(config, lambda: consumer(query(source(), lazy=False)))
    assert outcomes(again) == {"source": "cached", "query": "ran", "consumer": "cached"}
    assert [report.outcome.value for report in again.reports if report.step == "commit:s"] == ["unchanged"]


# --- lazy -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("'A'", "'a'", "ran"),
        ("'A'", "'A' /* the same */", "cached"),
        ("1  +  1", "1 + 1", "cached"),
        ("1", "2", "ran"),
        ("CASE WHEN x > 1 THEN 1 END", "case when x > 1 then 1 end", "cached"),
    ],
)
def test_a_lazy_query_is_executed_when_its_tokens_change(config, before, after, expected):
    run(config, lambda: query(source(), before))
    again = run(config, lambda: query(source(), after))
    assert outcomes(again)["query"] == expected
    if expected == "ran":
        assert reasons(again)["query"] == "query changed"
    assert CALLS["query"] == 2


def test_a_lazy_query_is_executed_when_its_input_changes(config):
    run(config, lambda: query(source("1.0")))
    again = run(config, lambda: query(source("2.0", values=(5,))))
    assert outcomes(again)["query"] == "ran"
    assert reasons(again)["query"] == "input table changed"


def test_of_two_queries_only_the_changed_one_is_executed(config):
    def both(constant):
        @materialize(lazy=True, input_type=sa.Table, nout=2)
        def pair(table):
            return sa.select(table.c.x), sa.select((table.c.x + constant).label("x"))

        first, second = pair(source())
        consumer(first, name="of_first")
        consumer(second, name="of_second")

    run(config, partial(both, 1))
    again = run(config, partial(both, 2))
    assert outcomes(again) == {"source": "cached", "pair": "ran", "of_first": "cached", "of_second": "ran"}


def test_a_lazy_frame_is_compared_by_content(config):
    def lazy_frame(values):
        @materialize(lazy=True)
        def frame():
            CALLS["frame"] += 1
            return pl.DataFrame({"x": values})

        return frame()

    run(config, lambda: consumer(lazy_frame([1])))
    assert outcomes(run(config, lambda: consumer(lazy_frame([1])))) == {"frame": "cached", "consumer": "cached"}
    assert outcomes(run(config, lambda: consumer(lazy_frame([2])))) == {"frame": "ran", "consumer": "ran"}
    assert CALLS["frame"] == 3


# --- AUTO_VERSION -----------------------------------------------------------------------------------------------------------------------


def auto(upstream, constant):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def expression(table):
        CALLS["expression"] += 1
        return table.with_columns(y=pl.col("x") * constant)

    return expression(upstream)


def test_an_auto_version_runs_once_on_empty_input_and_again_when_the_expression_changes(config, tables_of):
    run(config, lambda: auto(source(), 2))
    assert CALLS["expression"] == 2
    again = run(config, lambda: auto(source(), 2))
    assert outcomes(again)["expression"] == "cached"
    assert CALLS["expression"] == 3
    changed = run(config, lambda: auto(source(), 3))
    assert outcomes(changed)["expression"] == "ran"
    assert reasons(changed)["expression"] == "expression changed"
    assert tables_of(config)["s"]["expression"]["y"].to_list() == [3, 6, 9]


def test_an_auto_version_refuses_python_functions(config):
    @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
    def opaque(table):
        return table.with_columns(pl.col("x").map_elements(hash, return_dtype=pl.Int64))

    result = run(config, lambda: opaque(source()))
    assert not result.successful
    assert "version=" in str(result.exception)


# --- cache functions and modes ----------------------------------------------------------------------------------------------------------


def fresh(stamp, values, **options):
    return source("1.0", values, name="fresh", cache=lambda: stamp, **options)


def test_a_cache_function_decides_with_the_version(config):
    run(config, lambda: consumer(fresh("monday", [1])))
    assert outcomes(run(config, lambda: consumer(fresh("monday", [2])))) == {"fresh": "cached", "consumer": "cached"}
    again = run(config, lambda: consumer(fresh("tuesday", [3])))
    assert outcomes(again) == {"fresh": "ran", "consumer": "ran"}
    assert reasons(again)["fresh"] == "cache function's value changed"


def test_ignore_fresh_input_takes_the_stored_result(config, tables_of):
    run(config, lambda: consumer(fresh("monday", [1])))
    ignored = run(config, lambda: consumer(fresh("tuesday", [2])), cache_validation_mode=CacheValidationMode.IGNORE_FRESH_INPUT)
    assert set(outcomes(ignored).values()) == {"cached"}
    normal = run(config, lambda: consumer(fresh("tuesday", [2])))
    assert set(outcomes(normal).values()) == {"ran"}
    assert tables_of(config)["s"]["fresh"]["x"].to_list() == [2]


def test_assert_no_fresh_input_refuses_to_read_the_source(config):
    run(config, lambda: consumer(fresh("monday", [1])))
    mode = CacheValidationMode.ASSERT_NO_FRESH_INPUT
    assert set(outcomes(run(config, lambda: consumer(fresh("monday", [1])), cache_validation_mode=mode)).values()) == {"cached"}
    refused = run(config, lambda: consumer(fresh("tuesday", [2])), cache_validation_mode=mode)
    assert not refused.successful
    assert "s.fresh" in str(refused.exception)
    allowed = run(config, lambda: consumer(fresh("tuesday", [2], allow_fresh_input=True)), cache_validation_mode=mode)
    assert outcomes(allowed) == {"fresh": "ran", "consumer": "ran"}


def test_force_fresh_input_reads_again_and_the_new_content_reaches_consumers(config, tables_of):
    run(config, lambda: consumer(fresh("monday", [1])))
    forced = run(config, lambda: consumer(fresh("monday", [2])), cache_validation_mode=CacheValidationMode.FORCE_FRESH_INPUT)
    assert outcomes(forced) == {"fresh": "ran", "consumer": "ran"}
    assert tables_of(config)["s"]["consumer"]["x"].to_list() == [2]
    normal = run(config, lambda: consumer(fresh("monday", [3])))
    assert set(outcomes(normal).values()) == {"cached"}


def test_force_fresh_input_with_the_same_content_leaves_consumers_valid(config):
    run(config, lambda: consumer(fresh("monday", [1])))
    forced = run(config, lambda: consumer(fresh("monday", [1])), cache_validation_mode=CacheValidationMode.FORCE_FRESH_INPUT)
    assert outcomes(forced) == {"fresh": "ran", "consumer": "cached"}


def test_force_cache_invalid_runs_everything_and_the_next_run_nothing(config):
    run(config, lambda: query(consumer(source())))
    forced = run(config, lambda: query(consumer(source())), cache_validation_mode="force_cache_invalid")
    assert set(outcomes(forced).values()) == {"ran"}
    assert set(outcomes(run(config, lambda: query(consumer(source())))).values()) == {"cached"}


def test_ignore_task_version_runs_versioned_tasks(config):
    run(config, lambda: consumer(source()))
    ignored = run(config, lambda: consumer(source()), ignore_task_version=True)
    assert set(outcomes(ignored).values()) == {"ran"}


# --- options, values, blobs -------------------------------------------------------------------------------------------------------------


def test_options_of_a_table_count_where_the_function_runs(config):
    def with_key(key):
        @materialize(lazy=True)
        def keyed():
            return Table(sa.text("SELECT 1 AS a, 2 AS b"), name="keyed", primary_key=key)

        return keyed()

    run(config, lambda: with_key("a"))
    assert outcomes(run(config, lambda: with_key("a"))) == {"keyed": "cached"}
    assert outcomes(run(config, lambda: with_key("b"))) == {"keyed": "ran"}


def test_values_and_blobs_travel_and_decide_by_content(config):
    def pipeline(version, payload):
        @materialize(version=version, nout=3)
        def parts():
            return {"rate": 0.5, "n": 3}, Blob({"model": payload}, "model"), pl.DataFrame({"x": [1]})

        @materialize(version="1.0", input_type=pl.DataFrame)
        def use(rate, model, table):
            CALLS["use"] += 1
            return rate * len(model["model"]) * table["x"].sum()

        numbers, model, table = parts()
        use(numbers["rate"], model, table)

    first = run(config, lambda: pipeline("1", "abcd"))
    assert first.get(first.flow["s"]["use"]) == 2.0
    assert outcomes(run(config, lambda: pipeline("2", "abcd"))) == {"parts": "ran", "use": "cached"}
    assert outcomes(run(config, lambda: pipeline("3", "xy"))) == {"parts": "ran", "use": "ran"}


def test_a_task_moved_to_another_stage_runs_and_its_consumers_stay_valid(config):
    def wired(stage_of_source):
        with Flow("f") as flow:
            with Stage(stage_of_source):
                table = source()
            with Stage("s"):
                consumer(table)
        return flow.run(config=config)

    wired("a")
    moved = wired("b")
    assert outcomes(moved) == {"source": "ran", "consumer": "cached"}


def test_a_stored_file_that_is_gone_is_a_miss(config, store_folder):
    run(config, lambda: consumer(source()))
    for file in store_folder.glob("s/g*/source*.parquet"):
        file.unlink()
    again = run(config, lambda: consumer(source()))
    assert outcomes(again)["source"] == "ran"


@pytest.mark.parametrize("damage", ["gone", "cut", "zeroed", "junk", "another valid file of equal size"])
@pytest.mark.parametrize("wire", [lambda: consumer(source()), lambda: query(source())], ids=["frame", "query"])
def test_a_damaged_file_is_a_miss_with_a_warning_and_never_a_wrong_result(config, store_folder, tables_of, caplog, damage, wire):
    run(config, wire)
    before = tables_of(config)["s"]
    for file in store_folder.glob("s/g*/*.parquet"):
        size = file.stat().st_size
        damaged = {
            "cut": file.read_bytes()[:-10],
            "zeroed": bytes(size),
            "junk": b"junk" * 1000,
            # Any other file that Parquet's readers take.
            "another valid file of equal size": file.read_bytes().replace((1).to_bytes(8, "little"), (7).to_bytes(8, "little")),
        }
        if damage == "gone":
            file.unlink()
        else:
            assert damaged[damage] != file.read_bytes()
            file.write_bytes(damaged[damage])
        if "valid" in damage:
            assert len(pl.read_parquet(file)) == 3
    again = run(config, wire)
    made_again = {"source", "consumer"} if "consumer" in before else {"source", "query"}
    assert {task for task, outcome in outcomes(again).items() if outcome == "ran"} == made_again
    assert all(f"stored {name} is gone or damaged" in caplog.text for name in made_again)
    assert {name: frame.to_dicts() for name, frame in tables_of(config)["s"].items()} == {
        name: frame.to_dicts() for name, frame in before.items()
    }
    assert set(outcomes(run(config, wire)).values()) == {"cached"}


def test_a_reference_returned_as_it_came_points_to_the_same_table(config, store_folder, tables_of):
    @materialize(lazy=True, input_type=sa.Table)
    def passed(table):
        return Table(table, name="again")

    run(config, lambda: passed(source()))
    assert tables_of(config)["s"]["again"]["x"].to_list() == [1, 2, 3]
    assert len(list(store_folder.glob("s/**/*.parquet"))) == 1


def test_equal_rows_in_another_order_are_shown_in_their_new_order(config, tables_of):
    def ordered(descending):
        @materialize(input_type=pl.LazyFrame)
        def rows(table):
            return table.sort("x", descending=descending)

        return rows(source())

    run(config, partial(ordered, False))
    assert tables_of(config)["s"]["rows"]["x"].to_list() == [1, 2, 3]
    run(config, partial(ordered, True))
    assert tables_of(config)["s"]["rows"]["x"].to_list() == [3, 2, 1]


def test_a_versioned_result_of_unknown_content_that_is_made_again_reaches_its_consumers(config, store_folder, tables_of):
    outside = [1]

    def wired():
        @materialize(version="1.0")
        def reads_outside():
            return pl.LazyFrame({"x": outside})

        consumer(reads_outside())

    run(config, wired)
    outside[0] = 2
    for file in store_folder.glob("s/g*/reads_outside*.parquet"):
        file.unlink()
    again = run(config, wired)
    assert outcomes(again) == {"reads_outside": "ran", "consumer": "ran"}
    assert tables_of(config)["s"]["consumer"]["x"].to_list() == [2]


def test_a_task_returns_as_many_things_as_it_declares(config):
    @materialize(version="1.0", nout=3)
    def pair():
        return 1, 2

    assert "nout=3" in str(run(config, pair).exception)
