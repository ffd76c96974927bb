"""`pipedag score` into tables: all of a stage at once, and once per day however often a day is scored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pyarrow as pa
import pytest

from pipedag_core import Flow, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ConfigError, InputMismatch, ProductionError
from pipedag_core.looking import stored_value
from pipedag_core.production.into_tables import Slice, with_slice
from pipedag_core.production.places import score
from pipedag_core.runner import put_table
from tests.flows.production.delays import make


@pytest.fixture
def prod(each_store):
    """The production flow, after training on each of the stores."""
    flow, spec = make()
    assert flow.run(config=each_store).successful
    return flow.extract(spec, config=each_store)


@pytest.fixture
def scored(prod, each_store, inputs, tmp_path):
    """Scores the flights with some ids into a place, for a day."""

    def run(place, ids, day=None, outputs=None):
        file = tmp_path / f"flights-{'-'.join(map(str, ids))}.parquet"
        inputs["clean"]["flights"].filter(pl.col("id").is_in(ids)).write_parquet(file)
        given = {"clean.flights": str(file), "clean.places": "table:cleaned.places"}
        done = score(prod, given, outputs or {"predict": place}, lambda: each_store, part=None if day is None else Slice("day", day))
        return {name: item.rows for name, item in done.items()}

    return run


def rows(config, table="flights", stage="scores"):
    found = stored_value(stage, table, pl.DataFrame, config=config)
    return sorted(zip(found["id"], found["day"], strict=True)) if "day" in found.columns else sorted(found["id"])


def test_scores_are_a_committed_table_that_the_next_ones_replace(scored, each_store):
    assert scored("table:scores.flights", [1, 2]) == {"predict": 2}
    assert rows(each_store) == [1, 2]
    scored("table:Scores.Flights", [2, 3, 4])
    assert rows(each_store) == [2, 3, 4]


def test_a_day_that_is_scored_again_replaces_its_own_rows_and_no_others(scored, each_store):
    scored("table:scores.flights", [1, 2], "2026-01-30")
    scored("table:scores.flights", [3], "2026-01-31")
    scored("table:scores.flights", [4, 5], "2026-01-31")
    wanted = [(1, "2026-01-30"), (2, "2026-01-30"), (4, "2026-01-31"), (5, "2026-01-31")]
    assert rows(each_store) == wanted
    with open_session(each_store) as session:
        before = session.catalog.current("scores")
    scored("table:scores.flights", [4, 5], "2026-01-31")
    assert rows(each_store) == wanted
    with open_session(each_store) as session:
        # Equal rows are no change, so whoever waits for one sees none.
        assert session.catalog.current("scores") == before


def test_a_table_beside_it_stays(scored, each_store):
    scored("table:scores.flights", [1, 2])
    scored("table:scores.others", [3])
    assert (rows(each_store), rows(each_store, "others")) == ([1, 2], [3])


def test_two_who_score_at_once_both_leave_their_rows(scored, each_store):
    days = {"2026-01-30": [1, 2], "2026-01-31": [3]}
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(scored, "table:scores.flights", ids, day) for day, ids in days.items()]
    assert [one.result() for one in both] == [{"predict": 2}, {"predict": 1}]
    assert rows(each_store) == [(1, "2026-01-30"), (2, "2026-01-30"), (3, "2026-01-31")]


def test_nothing_is_written_when_an_output_cannot_be_computed(scored, each_store, tmp_path):
    scored("table:scores.flights", [1])
    file = tmp_path / "scores.parquet"
    with pytest.raises(ProductionError, match="has no output 'nothing'"):
        scored("", [2], outputs={"predict": "table:scores.flights", "nothing": str(file)})
    assert rows(each_store) == [1]
    assert not file.exists()


def test_the_tables_of_a_stage_change_together_or_not_at_all(scored, each_store, tmp_path):
    both = {"predict": "table:scores.flights", "scoring.join": "table:scores.joined"}
    scored("", [1, 2], "2026-01-30", both)
    assert (rows(each_store), rows(each_store, "joined")) == ([(1, "2026-01-30"), (2, "2026-01-30")],) * 2
    # The second one has lost a column since, as after a new training.
    put_table("scores", "joined", stored_value("scores", "joined", pl.DataFrame, config=each_store).drop("hub"), config=each_store)
    with pytest.raises(InputMismatch, match="new columns hub"):
        scored("", [3], "2026-01-31", both)
    assert (rows(each_store), rows(each_store, "joined")) == ([(1, "2026-01-30"), (2, "2026-01-30")],) * 2


def test_new_columns_do_not_fit_to_rows_that_stay_and_leave_the_table_as_it_was(scored, each_store):
    scored("table:scores.flights", [1])
    with pytest.raises(InputMismatch, match=r"new columns day, missing columns none"):
        scored("table:scores.flights", [2], "2026-01-31")
    assert rows(each_store) == [1]
    with open_session(each_store) as session:
        assert session.catalog.leases() == []


def test_the_stage_of_a_flow_is_refused(scored, each_store):
    with pytest.raises(ConfigError, match=r"Stage 'scoring' .* is written by flow 'delays'"):
        scored("table:scoring.mine", [1])


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"predict": "table:scores"}, "names no table"),
        ({"predict": "table:.x"}, "names no table"),
        ({"predict": "table:a.x", "other": "table:b.y"}, "cannot change at once"),
        ({"predict": "table:a.x", "other": "table:A.X"}, "Two outputs go into table 'x'"),
    ],
)
def test_places_that_make_no_sense_are_refused_before_anything_is_computed(scored, outputs, told):
    with pytest.raises(ConfigError, match=told):
        scored("", [1], outputs=outputs)


def test_a_slice_is_for_tables(scored, tmp_path):
    with pytest.raises(ConfigError, match="is for outputs that are tables"):
        scored(str(tmp_path / "scores.parquet"), [1], "2026-01-31")


def test_the_types_of_the_rows_that_stay_win():
    old = pa.table({"x": pa.array([1.5], pa.float64()), "day": ["a"]})
    new = with_slice(pa.table({"x": pa.array([2], pa.int32())}), old, Slice("day", "b"))
    assert new.schema == old.schema
    assert new.to_pylist() == [{"x": 1.5, "day": "a"}, {"x": 2.0, "day": "b"}]
    with pytest.raises(InputMismatch, match="does not fit"):
        with_slice(pa.table({"x": ["text"]}), old, Slice("day", "b"), "predict")


def test_rows_of_no_slice_stay_and_a_column_of_that_name_is_refused():
    old = pa.table({"x": [1, 2], "day": pa.array([None, "b"])})
    assert with_slice(pa.table({"x": [3]}), old, Slice("day", "b")).to_pydict() == {"x": [1, 3], "day": [None, "b"]}
    with pytest.raises(InputMismatch, match="has a column 'day' already"):
        with_slice(pa.table({"day": [3]}), None, Slice("day", "b"), "predict")


def test_a_flow_that_takes_the_stage_over_later_is_seen(scored, each_store):
    scored("table:scores.flights", [1])

    @materialize(version="1.0")
    def own() -> pl.DataFrame:
        return pl.DataFrame({"x": [1]})

    with Flow("taker") as flow, Stage("scores"):
        own()
    assert flow.run(config=each_store).successful
    with pytest.raises(ConfigError, match="is written by flow 'taker'"):
        scored("table:scores.flights", [1])
