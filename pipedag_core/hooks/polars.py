"""Frames of polars, eager and lazy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, final

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from pipedag_core.arrow_schema import to_arrow
from pipedag_core.errors import TracingRefused
from pipedag_core.hooks import polars_trace
from pipedag_core.hooks.arrow import batches, read_stream
from pipedag_core.hooks.forms import expect, refused, write_form
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import FileData, FileSource, Form, StoredView, TableData, TableSchema, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext

#: Schemes of URLs that polars reads itself.
_SCHEMES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "hf", "file"})


@final
class PolarsHook:
    """polars frames, from and to files where files are at hand; a `LazyFrame` is never collected. Its lazy frames can be traced."""

    by_reference = False

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return a `DataFrame`, or a `LazyFrame` that scans the stored files; a view is a lazy selection from its sources."""
        if isinstance(table, StoredView) and as_type is pl.LazyFrame and Form.FILES in context.capabilities.reads:
            return _selected(table, [self.read(source, pl.LazyFrame, context) for source in table.sources])
        paths = _files(table, context)
        if paths is not None:
            # Stored paths are literal: neither patterns nor `key=value` segments in them mean anything.
            if as_type is pl.LazyFrame:
                return pl.scan_parquet(paths, glob=False, hive_partitioning=False)
            return pl.read_parquet(paths, glob=False, hive_partitioning=False)
        frame = pl.DataFrame(read_stream(table, context))
        return frame.lazy() if as_type is pl.LazyFrame else frame

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the frame over; a `LazyFrame` streams into the file or the batches while it is written.

        Raises:
            MaterializationError: A column holds Python objects.
        """
        files = write_form(context, Form.FILES, Form.BATCHES) is Form.FILES
        if isinstance(obj, pl.LazyFrame):
            return FileData(lambda path: _sink(obj, path)) if files else batches(lambda: _Stream(obj), context, in_memory=False)
        opaque = [name for name, dtype in obj.schema.items() if dtype == pl.Object]
        if opaque:
            raise refused(
                context, f"columns {opaque!r} hold Python objects (polars type Object). Give them a type, or return the objects as a Blob."
            )
        if files:
            return FileData(obj.write_parquet, lambda: obj, obj.height)
        return batches(lambda: obj, context, in_memory=True, rows=obj.height)

    def share(self, obj: Any) -> Any:
        """Return a frame of the same columns; columns themselves never change. A lazy frame cannot be changed at all."""
        return obj if isinstance(obj, pl.LazyFrame) else obj.clone()

    def storing(self, context: WriteContext) -> None:
        """Return None: frames come back as they went."""
        return

    def empty(self, schema: TableSchema, as_type: Any, label: str) -> Any:
        """Return a lazy frame with this schema whose columns come from `"label".<column>` and which refuses to be executed.

        Raises:
            TracingRefused: `as_type` is `DataFrame`, whose operations are executed at once.
        """
        if as_type is not pl.LazyFrame:
            raise TracingRefused(
                f"AUTO_VERSION cannot see what a task does with a polars DataFrame, which is computed at once (input {label!r}). "
                f"Use input_type=pl.LazyFrame, or give the task a version='...'."
            )
        frame = pl.DataFrame(to_arrow(schema).empty_table())
        origins = {f"{quote_identifier(label)}.{name}": dtype for name, dtype in frame.schema.items()}
        source = register_io_source(_executed, schema=origins)
        return source.select(pl.col(origin).alias(name) for origin, name in zip(origins, frame.columns, strict=True))

    def trace(self, obj: Any) -> str:
        """Return the frame's plan as canonical text.

        Raises:
            TracingRefused: The plan holds a Python function, reads or writes outside files, or cannot be read in this version of polars.
        """
        try:
            raw = obj.lazy().serialize()
        except Exception as error:  # polars reports what it cannot serialize by many classes
            raise TracingRefused(
                f"AUTO_VERSION: polars {pl.__version__} cannot write this plan down: {error} Give the task a version='...' instead."
            ) from error
        return f"polars {pl.__version__} {polars_trace.canonical(raw, _origin_function())}"


def arrow_type(kind: Any) -> Any:
    """Return the Arrow type that columns of a polars type, class or instance, are stored as."""
    return pl.Series([], dtype=kind).to_arrow().type


def _executed(columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, size: int | None) -> Iterator[pl.DataFrame]:
    raise TracingRefused(
        "AUTO_VERSION found that the task executes a query (collect, sink, describe ...) on an input, while it is run without data to see its plan. "
        "Return the lazy frame without executing it, or give the task a version='...'."
    )


@cache
def _origin_function() -> Any:
    """Return how the source of our empty frames looks inside a serialized plan, to be told from sources of users."""
    return polars_trace.source_function(register_io_source(_executed, schema={"a": pl.Int8}).serialize())


def _files(table: TableSource, context: ReadContext) -> list[str] | None:
    if Form.FILES not in context.capabilities.reads or isinstance(table, StoredView):
        return None
    paths = expect(context.session.read(table, Form.FILES), FileSource, table).paths
    known = all("://" not in path or path.partition("://")[0] in _SCHEMES for path in paths)
    return list(paths) if known else None


def _selected(view: StoredView, frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    wanted = view.selection
    kept = wanted.columns or ()
    columns = list(dict.fromkeys([*(old for _, old in kept), *(name for name, _, _ in wanted.sort_by)]))
    frame = pl.concat([frame.select(columns) for frame in frames]) if len(frames) > 1 else frames[0]
    if wanted.sort_by:
        names, descending, nulls_first = zip(*wanted.sort_by, strict=True)
        frame = frame.sort(list(names), descending=list(descending), nulls_last=[not first for first in nulls_first], maintain_order=True)
    frame = frame if wanted.limit is None else frame.head(wanted.limit)
    return frame.select(pl.col(old).alias(new) for new, old in kept)


def _sink(frame: pl.LazyFrame, path: str) -> None:
    frame.sink_parquet(path)


class _Stream:
    """A lazy frame as a stream of Arrow batches, computed while it is read."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        schema = pl.DataFrame(schema=self._frame.collect_schema()).to_arrow().schema
        rows = (batch for part in self._frame.collect_batches() for batch in part.to_arrow().cast(schema).to_batches())
        return pa.RecordBatchReader.from_batches(schema, rows).__arrow_c_stream__(requested_schema)
