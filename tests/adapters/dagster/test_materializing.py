"""A flow as assets, materialized by Dagster in this process, on every store."""

from __future__ import annotations

import dagster as dg
import duckdb
import polars as pl
import pytest
import sqlalchemy as sa
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from pipedag_core import Blob, ExternalTableReference, Flow, PipedagConfig, Stage, Table, materialize
from pipedag_core.config.wire import open_session
from pipedag_dagster import build_assets, build_definitions
from pipedag_dagster.places import store_kind


@pytest.fixture
def world():
    """What the tasks below read and count."""
    return {"orders": [1, 2, 3], "fail": False, "calls": []}


@pytest.fixture
def flow(world):
    @materialize()
    def orders() -> pl.DataFrame:
        """Return the orders of today."""
        world["calls"].append("orders")
        return pl.DataFrame({"amount": world["orders"]})

    @materialize(lazy=True, input_type=sa.Table)
    def doubled(orders) -> sa.Select:
        return sa.select(orders.c.amount, (orders.c.amount * 2).label("twice"))

    @materialize(version="2.1", input_type=pl.DataFrame, nout=2, outputs=["totals", "model"])
    def fit(doubled):
        world["calls"].append("fit")
        if world["fail"]:
            raise ValueError("no model today")
        return Table(doubled.sum(), "totals", primary_key="amount"), Blob({"mean": doubled["twice"].mean()}, "model")

    @materialize(input_type=pl.DataFrame)
    def report(totals, model):
        world["calls"].append("report")
        return float(model["mean"]) + totals["twice"][0]

    @materialize()
    def alone() -> pl.DataFrame:
        world["calls"].append("alone")
        return pl.DataFrame({"z": world["orders"][:1]})

    with Flow("shop") as made:
        with Stage("raw"):
            table = orders()
        with Stage("marts"):
            twice = doubled(table)
            with Stage("models"):
                totals, model = fit(twice)
        with Stage("reports"):
            report(totals, model)
        with Stage("apart"):
            alone()
    return made


ALL = ["raw/orders", "marts/doubled", "models/totals", "models/model", "reports/report", "apart/alone"]


@pytest.fixture
def run(granularity):
    """Materializes a flow, or some of its assets."""

    def of(flow, config, instance, *keys, **options):
        assets = build_assets(flow, config=config, granularity=granularity)
        selection = dg.AssetSelection.assets(*[dg.AssetKey(key.split("/")) for key in keys]) if keys else None
        return dg.materialize(assets, instance=instance, selection=selection, raise_on_error=False, **options)

    return of


def visible(config, stage, table):
    """Return what readers see of a table at present."""
    from pipedag_core.looking import first_rows

    with open_session(config) as session:
        found = session.catalog.shown()[stage][table]
    return first_rows(config, [found], 10)[found.id]


def catalog_of(config):
    with open_session(config) as session:
        return session.catalog.runs(20), session.catalog.leases()


def test_every_table_is_an_asset_that_its_stage_materializes(run, flow, world, any_store, instance, materialized):
    result = run(flow, any_store, instance)
    assert result.success
    found = materialized(result)
    assert sorted(found) == sorted(ALL)
    facts = {key: value.value for key, value in found["models/totals"].metadata.items()}
    assert (facts["dagster/row_count"], facts["outcome"]) == (1, "ran")
    assert [column.name for column in facts["dagster/column_schema"].columns] == ["amount", "twice"]
    assert facts["dagster/column_schema"].constraints.other == ["primary key (amount)"]
    known = next(spec for spec in build_assets(flow, config=any_store)[1].specs if spec.key.path[-1] == "totals").metadata
    assert facts["dagster/uri"] == known["dagster/uri"]
    assert facts["dagster/table_name"].endswith("models.totals")
    assert facts["dagster/uri"].endswith("models/totals")
    assert "SQL" in found["marts/doubled"].metadata
    lineage = found["marts/doubled"].metadata["dagster/column_lineage"].value.deps_by_column
    source = dg.TableColumnDep(dg.AssetKey(["raw", "orders"]), "amount")
    assert lineage == {"amount": [source], "twice": [source]}
    assert visible(any_store, "models", "totals") == [[6, 12]]
    [ours], leases = catalog_of(any_store)
    assert (ours.state, ours.info.external_id, leases) == ("succeeded", result.run_id, [])
    assert instance.get_run_by_id(result.run_id).tags["pipedag/run_id"] == ours.info.run_id


