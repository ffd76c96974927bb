"""Row contracts: classes of dataframely, pandera and pydiverse.colspec that say what rows a table has, on every kind of store."""

import datetime as dt
import os
import subprocess
import sys
from typing import Annotated, Optional

import dataframely as dy
import pandas as pd
import pandera.pandas as pandera_pandas
import pandera.polars as pandera_polars
import polars as pl
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from pandera.typing.polars import DataFrame as PanderaFrame
from pydiverse import colspec as cs

from pipedag_core import AUTO_VERSION, Flow, PipedagConfig, RawSql, Stage, Table, View, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.define.contracts import contract_in
from pipedag_core.errors import ConfigError, MaterializationError
from pipedag_core.hooks.contracts import read_contract


class Flights(dy.Schema):
    """Flights that are planned."""

    id = dy.Int64(primary_key=True, description="Number of the flight")
    carrier = dy.String(nullable=True, max_length=2)

    @dy.rule()
    def id_is_positive(cls) -> pl.Expr:
        return pl.col("id") > 0


class Delays(cs.ColSpec):
    id = cs.Int64(primary_key=True, nullable=False)
    minutes = cs.Float64()

    @cs.rule_polars()
    def not_early() -> pl.Expr:
        return pl.col("minutes") >= 0


class Planes(pandera_polars.DataFrameModel):
    seats: int = pandera_polars.Field(gt=0)
    maker: str = pandera_polars.Field(nullable=True)


class PandasPlanes(pandera_pandas.DataFrameModel):
    seats: int = pandera_pandas.Field(gt=0)


GOOD = {
    Flights: {"id": [1, 2], "carrier": ["AA", None]},
    Delays: {"id": [1, 2], "minutes": [0.5, 3.0]},
    Planes: {"seats": [2, 3], "maker": [None, "B"]},
}
BAD = {
    Flights: {"id": [1, -2], "carrier": ["AA", None]},
    Delays: {"id": [1, 2], "minutes": [0.5, -3.0]},
    Planes: {"seats": [2, 0], "maker": [None, "B"]},
}
RULES = {Flights: "id_is_positive", Delays: "not_early", Planes: "greater_than"}
CONTRACTS = list(GOOD)


def query(rows):
    """Return a query that gives rows, with other types than the contracts want."""
    names = list(rows)
    parts = [
        sa.select(*(sa.literal(value).label(name) for name, value in zip(names, row, strict=True)))
        for row in zip(*rows.values(), strict=True)
    ]
    return sa.union_all(*parts)


def forms(contract, rows):
    """Return form -> what a task may return of such rows."""
    frame = pl.DataFrame(rows)
    return {"polars": frame, "pandas": frame.to_pandas(), "arrow": frame.to_arrow(), "lazy": frame.lazy(), "sql": query(rows)}


def run(config, *, returned, contract=None, version="1", **options):
    """Run a flow whose only task returns this."""

    def task():
        return returned if contract is None else Table(returned, annotation=contract)

    with Flow("f") as flow, Stage("s"):
        out = materialize(task, name="made", version=version, **options)()
    return flow, out


@pytest.mark.parametrize("form", ["polars", "pandas", "arrow", "lazy", "sql"])
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda cls: cls.__name__)
def test_rows_that_keep_a_contract_are_stored_with_its_types_and_promises(each_store, contract, form):
    flow, out = run(each_store, returned=forms(contract, GOOD[contract])[form], contract=contract)
    result = flow.run(config=each_store, fail_fast=True)
    back = result.get(out, as_type=pl.DataFrame)
    assert (
        back.select(pl.DataFrame(GOOD[contract]).columns).sort(back.columns[0]).equals(pl.DataFrame(GOOD[contract]).sort(back.columns[0]))
    )
    with open_session(each_store) as session:
        options = session.catalog.shown()["s"]["made"].options
    assert options.contract.startswith(f"{contract.__name__}:")
    if contract is not Planes:
        assert options.primary_key == ("id",)


@pytest.mark.parametrize("form", ["polars", "pandas", "arrow", "lazy", "sql"])
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda cls: cls.__name__)
def test_rows_that_break_a_contract_are_an_error_that_counts_them_and_nothing_is_kept(each_store, contract, form):
    flow, _ = run(each_store, returned=forms(contract, BAD[contract])[form], contract=contract)
    with pytest.raises(MaterializationError, match=rf"made.*{contract.__name__}.*{RULES[contract]}.* by 1 of 2 rows") as caught:
        flow.run(config=each_store, fail_fast=True)
    assert list(caught.value.failing.values()) == [1]
    with open_session(each_store) as session:
        assert session.tables.deposits() == []


