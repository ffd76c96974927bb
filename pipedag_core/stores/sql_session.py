"""One task's access to the SQL store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from pipedag_core.errors import MaterializationError, StoredDataMissing, StoreError, UnsupportedByStore
from pipedag_core.naming import check_bytes
from pipedag_core.ports.data import (
    BatchData,
    BatchSource,
    ExternalTable,
    FileData,
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
    TableSchema,
    TableSource,
    Target,
    Written,
)
from pipedag_core.stores.dialects.port import Dialect, Made, Order, ScriptOrder, TableIsGone
from pipedag_core.stores.sql_names import Names, Place


@final
class SqlSession:
    """Reads and writes for one task, in one thread; implements `pipedag_core.ports.stores.StoreSession`.

    Args:
        dialect: The database.
        names: How schemas are named.
        label: Flow and task, for messages and for the database's own list of sessions.
    """

    def __init__(self, dialect: Dialect, names: Names, label: str) -> None:
        self._dialect = dialect
        self._names = names
        self._label = label
        self._link = dialect.link(label)
        self._given: dict[Place, StoredTable] = {}

    # --- reading ------------------------------------------------------------------------------------------------------------------

    def read(self, table: TableSource, form: Form) -> Source:
        """Return the table or view as batches or as a query; columns are known, so nothing is asked of the database but whether it is there."""
        if form not in self._dialect.reads:
            raise UnsupportedByStore(f"{self._label}: this store gives no {form.value}; it gives tables as batches or inside queries.")
        if isinstance(table, StoredView):
            return self._read_view(table, form)
        place = self._place(table)
        try:
            if form is Form.QUERY:
                self._give(table)
                return QuerySource(self._dialect.named(place), self._link.source([place]))
            return BatchSource(self._link.stream(place, table.schema))
        except TableIsGone as error:
            raise self._gone(table, place) from error

    def _read_view(self, view: StoredView, form: Form) -> Source:
        from pipedag_core.stores import viewsql

        places = [self._place(leaf) for leaf in view.leaves]
        try:
            if form is Form.QUERY:
                self._give(*view.leaves)
                return QuerySource(viewsql.source_text(view, self._named), self._link.source(places))
            return BatchSource(self._link.stream_query(viewsql.select(view, self._named), places, view.schema))
        except TableIsGone as error:
            leaf = next((leaf for leaf in view.leaves if self._dialect.named(self._place(leaf)) == str(error)), view.leaves[0])
            raise self._gone(leaf, self._place(leaf)) from error

    def external_columns(self, owner: str, name: str) -> TableSchema:
        """Return the columns of a table or view in the same database."""
        place = Place(owner, name)
        try:
            return self._link.columns(place)
        except TableIsGone as error:
            raise self._not_there(place) from error

    def _place(self, table: StoredTable | ExternalTable) -> Place:
        return Place(table.owner, table.name) if isinstance(table, ExternalTable) else self._names.place(table.location)

    def _named(self, table: StoredTable | ExternalTable) -> str:
        return self._dialect.named(self._place(table))

    def _gone(self, table: StoredTable | ExternalTable, place: Place) -> Exception:
        if isinstance(table, ExternalTable):
            return self._not_there(place)
        return StoredDataMissing(
            f"{self._label}: table {table.told} cannot be read: {place.sql} is not in the database any more. The next run will make it again.",
            stage=table.stage,
            table=table.name,
            path=place.sql,
            object_id=table.id,
        )

    def _not_there(self, place: Place) -> StoreError:
        return StoreError(
            f"{self._label}: there is no table {place.sql} in this store's database, or no right to read it. An ExternalTableReference names a table "
            "that somebody else makes there; check its name and schema, and grant the right.",
            table=place.table,
            path=place.sql,
        )

    def prepare(self, sql: str, placeholders: Mapping[str, Placeholder], stages: frozenset[str]) -> Prepared:
        """Turn a query or a script into what is hashed, what is run and what is shown; see `pipedag_core.stores.sqltext`."""
        from pipedag_core.stores import sqltext, viewsql

        schemas = self._names.schemas(stages)
        return sqltext.prepare(
            sql, placeholders, stages, lambda table: viewsql.source_text(table, self._named), self._dialect.syntax, schemas
        )

    def readable(self, query: str) -> str | None:
        """Return a query with the names of the stored tables that were read; None for other databases than DuckDB, as these give no relations."""
        if self._dialect.syntax.name != "duckdb":
            return None
        from pipedag_core.stores import relation_text

        return relation_text.readable(query, {(place.schema, place.table): table for place, table in self._given.items()})

    def _give(self, *tables: StoredTable | ExternalTable) -> None:
        self._given.update({self._place(table): table for table in tables if isinstance(table, StoredTable)})

    def hash_rows(self, data: TableData) -> str | None:
        """Return the content hash of rows in memory, as `write` finds it; None for all else."""
        stream = data.stream if isinstance(data, FileData) or (isinstance(data, BatchData) and data.in_memory) else None
        if stream is None:
            return None
        from pipedag_core.stores import parquet_files

        return parquet_files.hash_batches(parquet_files.batches(stream(), f"The table that {self._label} returned"))

    def compare_rows(
        self, before: StoredTable | ExternalTable, after: StoredTable | ExternalTable, columns: Sequence[str], key: Sequence[str]
    ) -> RowDifference:
        """Let the database count, by one query."""
        places = self._place(before), self._place(after)
        try:
            return self._link.compare_rows(*places, columns, key)
        except TableIsGone as error:
            table, place = (before, places[0]) if self._dialect.named(places[0]) == str(error) else (after, places[1])
            raise self._gone(table, place) from error

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def write(self, data: TableData, target: Target, *, prepared: Prepared | None = None) -> Written:
        """Write a table; see the port for what is promised."""
        where = f"Table {target.name!r} of task {target.task!r} in stage {target.stage!r}"
        order = self._order(target, where)
        if isinstance(data, QueryData):
            prepared = prepared or self.prepare(data.text, {}, frozenset())
            if prepared.statements != 1:
                raise MaterializationError(
                    f"{where}: a table is made from one query, and this text holds several statements. Return RawSql(...) for a script.\n"
                    f"{prepared.readable}",
                    query=prepared.readable,
                )
            made = self._link.from_query(order, prepared.text, prepared.readable)
            return _written(made, self._link.content_hash(made) if target.hash_content else None)
        if data.stream is None:
            raise UnsupportedByStore(f"{where}: this store takes rows as batches, and a file was handed over.")
        from pipedag_core.stores import parquet_files, table_options

        reader = parquet_files.batches(data.stream(), where)
        table_options.check_names(reader.schema.names, where)
        for name in reader.schema.names:
            self._check_length(name, where)
        hasher = parquet_files.hasher_for(reader.schema) if target.hash_content else None
        made = self._link.from_batches(order, reader if hasher is None else _hashed(reader, hasher))
        return _written(made, None if hasher is None else hasher.result())

    def run_script(
        self, prepared: Prepared, inputs: Sequence[StoredTable], stage: str, target: Target
    ) -> Mapping[str, tuple[Target, Written]]:
        """Run a script inside the database and return what it created in the stage's schema."""
        schema = self._names.generation(stage, target.generation)
        where = f"Raw SQL of task {target.task!r} in stage {stage!r}"
        places = [(table, self._names.place(table.location)) for table in inputs]
        order = ScriptOrder(prepared, places, stage, schema, lambda name: self._names.attempts(schema, name), where)
        made = self._link.run_script(order)
        done: dict[str, tuple[Target, Written]] = {}
        for name, item in made.items():
            content = self._link.content_hash(item) if target.hash_content else None
            done[name] = (Target(stage, target.generation, name, target.task, hash_content=target.hash_content), _written(item, content))
        return done

    def close(self) -> None:
        """Give everything back."""
        self._link.close()

    def _order(self, target: Target, where: str) -> Order:
        schema = self._names.generation(target.stage, target.generation)
        check_bytes(target.name, self._dialect.max_name_bytes, f"name of {where}")
        return Order(schema, self._names.attempts(schema, target.name), target.options, where, target.comment, target.comments)

    def _check_length(self, name: str, where: str) -> None:
        size = len(name.encode())
        if size > self._dialect.max_name_bytes:
            raise MaterializationError(
                f"{where}: the name of column {name!r} is {size} bytes long; this store keeps at most {self._dialect.max_name_bytes}. Shorten it.",
                column=name,
            )


def _written(made: Made, content_hash: str | None) -> Written:
    return Written(made.place.sql, made.schema, made.rows, None, content_hash)


def _hashed(reader: Any, hasher: Any) -> Any:
    import pyarrow as pa

    def update() -> Iterator[Any]:
        for batch in reader:
            hasher.update(batch)
            yield batch

    return pa.RecordBatchReader.from_batches(reader.schema, update())