def test_what_is_valid_keeps_its_data_version(run, flow, world, any_store, instance, materialized):
    first = materialized(run(flow, any_store, instance))
    world["calls"].clear()
    second = materialized(run(flow, any_store, instance))
    assert sorted(world["calls"]) == ["alone", "orders", "report"]
    assert {key: item.tags["dagster/data_version"] for key, item in first.items()} == {
        key: item.tags["dagster/data_version"] for key, item in second.items()
    }
    assert second["models/totals"].metadata["outcome"].value == "cached"
    assert second["models/totals"].metadata["pipedag/commit"].value == "unchanged"


def test_what_is_valid_by_its_version_needs_no_op_of_its_own(world, any_store, instance):
    @materialize()
    def orders() -> pl.DataFrame:
        return pl.DataFrame({"amount": world["orders"]})

    @materialize(version="1", input_type=pl.DataFrame)
    def doubled(table) -> pl.DataFrame:
        return table * 2

    @materialize(version="1", input_type=pl.DataFrame)
    def summed(table) -> pl.DataFrame:
        return table.sum()

    with Flow("valid") as flow:
        with Stage("raw"):
            table = orders()
        with Stage("marts"):
            summed(doubled(table))
    assets = build_assets(flow, config=any_store, granularity="task")

    def ops():
        result = dg.materialize(assets, instance=instance)
        assert result.success
        assert len(result.get_asset_materialization_events()) == 3
        return [event.step_key.partition(".")[2] for event in result.all_events if event.is_step_success and "__marts." in event.step_key]

    assert ops() == ["open", "task_doubled", "task_summed", "commit"]
    assert ops() == ["open", "commit"]
    world["orders"] = [8]
    assert ops() == ["open", "task_doubled", "task_summed", "commit"]


def resolver_of(assets, instance):
    graph = dg.Definitions(assets=assets).resolve_asset_graph()
    return CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))


def stale(assets, instance):
    resolver = resolver_of(assets, instance)
    keys = [spec.key for asset in assets for spec in asset.specs]
    return sorted(key.to_user_string() for key in keys if resolver.get_status(key) is not StaleStatus.FRESH)


def test_dagster_calls_stale_what_would_run_again(run, flow, world, config, instance):
    assets = build_assets(flow, config=config)
    assert len(stale(assets, instance)) == len(ALL)
    run(flow, config, instance)
    assert stale(assets, instance) == []
    # The same rows again: whoever reads them has nothing to do.
    run(flow, config, instance, "raw/orders")
    assert stale(assets, instance) == []
    world["orders"] = [7]
    run(flow, config, instance, "raw/orders")
    assert "marts/doubled" in stale(assets, instance)
    assert "apart/alone" not in stale(assets, instance)
    run(flow, config, instance, "marts/doubled")
    # The rest of the stage ran with it, and Dagster was told.
    assert stale(assets, instance) == ["reports/report"]


def test_a_selected_table_runs_with_its_dependents_in_the_stage(run, flow, world, any_store, instance, materialized):
    run(flow, any_store, instance)
    world.update(orders=[5], calls=[])
    result = run(flow, any_store, instance, "raw/orders", "models/model")
    assert result.success
    assert world["calls"] == ["orders"]
    found = materialized(result)
    # `doubled` was not asked for, so what is committed of it stays, and `fit` has nothing new to learn from.
    assert sorted(found) == ["models/model", "models/totals", "raw/orders"]
    assert visible(any_store, "models", "totals") == [[6, 12]]
    assert visible(any_store, "raw", "orders") == [[5]]
    result = run(flow, any_store, instance, "marts/doubled")
    assert sorted(materialized(result)) == ["marts/doubled", "models/model", "models/totals"]
    assert visible(any_store, "models", "totals") == [[5, 10]]


