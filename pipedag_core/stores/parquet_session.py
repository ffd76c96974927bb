"""One task's access to the Parquet store."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from pipedag_core.errors import MaterializationError, StoredDataMissing, StoreError, UnsupportedByStore
from pipedag_core.ports.data import (
    BatchData,
    BatchSource,
    ExternalTable,
    FileData,
    FileSource,
    Form,
    Placeholder,
    Prepared,
    QueryData,
    QuerySource,
    RowDifference,
    Source,
    StoredTable,
    StoredView,
    TableData,
    TableOptions,
    TableSchema,
    TableSource,
    Target,
    Written,
)
from pipedag_core.stores import seal
from pipedag_core.stores.layout import Layout, pattern, place
from pipedag_core.stores.parquet_external import ExternalFiles, query_place

if TYPE_CHECKING:
    from pipedag_core.stores.duckdb_engine import Engine
    from pipedag_core.stores.parquet_files import FileFacts

_T = TypeVar("_T")

#: What the operating system says when the fault lies with the disk and not with the rows.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_DISK_ERRORS = _FULL | {errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR}

#: How libraries written in Rust pass on what the operating system said.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@final
class ParquetSession:
    """Reads and writes for one task, in one thread; implements `pipedag_core.ports.stores.StoreSession`.

    Args:
        layout: Where files go.
        inspector: Tells whether files are whole.
        external: Finds files of others.
        engine: Returns the store's DuckDB engine, opening it if need be.
        label: Flow and task, for messages.
    """

    def __init__(
        self, layout: Layout, inspector: seal.Inspector, external: ExternalFiles, engine: Callable[[], Engine], label: str
    ) -> None:
        self._layout = layout
        self._inspector = inspector
        self._external = external
        self._engine = engine
        self._label = label
        self._cursor: Any = None
        self._lent = False
        self._open: list[Any] = []
        self._readers: list[Any] = []
        self._bound: dict[str, StoredTable] = {}

    # --- reading ------------------------------------------------------------------------------------------------------------------

    def read(self, table: TableSource, form: Form) -> Source:
        """Return the table in any form; its file is looked at but not read, for batches its schema. A view is a query of DuckDB's."""
        if isinstance(table, StoredView):
            return self._read_view(table, form)
        paths = [self._existing(table)] if isinstance(table, StoredTable) else self._external.paths(table.owner, table.name)
        if isinstance(table, StoredTable):
            self._bound[table.location] = table
        if form is Form.FILES:
            return FileSource(tuple(map(str, paths)))
        if form is Form.QUERY:
            self._lent = True
            return QuerySource(self._place(table), self._connection())
        import pyarrow as pa

        from pipedag_core.stores import parquet_files

        try:
            stream, files = parquet_files.open_all(paths)
        except pa.ArrowException as error:
            if isinstance(table, ExternalTable):
                raise _unreadable(table.owner, table.name, error) from error
            raise self._damaged(table, paths[0], f"it is no Parquet file any more ({error})") from error
        self._open += files
        return BatchSource(stream)

    def _read_view(self, view: StoredView, form: Form) -> Source:
        from pipedag_core.stores import viewsql

        if form is Form.FILES:
            raise UnsupportedByStore(f"{self._label}: {view.told} is a query and not in files. Read it as batches or inside a query.")
        for leaf in view.leaves:
            if isinstance(leaf, StoredTable):
                self._existing(leaf)
        text = viewsql.select(view, self._place)
        if form is Form.QUERY:
            self._lent = True
            return QuerySource(f"({text})", self._connection())
        import duckdb

        from pipedag_core.arrow_schema import to_arrow
        from pipedag_core.stores import duckdb_arrow, parquet_files

        # Its rows come while the task may run other queries on its own connection.
        connection = self._engine().cursor()
        self._readers.append(connection)
        try:
            reader = connection.sql(text).to_arrow_reader(parquet_files.GROUP_ROWS)
        except duckdb.Error as error:
            raise self._translate(error, view.told, viewsql.readable(view), ()) from error
        return BatchSource(duckdb_arrow.restored(reader, to_arrow(view.schema), lambda: None))

    def external_columns(self, owner: str, name: str) -> TableSchema:
        """Return the columns of the first of its files."""
        import pyarrow as pa

        from pipedag_core.arrow_schema import from_arrow
        from pipedag_core.stores import parquet_files

        paths = self._external.paths(owner, name)
        try:
            stream, files = parquet_files.open_all(paths)
        except pa.ArrowException as error:
            raise _unreadable(owner, name, error) from error
        self._open += files
        return from_arrow(stream.schema)

    def prepare(self, sql: str, placeholders: Mapping[str, Placeholder], stages: frozenset[str]) -> Prepared:
        """Turn a query or a script into what is hashed, what is run and what is shown; see `pipedag_core.stores.sqltext`."""
        from pipedag_core.stores import sqltext, viewsql

        return sqltext.prepare(sql, placeholders, stages, lambda table: viewsql.source_text(table, self._place))

    def readable(self, query: str) -> str | None:
        """Return a relation's query with the names of the stored tables that were read."""
        from pipedag_core.stores import relation_text

        return relation_text.readable(query, {pattern(self._layout.path(table.location)): table for table in self._bound.values()})

    def compare_rows(
        self, before: StoredTable | ExternalTable, after: StoredTable | ExternalTable, columns: Sequence[str], key: Sequence[str]
    ) -> RowDifference:
        """Let DuckDB count, over both files."""
        import duckdb

        from pipedag_core.stores import long_query, row_difference

        for table in (before, after):
            if isinstance(table, StoredTable):
                self._existing(table)
        text = row_difference.query(self._place(before), self._place(after), columns, key)
        try:
            [row] = long_query.execute(self._connection(), text).fetchall()
        except duckdb.Error as error:
            raise self._translate(error, f"Rows of {before.told} and {after.told}", text, ()) from error
        return row_difference.read(row, columns, key)

    def _place(self, table: StoredTable | ExternalTable) -> str:
        if isinstance(table, ExternalTable):
            return query_place(self._external.paths(table.owner, table.name))
        self._bound[table.location] = table
        return place(self._layout.path(table.location))

    def _existing(self, table: StoredTable) -> Path:
        path = self._layout.path(table.location)
        problem = self._inspector.problem(path, table.size, table.seal)
        if problem is not None:
            raise self._damaged(table, path, problem)
        return path

    def _damaged_input(self) -> StoredDataMissing | None:
        """Return the error of an input that is damaged, where something went wrong that this may explain."""
        for table in self._bound.values():
            path = self._layout.path(table.location)
            problem = self._inspector.problem(path, table.size, table.seal, thorough=True)
            if problem is not None:
                return self._damaged(table, path, problem)
        return None

    def _damaged(self, table: StoredTable, path: Path, problem: str) -> StoredDataMissing:
        return StoredDataMissing(
            f"{self._label}: table {table.stage}.{table.name} cannot be read: {problem}.\nThe file is {path}. The next run will make it again.",
            stage=table.stage,
            table=table.name,
            path=str(path),
            object_id=table.id,
        )

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def write(self, data: TableData, target: Target, *, prepared: Prepared | None = None) -> Written:
        """Write a table as one Parquet file; see the port for what is promised."""
        where = _where(target)
        if not isinstance(data, QueryData):
            return self._at_new_place(target, where, lambda location: self._write_rows(data, target, location, where))
        prepared = prepared or self.prepare(data.text, {}, frozenset())
        if prepared.statements != 1:
            raise MaterializationError(
                f"{where}: a table is made from one query, and this text holds several statements. Return RawSql(...) for a script.\n"
                f"{prepared.readable}",
                query=prepared.readable,
            )
        text, readable = prepared.text, prepared.readable
        return self._at_new_place(
            target, where, lambda location: self._write_query(self._connection(), text, readable, target, location, where)
        )

    def run_script(
        self, prepared: Prepared, inputs: Sequence[StoredTable], stage: str, target: Target
    ) -> Mapping[str, tuple[Target, Written]]:
        """Run a script in a database of its own and write what it created in the stage's schema."""
        from pipedag_core.stores import script

        where = f"Raw SQL of task {target.task!r} in stage {stage!r}"
        engine = self._engine()
        connection = engine.database()
        done: dict[str, tuple[Target, Written]] = {}
        try:
            places = [(table, place(self._existing(table))) for table in inputs]
            created = script.run(connection, prepared, places, stage, where, self._translate)
            for name, query in created.items():
                one = Target(stage, target.generation, name, target.task, hash_content=target.hash_content)
                write = partial(self._write_query, connection, query, query, one, where=_where(one))
                done[name] = (one, self._at_new_place(one, _where(one), write))
        except BaseException:
            for _, written in done.values():
                self._layout.remove(written.location)
            raise
        finally:
            engine.release(connection)
        return done

    def hash_rows(self, data: TableData) -> str | None:
        """Return the content hash of rows in memory, as `write` finds it; None for all else."""
        stream = data.stream if isinstance(data, FileData) or (isinstance(data, BatchData) and data.in_memory) else None
        if stream is None:
            return None
        from pipedag_core.stores import parquet_files

        return parquet_files.hash_batches(parquet_files.batches(stream(), f"The table that {self._label} returned"))

    def close(self) -> None:
        """Give back all files and the connection."""
        for file in self._open:
            file.close()
        self._open.clear()
        for reader in self._readers:
            self._engine().release(reader)
        self._readers.clear()
        if self._cursor is not None:
            self._engine().release(self._cursor, as_it_was=not self._lent)
            self._cursor = None

    def _write_rows(self, data: BatchData | FileData, target: Target, location: str, where: str) -> Written:

        path = self._layout.path(location)
        content = None
        if isinstance(data, FileData) and not target.options.type_map:
            write = partial(data.write, str(path))
            if target.hash_content and data.stream is not None:
                from pipedag_core.stores import parquet_files

                content = parquet_files.hash_beside(data.stream, data.rows, where, write)
            else:
                write()
            return self._finish(location, target, where, content)
        if data.stream is None:
            assert isinstance(data, FileData)
            return self._write_retyped(data, target, location, where)
        return self._write_stream(data.stream(), target, location, where)

    def _write_retyped(self, data: FileData, target: Target, location: str, where: str) -> Written:
        """Let a library that only writes files do so beside the table, and cast on the way from there."""
        from pipedag_core.stores import parquet_files

        def retype(spare: str) -> Written:
            path = self._layout.path(spare)
            try:
                data.write(str(path))
                stream, file = parquet_files.open_batches(path)
                with file:
                    return self._write_stream(stream, target, location, where)
            finally:
                path.unlink(missing_ok=True)

        return self._at_new_place(target, where, retype)

    def _write_stream(self, stream: Any, target: Target, location: str, where: str) -> Written:
        from pipedag_core.stores import parquet_files, table_options

        path = self._layout.path(location)
        reader = parquet_files.batches(stream, where)
        table_options.check_names(reader.schema.names, where)
        table_options.check_columns(target.options, reader.schema.names, where)
        if target.options.type_map:
            engine, connection = _engine_module(), self._connection()
            types = {name: engine.arrow_type(connection, kind, where) for name, kind in target.options.type_map.items()}
            reader = parquet_files.retyped(reader, types, where)
        parquet_files.check_types(reader.schema, where)
        hasher = parquet_files.hasher_for(reader.schema) if target.hash_content else None
        parquet_files.write_batches(reader, path, hasher)
        return self._finish(location, target, where, None if hasher is None else hasher.result())

    def _write_query(self, connection: Any, text: str, readable: str, target: Target, location: str, where: str) -> Written:
        import duckdb

        engine = _engine_module()
        path = self._layout.path(location)
        casts: list[tuple[str, str]] = []
        try:
            if not self._write_while_binding(connection, text, target, path, where):
                casts = self._casts(connection, text, target, where)
                engine.copy_query(connection, text, path, casts)
        except duckdb.Error as error:
            raise self._translate(error, where, readable, casts) from error
        return self._finish(location, target, where, None, connection)

    def _write_while_binding(self, connection: Any, text: str, target: Target, path: Path, where: str) -> bool:
        """Begin to write before the types of the columns are known: nearly all queries can be written as they are.

        Returns:
            Whether the file is there. If not, the query is to be written in the plain way, which also finds what is wrong with it.
        """
        import duckdb

        from pipedag_core.stores import long_query

        engine = _engine_module()
        # A script's database, and a connection that was lent, may have tables that no other one knows.
        if (
            connection is not self._cursor
            or self._lent
            or target.options.type_map
            or not long_query.is_main_thread()
            or not engine.is_surely_query(text)
        ):
            return False
        spare = self._engine().cursor()
        try:
            with long_query.begun(connection, engine.copy_statement(text, path, ())) as result:
                try:
                    if self._casts(spare, text, target, where):
                        return False
                except duckdb.Error:
                    return False
                result()
                return True
        finally:
            self._engine().release(spare, as_it_was=True)

    def _casts(self, connection: Any, text: str, target: Target, where: str) -> list[tuple[str, str]]:
        from pipedag_core.stores import table_options

        engine = _engine_module()
        columns = engine.columns_of(connection, text, where)
        table_options.check_names([name for name, _ in columns], where)
        table_options.check_columns(target.options, [name for name, _ in columns], where)
        for kind in target.options.type_map.values():
            engine.arrow_type(connection, kind, where)
        return engine.projection(columns, target.options.type_map, where)

    def _finish(self, location: str, target: Target, where: str, content: str | None, connection: Any = None) -> Written:
        from pipedag_core.stores import parquet_files, table_options

        path = self._layout.path(location)
        found = parquet_files.facts(path, where, nulls=table_options.names_filled_columns(target.options))
        table_options.check_names(found.schema.names, where)
        parquet_files.check_types(found.arrow, where)
        table_options.check_columns(target.options, found.schema.names, where)
        self._check_rows(path, found, target.options, where, connection)
        if target.hash_content and content is None:
            schema = parquet_files.schema_hash(found.arrow)
            content = None if schema is None else self._hash_file(path, schema, where, connection or self._connection())
        schema = table_options.with_nullability(found.schema, target.options)
        return Written(location, schema, found.rows, found.size, content, seal.make(path))

    def _check_rows(self, path: Path, found: FileFacts, options: TableOptions, where: str, connection: Any) -> None:
        """Files have no constraints, so what a table promises about its rows is checked before it counts as one."""
        import duckdb

        from pipedag_core.stores import table_options

        filled = table_options.filled_columns(options, found.schema.names)
        if not filled:
            return
        try:
            unknown = [name for name in filled if found.nulls.get(name) is None]
            counted = _engine_module().count_nulls(connection or self._connection(), place(path), unknown) if unknown else {}
            table_options.refuse_nulls({name: counted.get(name, found.nulls.get(name) or 0) for name in filled}, found.rows, where)
            if not options.primary_key:
                return
            double = _engine_module().duplicate_key(connection or self._connection(), place(path), options.primary_key)
        except duckdb.Error as error:
            raise self._translate(error, where, f"(constraints of {path})", ()) from error
        if double is not None:
            example, times, keys = double
            table_options.refuse_duplicates(options.primary_key, example, times, keys, where)

    def _hash_file(self, path: Path, schema: str, where: str, connection: Any) -> str:
        import duckdb

        try:
            return _engine_module().content_hash(connection, place(path), schema)
        except duckdb.Error as error:
            raise self._translate(error, where, f"(content hash of {path})", ()) from error

    def _at_new_place(self, target: Target, where: str, work: Callable[[str], _T]) -> _T:
        """Do something with a location that nobody else has; if it fails, no file is left there."""
        location = ""
        try:
            location = self._layout.claim(target.stage, target.generation, target.name)
            return work(location)
        except BaseException as error:
            if location:
                self._layout.path(location).unlink(missing_ok=True)
            if _is_of_the_disk(error, self._layout.base):
                raise StoreError(
                    f"{where} could not be written below {self._layout.base}: {error}. Check room and rights there.",
                    path=str(self._layout.base),
                ) from error
            if isinstance(error, Exception) and not isinstance(error, StoredDataMissing):
                damaged = self._damaged_input()
                if damaged is not None:
                    raise damaged from error
            raise

    def _connection(self) -> Any:
        if self._cursor is None:
            self._cursor = self._engine().cursor()
        return self._cursor

    def _translate(self, error: Any, where: str, query: str, casts: Sequence[tuple[str, str]]) -> Exception:
        return self._damaged_input() or _engine_module().translate(error, f"{where} ({self._label})", query, casts)


def _is_of_the_disk(error: BaseException, base: Path) -> bool:
    if isinstance(error, OSError):
        # A disk error that names some other file comes from the user's own code and is theirs to see.
        return error.errno in _DISK_ERRORS and (error.filename is None or str(error.filename).startswith(str(base)))
    # Without a file's name only what reading the user's files cannot give is sure to be ours.
    found = _OS_ERROR.search(str(error)) if type(error).__module__.startswith("polars") else None
    return found is not None and int(found[1]) in _FULL


def _unreadable(owner: str, name: str, error: Exception) -> StoreError:
    return StoreError(f"External table {owner}.{name} cannot be read: {error}")


def _where(target: Target) -> str:
    return f"Table {target.name!r} of task {target.task!r} in stage {target.stage!r}"


def _engine_module() -> Any:
    # duckdb is loaded with the first query.
    from pipedag_core.stores import duckdb_engine

    return duckdb_engine