def test_keys_and_nulls_are_looked_at_as_well(each_store):
    for rows, message in (({"id": [1, 1], "carrier": ["AA", "B"]}, "primary"), ({"id": [1, None], "carrier": ["AA", "B"]}, "id")):
        for form in ("polars", "sql"):
            flow, _ = run(each_store, returned=forms(Flights, rows)[form], contract=Flights)
            with pytest.raises(MaterializationError, match=message):
                flow.run(config=each_store, fail_fast=True)


@materialize(version="1")
def planned() -> dy.DataFrame[Flights]:
    return pl.DataFrame({"id": ["1", "2"], "carrier": ["AA", None], "more": [1, 2]})


@materialize(version="1")
def nested() -> dict[str, PanderaFrame[Planes]]:
    return {"one": pl.DataFrame({"seats": [1], "maker": ["A"]}), "two": Table(pl.DataFrame({"seats": [0], "maker": ["A"]}), name="second")}


@materialize(version="1")
def pair() -> tuple[Delays, pd.DataFrame]:
    return pl.DataFrame({"id": [1], "minutes": [1.0]}), pd.DataFrame({"x": [1]})


@materialize(version=AUTO_VERSION, input_type=pl.LazyFrame)
def lazily(source) -> dy.LazyFrame[Flights]:
    return source.select("id", carrier=pl.lit("B"))


@materialize(version="1", input_type=pl.DataFrame)
def takes(given: dict[str, dy.DataFrame[Flights]], *more: Planes) -> int:
    return sum(frame.height for frame in (*given.values(), *more))


def test_return_annotations_are_contracts_and_types_are_cast(each_store):
    with Flow("f") as flow, Stage("s"):
        flights = planned()
        lazy = lazily(flights)
        pair()
    result = flow.run(config=each_store, fail_fast=True)
    assert result.get(flights, as_type=pl.DataFrame).sort("id").rows() == [(1, "AA"), (2, None)]
    assert result.get(lazy, as_type=pl.DataFrame).sort("id").rows() == [(1, "B"), (2, "B")]
    with open_session(each_store) as session:
        shown = session.catalog.shown()["s"]
    assert {name: item.options.contract.partition(":")[0] for name, item in shown.items()} == {
        "planned": "Flights",
        "lazily": "Flights",
        "pair_0": "Delays",
        "pair_1": "",
    }
    assert {report.outcome.value for report in flow.run(config=each_store).reports if report.task} == {"cached"}


def test_annotations_of_containers_hold_for_what_is_in_them(config):
    with Flow("f") as flow, Stage("s"):
        nested()
    with pytest.raises(MaterializationError, match=r"'second'.*Planes.*by 1 of 1 rows"):
        flow.run(config=config, fail_fast=True)


def test_arguments_are_looked_at_where_rows_are_handed_over(each_store):
    def flow_of(seats, ident):
        @materialize(version=f"{seats} {ident}", nout=2)
        def source():
            return pl.DataFrame({"id": [ident], "carrier": ["A"]}), pl.DataFrame({"seats": [seats], "maker": ["A"]})

        with Flow("f") as flow, Stage("s"):
            flights, planes = source()
            out = takes({"flights": flights}, planes)
        return flow, out

    flow, out = flow_of(1, 1)
    assert flow.run(config=each_store, fail_fast=True).get(out) == 2
    with pytest.raises(MaterializationError, match=r"Argument 'given.flights' of task s.takes breaks its contract Flights"):
        flow_of(1, -1)[0].run(config=each_store, fail_fast=True)
    with pytest.raises(MaterializationError, match=r"Argument 'more.0' of task s.takes breaks its contract Planes"):
        flow_of(0, 1)[0].run(config=each_store, fail_fast=True)


def test_a_contract_of_pandas_looks_at_pandas_frames(config):
    for seats, good in ((1, True), (0, False)):
        flow, out = run(config, returned=pd.DataFrame({"seats": [seats]}), contract=PandasPlanes, version=str(seats))
        if good:
            assert flow.run(config=config, fail_fast=True).get(out, as_type=pd.DataFrame)["seats"].tolist() == [1]
        else:
            with pytest.raises(MaterializationError, match="PandasPlanes"):
                flow.run(config=config, fail_fast=True)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda cls: cls.__name__)
def test_missing_columns_are_named(config, contract):
    flow, _ = run(config, returned=pl.DataFrame({"seats": [1]} if contract is Planes else {"id": [1]}), contract=contract)
    with pytest.raises(MaterializationError, match=r"maker|carrier|minutes"):
        flow.run(config=config, fail_fast=True)


