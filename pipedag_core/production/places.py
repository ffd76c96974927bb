"""Where a production flow that is called as a command takes its inputs from, and where its outputs go: files, and tables of an instance.

Files are Parquet, CSV or Arrow IPC, by their ending. A file is written under another name and then moved over, so that readers see all of it or what
was there before; tables change all at once, before files do. All outputs are computed before any is written.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv, feather

from pipedag_core.config.context import ConfigContext
from pipedag_core.config.wire import open_catalog, open_table_store
from pipedag_core.errors import ConfigError, InputMismatch, UnsupportedByStore
from pipedag_core.ports.data import BatchSource, Form, StoredTable
from pipedag_core.production.into_tables import TABLE, Slice, places_of, stage_and_table, write
from pipedag_core.stores.arrow_hash import ContentHasher

if TYPE_CHECKING:
    from pipedag_core.production.flow import ProductionFlow

_READ: Final[Mapping[str, Callable[[Path], pa.Table]]] = {
    ".parquet": pq.read_table,
    ".csv": csv.read_csv,
    ".arrow": feather.read_table,
    ".feather": feather.read_table,
}
_WRITE: Final[Mapping[str, Callable[[pa.Table, Path], Any]]] = {
    ".parquet": pq.write_table,
    ".csv": csv.write_csv,
    ".arrow": lambda table, path: feather.write_feather(table, str(path), compression="uncompressed"),
    ".feather": lambda table, path: feather.write_feather(table, str(path)),
}


@final
@dataclass(frozen=True)
class Scored:
    """An output that was written.

    Attributes:
        place: Where: a file, or `table:stage.name`.
        rows: How many.
        columns: Names and types of its columns.
        version: Equal for equal rows, whatever their order; "" where that cannot be told.
    """

    place: str
    rows: int
    columns: tuple[tuple[str, str], ...]
    version: str


def score(
    prod: ProductionFlow,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    context: Callable[[], ConfigContext],
    *,
    part: Slice | None = None,
    note: str = "pipedag score",
    external_id: str = "",
) -> dict[str, Scored]:
    """Run a production flow from places to places.

    All outputs are computed before any is written. Tables are all in one stage, which changes at once; then each file is replaced at once.

    Args:
        prod: The production flow.
        inputs: Name of an input (`clean.flights`) -> its place: a file, or `table:stage.name`.
        outputs: Name of an output -> the file it goes to, or `table:stage.name`.
        context: Called for the instance whose tables are read or written, if any is.
        part: The rows of this run in tables that others write, too; None if an output is all of its table.
        note, external_id: Who writes, and under which id of an orchestrator, as for `put_tables`.

    Returns:
        Name of each output -> what was written.

    Raises:
        ConfigError: A place is of no kind that is known, or there is no such table or file.
        InputMismatch: An input is missing or unlike that in training, or an output is no table.
        Exception: Whatever a table could not be written for.
    """
    stage, names = places_of(outputs)
    files = {name: Path(place) for name, place in outputs.items() if name not in names}
    for path in files.values():
        _of_ending(_WRITE, path)
    if part is not None and not names:
        raise ConfigError(f"--slice {part.column}={part.value} is for outputs that are tables: --output NAME=table:STAGE.TABLE.")
    given: dict[str, Any] = {}
    for name, place in inputs.items():
        _put(given, name, _read_table(place, context()) if place.startswith(TABLE) else _read_file(Path(place)))
    found = prod.run(given, list(outputs), as_type=pa.Table)
    tables: dict[str, pa.Table] = {}
    for name, value in found.items():
        if not prod.is_frame(value):
            raise InputMismatch(f"Output {name!r} is a {type(value).__name__}, not a table, so it cannot be written.", problems=(name,))
        tables[name] = prod.to_arrow(value)
    stored = (
        write({name: tables[name] for name in names}, stage, names, part, context(), note=note, external_id=external_id) if names else {}
    )
    for name, path in files.items():
        _write_file(tables[name], path)
    return {name: _told(outputs[name], table, stored.get(name)) for name, table in tables.items()}


def _told(place: str, table: pa.Table, identity: str | None) -> Scored:
    columns = tuple((field.name, str(field.type)) for field in table.schema)
    return Scored(place, table.num_rows, columns, _version(table) if identity is None else identity)


def _version(table: pa.Table) -> str:
    try:
        hasher = ContentHasher(table.schema)
    except UnsupportedByStore:
        return ""
    for batch in table.to_batches():
        hasher.update(batch)
    return hasher.result() or ""


def _put(given: dict[str, Any], name: str, value: Any) -> None:
    """Put a value where its dotted name says."""
    *around, last = name.split(".")
    inner = given
    for part in around:
        inner = inner.setdefault(part, {})
    inner[last] = value


def _of_ending(table: Mapping[str, Any], path: Path) -> Any:
    found = table.get(path.suffix.casefold())
    if found is None:
        raise ConfigError(f"{str(path)!r} ends in none of {', '.join(table)}.", path=str(path))
    return found


def _read_file(path: Path) -> pa.Table:
    read = _of_ending(_READ, path)
    try:
        return read(path)
    except FileNotFoundError:
        raise ConfigError(f"There is no file {str(path)!r} to take an input from.", path=str(path)) from None


def _write_file(table: pa.Table, path: Path) -> None:
    write = _of_ending(_WRITE, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{path.suffix}")
    try:
        write(table, beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_table(place: str, context: ConfigContext) -> pa.Table:
    stage, table = stage_and_table(place)
    catalog = open_catalog(context)
    store = open_table_store(context)
    try:
        found = catalog.shown().get(stage, {}).get(table)
        if not isinstance(found, StoredTable):
            raise ConfigError(
                f"Instance {context.instance_name!r} has no committed table '{stage}.{table}'. `pipedag status` lists stages.",
                table=f"{stage}.{table}",
            )
        with store.session("pipedag score") as access:
            source = access.read(found, Form.BATCHES)
            assert isinstance(source, BatchSource)
            with pa.RecordBatchReader.from_stream(source.stream) as reader:
                return reader.read_all()
    finally:
        store.close()
        catalog.close()
