"""What the server of processes imports once, for all of them."""

from __future__ import annotations

from importlib import import_module

for name in (
    "duckdb",
    "duckdb_sqlalchemy",
    "pandas",  # pyarrow looks for it
    "pyarrow.parquet",
    "sqlalchemy.dialects.postgresql",
    "sqlglot.dialects.duckdb",
    "pipedag_core.blobs.file",
    "pipedag_core.catalogs.sqlite",
    "pipedag_core.hooks.arrow",
    "pipedag_core.hooks.registry",
    "pipedag_core.hooks.sqlalchemy",
    "pipedag_core.hooks.sqlalchemy_literals",
    "pipedag_core.runner",
    "pipedag_core.stores.duckdb_engine",
    "pipedag_core.stores.explore_views",
    "pipedag_core.stores.parquet_files",
    "pipedag_core.stores.parquet_session",
    "pipedag_core.stores.sqltext",
):
    import_module(name)
