"""Every Arrow type through every library and store: values come back as they were or are refused, and docs/types.md says which."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pytest

from pipedag_core.hooks.registry import BUILT_IN
from tests.contract import type_table
from tests.postgres_server import drop_schemas, fresh_prefix

#: Hundreds of tables are written and read, on three stores.
pytestmark = pytest.mark.timeout(900)

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(scope="module")
def found(tmp_path_factory, postgres_url):
    prefix = fresh_prefix()
    try:
        yield {
            name: type_table.measure(tmp_path_factory.mktemp("types"), store, postgres_url, prefix)
            for name, store in type_table.STORES.items()
        }
    finally:
        drop_schemas(postgres_url, prefix)


def test_no_value_is_rounded_cut_or_lost(found):
    changed = {
        (store.partition(" ")[0], name.partition("[")[0].partition("<")[0], cell.form)
        for store, types in found.items()
        for name, cells in types.items()
        for cell in cells.values()
        if cell.form
    }
    assert changed == {
        # What DuckDB reads of a Parquet file that Arrow wrote.
        ("Parquet", "duration", "as the number of units"),
        ("DuckDB", "duration", "as the number of units"),
        ("PostgreSQL", "duration", "as an interval"),
        ("PostgreSQL", "struct", "as JSON text"),
        ("PostgreSQL", "map", "as JSON text"),
        ("PostgreSQL", "arrow.uuid", "as text"),
        ("DuckDB", "arrow.uuid", "as text"),
        ("DuckDB", "arrow.uuid", "as bytes"),
    }


def test_what_pyarrow_keeps_a_query_keeps_or_refuses(found):
    for types in found.values():
        for cells in types.values():
            assert bool(cells["pyarrow"].refused) == (not cells["SQL query"].given)


def test_every_arrow_type_is_in_the_table():
    ids = {getattr(pa.lib, name) for name in dir(pa.lib) if re.fullmatch(r"Type_[A-Z0-9_]+", name)}
    # Of these Python can make no arrays.
    ids -= {pa.lib.Type_INTERVAL_MONTHS, pa.lib.Type_INTERVAL_DAY_TIME}
    sampled = [array.type for array in type_table.samples().values()]
    assert ids == {kind.id for kind in sampled if not isinstance(kind, pa.BaseExtensionType)}


def test_every_library_with_a_hook_is_in_the_table():
    packages = {name.partition(".")[0] for name in BUILT_IN}
    assert packages == {package for library in type_table.LIBRARIES.values() for package in library.packages}


def test_the_page_is_what_is_measured(found):
    text = type_table.page(found)
    if os.environ.get("PIPEDAG_WRITE_TYPES"):
        type_table.PAGE.write_text(text, encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    others = [name for name in type_table.VERSIONS if pins.get(name) != version(name)]
    if others:
        pytest.skip(f"the page is about the versions that constraints.txt pins, and here are others of {', '.join(others)}")
    assert type_table.PAGE.read_text(encoding="utf-8") == text, "docs/types.md is stale: run `make types`"
