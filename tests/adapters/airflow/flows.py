"""Flows for the tests, as texts that are put into projects."""

from __future__ import annotations

#: Two stages; counts calls in a file, fails or sleeps on demand, so that tests in other processes see and steer it.
SMALL = '''
import os
import time
from pathlib import Path

import pandas as pd
import sqlalchemy as sa

from pipedag_core import Flow, Stage, materialize

HERE = Path(__file__).parent


def count(name):
    with open(HERE / "calls", "a") as file:
        file.write(name + "\\n")


def obey(name):
    if (HERE / f"{name}.fails").exists():
        raise ValueError(f"{name} was told to fail")
    if (HERE / f"{name}.fails_once").exists():
        (HERE / f"{name}.fails_once").unlink()
        raise ValueError(f"{name} was told to fail once")
    if (HERE / f"{name}.hangs").exists():
        (HERE / f"{name}.pid").write_text(str(os.getpid()))
        while (HERE / f"{name}.hangs").exists():
            time.sleep(0.1)


@materialize(version="1.0")
def numbers() -> pd.DataFrame:
    """Give three numbers."""
    count("numbers")
    obey("numbers")
    return pd.DataFrame({"x": [1, 2, 3]})


@materialize(lazy=True, input_type=sa.Table)
def doubled(table) -> sa.Select:
    """Double them."""
    return sa.select((table.c.x * 2).label("y"))


@materialize(version="1.0", input_type=pd.DataFrame)
def total(table) -> pd.DataFrame:
    """Add them up."""
    count("total")
    obey("total")
    return pd.DataFrame({"total": [table["y"].sum()]})


with Flow("small") as flow:
    with Stage("raw"):
        table = numbers()
    with Stage("features"):
        total(doubled(table))
'''

#: The same with a second stage that depends on no other.
TWO = SMALL.replace(
    """    with Stage("features"):""",
    """    with Stage("beside"):
        numbers()
    with Stage("features"):""",
)

#: A table of others among a task's arguments, and one that only a run shows.
READING = '''
import pandas as pd

from pipedag_core import ExternalTableReference, Flow, Stage, materialize


@materialize(version="1.0")
def orders():
    """Say where the orders are."""
    return ExternalTableReference("orders", "shop")


@materialize(version="1.0", input_type=pd.DataFrame)
def joined(customers, orders) -> pd.DataFrame:
    """Join them."""
    return customers.merge(orders, on="customer")


with Flow("reading") as flow:
    with Stage("raw"):
        joined(ExternalTableReference("customers", "shop"), orders())
'''

READING_CONFIG = """
name: reading
instances:
  full:
    table_store:
      class: parquet
      args: {base_path: "store/{instance_id}", external_schemas: {shop: others}}
"""

PARQUET = """
name: small
instances:
  full:
    table_store:
      class: parquet
      args: {base_path: "store/{instance_id}"}
"""
