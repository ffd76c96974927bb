"""Runs the statements of a script in a DuckDB database of its own and finds out what they created."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import duckdb

from pipedag_core.errors import DuplicateName, MaterializationError, QueryFailed
from pipedag_core.naming import normalize, quote_identifier
from pipedag_core.ports.data import Prepared, StoredTable
from pipedag_core.stores import long_query, sqltext

#: Statements that reach out of the script's own database.
_REACHING_OUT: Final = frozenset(
    {
        duckdb.StatementType.ATTACH,
        duckdb.StatementType.DETACH,
        duckdb.StatementType.LOAD,
        duckdb.StatementType.EXPORT,
        duckdb.StatementType.COPY_DATABASE,
    }
)

_OBJECTS: Final = """
    SELECT schema_name, table_name, 'table', table_oid, '' FROM duckdb_tables() WHERE database_name = ? AND NOT internal
    UNION ALL
    SELECT schema_name, view_name, 'view', view_oid, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal
    ORDER BY 4
"""

#: Makes the error for what DuckDB raised: error, where, query, casts.
Translate = Callable[[Any, str, str, Sequence[tuple[str, str]]], Exception]


def run(
    connection: Any,
    prepared: Prepared,
    inputs: Sequence[tuple[StoredTable, str]],
    stage: str,
    where: str,
    translate: Translate,
    database: str = "memory",
) -> Mapping[str, str]:
    """Run a script.

    Args:
        connection: To a new, empty database, which this function fills.
        prepared: The script.
        inputs: Tables that can be read under `stage.table`, and what stands behind FROM to read each.
        stage: Schema for names without one.
        where: For messages.
        translate: Makes errors of DuckDB into ours.
        database: DuckDB's name for that database.

    Returns:
        Readable name -> query that gives the table or view which the script left in the stage's schema, in the order of creation.

    Raises:
        QueryFailed: A statement failed; the message has its number and text.
        MaterializationError: The script reaches or writes elsewhere, or changed an input.
    """
    before = _prepare_database(connection, inputs, stage, where, translate, database)
    statements = sqltext.split(prepared.text)
    readable = sqltext.split(prepared.readable)
    for number, (statement, shown) in enumerate(zip(statements, readable, strict=True), start=1):
        here = f"{where}, statement {number} of {len(statements)}"
        try:
            kinds = {item.type for item in connection.extract_statements(statement)}
            if kinds & _REACHING_OUT or (duckdb.StatementType.COPY in kinds and sqltext.writes_a_file(statement)):
                raise MaterializationError(
                    f"{here}, reaches out of the stage, so that pipedag could neither cache nor undo it. "
                    f"Create a table in the stage instead, or do it in a Python task.\n{shown}",
                    query=shown,
                )
            long_query.execute(connection, statement)
        except duckdb.Error as error:
            translated = translate(error, here, shown, ())
            if isinstance(translated, QueryFailed):
                translated.__dict__["statement"] = number
            raise translated from error
    return _created(connection, before, stage, where, database)


def _prepare_database(
    connection: Any, inputs: Sequence[tuple[StoredTable, str]], stage: str, where: str, translate: Translate, database: str
) -> dict[tuple[str, str], tuple[Any, ...]]:
    try:
        for schema in dict.fromkeys([stage, *(table.stage for table, _ in inputs)]):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_schema(database, schema)}")
        for (schema, name), place in {(table.stage, table.name): place for table, place in inputs}.items():
            connection.execute(f"CREATE VIEW {_schema(database, schema)}.{quote_identifier(name)} AS FROM {place}")
        connection.execute(f"USE {_schema(database, stage)}")
    except duckdb.Error as error:
        raise translate(error, f"{where}, before its first statement", "(making the inputs visible)", ()) from error
    return _objects(connection, database)


def _schema(database: str, schema: str) -> str:
    # With its database, since a schema may be called like one (`temp`).
    return f"{quote_identifier(database)}.{quote_identifier(schema)}"


def _objects(connection: Any, database: str) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {(schema, name): tuple(rest) for schema, name, *rest in connection.execute(_OBJECTS, [database, database]).fetchall()}


def _created(connection: Any, before: Mapping[tuple[str, str], tuple[Any, ...]], stage: str, where: str, database: str) -> dict[str, str]:
    after = _objects(connection, database)
    for schema, name in before:
        if after.get((schema, name)) != before[schema, name]:
            raise MaterializationError(
                f"{where} changed or dropped its input {schema}.{name}. Stored tables never change: create a table of another name.",
                table=name,
            )
    queries: dict[str, str] = {}
    for schema, name in after:
        if (schema, name) in before:
            continue
        if schema.casefold() != stage.casefold():
            raise MaterializationError(
                f"{where} created {schema}.{name}, outside of its stage. Create tables in {stage}, or without a schema.", table=name
            )
        readable = normalize(name, "table name")
        if readable in queries:
            raise DuplicateName(f"{where} created two tables named {readable!r}. Rename one.", table=readable)
        queries[readable] = f"FROM {_schema(database, schema)}.{quote_identifier(name)}"
    return queries