def test_a_changed_contract_makes_a_lazy_table_anew(each_store):
    def contract(limit):
        class Limited(dy.Schema):
            id = dy.Int64(max=limit)

        return Limited

    outcomes = []
    for limit in (10, 10, 20):
        with Flow("f") as flow, Stage("s"):
            materialize(
                lambda limit=limit: Table(sa.select(sa.literal(5).label("id")), annotation=contract(limit)), name="made", lazy=True
            )()
        result = flow.run(config=each_store, fail_fast=True)
        outcomes += [report.outcome.value for report in result.reports if report.task]
    assert outcomes == ["ran", "cached", "ran"]


@pytest.mark.parametrize("library", ["dataframely", "colspec", "pandera"])
def test_a_rule_that_changes_changes_the_contract_and_else_nothing_does(library):
    def contract(limit):
        if library == "dataframely":

            class Limited(dy.Schema):
                x = dy.Int64()

                @dy.rule()
                def small(cls) -> pl.Expr:
                    return pl.col("x") < limit

        elif library == "colspec":

            class Limited(cs.ColSpec):
                x = cs.Int64(max=limit)
                if limit > 1:

                    @cs.rule_polars()
                    def small() -> pl.Expr:
                        return pl.col("x") < 100

        else:

            class Limited(pandera_polars.DataFrameModel):
                x: int = pandera_polars.Field(lt=limit)

        return read_contract(Limited).token

    assert contract(1) == contract(1) != contract(2)


def test_what_is_no_contract_is_refused(config):
    flow, _ = run(config, returned=pa.table({"x": [1]}), contract=int)
    with pytest.raises(ConfigError, match="int"):
        flow.run(config=config, fail_fast=True)


@materialize(version="1")
def commented() -> dy.DataFrame[Flights]:
    return pl.DataFrame({"id": [1], "carrier": ["AA"]})


@materialize(lazy=True, input_type=sa.Table)
def described(flights):
    """Count the flights; it's "simple".

    More is not told.
    """
    return sa.select(sa.func.count().label("n")).select_from(flights)


def test_postgresql_keeps_comments_of_docstrings_and_contracts_for_whoever_looks_at_a_stage(tmp_path, postgres_url, schema_prefix):
    store = {"class": "sql", "args": {"url": postgres_url, "schema_prefix": schema_prefix + "{instance_id}_"}}
    blobs = {"class": "file", "args": {"base_path": str(tmp_path / "{instance_id}")}}
    config = PipedagConfig({"instances": {"full": {"table_store": store, "blob_store": blobs}}}).get("full")
    with Flow("f") as flow, Stage("s"):
        described(commented())
    assert flow.run(config=config, fail_fast=True).successful
    for schema in ("s", "s__g1"):
        with psycopg.connect(postgres_url) as connection:
            told = {
                name: connection.execute(
                    "SELECT obj_description(%s::regclass), col_description(%s::regclass, 1)", (where, where)
                ).fetchone()
                for name in ("commented", "described")
                for where in [f"{schema_prefix}full_{schema}.{name}"]
            }
        assert told == {
            "commented": ("Flights that are planned.", "Number of the flight"),
            "described": ('Count the flights; it\'s "simple".', None),
        }


# --- what was found in a review ---------------------------------------------------------------------------------------------------------


class Zoned(dy.Schema):
    at = dy.Datetime(time_unit="us", time_zone="UTC")
    id = dy.Int64()


def test_columns_and_types_are_those_of_the_contract_in_whatever_form_rows_come(each_store):
    frame = pl.DataFrame({"more": [1], "id": [1], "at": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]}).with_columns(
        pl.col("at").dt.replace_time_zone(None)
    )
    schemas = []
    for number, form in enumerate((frame, frame.lazy(), frame.to_arrow())):
        flow, out = run(each_store, returned=form, contract=Zoned, version=str(number))
        schemas.append(flow.run(config=each_store, fail_fast=True).get(out, as_type=pl.DataFrame).schema)
    assert schemas == [pl.Schema({"at": pl.Datetime("us", "UTC"), "id": pl.Int64})] * 3


class Dropping(pandera_polars.DataFrameModel):
    x: int = pandera_polars.Field(gt=0)

    class Config:
        drop_invalid_rows = True


def test_rows_that_a_contract_drops_are_dropped_in_whatever_form_they_come(each_store):
    for number, form in enumerate((pl.DataFrame({"x": [0, 2]}), pl.LazyFrame({"x": [0, 2]}), query({"x": [0, 2]}))):
        flow, out = run(each_store, returned=form, contract=Dropping, version=str(number))
        assert flow.run(config=each_store, fail_fast=True).get(out, as_type=pl.DataFrame)["x"].to_list() == [2]


