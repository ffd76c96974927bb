from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipedag_core.errors import ConfigError
from pipedag_core.hooks import registry
from pipedag_core.hooks.registry import Hooks

TABLE = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Integer))
OBJECTS = {
    "PandasHook": [pd.DataFrame()],
    "PolarsHook": [pl.DataFrame(), pl.LazyFrame()],
    "ArrowHook": [pa.table({}), pa.record_batch({"a": [1]}), pa.table({}).to_reader()],
    "DuckDbHook": [duckdb.connect().sql("SELECT 1")],
    "SqlAlchemyHook": [
        TABLE, TABLE.alias(), sa.table("t"), sa.select(TABLE), sa.select(TABLE).subquery(), sa.select(TABLE).cte(), sa.text("SELECT 1"),
        sa.union(sa.select(TABLE), sa.select(TABLE)), sa.text("SELECT 1 AS a").columns(sa.column("a")),
    ],
    "SqlTextHook": ["SELECT 1"],
}  # fmt: skip


@pytest.mark.parametrize(("hook", "obj"), [(hook, obj) for hook, objects in OBJECTS.items() for obj in objects])
def test_every_table_type_finds_its_hook(hook, obj):
    assert type(Hooks().for_object(obj)).__name__ == hook


@pytest.mark.parametrize("obj", [1, 1.5, b"x", None, [1], {"a": 1}, object(), (1,), sa.column("a")])
def test_plain_values_have_no_hook(obj):
    assert Hooks().for_object(obj) is None


@pytest.mark.parametrize(
    "as_type",
    [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatch, pa.RecordBatchReader, duckdb.DuckDBPyRelation, sa.Table, sa.Alias],
)
def test_every_input_type_finds_its_hook(as_type):
    assert Hooks().for_type(as_type) is not None


@pytest.mark.parametrize("as_type", [str, dict, sa.Select, "pandas", None, pl.Series])
def test_a_type_that_cannot_be_loaded_is_an_error_that_lists_those_that_can(as_type):
    with pytest.raises(ConfigError, match=r"duckdb\.DuckDBPyRelation, pandas\.DataFrame, .*sqlalchemy\.Alias"):
        Hooks().for_type(as_type)


def test_a_subclass_is_written_by_its_ancestors_hook_but_cannot_be_asked_for():
    class Special(pd.DataFrame):
        pass

    assert type(Hooks().for_object(Special())).__name__ == "PandasHook"
    with pytest.raises(ConfigError, match="Special"):
        Hooks().for_type(Special)


def test_any_object_with_an_arrow_stream_goes_through_arrow():
    class Foreign:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"a": [1]}).__arrow_c_stream__(requested_schema)

    assert type(Hooks().for_object(Foreign())).__name__ == "ArrowHook"


def test_options_are_found_by_library_and_by_type_and_the_type_wins():
    hooks = Hooks({"pandas": {"dtype_backend": "pyarrow", "x": 1}, "pandas.DataFrame": {"dtype_backend": "numpy"}, "polars": {"y": 2}})
    assert hooks.args(hooks.for_type(pd.DataFrame)) == {"dtype_backend": "numpy", "x": 1}
    assert hooks.args(hooks.for_type(pa.Table)) == {}


def test_a_configured_hook_goes_before_the_built_in_one():
    hooks = Hooks(extra={"pandas.DataFrame": "pipedag_core.hooks.arrow:ArrowHook"})
    assert type(hooks.for_object(pd.DataFrame())).__name__ == "ArrowHook"


def test_a_hook_of_a_missing_library_is_an_error_that_says_what_to_install():
    with pytest.raises(ConfigError, match=r"needs the package no_such_library.*Install") as caught:
        Hooks(extra={"pandas.DataFrame": "no_such_library:Hook"}).for_type(pd.DataFrame)
    assert caught.value.type == "pandas.DataFrame"


def test_a_hook_that_is_not_where_it_is_said_to_be_is_an_error():
    with pytest.raises(ConfigError, match="there is none"):
        Hooks(extra={"pandas.DataFrame": "pipedag_core.hooks.arrow:Nothing"}).for_type(pd.DataFrame)


def test_other_distributions_offer_hooks_through_entry_points(tmp_path, monkeypatch):
    point = EntryPoint("decimal.Decimal", "pipedag_core.hooks.arrow:ArrowHook", registry.ENTRY_POINTS)
    meta = tmp_path / "third_party-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(f"[{point.group}]\n{point.name} = {point.value}\n")
    script = "from decimal import Decimal; from pipedag_core.hooks.registry import Hooks; print(type(Hooks().for_type(Decimal)).__name__)"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "ArrowHook\n"


def test_the_registry_loads_no_library():
    script = (
        "import sys; from pipedag_core.hooks.registry import Hooks; Hooks().for_object(1); print([m for m in sys.modules if m in LIBS])"
    )
    script = script.replace("LIBS", "('pandas','polars','pyarrow','duckdb','sqlalchemy','msgpack')")
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env).stdout == "[]\n"
