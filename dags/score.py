"""Score ten flights with the production flow of the flights pipeline: what a service would do. Run it in the folder dags, after `make demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import duckdb
import polars as pl
from rich.console import Console
from rich.table import Table

from pipedag_core import ProductionFlow

HERE = Path(__file__).resolve().parent
BUNDLE = HERE / ".pipedag" / "bundles" / "flights"

#: The instance that `make demo` runs, and the one that tells MLflow of all that it does.
INSTANCE, INSTANCE_WITH_MLFLOW = "full", "demo"

#: From an afternoon before Christmas; training ended in September.
TEN = """\
FROM "02_early_cleaning".flights
WHERE scheduled_departure >= '2013-12-23 15:00'
ORDER BY scheduled_departure, flight_id
LIMIT 10"""


def explore(instance: str) -> Path:
    """Return the database that shows an instance's tables."""
    return HERE / ".pipedag" / instance / "explore.duckdb"


def requests(database: Path) -> dict[str, pl.DataFrame]:
    """Return ten flights as a caller would send them, and the tables that a service has at hand: only the flights differ from request to request."""
    with duckdb.connect(database, read_only=True) as connection:
        known = {name: connection.sql(f'FROM "02_early_cleaning".{name}').pl() for name in ("weather", "planes", "airports")}
        return {"flights": connection.sql(TEN).pl(), **known}


def show(flights: pl.DataFrame, predicted: pl.DataFrame, title: str) -> None:
    """Print flights with their predictions."""
    table = Table(title=title, title_justify="left")
    for column in ("flight", "from", "to", "planned departure", "probability of being late"):
        table.add_column(column)
    for row in flights.join(predicted, on="flight_id").sort("flight_id").iter_rows(named=True):
        flight = f"{row['carrier']} {row['tailnum'] or '?'}"
        table.add_row(flight, row["origin"], row["dest"], f"{row['scheduled_departure']:%d %B, %H:%M}", f"{row['probability']:.2f}")
    Console().print(table)


def main(instance: str = INSTANCE) -> None:
    """Load the bundle, score ten flights, and print them."""
    started = time.perf_counter()
    prod = ProductionFlow.load(BUNDLE)
    loaded = time.perf_counter()
    clean = requests(explore(instance))
    prod.run({"clean": clean})
    before = time.perf_counter()
    predicted = prod.run({"clean": clean}, as_type=pl.DataFrame)
    seconds = time.perf_counter() - before
    show(clean["flights"], predicted, "Ten flights, scored without any store")
    print(f"loading the bundle: {loaded - started:.2f} s; ten flights: {seconds * 1e3:.1f} ms, the second time")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
