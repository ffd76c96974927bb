"""Where a production flow that is called as a command takes its inputs from, and where its outputs go: files, and tables of an instance.

Files are Parquet, CSV or Arrow IPC, by their ending. A file is written under another name and then moved over, so that readers see all of it or what
was there before; tables are committed as those of a flow. All outputs are computed before any is written.
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
from pipedag_core.errors import ConfigError, InputMismatch, RunError, UnsupportedByStore
from pipedag_core.ports.data import BatchSource, Form, StoredTable
from pipedag_core.runner import put_tables
from pipedag_core.stores.arrow_hash import ContentHasher

if TYPE_CHECKING:
    from pipedag_core.production.flow import ProductionFlow

#: What a place begins with that is a table of an instance: `table:stage.name`.
TABLE: Final = "table:"
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
    note: str = "pipedag score",
    external_id: str = "",
) -> dict[str, Scored]:
    """Run a production flow from places to places.

    All outputs are computed before any is written. Each file is replaced at once, and the tables of one stage are committed together.

    Args:
        prod: The production flow.
        inputs: Name of an input (`clean.flights`) -> its place: a file, or `table:stage.name`.
        outputs: Name of an output -> the file it goes to, or `table:stage.name`; a flow that has this stage replaces all of it.
        context: Called for the instance whose tables are read or written, if any is.
        note, external_id: Who writes, and under which id of an orchestrator, as for `put_tables`.

    Returns:
        Name of each output -> what was written.

    Raises:
        ConfigError: A place is of no kind that is known, or there is no such table or file.
        InputMismatch: An input is missing or unlike that in training, or an output is no table.
        Exception: Whatever a table could not be written for.
    """
    for place in outputs.values():
        _stage_and_name(place) if place.startswith(TABLE) else _of_ending(_WRITE, Path(place))
    given: dict[str, Any] = {}
    for name, place in inputs.items():
        _put(given, name, _read_table(place, context()) if place.startswith(TABLE) else _read_file(Path(place)))
    found = prod.run(given, list(outputs), as_type=pa.Table)
    tables: dict[str, pa.Table] = {}
    for name, value in found.items():
        if not prod.is_frame(value):
            raise InputMismatch(f"Output {name!r} is a {type(value).__name__}, not a table, so it cannot be written.", problems=(name,))
        tables[name] = prod.to_arrow(value)
    for name, table in tables.items():
        if not outputs[name].startswith(TABLE):
            _write_file(table, Path(outputs[name]))
    stored = _write_tables(
        {outputs[name]: table for name, table in tables.items() if outputs[name].startswith(TABLE)}, context, note, external_id
    )
    return {name: _told(outputs[name], table, stored.get(outputs[name])) for name, table in tables.items()}


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


def _stage_and_name(place: str) -> tuple[str, str]:
    stage, _, name = place.removeprefix(TABLE).casefold().partition(".")
    if not stage or not name:
        raise ConfigError(f"{place!r} names no table: write {TABLE}STAGE.TABLE.", place=place)
    return stage, name


def _write_tables(tables: Mapping[str, pa.Table], context: Callable[[], ConfigContext], note: str, external_id: str) -> dict[str, str]:
    """Commit tables; return their identities, by place."""
    by_stage: dict[str, dict[str, str]] = {}
    for place in tables:
        stage, name = _stage_and_name(place)
        by_stage.setdefault(stage, {})[name] = place
    identities: dict[str, str] = {}
    for stage, names in by_stage.items():
        values = {name: tables[place] for name, place in names.items()}
        report = put_tables(stage, values, config=context(), note=note, external_id=external_id)
        if not report.is_committed:
            error = next((failure.error for failure in report.failures if failure.error is not None), None)
            raise error or RunError(
                f"Stage {stage} was not committed: {'; '.join(item.message for item in report.reports if item.message)}"
            )
        identities |= {place: report.entries[stage][name].identity for name, place in names.items()}
    return identities


def _read_table(place: str, context: ConfigContext) -> pa.Table:
    stage, table = _stage_and_name(place)
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
