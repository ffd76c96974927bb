"""Parquet files and Arrow batches: writing a stream, reading one, and what a finished file says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, final

import pyarrow as pa
import pyarrow.parquet as pq

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.errors import MaterializationError, UnsupportedByStore
from pipedag_core.ports.data import TableSchema
from pipedag_core.stores.arrow_hash import ContentHasher, schema_digest

T = TypeVar("T")

#: What to do about most types that Arrow does not know.
_WIDE: Final = "Cast 128-bit integers to 64 bits or to a decimal, and objects to text or bytes."

#: A row group is closed at this many rows or bytes, whichever comes first.
GROUP_ROWS: Final = 122_880
_GROUP_BYTES: Final = 256 * 2**20

#: Text with so many bytes of different values in a row group repeats too rarely: the library's own limit of 1 MiB costs a fifth of the time to write.
_DICTIONARY_BYTES: Final = 64 * 2**10

#: From so many rows on, hashing takes longer than handing it to another thread.
_ROWS_BESIDE: Final = 20_000


@final
@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the end of a Parquet file says: columns, rows, bytes, and the nulls of each top-level column, if asked for and where it was counted."""

    schema: TableSchema
    arrow: pa.Schema
    rows: int
    size: int
    nulls: Mapping[str, int | None]


def facts(path: Path, where: str, *, nulls: bool) -> FileFacts:
    """Read the end of a file that was just written.

    Args:
        path: The file.
        where: Task and table, for the message.
        nulls: Whether nulls are asked for.

    Raises:
        OSError: It cannot be read.
        MaterializationError: It is no Parquet file, or holds a type that Arrow does not know.
    """
    # Given a path, pyarrow would first look for the file system that it is on, which takes longer than reading.
    with pa.OSFile(str(path)) as opened:
        try:
            file = pq.ParquetFile(opened)
            arrow = file.schema_arrow
        except pa.ArrowException as error:
            raise MaterializationError(f"{where}: what was written cannot be read again ({error}). {_WIDE}") from error
        with file:
            metadata = file.metadata
            return FileFacts(from_arrow(arrow), arrow, metadata.num_rows, opened.size(), _nulls(metadata, arrow) if nulls else {})


def _nulls(metadata: Any, schema: pa.Schema) -> dict[str, int | None]:
    # The file counts per leaf of nested columns; only plain columns have one leaf that is the column.
    counts: dict[str, int | None] = dict.fromkeys((field.name for field in schema), 0)
    at = 0
    for field in schema:
        if pa.types.is_nested(field.type):
            counts[field.name] = None
        for group in range(metadata.num_row_groups):
            known = counts[field.name]
            if known is not None:
                statistics = metadata.row_group(group).column(at).statistics
                counts[field.name] = known + statistics.null_count if statistics is not None and statistics.has_null_count else None
        at += _leaves(field.type)
    return counts


def _leaves(kind: Any) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    return sum(_leaves(kind.field(at).type) for at in range(kind.num_fields)) if pa.types.is_nested(kind) else 1


def batches(source: Any, where: str) -> Any:
    """Return a `RecordBatchReader` over any object with `__arrow_c_stream__`.

    Raises:
        MaterializationError: It has a type that only its own library knows.
    """
    # A reader of our own library hands on what the user's generator raises; through the C interface it would only be text.
    if isinstance(source, pa.RecordBatchReader):
        return source
    try:
        return pa.RecordBatchReader.from_stream(source)
    except pa.ArrowInvalid as error:
        raise MaterializationError(f"{where}: a column has a type that Arrow does not know ({error}). {_WIDE}") from error


def open_batches(path: Path) -> tuple[Any, Any]:
    """Return a `RecordBatchReader` over a file, and the open file, to be closed after use.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowInvalid: It is no Parquet file.
    """
    file = pq.ParquetFile(path)
    return pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(batch_size=GROUP_ROWS)), file


def open_all(paths: Sequence[Path]) -> tuple[Any, list[Any]]:
    """Return a `RecordBatchReader` over files that are one table, and the open files, to be closed after use.

    Raises:
        OSError: One cannot be read.
        pyarrow.ArrowException: One is no Parquet file, or has other columns than the first.
    """
    files: list[Any] = []
    try:
        for path in paths:
            files.append(pq.ParquetFile(path))
            if not files[-1].schema_arrow.equals(files[0].schema_arrow):
                raise pa.ArrowInvalid(f"{path.name} has other columns than {paths[0].name}")
    except BaseException:
        for file in files:
            file.close()
        raise
    batches_of_all = (batch for file in files for batch in file.iter_batches(batch_size=GROUP_ROWS))
    return pa.RecordBatchReader.from_batches(files[0].schema_arrow, batches_of_all), files


def check_types(schema: pa.Schema, where: str, keeper: str = "Parquet") -> None:
    """Refuse types that `keeper`, or DuckDB reading it, would change into something with less information.

    Raises:
        MaterializationError: Naming the column and what to cast it to.
    """
    for field in schema:
        problem = _refused(field.type)
        if problem is not None:
            raise MaterializationError(
                f"{where}: column {field.name!r} has Arrow type {field.type}, which {keeper} does not keep. {problem}", column=field.name
            )


