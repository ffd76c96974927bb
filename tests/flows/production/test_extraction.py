"""Freezing what training has left behind, and holding production against training."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Flow, InOutSpecification, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ExtractionRefused, ProductionError, VerificationFailed
from pipedag_core.production.comparing import compare_tables
from tests.flows.production.delays import make

#: What a task below does; changed by tests as somebody edits code.
CODE = {"version": "1.0", "factor": 2, "limit": 1}


@materialize(version="1.0")
def numbers():
    return Table(pl.DataFrame({"id": [1, 2, 3], "x": [1, 2, 3]}), primary_key="id")


def declare():
    """Return a flow numbers -> limit -> factor (const), and scores made of both, with its specification."""

    @materialize(version=CODE["version"], input_type=pl.DataFrame)
    def limit(x: pl.DataFrame):
        return int(x["x"].max()) * CODE["limit"]

    @materialize(lazy=True, input_type=sa.Table)
    def factors(x: sa.Alias, top: int):
        return Table(sa.select(x.c.id, (x.c.x * CODE["factor"] + top).label("f")), "factors")

    @materialize(version="1.0", input_type=pl.DataFrame)
    def scores(x: pl.DataFrame, table: pl.DataFrame):
        return Table(
            x.join(table, on="id").select("id", (pl.col("x") * pl.col("f")).cast(float).alias("score")), "scores", primary_key="id"
        )

    with Flow("freezing") as flow:
        with Stage("a"):
            x = numbers()
        with Stage("b"):
            table = factors(x, limit(x))
        with Stage("c"):
            out = scores(x, table)
    return flow, InOutSpecification(input={"x": x}, const=table, output=out)


@pytest.fixture(autouse=True)
def _code():
    before = dict(CODE)
    yield
    CODE.update(before)


def problems(flow, spec, config):
    with pytest.raises(ExtractionRefused) as caught:
        flow.extract(spec, config=config)
    return caught.value.problems


# --- freezing -----------------------------------------------------------------------------------------------------------------------


def test_a_const_that_was_never_computed_names_the_command_that_computes_it(config):
    flow, spec = declare()
    found = problems(flow, spec, config)
    [const] = [problem for problem in found if "the const b.factors" in problem]
    assert "was never computed on instance 'default'" in const
    assert "pipedag run MODULE:FLOW --instance default" in const
    assert any("the input a.numbers was never computed" in problem for problem in found)


@pytest.mark.parametrize(
    ("change", "said"), [({"version": "1.1"}, "b.limit is not what"), ({"factor": 3}, "b.factors is not what"), ({"limit": 5}, None)]
)
def test_a_const_that_the_code_would_make_otherwise_today_is_refused(config, change, said):
    flow, spec = declare()
    assert flow.run(config=config).successful
    CODE.update(change)
    flow, spec = declare()
    if said is None:
        # A change under the same version is the user's promise that nothing changed, here as in a run.
        assert flow.extract(spec, config=config)
        return
    found = problems(flow, spec, config)
    assert len(found) >= 1
    assert any("the const b.factors would be stale" in problem and said in problem for problem in found)
    assert "pipedag run" in found[0]
    assert flow.run(config=config).successful
    assert flow.extract(spec, config=config)


def test_a_const_made_from_what_has_changed_since_is_refused(config):
    values = [1]

    @materialize
    def source():
        return pl.DataFrame({"x": values})

    @materialize(version="1.0", input_type=pl.DataFrame)
    def total(x: pl.DataFrame):
        return int(x["x"].sum())

    @materialize(version="1.0", input_type=pl.DataFrame)
    def shifted(x: pl.DataFrame, by: int):
        return x + by

    with Flow("stages") as flow:
        with Stage("a"):
            x = source()
        with Stage("b"):
            by = total(x)
        with Stage("c"):
            out = shifted(x, by)
    spec = InOutSpecification(input={"x": x}, const=by, output=out)
    assert flow.run(config=config).successful
    assert flow.extract(spec, config=config).run({"x": pl.DataFrame({"x": [1]})})["x"].to_list() == [2]
    values.append(5)
    # One stage alone: the others stay as an earlier run left them.
    assert flow.run(flow["a"], config=config).successful
    [found] = problems(flow, spec, config)
    assert "the const b.total would be stale" in found
    assert flow.run(config=config).successful
    assert flow.extract(spec, config=config).run({"x": pl.DataFrame({"x": [1]})})["x"].to_list() == [7]


def test_expressions_are_compared_too(config):
    def declared(factor):
        @materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
        def scaled(x: pl.LazyFrame):
            return Table(x.select("id", pl.col("x") * factor), "scaled")

        @materialize(version="1.0", input_type=pl.DataFrame)
        def both(x: pl.DataFrame, y: pl.DataFrame):
            return x.join(y, on="id")

        with Flow("auto") as flow:
            with Stage("a"):
                x = numbers()
            with Stage("b"):
                y = scaled(x)
                out = both(x, y)
        return flow, InOutSpecification(input={"x": x}, const=y, output=out)

    flow, spec = declared(2)
    assert flow.run(config=config).successful
    assert flow.extract(spec, config=config)
    flow, spec = declared(3)
    [found] = problems(flow, spec, config)
    assert "b.scaled is not what the code makes" in found


def test_all_that_cannot_be_frozen_is_told_at_once(config):
    flow, spec = declare()
    assert flow.run(flow["a"], config=config).successful
    CODE["version"] = "2.0"
    assert len(problems(flow, spec, config)) == 1
    flow, spec = make()
    assert len(problems(flow, spec, config)) >= 4


def test_extraction_and_running_leave_the_store_as_it_was(trained, config, store_folder, inputs):
    flow, spec = trained

    def state():
        with open_session(config) as session:
            rows = [(row.stage, row.number, row.state) for row in session.catalog.generations() if row.state != "scratch"]
            return rows, sorted((str(path), path.stat().st_mtime_ns) for path in store_folder.rglob("*.parquet"))

    before = state()
    prod = flow.extract(spec, config=config)
    prod.run(inputs)
    prod.verify()
    assert state() == before


def test_a_production_flow_knows_where_it_comes_from(prod):
    origin = prod.provenance
    assert origin["flow"] == "delays"
    assert origin["instance"] == "default"
    assert origin["stages"]["calibration"]["generation"] >= 1
    assert origin["stages"]["calibration"]["run"]
    assert set(origin["tasks"]) == {"cleaned.clean", "calibration.average", "calibration.largest", "scoring.train"}
    assert origin["tasks"]["scoring.train"]["fingerprint"]
    assert set(origin["git"] or {"commit": "", "changed": ""}) == {"commit", "changed"}


def test_what_is_frozen_stays_as_it_was_when_training_goes_on(config):
    flow, spec = declare()
    assert flow.run(config=config).successful
    prod = flow.extract(spec, config=config)
    frame = pl.DataFrame({"id": [1, 2, 3], "x": [1, 2, 3]})
    before = prod.run({"x": frame})
    CODE["factor"] = 10
    assert declare()[0].run(config=config).successful
    assert prod.run({"x": frame}).equals(before)


def test_what_is_no_specification_is_refused(trained, config):
    with pytest.raises(ExtractionRefused, match="takes an InOutSpecification, not dict"):
        trained[0].extract({"input": 1}, config=config)


# --- verifying ----------------------------------------------------------------------------------------------------------------------


def test_replaying_the_training_inputs_gives_the_committed_output(prod):
    found = prod.verify()
    assert found.compared == (("predict", 6),)
    assert "equal: predict (6 rows)" in str(found)
    # `predict` adds a column to its own copy.
    assert found.changes == ("scoring.predict changes its argument 'joined' (DataFrame)",)


def test_a_task_that_does_something_else_in_production_is_found(config):
    flow, spec = declare()
    assert flow.run(config=config).successful
    prod = flow.extract(spec, config=config)

    def skewed(step):
        def run(x, table):
            return step(x, table).with_columns(pl.when(pl.col("id") == 2).then(-1.0).otherwise(pl.col("score")).alias("score"))

        return run

    scores = prod.parts.program.nodes[0].function
    inner = scores.fn
    scores.fn = lambda x, table: Table(skewed(lambda a, b: inner(a, b).obj)(x, table), "scores", primary_key="id")
    prod = flow.extract(spec, config=config)
    with pytest.raises(VerificationFailed) as caught:
        prod.verify()
    [found] = caught.value.problems
    assert "1 of 3 rows differ, in 'score' (1 rows)" in found
    assert "'id': 2" in found
    assert "-1.0" in found


def test_rows_that_an_ignored_value_left_out_of_training_are_noted(config):
    @materialize(version="1.0")
    def chosen():
        return [1, 3]

    @materialize(version="1.0", input_type=pl.DataFrame)
    def scores(x: pl.DataFrame, only: list[int] | None = None):
        return Table(x if only is None else x.filter(pl.col("id").is_in(only)), "scores", primary_key="id")

    with Flow("rows") as flow:
        with Stage("a"):
            x, only = numbers(), chosen()
        with Stage("b"):
            out = scores(x, only)
    assert flow.run(config=config).successful
    found = flow.extract(InOutSpecification(input={"x": x}, ignore=only, output=out), config=config).verify()
    assert found.compared == (("scores", 2),)
    assert found.notes == ("scores: 1 rows that training left out, as something is ignored",)


def test_after_training_has_gone_on_there_is_nothing_to_compare_with(config):
    flow, spec = declare()
    assert flow.run(config=config).successful
    prod = flow.extract(spec, config=config)
    CODE["factor"] = 10
    assert declare()[0].run(config=config).successful
    with pytest.raises(ProductionError, match=r"Training has gone on since this was extracted: b \(g"):
        prod.verify()
    with pytest.raises(ProductionError, match="Training has gone on"):
        prod.training_inputs()


def test_a_loaded_bundle_verifies_against_the_flow_that_is_passed(trained, config, prod, tmp_path):
    from pipedag_core import ProductionFlow

    loaded = ProductionFlow.load(prod.save(tmp_path / "bundle"))
    assert loaded.verify(config, flow=trained).compared == (("predict", 6),)
    with pytest.raises(ProductionError, match="no import reference"):
        loaded.verify(config)


TABLE = pa.table({"id": [1, 2, 3], "x": [1.0, None, float("nan")], "t": ["a", "b", None]})


@pytest.mark.parametrize("key", [(), ("id",)])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.take([2, 0, 1]), ""),
        (lambda table: table.select(["t", "x", "id"]), ""),
        (lambda table: table.set_column(1, "x", pa.array([1.0 + 1e-12, None, float("nan")])), ""),
        (lambda table: table.set_column(1, "x", pa.array([1.1, None, float("nan")])), "1 of 3 rows differ, in 'x'"),
        (lambda table: table.set_column(2, "t", pa.array(["a", "c", None])), "1 of 3 rows differ, in 't'"),
        (lambda table: table.set_column(2, "t", pa.array([None, "b", None], pa.string())), "in 't' (1 rows)"),
        (lambda table: table.slice(1), ("expected 3 rows, got 2", "1 of 3 rows are missing; the first: {'id': 1}")),
        (lambda table: pa.concat_tables([table, table.slice(2)]), ("expected 3 rows, got 4", "rows with the same id occur more than once")),
        (lambda table: table.drop_columns("t"), "missing: t"),
        (lambda table: table.append_column("u", [[1, 2, 3]]), "not in training: u"),
        (lambda table: table.set_column(0, "id", pa.array(["a", "b", "c"])), "expected int64, got string"),
    ],
)
def test_tables_are_compared_without_regard_to_the_order_of_rows(change, said, key):
    found = compare_tables(TABLE, change(TABLE), 1e-9, {}, key).problem
    wanted = said[bool(key)] if isinstance(said, tuple) else said
    assert bool(found) is bool(wanted)
    assert wanted in found


def test_columns_may_have_tolerances_of_their_own():
    other = TABLE.set_column(1, "x", pa.array([1.1, None, float("nan")]))
    assert not compare_tables(TABLE, other, 1e-9, {"x": 0.2}, ("id",)).problem
    assert compare_tables(TABLE, other, 0.2, {"x": 1e-9}, ("id",)).problem


def test_tables_without_a_key_that_hold_lists_are_compared_in_order():
    table = pa.table({"x": [[1], [2]]})
    assert not compare_tables(table, table, 0.0, {}).problem
    assert compare_tables(table, table.take([1, 0]), 0.0, {}).problem


@pytest.mark.parametrize("key", [(), ("id",)])
def test_text_in_views_is_compared_as_any_other(key):
    lists = pa.array([["a"], None], pa.list_(pa.string_view()))
    before = pa.table(
        {"id": [1, 2], "text": pa.array(["a", None], pa.string_view()), "raw": pa.array([b"a", b"b"], pa.binary_view()), "lists": lists}
    )
    plain = pa.schema([("id", pa.int64()), ("text", pa.string()), ("raw", pa.binary()), ("lists", pa.list_(pa.string()))])
    same = compare_tables(before, before.cast(plain), 0, {}, key)
    assert (same.problem, same.rows) == ("", 2)
    other = before.set_column(1, "text", pa.array(["b", None], pa.string_view()))
    assert "1 of 2 rows differ, in 'text'" in compare_tables(before, other, 0, {}, key).problem


def test_text_with_dictionaries_is_compared_by_value():
    one, two = pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode().take([1, 0])
    assert not compare_tables(pa.table({"id": [1, 2], "x": one}), pa.table({"id": [1, 2], "x": two}), 0.0, {}, ("id",)).problem


def test_pandas_frames_are_inputs_of_a_replay_too(config):
    @materialize(version="1.0", input_type=pd.DataFrame)
    def named(x: pd.DataFrame):
        return x.assign(name=["a", None, "c"], when=pd.Timestamp("2020-01-01"))

    @materialize(version="1.0", input_type=pd.DataFrame)
    def same(x: pd.DataFrame):
        return x

    with Flow("pandas") as flow:
        with Stage("a"):
            x = named(numbers())
        with Stage("b"):
            out = same(x)
    assert flow.run(config=config).successful
    assert flow.extract(InOutSpecification(input={"x": x}, output=out), config=config).verify().compared == (("same", 3),)
