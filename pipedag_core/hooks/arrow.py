"""Tables of pyarrow, and of every library that speaks the Arrow stream interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipedag_core.hooks.forms import expect, read_form, refused, write_form
from pipedag_core.ports.data import BatchData, BatchSource, FileData, FileSource, Form, StoredView, TableData, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext


def read_table(table: TableSource, context: ReadContext) -> Any:
    """Return the stored table as a `pyarrow.Table` without metadata of the schema as a whole."""
    paths = local_files(table, context)
    if paths is None:
        return read_stream(table, context).read_all().replace_schema_metadata(None)
    # Neither patterns nor `key=value` segments in a path mean anything here.
    parts = [pq.ParquetFile(path).read() for path in paths]
    return pa.concat_tables(parts).replace_schema_metadata(None)


def read_stream(table: TableSource, context: ReadContext) -> Any:
    """Return the stored table as a `pyarrow.RecordBatchReader`, to be read once."""
    if read_form(context, Form.BATCHES, Form.FILES) is Form.BATCHES:
        stream = expect(context.session.read(table, Form.BATCHES), BatchSource, table).stream
        return pa.RecordBatchReader.from_stream(stream)
    files = [pq.ParquetFile(path) for path in expect(context.session.read(table, Form.FILES), FileSource, table).paths]
    batches = (batch for file in files for batch in file.iter_batches())
    return pa.RecordBatchReader.from_batches(files[0].schema_arrow, batches)


def local_files(table: TableSource, context: ReadContext) -> tuple[str, ...] | None:
    """Return the paths of the table's files if the store gives files on a local disk, else None."""
    if Form.FILES not in context.capabilities.reads or isinstance(table, StoredView):
        return None
    paths = expect(context.session.read(table, Form.FILES), FileSource, table).paths
    return None if any("://" in path for path in paths) else paths


def batches(
    data: Callable[[], Any], context: WriteContext, *, in_memory: bool, rows: int | None = None, query: Callable[[], str] | None = None
) -> TableData:
    """Hand over Arrow data: as batches where the store takes them, else as a file that is written batch by batch.

    Args:
        data: Returns an object with `__arrow_c_stream__`.
        context: Where it goes.
        in_memory: All rows are here, so `data` may be called again.
        rows: Count, if known.
        query: As in `BatchData`.
    """
    if write_form(context, Form.BATCHES, Form.FILES) is Form.BATCHES:
        return BatchData(data, in_memory, rows, query)

    def write(path: str) -> None:
        reader = pa.RecordBatchReader.from_stream(data())
        with pq.ParquetWriter(path, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)

    return FileData(write, data if in_memory else None, rows, query)


@final
class ArrowHook:
    """Tables, record batches and readers of pyarrow; on the way to the store any object with `__arrow_c_stream__`."""

    by_reference = False

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return a `pyarrow.Table`, a single `RecordBatch`, or a `RecordBatchReader` that streams."""
        if as_type is pa.RecordBatchReader:
            return read_stream(table, context)
        result = read_table(table, context)
        if as_type is not pa.RecordBatch:
            return result
        whole = result.combine_chunks().to_batches()
        return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=result.schema)

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the batches over; tables and batches are in memory, readers and foreign streams are read once.

        Raises:
            MaterializationError: The object is a column, not a table.
        """
        if isinstance(obj, pa.Table | pa.RecordBatch):
            # A record batch exports its rows as an array, not as a stream.
            table = pa.Table.from_batches([obj]) if isinstance(obj, pa.RecordBatch) else obj
            return batches(lambda: table, context, in_memory=True, rows=table.num_rows)
        if isinstance(obj, pa.RecordBatchReader):
            return batches(lambda: obj, context, in_memory=False)
        return batches(lambda: _opened(obj, context), context, in_memory=False)


def _opened(obj: Any, context: WriteContext) -> Any:
    try:
        return pa.RecordBatchReader.from_stream(obj)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise refused(context, f"{type(obj).__name__} is a stream of Arrow values, but not of rows. Return a table.") from error
