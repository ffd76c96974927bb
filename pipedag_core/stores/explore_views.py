"""The views inside `explore.duckdb`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.stores.layout import place


def write(connection: Any, path: Path, stages: Mapping[str, Mapping[str, Path]], skipped: Callable[[str, str], None]) -> str | None:
    """Make a DuckDB file with one schema per stage and one view per table.

    Args:
        connection: To any database; it is left as it was.
        path: A file that does not exist yet.
        stages: Stage -> (readable name -> absolute path of the Parquet file).
        skipped: Is told of each stage or table that DuckDB cannot show, and why.

    Returns:
        None, or why there is no file.
    """
    refused: set[tuple[str, ...]] = set()
    try:
        # Several runs of one process may write such files at once, all on one database.
        database = quote_identifier(path.stem)
        connection.execute(f"ATTACH {quote_literal(path.as_posix())} AS {database}")
        try:
            # One transaction for all, since each commit waits for the disk; what cannot be made costs a second try without it.
            while (failed := _try(connection, database, stages, refused)) is not None:
                item, why = failed
                skipped(".".join(item), why)
                refused.add(item)
        finally:
            connection.execute(f"DETACH {database}")
    except duckdb.Error as error:
        return str(error)
    return None


def _try(
    connection: Any, database: str, stages: Mapping[str, Mapping[str, Path]], refused: set[tuple[str, ...]]
) -> tuple[tuple[str, ...], str] | None:
    connection.execute("BEGIN")
    for item, statement in _statements(database, stages, refused):
        try:
            connection.execute(statement)
        except duckdb.Error as error:
            connection.execute("ROLLBACK")
            return item, str(error)
    connection.execute("COMMIT")
    return None


def _statements(
    database: str, stages: Mapping[str, Mapping[str, Path]], refused: set[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for stage, tables in stages.items():
        if (stage,) in refused:
            continue
        # Stages can be called like DuckDB's own databases, so each name says in which one it is.
        schema = f"{database}.{quote_identifier(stage)}"
        yield (stage,), f"CREATE SCHEMA IF NOT EXISTS {schema}"
        for name, file in tables.items():
            if (stage, name) not in refused:
                yield (stage, name), f"CREATE VIEW {schema}.{quote_identifier(name)} AS FROM {place(file)}"
