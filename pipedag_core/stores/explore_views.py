"""The views inside `explore.duckdb`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.stores.layout import place


def write(
    connection: Any, path: Path, views: Mapping[str, Mapping[str, str]], stages: Mapping[str, Mapping[str, Path]]
) -> tuple[str | None, dict[tuple[str, ...], str]]:
    """Make a DuckDB file have one schema per stage and one view per table.

    Args:
        connection: To any database; it is left as it was.
        path: A file that has `views`; one that does not exist yet if that is empty.
        views: Stage -> (readable name -> path of the Parquet file).
        stages: Stage -> (readable name -> absolute path of the Parquet file) that it is to have views for.

    Returns:
        None, or why the file is not good; and each stage or table that DuckDB cannot show, with the reason.
    """
    skipped: dict[tuple[str, ...], str] = {}
    try:
        # Several runs of one process may write such files at once, all on one database.
        database = quote_identifier(path.stem)
        connection.execute(f"ATTACH {quote_literal(path.as_posix())} AS {database}")
        try:
            # One transaction for all, since each commit waits for the disk; what cannot be made costs a second try without it.
            while (failed := _try(connection, database, views, stages, skipped)) is not None:
                item, why = failed
                skipped[item] = why
        finally:
            connection.execute(f"DETACH {database}")
    except duckdb.Error as error:
        return str(error), skipped
    return None, skipped


def _try(
    connection: Any,
    database: str,
    views: Mapping[str, Mapping[str, str]],
    stages: Mapping[str, Mapping[str, Path]],
    skipped: Mapping[tuple[str, ...], str],
) -> tuple[tuple[str, ...], str] | None:
    connection.execute("BEGIN")
    try:
        for statement in _removals(database, views, stages):
            connection.execute(statement)
        for item, statement in _additions(database, views, stages, skipped):
            try:
                connection.execute(statement)
            except duckdb.Error as error:
                connection.execute("ROLLBACK")
                return item, str(error)
    except duckdb.Error:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return None


def _removals(database: str, views: Mapping[str, Mapping[str, str]], stages: Mapping[str, Mapping[str, Path]]) -> Iterator[str]:
    for stage, tables in views.items():
        if stage not in stages:
            yield f"DROP SCHEMA {_schema(database, stage)} CASCADE"
            continue
        for name, file in tables.items():
            if str(stages[stage].get(name)) != file:
                yield f"DROP VIEW {_schema(database, stage)}.{quote_identifier(name)}"


def _additions(
    database: str,
    views: Mapping[str, Mapping[str, str]],
    stages: Mapping[str, Mapping[str, Path]],
    skipped: Mapping[tuple[str, ...], str],
) -> Iterator[tuple[tuple[str, ...], str]]:
    for stage, tables in stages.items():
        if (stage,) in skipped:
            continue
        if stage not in views:
            # A stage called `main` finds its schema there.
            yield (stage,), f"CREATE SCHEMA IF NOT EXISTS {_schema(database, stage)}"
        had = views.get(stage, {})
        for name, file in tables.items():
            if (stage, name) not in skipped and had.get(name) != str(file):
                yield (stage, name), f"CREATE VIEW {_schema(database, stage)}.{quote_identifier(name)} AS FROM {place(file)}"


def _schema(database: str, stage: str) -> str:
    # Stages can be called like DuckDB's own databases, so each name says in which one it is.
    return f"{database}.{quote_identifier(stage)}"
