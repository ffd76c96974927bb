"""Native Dagster assets beside the tables of a flow.

Without postponed annotations, since Dagster reads those of an asset's function as they are.
"""

import dagster as dg
import pandas as pd
import polars as pl

from pipedag_dagster import PipedagResource


@dg.asset(key=["native", "summary"], ins={"orders": dg.AssetIn(key=["raw", "orders"])})
def summary(orders: pl.DataFrame) -> pd.DataFrame:
    return orders.sum().to_pandas()


@dg.asset(key=["native", "model"])
def model() -> dict:
    return {"weight": 3}


@dg.asset(key=["native", "scored"], ins={"table": dg.AssetIn(key=["native", "summary"]), "model": dg.AssetIn(key=["native", "model"])})
def scored(table: pl.DataFrame, model: dict) -> pl.DataFrame:
    return table * model["weight"]


@dg.asset(deps=[dg.AssetKey(["raw", "orders"])])
def counted(pipedag: PipedagResource) -> int:
    return len(pipedag.read("raw", "orders", pl.DataFrame))


@dg.asset
def nothing() -> None:
    pass


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a"]))
def parted() -> pl.DataFrame:
    return pl.DataFrame({"x": [1]})
