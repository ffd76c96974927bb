"""Running a production flow in memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import Blob, Flow, InOutSpecification, PipedagError, RawSql, Stage, Table, materialize
from pipedag_core.errors import InputMismatch, ProductionError


def trained(flow, config):
    assert flow.run(config=config).successful
    return flow


@materialize(version="1.0")
def numbers():
    return pl.DataFrame({"x": [1, 2, 3]})


def after(config, *tasks, count=1):
    """Return the production flow numbers -> tasks, one after another."""
    with Flow("chain") as flow:
        with Stage("a"):
            first = numbers()
        with Stage("b"):
            last = first
            for task in tasks:
                last = task(last)
    trained(flow, config)
    return flow.extract(InOutSpecification(input={"x": first}, output=last), config=config)


# --- what comes out -----------------------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_what_training_has_committed(prod, inputs, scores):
    result = prod.run(inputs)
    assert type(result) is pd.DataFrame
    assert pl.from_pandas(result).sort("id").equals(scores)


def test_new_rows_are_scored_with_what_training_left_behind(prod, inputs, scores):
    one = {"clean": {"flights": inputs["clean"]["flights"].filter(pl.col("id") == 2), "places": inputs["clean"]["places"]}}
    assert pl.from_pandas(prod.run(one)).equals(scores.filter(pl.col("id") == 2))


@pytest.mark.parametrize("make", [lambda frame: frame, lambda frame: frame.lazy(), pl.DataFrame.to_pandas, pl.DataFrame.to_arrow])
def test_inputs_may_be_frames_of_any_library(prod, inputs, scores, make):
    given = {"clean": {name: make(frame) for name, frame in inputs["clean"].items()}}
    assert pl.from_pandas(prod.run(given)).sort("id").equals(scores)


def test_relations_of_duckdb_and_streams_are_inputs_too(prod, inputs, scores):
    flights, places = inputs["clean"]["flights"], inputs["clean"]["places"]
    with duckdb.connect() as connection:
        relation = connection.from_arrow(flights.to_arrow())
        given = {"clean": {"flights": relation, "places": pa.RecordBatchReader.from_stream(places)}}
        assert pl.from_pandas(prod.run(given)).sort("id").equals(scores)


@pytest.mark.parametrize("wanted", [pl.DataFrame, pd.DataFrame, pa.Table])
def test_the_caller_may_choose_the_type_of_tables(prod, inputs, wanted):
    assert type(prod.run(inputs, as_type=wanted)) is wanted


def test_parts_can_be_computed_by_the_name_of_an_output_or_a_task(prod, inputs):
    found = prod.run(inputs, outputs=["predict", "scoring.join"])
    assert list(found) == ["predict", "scoring.join"]
    assert set(found["scoring.join"].column_names) == {"id", "carrier", "hub", "share", "usual"}


def test_only_the_inputs_that_are_needed_have_to_be_there(config):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def double(x: pl.DataFrame):
        return x * 2

    with Flow("two") as flow:
        with Stage("a"):
            one, other = numbers(), numbers()
        with Stage("b"):
            first, second = double(one), double(other)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"one": one, "other": other}, output={"first": first, "second": second}), config=config)
    assert prod.run({"one": pl.DataFrame({"x": [5]})}, outputs=["first"])["first"]["x"].to_list() == [10]
    with pytest.raises(InputMismatch, match="missing input 'other'"):
        prod.run({"one": pl.DataFrame({"x": [5]})})


def test_an_output_that_does_not_exist_is_refused_with_the_nearest_one(prod, inputs):
    with pytest.raises(ProductionError, match=r"no output 'predicted'.*predict"):
        prod.run(inputs, outputs=["predicted"])
    with pytest.raises(ProductionError, match=r"outputs=\['predict'\]"):
        prod.run(inputs, outputs="predict")


def test_the_nesting_of_the_output_is_kept(config):
    with Flow("nests") as flow:
        with Stage("a"):
            one = numbers()
        with Stage("b"):
            made = _describe(one)
    trained(flow, config)
    prod = flow.extract(
        InOutSpecification(input={"x": one}, output={"all": [made, {"max": made["max"]}], "table": made["table"]}), config=config
    )
    found = prod.run({"x": pl.DataFrame({"x": [4, 9]})})
    assert found["all"][0]["max"] == found["all"][1]["max"] == 9
    assert found["table"]["x"].to_list() == [4, 9]


@materialize(version="1.0", input_type=pl.DataFrame)
def _describe(x: pl.DataFrame) -> dict[str, Any]:
    return {"max": x["x"].max(), "table": Table(x, "again")}


def test_an_output_that_is_an_input_is_given_back(config):
    with Flow("through") as flow:
        with Stage("a"):
            one = numbers()
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one}, output=one), config=config)
    frame = pl.DataFrame({"x": [7]})
    assert prod.run({"x": frame}).equals(frame)


def test_updates_of_an_output_are_seen_as_in_training(config):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def parts(x: pl.DataFrame):
        return {"a": Table(x, "a"), "b": Table(x * 2, "b")}

    @materialize(version="1.0", input_type=pl.DataFrame)
    def other(x: pl.DataFrame):
        return {"b": Table(x * 10, "b2"), "c": Table(x * 3, "c")}

    @materialize(version="1.0", input_type=pl.DataFrame)
    def total(tables):
        return {name: frame["x"].sum() for name, frame in tables.items()}

    with Flow("updates") as flow:
        with Stage("a"):
            one = numbers()
        with Stage("b"):
            first = parts(one)
            first.update(other(one))
            answer = total(first)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one}, output=answer), config=config)
    assert prod.run({"x": pl.DataFrame({"x": [1]})}) == {"a": 1, "b": 10, "c": 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.assign(y=["a", None, "b"])[x["x"] > 1],
        lambda x: x.sort_values("x", ascending=False),
        lambda x: x.assign(y=pd.array([1, None, 3], dtype="Int64")),
        lambda x: x.assign(y=pd.Series(["a", "b", None], dtype=object)),
        lambda x: x.assign(y=pd.Categorical(["a", "b", "a"])),
        lambda x: x.assign(y=pd.to_datetime(["2020-01-01", None, "2020-01-03"]).tz_localize("UTC")),
        lambda x: Table(x, type_map={"x": "SMALLINT"}),
        lambda x: Table(pl.from_pandas(x), type_map={"x": pl.Float32}),
        lambda x: Table(pl.from_pandas(x).lazy(), type_map={"x": "SMALLINT"}),
    ],
)
def test_a_consumer_gets_a_frame_as_it_would_from_a_store(config, make):
    seen = []

    @materialize(version="1.0", input_type=pd.DataFrame)
    def made(x: pd.DataFrame):
        return make(x)

    @materialize(version="1.0", input_type=pd.DataFrame)
    def looking(x: pd.DataFrame):
        seen.append(x)
        return x

    prod = after(config, made, looking)
    prod.run({"x": pd.DataFrame({"x": [1, 2, 3]})})
    training, production = seen
    pd.testing.assert_frame_equal(training, production, check_index_type="exact")


def test_types_of_queries_are_cast_as_in_training(config):
    @materialize(lazy=True, input_type=sa.Table)
    def narrow(x: sa.Alias):
        return Table(sa.select(x.c.x), "narrow", type_map={"x": sa.SmallInteger})

    assert after(config, narrow).run({"x": pl.DataFrame({"x": [1]})}).schema.field("x").type == pa.int16()


# --- SQL ----------------------------------------------------------------------------------------------------------------------------


def test_queries_are_made_once_and_executed_at_every_call(config):
    calls = []

    @materialize(lazy=True, input_type=sa.Table)
    def positive(x: sa.Alias):
        calls.append(1)
        return Table(sa.select(x.c.x).where(x.c.x > 1), "positive")

    prod = after(config, positive)
    before = len(calls)
    for number in range(2, 6):
        assert prod.run({"x": pl.DataFrame({"x": [0, number]})})["x"].to_pylist() == [number]
    assert len(calls) <= before + 1


def test_a_query_depends_on_plain_values_that_differ_from_call_to_call(config):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def top(x: pl.DataFrame):
        return x["x"].max()

    @materialize(lazy=True, input_type=sa.Table)
    def below(x: sa.Alias, limit: int):
        return Table(sa.select(x.c.x).where(x.c.x < limit), "below")

    with Flow("limits") as flow:
        with Stage("a"):
            one = numbers()
        with Stage("b"):
            answer = below(one, top(one))
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one}, output=answer), config=config)
    for last in (5, 3, 5):
        assert prod.run({"x": pl.DataFrame({"x": [*range(1, last + 1)]})})["x"].to_pylist() == [*range(1, last)]


def test_equal_decimals_of_other_digits_are_other_queries(config):
    @materialize(version="1.0")
    def price():
        return Decimal("1.0")

    @materialize(lazy=True, input_type=sa.Table)
    def priced(x: sa.Alias, price: Decimal):
        return Table(sa.select(x.c.x, sa.literal_column(str(price)).label("price")), "priced")

    with Flow("prices") as flow:
        with Stage("a"):
            one, value = numbers(), price()
        with Stage("b"):
            answer = priced(one, value)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one, "price": value}, output=answer), config=config)
    frame = pl.DataFrame({"x": [1]})
    types = [prod.run({"x": frame, "price": Decimal(text)}).schema.field("price").type for text in ("1.0", "1.00", "1.0")]
    assert types == [pa.decimal128(2, 1), pa.decimal128(3, 2), pa.decimal128(2, 1)]


def test_a_script_that_only_creates_tables_runs(config):
    @materialize(lazy=True, input_type=sa.Table)
    def script(x: sa.Alias):
        source = f'"{x.original.schema}"."{x.original.name}"'
        return RawSql(
            f'CREATE TABLE "b"."one" AS SELECT x + 1 AS x FROM {source}; CREATE TABLE "b"."two" AS SELECT x * 2 AS x FROM "b"."one"'
        )

    @materialize(version="1.0", input_type=pl.DataFrame)
    def both(raw):
        return [*raw["one"]["x"], *raw["two"]["x"]]

    prod = after(config, script, both)
    assert prod.run({"x": pl.DataFrame({"x": [1]})}) == [2, 4]
    assert prod.run({"x": pl.DataFrame({"x": [10]})}) == [11, 22]


def test_a_script_that_needs_a_database_is_named_at_extraction(config):
    @materialize(lazy=True, input_type=sa.Table)
    def script(x: sa.Alias):
        return RawSql('CREATE TABLE "b"."one" (x INTEGER); INSERT INTO "b"."one" VALUES (1)')

    with pytest.raises(PipedagError, match=r"b\.script cannot run without a database"):
        after(config, script)


def test_duckdb_relations_are_handed_to_tasks_that_want_them(config):
    @materialize(version="1.0", input_type=duckdb.DuckDBPyRelation)
    def double(x: duckdb.DuckDBPyRelation):
        return Table(x.project("x * 2 AS x"), "double")

    prod = after(config, double)
    assert prod.run({"x": pl.DataFrame({"x": [21]})}, as_type=pl.DataFrame)["x"].to_list() == [42]


def test_a_query_that_fails_names_the_task_and_later_calls_work(config):
    @materialize(lazy=True, input_type=sa.Table)
    def parsed(x: sa.Alias):
        return Table(sa.select(sa.cast(x.c.x, sa.SmallInteger).label("x")), "parsed")

    prod = after(config, parsed)
    with pytest.raises(PipedagError, match=r"b\.parsed"):
        prod.run({"x": pl.DataFrame({"x": [10**9]})})
    assert prod.run({"x": pl.DataFrame({"x": [7]})})["x"].to_pylist() == [7]


def test_queries_reach_nothing_outside_of_memory(config, tmp_path):
    outside = tmp_path / "outside.csv"
    outside.write_text("x\n1\n")

    @materialize(lazy=True, input_type=sa.Table)
    def reading(x: sa.Alias):
        return Table(sa.text(f"SELECT * FROM read_csv('{outside}')"), "reading")

    with pytest.raises(PipedagError, match="reading"):
        after(config, reading).run({"x": pl.DataFrame({"x": [1]})})


# --- inputs -------------------------------------------------------------------------------------------------------------------------


def test_columns_may_come_in_any_order(prod, inputs, scores):
    inputs["clean"]["flights"] = inputs["clean"]["flights"].select("minutes", "carrier", "id")
    assert pl.from_pandas(prod.run(inputs)).sort("id").equals(scores)


def test_everything_that_is_wrong_with_inputs_is_told_at_once_before_any_task_runs(config):
    calls = []

    @materialize(version="1.0", input_type=pl.DataFrame)
    def noted(x: pl.DataFrame, y: pl.DataFrame):
        calls.append(1)
        return x

    @materialize(version="1.0")
    def other():
        return Table(pl.DataFrame({"a": [1], "b": ["x"], "c": [1.5]}), "other", primary_key="a")

    with Flow("wrong") as flow:
        with Stage("a"):
            one, two = numbers(), other()
        with Stage("b"):
            answer = noted(one, two)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one, "y": two}, output=answer), config=config)
    del calls[:]
    with pytest.raises(InputMismatch) as caught:
        prod.run(
            {
                "x": pl.DataFrame({"x": ["a"], "z": [1]}),
                "y": pl.DataFrame({"a": [None], "b": ["x"], "c": [2.5]}, {"a": pl.Int64, "b": str, "c": float}),
                "w": 3,
            }
        )
    text = "\n".join(caught.value.problems)
    assert "x: extra column 'z'; expected: x" in text
    assert "y: column 'a' has 1 null; expected none, as in training" in text
    assert "unknown input 'w'" in text
    assert not calls


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pl.DataFrame({"y": [1]}), "missing column 'x' (int64); got: y"),
        (pl.DataFrame({"x": ["1"]}), "column 'x': expected int64, got"),
        (pl.DataFrame({"x": [1.5]}), "column 'x': expected int64, got double"),
        (pl.DataFrame({"x": [2**64 - 1]}, {"x": pl.UInt64}), "that does not fit"),
        (pd.DataFrame({"x": [1.5]}), "that does not fit"),
        ([1, 2], "expected a table, got a builtins.list"),
        (None, "expected a table, got None"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_with_what_was_expected_and_what_came(config, frame, said):
    prod = after(config)
    with pytest.raises(InputMismatch) as caught:
        prod.run({"x": frame})
    assert said in caught.value.problems[0]
    assert said in str(caught.value)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Int64])
def test_other_widths_of_a_type_are_taken_where_they_fit(config, dtype):
    assert after(config).run({"x": pl.DataFrame({"x": [7]}, {"x": dtype})}, as_type=pl.DataFrame).schema == {"x": pl.Int64}


def test_plain_values_are_inputs_too(config):
    @materialize(version="1.0")
    def parameters():
        return {"limit": 3, "name": "x"}

    @materialize(version="1.0")
    def shown(given):
        return f"{given['name']}{given['limit']}"

    with Flow("plain") as flow:
        with Stage("a"):
            given = parameters()
            answer = shown(given)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"given": given}, output=answer), config=config)
    assert prod.run({"given": {"limit": 4, "name": "y"}}) == "y4"
    assert prod.run({"given": {"limit": np.int64(4), "name": "y"}}) == "y4"
    with pytest.raises(InputMismatch, match=r"given\.limit: expected int, got '4'"):
        prod.run({"given": {"limit": "4", "name": "y"}})
    with pytest.raises(InputMismatch, match="missing 'name'"):
        prod.run({"given": {"limit": 4}})


def test_inputs_not_given_by_name_are_refused(prod):
    with pytest.raises(InputMismatch, match="Inputs are given by name"):
        prod.run(pl.DataFrame())


# --- isolation ----------------------------------------------------------------------------------------------------------------------


@materialize(version="1.0", input_type=pd.DataFrame)
def spoil(x: pd.DataFrame):
    x["x"] = 0
    x.loc[:, "y"] = 1
    return x


@materialize(version="1.0", input_type=pd.DataFrame)
def untouched(x: pd.DataFrame, spoilt: pd.DataFrame):
    return int(x["x"].sum())


def spoiling(config, role):
    with Flow("spoil") as flow:
        with Stage("a"):
            one, fact = numbers(), numbers()
        with Stage("b"):
            target = {"input": one, "const": fact}[role]
            answer = untouched(target, spoil(target))
            also = untouched(one, fact)
    trained(flow, config)
    return flow.extract(InOutSpecification(input={"x": one}, const=fact, output=[answer, also]), config=config)


@pytest.mark.parametrize("role", ["input", "const"])
def test_a_task_that_changes_a_frame_in_place_changes_it_for_nobody_else(config, role):
    prod = spoiling(config, role)
    frame = pd.DataFrame({"x": [1, 2, 3]})
    for _ in range(3):
        assert prod.run({"x": frame}) == [6, 6]
    assert frame["x"].tolist() == [1, 2, 3]
    assert list(frame) == ["x"]


@pytest.mark.parametrize("role", ["input", "const"])
def test_debug_says_which_task_changes_an_argument_in_place(config, role):
    with pytest.raises(ProductionError, match=r"b\.spoil changes its argument 'x'"):
        spoiling(config, role).run({"x": pd.DataFrame({"x": [1, 2, 3]})}, debug=True)


class Memory:
    """An object that can be changed."""

    def __init__(self):
        self.seen = []


def test_debug_says_which_task_changes_a_blob(config):
    @materialize(version="1.0")
    def remembered():
        return Blob(Memory(), "memory")

    @materialize(version="1.0", input_type=pl.DataFrame)
    def remembering(x: pl.DataFrame, memory):
        memory.seen.append(x.height)
        return x

    with Flow("memory") as flow:
        with Stage("a"):
            one, memory = numbers(), remembered()
        with Stage("b"):
            answer = remembering(one, memory)
    trained(flow, config)
    prod = flow.extract(InOutSpecification(input={"x": one}, const=memory, output=answer), config=config)
    with pytest.raises(ProductionError, match=r"b\.remembering changes its argument 'memory'"):
        prod.run({"x": pl.DataFrame({"x": [1]})}, debug=True)


def test_no_frame_is_copied_between_polars_tasks(config):
    seen = []

    @materialize(version="1.0", input_type=pl.DataFrame)
    def passed(x: pl.DataFrame):
        seen.append(x["x"].to_numpy().__array_interface__["data"][0])
        return x

    prod = after(config, passed, passed)
    del seen[:]
    frame = pl.DataFrame({"x": [1, 2, 3]})
    result = prod.run({"x": frame})
    addresses = {*seen, result["x"].to_numpy().__array_interface__["data"][0], frame["x"].to_numpy().__array_interface__["data"][0]}
    assert len(seen) == 2
    assert len(addresses) == 1


def test_many_threads_get_the_answers_of_one(prod, inputs, scores):
    flights, places = inputs["clean"]["flights"], inputs["clean"]["places"]
    ready = threading.Barrier(10)

    def score(number: int) -> list[tuple[int, Any]]:
        ready.wait()
        found = []
        for turn in range(20):
            id = (number + turn) % flights.height + 1
            one = {"clean": {"flights": flights.filter(pl.col("id") == id), "places": places}}
            found.append((id, prod.run(one)["score"].tolist()))
        return found

    expected = {row["id"]: [row["score"]] for row in scores.to_dicts()}
    with ThreadPoolExecutor(10) as pool:
        for found in pool.map(score, range(10)):
            assert all(score == expected[id] for id, score in found)


# --- looking ------------------------------------------------------------------------------------------------------------------------


def test_an_explained_run_gives_every_intermediate_and_its_time(prod, inputs, scores):
    explained = prod.run(inputs, explain=True)
    assert [item.task for item in explained.tasks] == ["scoring.join", "scoring.predict"]
    assert all(item.seconds > 0 for item in explained.tasks)
    assert explained["join"].num_rows == 6
    assert pl.from_pandas(explained.output).sort("id").equals(scores)
    assert "scoring.predict" in str(explained)


def test_what_a_task_raises_passes_through_with_a_note(config):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def picky(x: pl.DataFrame):
        if x["x"].sum() > 100:
            raise ValueError("too much")
        return x

    prod = after(config, picky)
    with pytest.raises(ValueError, match="too much") as caught:
        prod.run({"x": pl.DataFrame({"x": [101]})})
    assert any("b.picky" in note and "'chain'" in note for note in caught.value.__notes__)


def test_batches_give_what_the_whole_gives(config):
    @materialize(version="1.0", input_type=pl.DataFrame)
    def double(x: pl.DataFrame):
        return x * 2

    prod = after(config, double)
    frame = pl.DataFrame({"x": range(1003)})
    reader = pa.RecordBatchReader.from_batches(frame.to_arrow().schema, frame.to_arrow().to_batches(max_chunksize=97))
    parts = list(prod.run_batches(reader, rows=250))
    assert [part.height for part in parts] == [250, 250, 250, 250, 3]
    assert pl.concat(parts).equals(frame * 2)


def test_batches_say_which_table_is_the_stream(prod, inputs, scores):
    flights, places = inputs["clean"]["flights"], inputs["clean"]["places"]
    reader = pa.RecordBatchReader.from_stream(flights)
    parts = list(prod.run_batches({"clean": {"flights": reader, "places": places}}, rows=4))
    assert [len(part) for part in parts] == [4, 2]
    assert pl.from_pandas(pd.concat(parts)).sort("id").equals(scores)
    parts = list(prod.run_batches({"clean": {"flights": flights, "places": places}}, rows=4, stream="clean.flights"))
    assert [len(part) for part in parts] == [4, 2]
    with pytest.raises(InputMismatch, match="One input has to be the stream"):
        prod.run_batches({"clean": {"flights": flights, "places": places}})


def test_inputs_and_outputs_tell_their_schemas(prod):
    assert prod.inputs["clean"]["flights"].names == ["id", "carrier", "minutes"]
    assert prod.outputs["predict"].names == ["id", "score"]
    text = prod.describe()
    assert "  clean.flights: table(id int64" in text
    assert "calibration.average" in text
    assert "raw.run_note" in text
    assert "from: instance" in text


@pytest.mark.parametrize("format", ["html", "mermaid", "dot"])
def test_a_picture_shows_what_is_supplied_frozen_ignored_and_run(prod, format):
    drawn = prod.graph(format)
    for shown in ("clean", "average", "run", "predict", "join"):
        assert shown in drawn


def test_a_picture_shows_the_training_tasks_at_which_the_flow_was_cut(prod):
    lines = prod.graph("mermaid").splitlines()
    cut = {line.split('"')[1]: line.split("[")[0].strip() for line in lines if line.endswith(":::cut")}
    frozen = {line.split('"')[1]: line.split("[")[0].strip() for line in lines if line.endswith(":::const")}
    assert "calibration.average" in cut
    assert f"  {cut['calibration.average']} --> {frozen['calibration.average']}" in lines
    assert not cut.keys() & {"scoring.join", "scoring.predict"}


def test_what_runs_is_a_plan_too(prod):
    assert [task.id for task in prod.to_plan().tasks] == ["scoring.join", "scoring.predict"]


# --- nothing but memory -------------------------------------------------------------------------------------------------------------

CLOSED = """
import sys
sys.path[:0] = [{root!r}]
import pickle, threading
from tests.flows.production.delays import make, FLIGHTS, PLACES
import polars as pl
from pipedag_core import PipedagConfig