def _refused(kind: Any) -> str | None:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _refused(kind.storage_type)
    if types.is_dictionary(kind):
        return _refused(kind.value_type)
    if types.is_decimal(kind) and kind.precision > 38:
        return f"Cast it to decimal128(38, {min(kind.scale, 38)}) or to float64: SQL would read it as a rounded double."
    if types.is_interval(kind):
        return "Cast it to duration or to text."
    if types.is_run_end_encoded(kind):
        return "Decode it first (pyarrow.compute.run_end_decode)."
    if types.is_union(kind):
        return "Split it into one column per type."
    if types.is_struct(kind) and kind.num_fields == 0:
        return "Give the struct at least one field."
    if types.is_nested(kind):
        return next((problem for at in range(kind.num_fields) if (problem := _refused(kind.field(at).type))), None)
    return None


def write_batches(reader: Any, path: Path, hasher: ContentHasher | None) -> None:
    """Write a stream as one Parquet file, in its order, hashing the rows as they pass.

    Args:
        reader: A `RecordBatchReader`.
        path: Where to write.
        hasher: Sees every batch, if given.

    Raises:
        OSError: The file cannot be written.
    """
    # Only text repeats so often that a dictionary pays for the time that it takes.
    text: Any = [field.name for field in reader.schema if not pa.types.is_primitive(field.type) and not pa.types.is_nested(field.type)]
    options: Any = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": text or False,
        "dictionary_pagesize_limit": _DICTIONARY_BYTES,
    }
    with (
        pq.ParquetWriter(path, reader.schema, **options) as writer,
        ThreadPoolExecutor(1, "pipedag-hash") as worker,
    ):
        for group in _row_groups(reader):
            hashed = None if hasher is None else _beside(worker, partial(_hash_all, hasher, group), group.num_rows)
            # What is gathered from small batches may be a little more, which would leave a tiny group.
            writer.write_table(group, row_group_size=GROUP_ROWS if group.num_rows >= 2 * GROUP_ROWS else max(group.num_rows, 1))
            if hashed is not None:
                hashed()


def _row_groups(reader: Any) -> Iterator[pa.Table]:
    held: list[Any] = []
    rows = size = 0
    for batch in reader:
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _hash_all(hasher: ContentHasher, table: pa.Table) -> None:
    for batch in table.to_batches():
        hasher.update(batch)


def hash_beside(source: Callable[[], Any], rows: int | None, where: str, write: Callable[[], object]) -> str | None:
    """Write a table while another thread hashes its rows: both are done outside of Python, and a library that writes leaves time for it.

    Args:
        source: Returns the rows, as an object with `__arrow_c_stream__`.
        rows: How many there are, if that is known; few are hashed before they are written.
        where: Task and table, for messages.
        write: Writes them.

    Returns:
        As `hash_batches`.

    Raises:
        MaterializationError: A column has a type that only its own library knows.
        Exception: What `write` raises.
    """
    with ThreadPoolExecutor(1, "pipedag-hash") as worker:
        hashed = _beside(worker, lambda: hash_batches(batches(source(), where)), _ROWS_BESIDE if rows is None else rows)
        write()
        return hashed()


def _beside(worker: ThreadPoolExecutor, work: Callable[[], T], rows: int) -> Callable[[], T]:
    """Do the work in the worker, or at once if it is little, and return what waits for its outcome."""
    if rows >= _ROWS_BESIDE:
        return worker.submit(work).result
    done = work()
    return lambda: done


def hash_batches(reader: Any) -> str | None:
    """Return the content hash of a stream, or None if it has a type that cannot be hashed."""
    hasher = hasher_for(reader.schema)
    if hasher is None:
        return None
    for batch in reader:
        hasher.update(batch)
    return hasher.result()


def hasher_for(schema: pa.Schema) -> ContentHasher | None:
    """Return a hasher for streams with this schema, or None if it has a type that cannot be hashed."""
    try:
        return ContentHasher(schema)
    except UnsupportedByStore:
        return None


def schema_hash(schema: pa.Schema) -> str | None:
    """Return a hash of names and types, or None if a type cannot be hashed."""
    try:
        return schema_digest(schema)
    except UnsupportedByStore:
        return None


def retyped(reader: Any, types: Mapping[str, Any], where: str) -> Any:
    """Return the stream with some columns cast, exactly or not at all.

    Args:
        reader: A `RecordBatchReader`.
        types: Column -> Arrow type.
        where: Task and table, for the message.
    """
    schema = pa.schema([field.with_type(types[field.name]) if field.name in types else field for field in reader.schema])

    def cast() -> Iterator[Any]:
        for batch in reader:
            columns = [_cast(batch.column(at), field, where) for at, field in enumerate(schema)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, cast())


def _cast(array: Any, field: Any, where: str) -> Any:
    if array.type == field.type:
        return array
    try:
        if pa.types.is_decimal(field.type) and pa.types.is_integer(array.type):
            # Arrow looks at the integer's type and not at its values, so the values are checked in a second step.
            array = array.cast(pa.decimal128(38, field.type.scale))
        return array.cast(field.type)
    except pa.ArrowException as error:
        raise MaterializationError(
            f"{where}: column {field.name!r} cannot be stored as {field.type}, as type_map asks: {error}", column=field.name
        ) from error
