"""What the suites for table stores are made with."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from pipedag_core.ports.data import (
    BatchSource,
    FileSource,
    Form,
    Placeholder,
    Prepared,
    QueryData,
    StoredTable,
    TableData,
    TableOptions,
    TableSource,
    Target,
    Written,
)
from pipedag_core.ports.stores import StoreSession

#: Stages of the flow that the suites pretend to run.
STAGES = frozenset({"raw", "features"})


def target(
    name: str = "t", *, stage: str = "raw", generation: int = 1, hash_content: bool = False, options: TableOptions | None = None
) -> Target:
    """Return where a table is to be written."""
    return Target(stage, generation, name, task="make", options=options or TableOptions(), hash_content=hash_content)


def stored_as(written: Written, where: Target, identity: str | None = None) -> StoredTable:
    """Return what a catalog would know about a written table."""
    return StoredTable(
        id=uuid4().hex,
        stage=where.stage,
        generation=where.generation,
        name=where.name,
        location=written.location,
        schema=written.schema,
        identity=identity or uuid4().hex,
        rows=written.rows,
        size=written.size,
        content_hash=written.content_hash,
        seal=written.seal,
    )


def keep(session: StoreSession, data: TableData, name: str = "t", *, identity: str | None = None, **options: Any) -> StoredTable:
    """Write a table and return it as a catalog would; queries are prepared without inputs."""
    where = target(name, **options)
    prepared = session.prepare(data.text, {}, STAGES) if isinstance(data, QueryData) else None
    return stored_as(session.write(data, where, prepared=prepared), where, identity)


def prepare(session: StoreSession, sql: str, **inputs: TableSource) -> Prepared:
    """Prepare a query or script whose inputs have these labels."""
    return session.prepare(sql, {label: Placeholder(label, table) for label, table in inputs.items()}, STAGES)


def ask(session: StoreSession, sql: str, **inputs: TableSource) -> list[dict[str, Any]]:
    """Return the rows of a query over stored tables, by writing it as a table and reading that."""
    where = target("answer", stage="features")
    return rows(session, stored_as(session.write(QueryData(sql), where, prepared=prepare(session, sql, **inputs)), where))


def rows(session: StoreSession, table: TableSource, form: Form = Form.BATCHES) -> list[dict[str, Any]]:
    """Return the rows of a table or view, read in the given form."""
    source = session.read(table, form)
    if isinstance(source, BatchSource):
        return pa.RecordBatchReader.from_stream(source.stream).read_all().to_pylist()
    if isinstance(source, FileSource):
        return [row for path in source.paths for row in pq.ParquetFile(path).read().to_pylist()]
    cursor = source.connection.execute(f"SELECT * FROM {source.place} AS t")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