def test_after_a_failing_task_its_stage_keeps_the_old_tables_and_others_commit(run, flow, world, any_store, instance, materialized):
    run(flow, any_store, instance)
    world.update(orders=[9], fail=True)
    result = run(flow, any_store, instance)
    assert not result.success
    assert sorted(materialized(result)) == ["apart/alone", "raw/orders"]
    assert visible(any_store, "marts", "doubled") == [[1, 2], [2, 4], [3, 6]]
    assert visible(any_store, "apart", "alone") == [[9]]
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "no model today" in str(failure.step_failure_data.error_display_string)
    runs, leases = catalog_of(any_store)
    assert (runs[0].state, leases) == ("failed", [])


def test_everything_runs_when_the_launch_says_so(run, flow, world, config, instance):
    run(flow, config, instance)
    world["calls"].clear()
    forced = {"config": {"cache_validation_mode": "force_cache_invalid"}}
    steps = ["raw", "marts", "reports", "apart"]
    result = run(flow, config, instance, run_config={"ops": {f"shop__default__{stage}": forced for stage in steps}})
    assert result.success
    assert sorted(world["calls"]) == ["alone", "fit", "orders", "report"]


def test_a_mode_that_does_not_exist_is_refused_and_not_tried_again(flow, config, instance, granularity):
    wrong = {"ops": {f"shop__default__{stage}": {"config": {"cache_validation_mode": "nonsense"}} for stage in ("raw",)}}
    assets = build_assets(flow, config=config, retry_policy=dg.RetryPolicy(max_retries=3), granularity=granularity)
    result = dg.materialize(assets, instance=instance, selection=["raw/orders"], run_config=wrong, raise_on_error=False)
    assert not result.success
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


def test_a_failing_step_is_tried_again_as_its_policy_says(config, instance, granularity):
    tries = []

    @materialize()
    def moody() -> pl.DataFrame:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return pl.DataFrame({"x": [1]})

    with Flow("moods") as other, Stage("only"):
        moody()
    assets = build_assets(other, config=config, retry_policy=dg.RetryPolicy(max_retries=2), granularity=granularity)
    result = dg.materialize(assets, instance=instance)
    assert result.success
    assert len(tries) == 3
    [ours], leases = catalog_of(config)
    assert (ours.state, ours.attempt, leases) == ("succeeded", 1, [])


def test_the_first_rows_are_shown_if_wanted(flow, world, any_store, instance, materialized):
    result = dg.materialize(build_assets(flow, config=any_store, preview_rows=2), instance=instance, selection=["raw/orders"])
    assert materialized(result)["raw/orders"].metadata["preview"].value.splitlines()[:3] == ["| amount |", "| --- |", "| 1 |"]


def test_a_table_that_the_plan_does_not_know_is_told_as_well(config, instance, materialized, granularity):
    names = ["a", "b"]

    @materialize(outputs=None)
    def several():
        return {name: pl.DataFrame({"x": [1]}) for name in names}

    with Flow("names") as flow, Stage("only"):
        several()
    assert sorted(materialized(dg.materialize(build_assets(flow, config=config), instance=instance))) == ["only/several"]
    learned = build_assets(flow, config=config, learn="default", granularity=granularity)
    assert [spec.key.to_user_string() for spec in learned[0].specs] == ["only/several_a", "only/several_b"]
    names[:] = ["b", "c"]
    result = dg.materialize(learned, instance=instance)
    assert result.success
    assert sorted(materialized(result)) == ["only/several_b", "only/several_c"]


