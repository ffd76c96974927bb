"""A training flow, trained on the test's own store."""

from __future__ import annotations

import polars as pl
import pytest

from tests.flows.production.delays import FLIGHTS, PLACES, make


@pytest.fixture
def trained(config):
    """The flow and its specification, after it has run on `config`."""
    flow, spec = make()
    assert flow.run(config=config).successful
    return flow, spec


@pytest.fixture
def prod(trained, config):
    """The production flow of `trained`."""
    flow, spec = trained
    return flow.extract(spec, config=config)


@pytest.fixture
def inputs():
    """What training had."""
    return {"clean": {"flights": FLIGHTS.with_columns(pl.col("minutes").fill_null(0.0)), "places": PLACES}}


@pytest.fixture
def scores(trained, config, tables_of):
    """What training has committed."""
    return tables_of(config)["scoring"]["scores"].sort("id")
