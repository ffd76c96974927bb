"""Production flows of what was trained on each of the three stores: same answers as training has committed, and nothing left of the store in them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, InOutSpecification, ProductionFlow, RawSql, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from tests.flows.production.delays import make


@pytest.fixture
def trained_there(each_store):
    flow, spec = make()
    result = flow.run(config=each_store)
    assert result.successful, result.exception
    return flow, spec, result.get(flow["scoring"].get_task("predict"), as_type=pl.DataFrame).sort("id")


def test_a_replay_gives_what_training_has_committed(trained_there, each_store, tmp_path, inputs):
    flow, spec, committed = trained_there
    prod = flow.extract(spec, config=each_store)
    assert prod.verify().compared == (("predict", 6),)
    assert prod.run(inputs, as_type=pl.DataFrame).sort("id").equals(committed)

    loaded = ProductionFlow.load(prod.save(tmp_path / "bundle"))
    assert loaded.verify(each_store, flow=(flow, spec)).compared == (("predict", 6),)
    assert loaded.run(inputs, as_type=pl.DataFrame).sort("id").equals(committed)


def test_a_bundle_is_the_same_twice(trained_there, each_store, tmp_path):
    flow, spec, _ = trained_there
    both = [flow.extract(spec, config=each_store).save(tmp_path / name, code="package") for name in ("one", "two")]
    one, two = ({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in both)
    assert one == two


def test_extracting_and_running_leave_the_catalog_as_it_was(trained_there, each_store, inputs):
    flow, spec, _ = trained_there

    def seen():
        with open_session(each_store) as session:
            return (
                [row for row in session.catalog.generations() if row.state != "scratch"],
                session.catalog.shown(),
                session.catalog.leases(),
            )

    before = seen()
    prod = flow.extract(spec, config=each_store)
    prod.run(inputs)
    prod.verify()
    assert seen() == before
    again = make()[0].run(config=each_store)
    assert {outcome.value for outcome in again.task_states.values()} == {"cached"}


def test_ten_threads_at_once_get_the_answers_of_one(trained_there, each_store, inputs):
    flow, spec, committed = trained_there
    prod = flow.extract(spec, config=each_store)
    places, flights = inputs["clean"]["places"], inputs["clean"]["flights"]

    def score(id):
        one = {"clean": {"flights": flights.filter(pl.col("id") == id), "places": places}}
        return prod.run(one, as_type=pl.DataFrame)

    alone = {id: score(id) for id in range(1, 7)}
    with ThreadPoolExecutor(10) as pool:
        for number, found in enumerate(pool.map(score, [number % 6 + 1 for number in range(200)])):
            assert found.equals(alone[number % 6 + 1])
    assert pl.concat(alone.values()).equals(committed)


@materialize(version="1.0")
def orders():
    return Table(
        pl.DataFrame(
            {"id": [1, 2, 3], "name": ["Ab", None, "cd"], "price": [1.25, 2.5, None], "day": ["2024-01-31", "2024-02-29", "2024-03-01"]}
        ),
        "orders",
        primary_key="id",
    )


@materialize(lazy=True, input_type=sa.Table)
def by_text(orders: sa.Alias):
    name = orders.original
    return Table(
        sa.text(f"""
            SELECT id, LOWER(name) || '-' || CAST(id AS VARCHAR) AS label, COALESCE(price, 0.0) * 2 AS double,
                   EXTRACT(month FROM CAST(day AS DATE)) AS month, id::BIGINT % 2 = 0 AS even
            FROM "{name.schema}"."{name.name}" ORDER BY id
        """),
        "by_text",
        primary_key="id",
    )


@materialize(lazy=True, input_type=sa.Table)
def by_expression(orders: sa.Alias):
    query = sa.select(
        orders.c.id,
        sa.func.coalesce(orders.c.name, "?").label("name"),
        sa.case((orders.c.price > 2, "much"), else_="little").label("size"),
        sa.func.sum(orders.c.price).over(order_by=orders.c.id).label("running"),
    )
    return Table(query, "by_expression", primary_key="id")


@materialize(lazy=True, input_type=sa.Table)
def by_script(orders: sa.Alias):
    name = orders.original
    return RawSql(
        f'CREATE TABLE "made"."first" AS SELECT id, price FROM "{name.schema}"."{name.name}" WHERE price IS NOT NULL;'
        'CREATE TABLE "made"."second" AS SELECT id, price + 1 AS more FROM "made"."first"'
    )


@materialize(version="1.0", input_type=pl.DataFrame)
def together(text: pl.DataFrame, expression: pl.DataFrame, second: pl.DataFrame):
    joined = text.join(expression, on="id").join(second, on="id", how="left").with_columns(pl.col("month").cast(pl.Int64))
    return Table(joined.sort("id"), "together", primary_key="id")


def test_queries_and_scripts_of_each_dialect_run_in_memory(each_store):
    with Flow("dialects") as flow:
        with Stage("raw"):
            given = orders()
        with Stage("made"):
            text, expression, script = by_text(given), by_expression(given), by_script(given)
        with Stage("all"):
            out = together(text, expression, script["second"])
    result = flow.run(config=each_store)
    assert result.successful, result.exception
    prod = flow.extract(InOutSpecification(input={"orders": given}, output={"all": out, "text": text, "script": script}), config=each_store)
    compared = dict(prod.verify().compared)
    assert compared == {"all": 3, "text": 3, "script.first": 2, "script.second": 2}