def test_columns_of_queries_in_text_are_traced_to_other_stages(any_store, instance, materialized):
    # A name that no plan knows, so the asset stands for the task.
    @materialize()
    def read() -> Table:
        return Table(pl.DataFrame({"Amount": [1], "k": [2]}), "orders")

    @materialize(lazy=True, input_type=sa.Table)
    def joined(orders):
        table = orders.original
        return Table(
            sa.text(
                f'SELECT o.*, x."Amount" + o.k AS s FROM "{table.schema}"."{table.name}" AS o JOIN "{table.schema}"."{table.name}" AS x USING (k)'
            )
        )

    with Flow("text") as flow:
        with Stage("raw"):
            table = read()
        with Stage("marts"):
            joined(table)
    found = materialized(dg.materialize(build_assets(flow, config=any_store), instance=instance))
    lineage = found["marts/joined"].metadata["dagster/column_lineage"].value.deps_by_column
    key = dg.AssetKey(["raw", "read"])
    assert lineage["s"] == [dg.TableColumnDep(key, "Amount"), dg.TableColumnDep(key, "k")]
    assert lineage["Amount"] == [dg.TableColumnDep(key, "Amount")]


def test_columns_of_relations_are_traced_and_those_of_frames_are_not(any_store, instance, materialized):
    @materialize(outputs=["orders"])
    def read() -> Table:
        return Table(pl.DataFrame({"amount": [1, 5], "k": [2, 3]}), "orders")

    @materialize(version="1", input_type=duckdb.DuckDBPyRelation, outputs=["large"])
    def large(orders):
        return Table(orders.filter("amount > 2").project("k, amount * 2 AS twice").set_alias("v"), "large")

    @materialize(version="1", input_type=pl.LazyFrame, outputs=["lazy"])
    def lazy(orders):
        return Table(orders.select("k", twice=pl.col("amount") * 2), "lazy")

    with Flow("relations") as flow:
        with Stage("raw"):
            table = read()
        with Stage("marts"):
            large(table)
            lazy(table)
    found = materialized(dg.materialize(build_assets(flow, config=any_store), instance=instance))
    assert "dagster/column_lineage" not in found["marts/lazy"].metadata
    # Where tables are kept in PostgreSQL, relations are made of rows that have left it.
    if store_kind(any_store) == "postgres":
        assert "SQL" not in found["marts/large"].metadata
        return
    key = dg.AssetKey(["raw", "orders"])
    lineage = found["marts/large"].metadata["dagster/column_lineage"].value.deps_by_column
    assert lineage == {"k": [dg.TableColumnDep(key, "k")], "twice": [dg.TableColumnDep(key, "amount")]}
    assert "raw.orders" in found["marts/large"].metadata["SQL"].value


def test_tables_of_others_are_external_assets(tmp_path, instance, granularity):
    (tmp_path / "theirs").mkdir()
    pl.DataFrame({"x": [1, 2]}).write_parquet(tmp_path / "theirs" / "prices.parquet")
    store = {
        "class": "parquet",
        "args": {"base_path": str(tmp_path / "{instance_id}"), "external_schemas": {"theirs": str(tmp_path / "theirs")}},
    }
    config = PipedagConfig({"instances": {"full": {"table_store": store}}}).get("full")

    @materialize(version="1", input_type=pl.DataFrame)
    def summed(prices) -> pl.DataFrame:
        return prices.sum()

    with Flow("reader") as flow, Stage("marts"):
        summed(ExternalTableReference("prices", "theirs"))
    definitions = build_definitions(flow, config=config, granularity=granularity)
    graph = definitions.resolve_asset_graph()
    assert graph.external_asset_keys == {dg.AssetKey(["theirs", "prices"])}
    assert graph.get(dg.AssetKey(["marts", "summed"])).parent_keys == {dg.AssetKey(["theirs", "prices"])}
    assert definitions.resolve_job_def("reader_full").execute_in_process(instance=instance).success
    assert visible(config, "marts", "summed") == [[3]]
    assert stale(build_assets(flow, config=config), instance) == []
