"""Relations of DuckDB."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any, Final, final

import duckdb
import pyarrow.parquet as pq

from pipedag_core import duckdb_types
from pipedag_core.arrow_schema import to_arrow
from pipedag_core.errors import QueryFailed, TracingRefused
from pipedag_core.hooks import duckdb_trace
from pipedag_core.hooks.arrow import batches, read_stream
from pipedag_core.hooks.forms import expect, read_form, refused, write_form
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.ports.data import PLACEHOLDER_SCHEMA, FileData, Form, QuerySource, TableData, TableSchema, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext

_EXECUTED: Final = (
    "AUTO_VERSION found that the task executes a relation (fetchall, df, len, show ...), while it is run without data to see its query. "
    "Return the relation without executing it, or give the task a version='...'."
)

#: Arrow has no integers of 128 bits, and Parquet files would hold them as doubles, rounded. A value that is too large is an error.
_NARROWER: Final = {"hugeint": "BIGINT", "uhugeint": "UBIGINT"}

#: Integers are narrowed; enums and arrays come back as texts and lists with the same values.
_TAKEN_CARE_OF: Final = frozenset({*_NARROWER, "enum", "array"})


@final
class DuckDbHook:
    """Relations on the connection of the task's store, so that rows stay in DuckDB until they are written. Relations can be traced."""

    by_reference = False

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return a relation over the stored table, with the argument's name as its alias."""
        if context.capabilities.dialect == "duckdb" and read_form(context, Form.QUERY, Form.BATCHES, Form.FILES) is Form.QUERY:
            source = expect(context.session.read(table, Form.QUERY), QuerySource, table)
            relation = source.connection.sql(f"SELECT * FROM {source.place}")
        else:
            relation = duckdb.connect().from_arrow(read_stream(table, context).read_all())
        return relation.set_alias(context.alias)

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the relation over; it is executed while it is written. HUGEINT becomes BIGINT, UHUGEINT becomes UBIGINT.

        Raises:
            MaterializationError: Two columns have one name, or one has a type that Parquet does not keep.
        """
        names = [name.casefold() for name in obj.columns]
        double = sorted({name for name in obj.columns if names.count(name.casefold()) > 1})
        if double:
            raise refused(context, f"columns {double!r} of the relation have the same name. Give each column its own name with AS.")
        if write_form(context, Form.FILES, Form.BATCHES) is Form.FILES:
            for name, kind in zip(obj.columns, obj.types, strict=True):
                if (problem := duckdb_types.refused(kind, _TAKEN_CARE_OF)) is not None:
                    raise refused(
                        context,
                        f"column {name!r} of the relation has type {kind}, which Parquet would bring back as another type. "
                        f"Cast {problem[0].upper()} to {problem[1]}.",
                    )
            return FileData(lambda path: _execute(obj, "write_parquet", context, path), query=obj.sql_query)
        # A relation's open result would block its connection, on which the store may want to write.
        return batches(lambda: _execute(obj, "to_arrow_table", context), context, in_memory=False, query=obj.sql_query)

    def empty(self, schema: TableSchema, as_type: Any, label: str) -> Any:
        """Return a relation over a view of this schema that is named after the label and refuses to be executed."""
        connection = _tracing()
        place = f"{PLACEHOLDER_SCHEMA}.{quote_identifier(label)}"
        columns = ", ".join(f"CAST(NULL AS {kind}) AS {quote_identifier(name)}" for name, kind in _types(connection, schema))
        connection.execute(f"CREATE OR REPLACE VIEW {place} AS SELECT {columns} WHERE error({quote_literal(_EXECUTED)}) IS NULL")
        return connection.sql(f"SELECT * FROM {place}").set_alias(label.rpartition(".")[2])

    def trace(self, obj: Any) -> str:
        """Return the relation's query, with generated names numbered in order.

        Raises:
            TracingRefused: The query reads Python objects, outside files or tables that are no inputs.
        """
        text = obj.sql_query()
        try:
            ((tree,),) = _tracing().execute("SELECT json_serialize_sql($1)", [text]).fetchall()
        except duckdb.Error as error:
            raise TracingRefused(
                f"AUTO_VERSION: DuckDB {duckdb.__version__} cannot parse this relation's query: {error} Give the task a version='...' instead."
            ) from error
        return f"duckdb {duckdb.__version__} {duckdb_trace.canonical(text, tree)}"


def type_text(arrow: Any) -> str:
    """Return the DuckDB type that columns of an Arrow type get."""
    import pyarrow as pa

    with duckdb.connect() as connection:
        return str(connection.from_arrow(pa.schema([("x", arrow)]).empty_table()).types[0])


_local = threading.local()


def _tracing() -> Any:
    """Return this thread's database for tracing: relations join only with relations of the same connection."""
    connection = getattr(_local, "connection", None)
    if connection is None:
        connection = _local.connection = duckdb.connect(config={"threads": 1})
        connection.execute(f"CREATE SCHEMA {PLACEHOLDER_SCHEMA}")
    return connection


def _types(connection: Any, schema: TableSchema) -> list[tuple[str, str]]:
    # The way through a file gives exactly the types that a stored table has.
    with tempfile.TemporaryDirectory(prefix="pipedag-") as folder:
        path = str(Path(folder) / "empty.parquet")
        pq.write_table(to_arrow(schema).empty_table(), path)
        relation = connection.sql(f"SELECT * FROM read_parquet({quote_literal(path)})")
        return [(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)]


def _execute(relation: Any, verb: str, context: WriteContext, *args: Any) -> Any:
    casts = [
        f"CAST({quote_identifier(name)} AS {kind}) AS {quote_identifier(name)}"
        for name, kind in zip(relation.columns, map(_narrowed, relation.types), strict=True)
        if kind is not None
    ]
    try:
        exact = relation.project(f"* REPLACE ({', '.join(casts)})") if casts else relation
        return getattr(exact, verb)(*args)
    except duckdb.Error as error:
        raise QueryFailed(
            f"Task {context.task!r}: DuckDB refused the relation: {error}\n{relation.sql_query()}", task=context.task, path=context.path
        ) from error


def _narrowed(kind: Any) -> str | None:
    """Return the type without integers of 128 bits, or None if it has none."""
    if kind.id in _NARROWER:
        return _NARROWER[kind.id]
    if kind.id not in ("list", "array", "map", "struct", "union"):
        return None
    parts = [(name, child) for name, child in kind.children if name != "size"]
    if kind.id == "union":
        parts = parts[1:]  # the first is the tag
    narrowed = [_narrowed(child) for _, child in parts]
    if not any(narrowed):
        return None
    types = [new or str(child) for new, (_, child) in zip(narrowed, parts, strict=True)]
    if kind.id == "list":
        return f"{types[0]}[]"
    if kind.id == "array":
        return f"{types[0]}[{dict(kind.children)['size']}]"
    if kind.id == "map":
        return f"MAP({', '.join(types)})"
    fields = ", ".join(f"{quote_identifier(name)} {new}" for new, (name, _) in zip(types, parts, strict=True))
    return f"{kind.id.upper()}({fields})"