store = {{"class": "parquet", "args": {{"base_path": {store!r} + "/{{instance_id}}"}}}}
config = PipedagConfig({{"instances": {{"__any__": {{"table_store": store}}}}}}).get()
flow, spec = make()
assert flow.run(config=config).successful
prod = flow.extract(spec, config=config)
inputs = {{"clean": {{"flights": FLIGHTS.with_columns(pl.col("minutes").fill_null(0.0)), "places": PLACES}}}}
# What Python and its libraries load when they are first used is no part of a run.
prod.run(inputs)

forbidden = ("open", "socket", "os.", "sqlite3", "subprocess", "shutil", "tempfile", "urllib", "ctypes.dlopen")
touched = []
def hook(event, arguments):
    if closed and event.startswith(forbidden):
        touched.append((event, str(arguments)))
        raise PermissionError(event, arguments)
closed = False
sys.addaudithook(hook)
closed = True
answers = [prod.run(inputs) for _ in range(3)]
thread = threading.Thread(target=lambda: answers.append(prod.run(inputs)))
thread.start()
thread.join()
closed = False
assert not touched, touched
assert len(answers) == 4 and all(answer.equals(answers[0]) for answer in answers)
import resource, os
{limits}
print("closed")
"""

#: What the operating system refuses is refused to native code too: with no free file descriptor nothing can be opened.
LIMITS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
try:
    os.open("/", os.O_RDONLY)
except OSError:
    pass
else:
    raise AssertionError("files can still be opened")
answers = [prod.run(inputs) for _ in range(3)]
thread = threading.Thread(target=lambda: answers.append(prod.run(inputs)))
thread.start()
thread.join()
assert len(answers) == 4
"""


def test_a_run_opens_no_file_and_no_connection(tmp_path):
    """Python's own doors are watched by an audit hook; those of native code are shut by the operating system."""
    code = CLOSED.format(root=str(Path(__file__).parents[3]), store=str(tmp_path / "closed"), limits=textwrap.dedent(LIMITS))
    told = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=False, timeout=300)
    assert told.stdout.strip() == "closed", told.stderr


def test_what_training_had_as_inputs_can_be_had_again(prod, inputs):
    found = prod.training_inputs()
    assert {name: table.num_rows for name, table in found["clean"].items()} == {"flights": 6, "places": 3}
    answer, known = prod.run(found), prod.run(inputs)
    assert pl.DataFrame(answer).sort("id").equals(pl.DataFrame(known).sort("id"))
