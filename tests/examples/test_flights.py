"""The flights pipeline: its tasks called by hand, and the whole of it on the mini instance."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psycopg
import pytest
import sqlalchemy as sa
import yaml
from duckdb_sqlalchemy import Dialect
from polars.testing import assert_frame_equal

from pipedag_core import PipedagConfig, ProductionFlow, Table
from pipedag_core.errors import InputMismatch
from pipedag_core.plan.production import cut
from tests.postgres_server import url_with

DAGS = Path(__file__).parents[2] / "dags"
# The pipelines are scripts of their own, not a part of the package.
if str(DAGS) not in sys.path:
    sys.path.insert(0, str(DAGS))

from pipelines import flights, flights_data, flights_features, flights_model  # noqa: E402

pytestmark = pytest.mark.examples

#: What is known of a flight only after it has left.
HINDSIGHT = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "departure_delay", "arrival_delay", "cancelled", "late"}

SQL_TYPES = {"BIGINT": sa.BigInteger, "INTEGER": sa.Integer, "DOUBLE": sa.Double, "VARCHAR": sa.String, "BOOLEAN": sa.Boolean}


class Database:
    """What a store gives to SQL tasks, by hand: tables under names, as aliases; and rows for the queries that come back."""

    def __init__(self):
        self.connection = duckdb.connect()
        self.connection.execute("CREATE SCHEMA given")

    def table(self, name: str, frame) -> sa.Alias:
        self.connection.register("frame", frame)
        self.connection.execute(f'CREATE TABLE given."{name}" AS FROM frame')
        described = self.connection.execute(f'DESCRIBE given."{name}"').fetchall()
        columns = [sa.Column(column, SQL_TYPES.get(kind, sa.DateTime)) for column, kind, *_ in described]
        return sa.Table(name, sa.MetaData(), *columns, schema="given").alias(name)

    def rows(self, returned) -> pl.DataFrame:
        query = returned.obj if isinstance(returned, Table) else returned
        text = (
            query.text
            if isinstance(query, sa.TextClause)
            else str(query.compile(dialect=Dialect(), compile_kwargs={"literal_binds": True}))
        )
        return self.connection.sql(text).pl()


@pytest.fixture
def database():
    database = Database()
    yield database
    database.connection.close()


@pytest.fixture(scope="module")
def raw() -> dict[str, pd.DataFrame]:
    return {name: table.obj for name, table in flights_data.read_input_data(sample_share=0.003, seed=1).items()}


@pytest.fixture
def clean(database, raw) -> dict[str, pl.DataFrame]:
    tables = {name: database.table(name, frame) for name, frame in raw.items()}
    return {name: database.rows(table) for name, table in flights_data.clean(tables).items()}


def collect(tables) -> dict[str, pl.DataFrame]:
    return {name: table.obj.collect() for name, table in tables.items()}


# --- 01 to 03: data -----------------------------------------------------------------------------------------------------------------


def test_a_sample_keeps_its_share_of_flights_and_all_else(raw):
    assert {name: len(frame) for name, frame in raw.items()} == {
        "flights": 1010,
        "weather": 26115,
        "planes": 3322,
        "airports": 1458,
        "airlines": 16,
    }


def test_a_flight_has_the_same_number_in_every_sample(raw):
    larger = flights_data.read_input_data(sample_share=0.5, seed=2)["flights"].obj
    both = raw["flights"].merge(larger, on="flight_id", suffixes=("", "_larger"))
    assert len(both) > 300
    assert (both["flight"] == both["flight_larger"]).all()
    assert (both["time_hour"] == both["time_hour_larger"]).all()


def test_the_plan_of_a_flight_holds_nothing_that_is_known_only_afterwards(clean):
    assert not HINDSIGHT & set(clean["flights"].columns)


def test_no_feature_is_made_from_what_happened(clean):
    tables = flights_data.economic_representation({name: frame.lazy() for name, frame in clean.items()})
    features = collect(flights_features.features({name: table.obj for name, table in tables.items()}))
    columns = {column for frame in features.values() for column in frame.columns}
    assert not HINDSIGHT & columns


def test_each_flight_has_one_row_in_each_feature_table(clean):
    tables = flights_data.economic_representation({name: frame.lazy() for name, frame in clean.items()})
    for frame in collect(flights_features.features({name: table.obj for name, table in tables.items()})).values():
        assert sorted(frame["flight_id"]) == sorted(clean["flights"]["flight_id"])


def test_an_impossible_wind_becomes_unknown_and_its_hour_stays(clean, raw):
    assert raw["weather"]["wind_speed"].max() > 1000
    assert clean["weather"]["wind_mph"].max() < 100
    assert len(clean["weather"]) == len(raw["weather"])


def plan(flight_id: int, dest: str, local: str, utc: str, arrival: int) -> dict:
    return {
        "flight_id": flight_id,
        "carrier": "AA",
        "tailnum": None,
        "origin": "JFK",
        "dest": dest,
        "scheduled_departure": pd.Timestamp(local),
        "departure_hour_utc": pd.Timestamp(utc),
        "arrival_minute": arrival,
        "distance_miles": 1000,
    }


def represented(plans: list[dict], clean) -> dict[str, pl.DataFrame]:
    given = pl.DataFrame(plans, schema=clean["flights"].schema)
    return collect(flights_data.economic_representation({name: frame.lazy() for name, frame in (clean | {"flights": given}).items()}))


def test_planned_minutes_count_time_zones_summer_time_and_midnight(clean):
    plans = [
        # Los Angeles keeps summer time as New York does: three hours apart all year.
        plan(1, "LAX", "2013-07-01 09:00", "2013-07-01 13:00", 12 * 60),
        # Phoenix keeps none: two hours apart in winter, three in summer.
        plan(2, "PHX", "2013-01-15 09:00", "2013-01-15 14:00", 12 * 60),
        plan(3, "PHX", "2013-07-15 09:00", "2013-07-15 13:00", 11 * 60),
        # Into the next day.
        plan(4, "BOS", "2013-07-15 23:40", "2013-07-16 03:00", 45),
        # An airport that the table does not know.
        plan(5, "SJU", "2013-07-15 09:00", "2013-07-15 13:00", 12 * 60),
    ]
    planned = represented(plans, clean)["flights"].sort("flight_id")["planned_minutes"]
    assert planned.to_list() == [360, 300, 300, 65, None]


def test_training_ends_where_testing_begins(database, clean):
    table = database.table("clean", clean["flights"])
    marked = database.rows(flights_data.mark_train_test_set({"flights": table}, train_until="2013-10-01"))
    days = clean["flights"].join(marked, on="flight_id").group_by("is_train").agg(pl.col("scheduled_departure").max().alias("last"))
    ends = dict(days.select("is_train", pl.col("last").dt.date().cast(pl.String)).iter_rows())
    assert ends[True] <= "2013-09-30" < ends[False]
    assert len(marked) == len(clean["flights"])


def test_a_flight_that_did_not_arrive_has_no_target(database, raw):
    outcomes = database.rows(flights_data.observe_outcomes({"flights": database.table("flights", raw["flights"])}))
    target = database.rows(flights_data.define_target(database.table("outcomes", outcomes), late_after_minutes=15))
    arrived = outcomes.filter(pl.col("arrival_delay").is_not_null())
    assert len(target) == len(arrived) < len(outcomes)
    assert target["late"].sum() == (arrived["arrival_delay"] > 15).sum()


# --- 04: features -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(database):
    """Ten flights: six of AA (four of them late) and two of B6 to train on, one of each to test on."""
    flights = pl.DataFrame(
        {
            "flight_id": range(1, 11),
            "carrier": ["AA"] * 6 + ["B6"] * 2 + ["AA", "ZZ"],
            "origin": ["JFK"] * 10,
            "dest": ["BOS"] * 10,
            "weekday": [1] * 10,
            "departure_hour": [9] * 10,
            "departure_hour_utc": [pd.Timestamp("2013-01-07 14:00")] * 4 + [pd.Timestamp("2013-01-14 14:00")] * 6,
        }
    )
    return {
        "flights": database.table("flights", flights),
        "target": pl.DataFrame({"flight_id": range(1, 11), "late": [True] * 4 + [False] * 5 + [True]}),
        "split": pl.DataFrame({"flight_id": range(1, 11), "is_train": [True] * 8 + [False] * 2}),
    }


def calibrated(database, small, target, name) -> dict[str, pl.DataFrame]:
    tables = flights_features.calibrate_tables(
        {"flights": small["flights"]},
        database.table(f"target{name}", target),
        database.table(f"split{name}", small["split"]),
        prior_flights=8,
    )
    return {table: database.rows(query).sort(pl.all()) for table, query in tables.items()}


def test_a_small_group_is_drawn_towards_the_average(database, small):
    rates = calibrated(database, small, small["target"], "")["late_rate_by_carrier"]
    # Half of the eight are late; eight flights of that kind are added to each group.
    assert dict(rates.select("carrier", "late_rate").iter_rows()) == {"AA": (4 + 4) / 14, "B6": (0 + 4) / 10}


def test_usual_traffic_is_counted_per_day(database, small):
    traffic = calibrated(database, small, small["target"], "")["usual_traffic"]
    assert traffic["departures_per_hour"].to_list() == [8 / 2]


def test_what_happened_in_the_test_set_changes_no_calibration(database, small):
    other = small["target"].with_columns(late=pl.when(pl.col("flight_id") > 8).then(~pl.col("late")).otherwise("late"))
    before, after = calibrated(database, small, small["target"], "_a"), calibrated(database, small, other, "_b")
    assert all(before[name].equals(after[name]) for name in before)
    assert [flights_features.calibrate_late_rate(target, small["split"]) for target in (small["target"], other)] == [0.5, 0.5]


def test_a_group_that_training_has_not_seen_gets_the_average(database, small):
    tables = {name: database.table(name, frame) for name, frame in calibrated(database, small, small["target"], "").items()}
    history = flights_features.apply_calibration({"flights": small["flights"]}, tables, {"late_rate": 0.5})["history"]
    rows = database.rows(history).sort("flight_id")
    assert len(rows) == 10
    assert rows.row(9, named=True)["late_rate_by_carrier"] == 0.5
    assert rows.row(8, named=True)["late_rate_by_carrier"] == rows.row(0, named=True)["late_rate_by_carrier"]


# --- 05 and 06: model ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features() -> dict[str, pd.DataFrame]:
    """Feature tables of 600 flights, of which those with a busy hour are late more often."""
    random = np.random.default_rng(5)
    ids = random.permutation(600) + 1
    return {
        "schedule": pd.DataFrame(
            {
                "flight_id": ids,
                "carrier": random.choice(["AA", "B6"], 600),
                "origin": "JFK",
                "dest": random.choice(["BOS", "LAX"], 600),
            }
        ),
        "aircraft": pd.DataFrame({"flight_id": range(1, 601), "manufacturer": None, "busy": random.random(600)}),
    }


@pytest.fixture(scope="module")
def split() -> pd.DataFrame:
    return pd.DataFrame({"flight_id": range(1, 601), "is_train": [True] * 400 + [False] * 200})


@pytest.fixture(scope="module")
def target(features) -> pd.DataFrame:
    busy = features["aircraft"]["busy"].to_numpy()
    late = np.random.default_rng(6).random(600) < busy
    # Every tenth flight was cancelled.
    return pd.DataFrame({"flight_id": range(1, 601), "late": late})[lambda frame: frame["flight_id"] % 10 != 0]


@pytest.fixture(scope="module")
def trained(features, split, target):
    inputs, known, encoding = flights_model.model_encoding(features, split, target, train=True)
    model, _ = flights_model.model_train(inputs.obj, known.obj, iterations=20, learning_rate=0.1, seed=1)
    return model.obj, encoding


def test_training_and_testing_share_no_flight_and_inputs_match_targets(features, split, target):
    train, known, encoding = flights_model.model_encoding(features, split, target, train=True)
    test, known_test, _ = flights_model.model_encoding(features, split, target, encoding_parameters=encoding)
    assert train.obj["flight_id"].tolist() == known.obj["flight_id"].tolist() == [i for i in range(1, 401) if i % 10]
    assert test.obj["flight_id"].tolist() == known_test.obj["flight_id"].tolist() == [i for i in range(401, 601) if i % 10]
    assert list(train.obj.columns) == list(test.obj.columns)


def test_without_a_split_and_a_target_all_flights_are_encoded(features, trained):
    inputs, known, _ = flights_model.model_encoding(features, encoding_parameters=trained[1])
    assert len(inputs.obj) == 600
    assert known is None


def test_a_name_that_training_has_not_seen_counts_as_missing(features, trained):
    schedule = features["schedule"].assign(carrier=lambda frame: frame["carrier"].where(frame["flight_id"] != 1, "new"))
    inputs, _, _ = flights_model.model_encoding(features | {"schedule": schedule}, encoding_parameters=trained[1])
    assert np.isnan(inputs.obj["carrier"][0])
    assert set(inputs.obj["carrier"][1:]) == {0.0, 1.0}


def test_an_encoding_is_learned_in_training_only(features, split, target):
    with pytest.raises(ValueError, match="encoding_parameters"):
        flights_model.model_encoding(features, split, target)


def test_a_flight_is_predicted_the_same_alone_and_among_others(features, trained):
    model, encoding = trained
    inputs, _, _ = flights_model.model_encoding(features, encoding_parameters=encoding)
    alone = flights_model.model_predict(model, inputs.obj[41:42]).obj["probability"]
    among = flights_model.model_predict(model, inputs.obj).obj["probability"]
    assert alone.iloc[0] == among.iloc[41]


def test_the_order_of_rows_does_not_change_the_model(features, split, target):
    def probabilities(order: int) -> list[float]:
        shuffled = {name: frame.sample(frac=1, random_state=order) for name, frame in features.items()}
        inputs, known, _ = flights_model.model_encoding(shuffled, split, target, train=True)
        return flights_model.model_train(inputs.obj, known.obj, iterations=5, learning_rate=0.1, seed=1)[1].obj["probability"].tolist()

    assert probabilities(1) == probabilities(2)


def test_an_evaluation_sets_the_model_beside_the_base_rate(features, split, target, trained):
    model, encoding = trained
    inputs, known, _ = flights_model.model_encoding(features, split, target, encoding_parameters=encoding)
    output = flights_model.model_predict(model, inputs.obj).obj
    tables = flights_model.evaluate_model(output, known.obj, {"late_rate": 0.5})
    evaluation = tables["evaluation"].obj.set_index("measure")
    assert evaluation.loc["ROC AUC", "model"] > 0.7
    assert evaluation.loc["ROC AUC", "base_rate"] == 0.5
    assert evaluation.loc["log loss", "model"] < evaluation.loc["log loss", "base_rate"] == pytest.approx(np.log(2))
    reliability = tables["reliability"].obj
    assert reliability["flights"].tolist() == [18] * 10
    assert reliability["mean_prediction"].is_monotonic_increasing
    assert reliability["observed_share"].mean() == pytest.approx(evaluation.loc["observed share", "model"])


# --- the whole ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path) -> PipedagConfig:
    """The example's own configuration, with its data in a temporary folder."""
    return PipedagConfig(yaml.safe_load((DAGS / "pipedag.yaml").read_text()), base_dir=tmp_path)


