"""Tables larger than memory: what is lazy is never held as a whole, and DuckDB has the memory and the folder that the configuration gives it."""

from __future__ import annotations

import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, PipedagConfig, Stage, materialize


@pytest.mark.parametrize("options", [{"version": "1"}, {"lazy": True}, {}], ids=["version", "lazy", "none"])
def test_a_lazy_frame_goes_from_file_to_file_and_is_never_collected(config, tables_of, monkeypatch, options):
    @materialize(version="1")
    def source():
        return pl.LazyFrame({"x": range(1000)})

    @materialize(input_type=pl.LazyFrame, **options)
    def doubled(table):
        return table.with_columns(y=pl.col("x") * 2)

    held = []
    for owner, name in (
        (pl.LazyFrame, "collect"),
        (pl.LazyFrame, "collect_batches"),
        (pl.DataFrame, "write_parquet"),
        (pl.DataFrame, "to_arrow"),
    ):
        original = getattr(owner, name)

        def noted(frame, *args, _original=original, _name=name, **kwargs):
            held.append(_name)
            return _original(frame, *args, **kwargs)

        monkeypatch.setattr(owner, name, noted)
    with Flow("f") as flow, Stage("s"):
        doubled(source())
    result = flow.run(config=config)
    assert result.successful, result.exception
    assert held == []
    monkeypatch.undo()
    assert tables_of(config)["s"]["doubled"]["y"].sum() == 999_000


def test_duckdb_has_the_memory_and_the_folder_of_the_configuration(tmp_path, tables_of):
    args = {"base_path": f"{tmp_path}/{{instance_id}}", "memory_limit": "300MiB", "temp_directory": str(tmp_path / "spill"), "threads": 1}
    config = PipedagConfig({"instances": {"__any__": {"table_store": {"class": "parquet", "args": args}}}}).get()

    @materialize(lazy=True)
    def settings():
        return sa.text("SELECT current_setting('memory_limit') AS memory, current_setting('temp_directory') AS folder")

    with Flow("f") as flow, Stage("s"):
        settings()
    assert flow.run(config=config).successful
    assert tables_of(config)["s"]["settings"].row(0) == ("300.0 MiB", str(tmp_path / "spill"))
