"""Flights, stage 04: one row per flight and family of features. polars for the plain ones, SQL for those that need calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, LazyDict, Table, materialize
from pipelines.flights_data import ref

#: Group -> the columns of a flight that make it up. Each group's share of late flights is a feature.
LATE_RATE_GROUPS = {
    "carrier": ("carrier",),
    "route": ("origin", "dest"),
    "departure_hour": ("origin", "departure_hour"),
}

#: Columns of a flight that together say how busy its airport is planned to be.
TRAFFIC_GROUP = ("origin", "weekday", "departure_hour")

#: Calibration table -> its key.
CALIBRATION_KEYS = {f"late_rate_by_{group}": columns for group, columns in LATE_RATE_GROUPS.items()} | {"usual_traffic": TRAFFIC_GROUP}


@dataclass(frozen=True)
class CalibrationState:
    """What is found out on the training set and applied to every flight, in training, in tests and in production.

    Attributes:
        parameters: Single numbers by name.
        tables: Lookup tables by name.
    """

    parameters: LazyDict = field(default_factory=LazyDict)
    tables: LazyDict = field(default_factory=LazyDict)


@materialize(version=AUTO_VERSION, input_type=pl.LazyFrame, outputs=["schedule", "conditions", "aircraft"])
def features(tbls: Mapping[str, pl.LazyFrame]) -> dict[str, Table]:
    """Describe each flight by its plan, the weather at its airport, and its plane.

    The weather is the observation of the scheduled hour, made at its beginning and so before any departure in it. There is no season among
    the features: in a single year it cannot be told from what happened to happen.
    """
    flights = tbls["flights"]
    schedule = flights.select("flight_id", "carrier", "origin", "dest", "weekday", "departure_minute", "planned_minutes", "distance_km")
    conditions = (
        flights.select("flight_id", "origin", "departure_hour_utc")
        .join(tbls["weather"], left_on=["origin", "departure_hour_utc"], right_on=["origin", "hour_utc"], how="left")
        .drop("origin", "departure_hour_utc")
    )
    aircraft = (
        flights.select("flight_id", "tailnum", "year")
        .join(tbls["planes"], on="tailnum", how="left")
        .select("flight_id", "manufacturer", "seats", (pl.col("year") - pl.col("built")).alias("plane_age"))
    )
    return {
        "schedule": Table(schedule, "schedule", primary_key="flight_id"),
        "conditions": Table(conditions, "conditions", primary_key="flight_id"),
        "aircraft": Table(aircraft, "aircraft", primary_key="flight_id"),
    }


def calibrated_features(tbls: Any, target: Any, train_test_set: Any, state: CalibrationState, *, prior_flights: int) -> Any:
    """Wire the calibrated features: leave what the training set teaches in `state`, and return the feature tables made with it."""
    state.parameters["late_rate"] = calibrate_late_rate(target, train_test_set)
    tables = calibrate_tables(tbls, target, train_test_set, prior_flights=prior_flights)
    for name in CALIBRATION_KEYS:
        state.tables[name] = tables[name]
    return apply_calibration(tbls, state.tables, state.parameters)


@materialize(version="1.0", input_type=pl.DataFrame)
def calibrate_late_rate(target: pl.DataFrame, train_test_set: pl.DataFrame) -> float:
    """Return the share of late flights in the training set: the guess for whatever the training set has not seen."""
    train = target.join(train_test_set.filter("is_train"), on="flight_id")
    return train.select(pl.col("late").cast(pl.Int64).sum() / pl.len()).item()


@materialize(lazy=True, input_type=sa.Table, outputs=[*CALIBRATION_KEYS])
def calibrate_tables(tbls: Mapping[str, sa.Alias], target: sa.Alias, train_test_set: sa.Alias, *, prior_flights: int) -> dict[str, Table]:
    """Count on the training set: how often flights of a group are late, and how many depart in a usual hour.

    Args:
        prior_flights: A group's share is counted together with as many flights of average lateness. So small groups stay near the average,
            and no flight of the training set can read its own fate from its group.
    """
    late_rates = {
        f"late_rate_by_{group}": f"""
            WITH train AS (
                SELECT f.*, CAST(CAST(t.late AS INTEGER) AS DOUBLE PRECISION) AS late
                FROM {ref(tbls["flights"])} AS f
                JOIN {ref(target)} AS t ON t.flight_id = f.flight_id
                JOIN {ref(train_test_set)} AS s ON s.flight_id = f.flight_id
                WHERE s.is_train
            ),
            overall AS (SELECT AVG(late) AS late_rate FROM train)
            SELECT
                {", ".join(columns)},
                COUNT(*) AS flights,
                (SUM(late) + {prior_flights} * MAX(overall.late_rate)) / (COUNT(*) + {prior_flights}) AS late_rate
            FROM train CROSS JOIN overall
            GROUP BY {", ".join(columns)}
        """
        for group, columns in LATE_RATE_GROUPS.items()
    }
    usual_traffic = f"""
        WITH train AS (
            SELECT f.*, CAST(f.departure_hour_utc AS DATE) AS day
            FROM {ref(tbls["flights"])} AS f
            JOIN {ref(train_test_set)} AS s ON s.flight_id = f.flight_id
            WHERE s.is_train
        ),
        days AS (SELECT weekday, COUNT(DISTINCT day) AS days FROM train GROUP BY weekday)
        SELECT {", ".join(f"train.{column}" for column in TRAFFIC_GROUP)}, CAST(COUNT(*) AS DOUBLE PRECISION) / MAX(days.days) AS departures_per_hour
        FROM train JOIN days ON days.weekday = train.weekday
        GROUP BY {", ".join(f"train.{column}" for column in TRAFFIC_GROUP)}
    """
    queries = late_rates | {"usual_traffic": usual_traffic}
    return {name: Table(sa.text(queries[name]), name, primary_key=key) for name, key in CALIBRATION_KEYS.items()}


@materialize(lazy=True, input_type=sa.Table, outputs="history")
def apply_calibration(tbls: Mapping[str, sa.Alias], tables: Mapping[str, sa.Alias], parameters: Mapping[str, float]) -> dict[str, Table]:
    """Look up, for each flight, how often the likes of it are late and how busy its hour usually is."""
    flights, traffic = tbls["flights"], tables["usual_traffic"]
    joined: sa.FromClause = flights
    rates: list[sa.ColumnElement[float]] = []
    for group, columns in LATE_RATE_GROUPS.items():
        table = tables[f"late_rate_by_{group}"]
        joined = joined.outerjoin(table, sa.and_(*(table.c[column] == flights.c[column] for column in columns)))
        rates.append(sa.func.coalesce(table.c.late_rate, parameters["late_rate"]).label(f"late_rate_by_{group}"))
    joined = joined.outerjoin(traffic, sa.and_(*(traffic.c[column] == flights.c[column] for column in TRAFFIC_GROUP)))
    history = sa.select(flights.c.flight_id, *rates, sa.func.coalesce(traffic.c.departures_per_hour, 0.0).label("usual_traffic"))
    return {"history": Table(history.select_from(joined), "history", primary_key="flight_id")}