@pytest.mark.parametrize("instance", ["full", "midi", "mini"])
def test_every_instance_wires_the_same_flow(settings, instance):
    flow, _ = flights.get_pipeline(settings.get(instance).attrs)
    assert [stage.name for stage in flow.stages] == [
        "01_raw_input",
        "02_early_cleaning",
        "03_economic_representation",
        "04_features",
        "05_model_training",
        "06_model_evaluation",
    ]
    full, _ = flights.get_pipeline(settings.get("full").attrs)
    assert flow.plan().digest == full.plan().digest


def test_a_prediction_needs_cleaned_tables_and_what_training_left_behind_and_nothing_else(settings):
    carved = cut(*flights.get_pipeline(settings.get("mini").attrs))
    assert [task.name for task in carved.tasks] == [
        "economic_representation",
        "features",
        "apply_calibration",
        "model_encoding",
        "model_predict",
    ]
    assert [place.task.name for place in carved.inputs.values()] == ["clean"]
    assert {place.task.name for place in carved.consts} == {"calibrate_late_rate", "calibrate_tables", "model_encoding", "model_train"}
    assert {place.task.name for place in carved.ignored} == {"mark_train_test_set", "define_target"}


@pytest.mark.slow
def test_the_mini_instance_runs_and_beats_the_base_rate_and_its_production_flow_gives_the_same_answers(settings, tmp_path):
    config = settings.get("mini")
    flow, spec = flights.get_pipeline(config.attrs)
    result = flow.run(config=config, fail_fast=True)
    evaluation = result.get(result.flow["06_model_evaluation"].get_task("evaluate_model"), as_type=pd.DataFrame)["evaluation"].set_index(
        "measure"
    )
    assert evaluation.loc["ROC AUC", "model"] > 0.6
    assert evaluation.loc["log loss", "model"] < evaluation.loc["log loss", "base_rate"]
    committed = result.get(flow["06_model_evaluation"].get_task("model_predict"), as_type=pl.DataFrame)
    clean = result.get(flow["02_early_cleaning"].get_task("clean"), as_type=pl.DataFrame)

    again = flights.get_pipeline(config.attrs)[0].run(config=config, fail_fast=True)
    assert {outcome.value for outcome in again.task_states.values()} == {"cached"}

    prod = flow.extract(spec, config=config)
    verified = prod.verify()
    assert verified.compared == (("model_predict", len(committed)),)
    assert verified.changes == ()

    bundle = prod.save(tmp_path / "bundle", code="package")
    loaded = ProductionFlow.load(bundle)
    assert loaded.verify(config, flow=(flow, spec)).compared == verified.compared

    # Ten flights of the test set, scored without the others: as training scored them among all.
    ten = committed.sort("flight_id").gather_every(len(committed) // 10).head(10)
    clean["flights"] = clean["flights"].join(ten.select("flight_id"), on="flight_id", how="semi")
    scored = loaded.run({"clean": clean}, as_type=pl.DataFrame).sort("flight_id")
    assert scored["flight_id"].to_list() == ten["flight_id"].to_list()
    assert scored["probability"].to_list() == pytest.approx(ten["probability"].to_list(), abs=1e-12)

    one = {name: frame.head(1) if name == "flights" else frame for name, frame in clean.items()}
    assert len(loaded.run({"clean": one})) == 1
    with pytest.raises(InputMismatch, match="missing column 'carrier'"):
        loaded.run({"clean": one | {"flights": one["flights"].drop("carrier")}})


def test_the_demo_extracts_verifies_and_scores_what_the_pipeline_has_made():
    """What `make demo` runs is what stands in the folder: the flow that it names, and the bundle that `score.py` reads."""
    import demo
    import score

    assert "--verify" in demo.EXTRACT
    assert DAGS / demo.BUNDLE == score.BUNDLE
    assert score.explore(demo.INSTANCE) == DAGS / demo.EXPLORE


@pytest.mark.slow
def test_the_same_pipeline_in_postgresql_makes_the_same_tables(settings, tmp_path, postgres_url, monkeypatch):
    name = f"flights_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("FLIGHTS_DATABASE", url_with(postgres_url, database=name))
    made = {}
    try:
        for instance in ("mini", "postgres"):
            config = settings.get(instance)
            flow, spec = flights.get_pipeline(config.attrs)
            result = flow.run(config=config, fail_fast=True)
            made[instance] = {
                task.name: result.get(task, as_type=pl.DataFrame) for stage in flow.stages for task in stage.tasks if task.name in COMPARED
            }
        again = flights.get_pipeline(config.attrs)[0].run(config=config, fail_fast=True)
        assert {outcome.value for outcome in again.task_states.values()} == {"cached"}
        assert flow.extract(spec, config=config).verify().changes == ()
        with psycopg.connect(os.environ["FLIGHTS_DATABASE"]) as connection:
            assert connection.execute('SELECT count(*) FROM "flights_postgres_04_features".history').fetchone() == (6736,)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    for task in COMPARED:
        for (path, mini), (_, postgres) in zip(sorted(tables(made["mini"][task])), sorted(tables(made["postgres"][task])), strict=True):
            key = [column for column in mini.columns if not mini[column].dtype.is_float()]
            assert_frame_equal(postgres.sort(key), mini.sort(key), check_dtypes=True, check_exact=False, rel_tol=1e-9), path


#: Tasks whose tables do not depend on the order of rows.
COMPARED = {
    "read_input_data",
    "clean",
    "observe_outcomes",
    "mark_train_test_set",
    "economic_representation",
    "define_target",
    "features",
    "calibrate_tables",
    "apply_calibration",
}


def tables(value):
    """Yield (name, table) of a nest that is a table or a dictionary of tables."""
    if isinstance(value, dict):
        yield from value.items()
    else:
        yield "", value