class Optionally(pandera_polars.DataFrameModel):
    a: int
    b: Optional[int]  # noqa: UP045 -- this is how pandera is told that a column may be absent


class OfPandas(pandera_pandas.DataFrameModel):
    seats: int


def test_columns_that_may_be_absent_may_be_absent_and_queries_are_cast_for_pandas_too(each_store):
    for number, (form, contract) in enumerate(
        ((pl.LazyFrame({"a": [1]}), Optionally), (query({"a": [1]}), Optionally), (query({"seats": [1]}), OfPandas))
    ):
        flow, _ = run(each_store, returned=form, contract=contract, version=str(number))
        assert flow.run(config=each_store, fail_fast=True).successful


@materialize(version="1", input_type=sa.Table)
def viewed(flights) -> dy.LazyFrame[Flights]:
    return View(flights)


@materialize(lazy=True)
def scripted() -> dy.LazyFrame[Flights]:
    return RawSql("CREATE TABLE made AS SELECT 1 AS id")


def test_what_cannot_be_looked_at_is_refused_under_a_contract(config):
    with Flow("f") as flow, Stage("s"):
        viewed(planned())
    with pytest.raises(MaterializationError, match="View where a table under the contract Flights"):
        flow.run(config=config, fail_fast=True)
    with Flow("f") as flow, Stage("s"):
        scripted()
    with pytest.raises(MaterializationError, match="RawSql where a table under the contract Flights"):
        flow.run(config=config, fail_fast=True)


def test_contracts_are_found_wherever_annotations_name_them():
    for annotation in (
        Flights,
        dy.DataFrame[Flights],
        Table[Flights],
        Table[dy.LazyFrame[Flights]],
        Annotated[pl.DataFrame, Flights],
        Annotated[pl.DataFrame, Flights] | None,
        dy.DataFrame[Flights] | None,
    ):
        assert contract_in(annotation) is Flights
    for annotation in (pl.DataFrame, dict[str, int], int, "text", Table[pl.DataFrame]):
        assert contract_in(annotation) is None


def test_an_index_that_means_something_is_refused_as_without_a_contract(config):
    flow, _ = run(config, returned=pd.DataFrame({"id": [1], "carrier": ["A"]}, index=pd.Index(["a"], name="key")), contract=Flights)
    with pytest.raises(MaterializationError, match="reset_index"):
        flow.run(config=config, fail_fast=True)


def test_a_changed_contract_is_noticed_by_an_auto_version_task_that_writes_on_the_way(each_store):
    outcomes = []
    for limit in (10, 10, 20):

        class Limited(dy.Schema):
            id = dy.Int64(max=limit)

        def task(source) -> dy.LazyFrame[Limited]:
            return Table(source, name="half_way").materialize().select("id")

        task.__annotations__["return"] = dy.LazyFrame[Limited]
        with Flow("f") as flow, Stage("s"):
            materialize(task, version=AUTO_VERSION, input_type=pl.LazyFrame)(planned())
        result = flow.run(config=each_store, fail_fast=True)
        outcomes += [report.outcome.value for report in result.reports if report.task == "task"]
    assert outcomes == ["ran", "cached", "ran"]


def test_what_was_written_on_the_way_without_its_contract_cannot_be_returned_under_one(config):
    def task():
        written = Table(pl.DataFrame({"id": [1], "carrier": ["A"]}), name="made", annotation=contract)
        written.materialize()
        return written

    task.__annotations__["return"] = dy.DataFrame[Flights]
    for contract in (None, Flights):
        with Flow("f") as flow, Stage("s"):
            materialize(task, version="1")()
        if contract is None:
            with pytest.raises(MaterializationError, match="annotation=Flights"):
                flow.run(config=config, fail_fast=True)
        else:
            assert flow.run(config=config, fail_fast=True).successful


def test_what_a_rule_remembers_belongs_to_the_contract():
    def contract(limit):
        class Limited(cs.ColSpec):
            x = cs.Int64()

            @cs.rule_polars()
            def small() -> pl.Expr:
                return pl.col("x") < limit

        return read_contract(Limited).token

    assert contract(1) == contract(1) != contract(2)


def test_a_contract_is_the_same_in_every_process():
    code = (
        "import pandera.polars as pa; from pipedag_core.hooks.contracts import read_contract\n"
        "class C(pa.DataFrameModel):\n    x: str = pa.Field(isin={'a', 'b', 'c', 'd', 'e'})\n"
        "print(read_contract(C).token)"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
