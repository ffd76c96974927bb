"""Scoring a table that is larger than memory: some rows of it at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from pipedag_core.define.walk import map_leaves
from pipedag_core.errors import InputMismatch
from pipedag_core.production.flow import ProductionFlow
from pipedag_core.production.shapes import tables_in


def run_batches(
    prod: ProductionFlow, inputs: Any, rows: int, outputs: Sequence[str] | None, as_type: Any, stream: str | None
) -> Iterator[Any]:
    """Yield what the production flow returns for each part of a stream; see `ProductionFlow.run_batches`.

    The tasks see only the rows of one part, so this is for flows that treat each row by itself, given the other inputs.

    Raises:
        InputMismatch: It is not clear which table is the stream; or as for `run`.
    """
    if rows < 1:
        raise InputMismatch(f"rows is the number of rows at a time, at least 1, not {rows}.", problems=())
    given: Any = inputs
    if not isinstance(inputs, Mapping):
        tables = [(name, path) for name, shape in prod.parts.inputs.items() for path, _ in tables_in(shape)]
        if len(prod.parts.inputs) != 1 or len(tables) != 1 or tables[0][1]:
            names = ", ".join(f"{name}.{path}" if path else name for name, path in tables)
            raise InputMismatch(
                f"This production flow has the tables {names} as inputs. Give all by name, one of them as a stream: "
                f"prod.run_batches({{{', '.join(f'{name!r}: ...' for name in prod.parts.inputs)}}}).",
                problems=(),
            )
        given = {tables[0][0]: inputs}
        stream = tables[0][0]
    place = _stream_place(given, stream)
    return _parts(prod, given, place, rows, outputs, as_type)


def _stream_place(inputs: Mapping[str, Any], stream: str | None) -> str:
    reader = import_module("pyarrow").RecordBatchReader
    found: dict[str, Any] = {}
    map_leaves(inputs, lambda leaf, path: found.__setitem__(path, leaf))
    if stream is not None:
        if stream not in found:
            raise InputMismatch(f"There is no input {stream!r}. There is: {', '.join(found)}.", problems=())
        return stream
    readers = [path for path, leaf in found.items() if isinstance(leaf, reader)]
    if len(readers) != 1:
        told = f"{len(readers)} of them are streams: {', '.join(readers)}" if readers else "none of them is a pyarrow.RecordBatchReader"
        raise InputMismatch(
            f"One input has to be the stream, but {told}. Say which it is: prod.run_batches(..., stream='clean.flights'). "
            f"There is: {', '.join(found)}.",
            problems=(),
        )
    return readers[0]


def _parts(
    prod: ProductionFlow, inputs: Mapping[str, Any], place: str, rows: int, outputs: Sequence[str] | None, as_type: Any
) -> Iterator[Any]:
    found: list[Any] = []
    map_leaves(inputs, lambda leaf, path: found.append(leaf) if path == place else None)
    for table in _chunks(found[0], rows):
        yield prod.run(map_leaves(inputs, lambda leaf, path, table=table: table if path == place else leaf), outputs, as_type=as_type)


def _chunks(stream: Any, rows: int) -> Iterator[Any]:
    pa = import_module("pyarrow")
    reader = stream if isinstance(stream, pa.RecordBatchReader) else pa.RecordBatchReader.from_stream(stream)
    waiting: list[Any] = []
    count = 0
    for whole in reader:
        batch = whole
        while count + batch.num_rows >= rows:
            head = batch.slice(0, rows - count)
            yield pa.Table.from_batches([*waiting, head], schema=reader.schema)
            batch, waiting, count = batch.slice(rows - count), [], 0
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting, schema=reader.schema)
