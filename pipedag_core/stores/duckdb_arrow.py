"""What DuckDB keeps Arrow columns as, and how they come back as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipedag_core.errors import MaterializationError
from pipedag_core.stores.arrow_views import decoded


def kept_as(field: Any, where: str) -> Any:
    """Return the Arrow type in which a column goes into the file and comes out of it; it differs from the column's own where DuckDB has no such type.

    Raises:
        MaterializationError: The way there and back is not known for this type.
    """
    kept = _kept(field.type)
    if kept != field.type:
        try:
            to_kept(pa.nulls(0, field.type), kept)
            back(pa.nulls(0, kept), field.type)
        except pa.ArrowException as error:
            raise MaterializationError(
                f"{where}: column {field.name!r} has Arrow type {field.type}, which a DuckDB file does not keep. Cast it to {kept}.",
                column=field.name,
            ) from error
    return kept


def to_kept(array: Any, kept: Any) -> Any:
    """Return an array in the type in which it is kept, exactly or not at all.

    Raises:
        pyarrow.ArrowException: A value does not fit.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = decoded(array)
    return array if array.type == kept else array.cast(kept)


def back(array: Any, kind: Any) -> Any:
    """Return an array that comes out of the file in the type that it went in with."""
    if array.type == kind:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, back(array, kind.storage_type))
    if pa.types.is_dictionary(kind):
        return back(array, kind.value_type).dictionary_encode().cast(kind)
    return array.cast(kind)


def stored(reader: Any, kept: Sequence[Any], where: str, failed: Callable[[BaseException], None]) -> Any:
    """Return a stream with its columns in the types in which they are kept.

    Args:
        reader: A `RecordBatchReader`.
        kept: A type per column.
        where: Task and table, for the message.
        failed: Is told what the stream raised, since DuckDB hands on its text only.
    """
    schema = pa.schema([pa.field(field.name, kind) for field, kind in zip(reader.schema, kept, strict=True)])

    def batches() -> Iterator[Any]:
        try:
            for batch in reader:
                yield pa.RecordBatch.from_arrays(
                    [_fitting(batch.column(at), field, where) for at, field in enumerate(schema)], schema=schema
                )
        except BaseException as error:
            failed(error)
            raise

    return pa.RecordBatchReader.from_batches(schema, batches())


def _fitting(array: Any, field: Any, where: str) -> Any:
    try:
        return to_kept(array, field.type)
    except pa.ArrowException as error:
        raise MaterializationError(
            f"{where}: column {field.name!r} of type {array.type} cannot be kept as {field.type} in a DuckDB file: {error}",
            column=field.name,
        ) from error


def restored(reader: Any, schema: Any, done: Callable[[], None]) -> Any:
    """Return a stream from the file with exactly these columns; `done` is called when all is read, or reading failed."""

    def batches() -> Iterator[Any]:
        try:
            for batch in reader:
                yield pa.RecordBatch.from_arrays([back(batch.column(at), field.type) for at, field in enumerate(schema)], schema=schema)
        finally:
            done()

    return pa.RecordBatchReader.from_batches(schema, batches())


def _kept(kind: Any) -> Any:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _kept(kind.storage_type)
    if types.is_dictionary(kind):
        return _kept(kind.value_type)
    if types.is_nested(kind):
        return _kept_nested(kind)
    if types.is_timestamp(kind) and kind.tz is not None:
        # One type for all time zones, which are kept beside; coarser units fit into microseconds.
        return pa.timestamp("ns" if kind.unit == "ns" else "us", "UTC")
    if types.is_time(kind):
        return kind if kind == pa.time64("ns") else pa.time64("us")
    if types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale)
    for matches, kept in (
        (types.is_large_string, pa.string()),
        (types.is_string_view, pa.string()),
        (types.is_large_binary, pa.binary()),
        (types.is_binary_view, pa.binary()),
        (types.is_fixed_size_binary, pa.binary()),
        (types.is_date64, pa.date32()),
        (types.is_float16, pa.float32()),
        (types.is_duration, pa.int64()),
    ):
        if matches(kind):
            return kept
    return kind


def _kept_nested(kind: Any) -> Any:
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _kept(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_kept(kind.key_type), _kept(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_kept(kind.value_type), kind.list_size)
    return pa.list_(_kept(kind.value_type))
