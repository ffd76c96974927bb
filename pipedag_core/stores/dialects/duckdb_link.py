"""One task's way to a DuckDB file."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, final

import duckdb

from pipedag_core.arrow_schema import from_arrow, to_arrow
from pipedag_core.errors import MaterializationError, PipedagError, QueryFailed
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.data import RowDifference, TableOptions, TableSchema
from pipedag_core.stores import duckdb_engine as engine
from pipedag_core.stores import long_query, table_options
from pipedag_core.stores.dialects.duckdb_file import STORE
from pipedag_core.stores.dialects.port import Made, Order, ScriptOrder, TableIsGone
from pipedag_core.stores.sql_names import Place

if TYPE_CHECKING:
    from pipedag_core.stores.dialects.duckdb import DuckdbDialect

#: Under this name DuckDB finds the rows that come as a stream.
_ROWS = "pipedag__rows"

#: Rows that are read at once.
_BATCH = 122_880


@final
class DuckdbLink:
    """See `Link`. Holds the file for each action, and longer only while rows stream out of it or the user's code was given a connection.

    Args:
        dialect: The database.
        label: Flow and task.
    """

    def __init__(self, dialect: DuckdbDialect, label: str) -> None:
        self._dialect = dialect
        self._label = label
        self._held: list[Any] = []

    # --- reading ------------------------------------------------------------------------------------------------------------------

    def source(self, places: Sequence[Place]) -> Any:
        """Return a connection, for which the file is held until `close`."""
        connection = self._dialect.file.take()
        self._held.append(connection)
        self._check(connection, places)
        return connection

    def columns(self, place: Place) -> TableSchema:
        """Return what DuckDB says of it."""
        with self._dialect.file.use() as connection:
            self._check(connection, [place])
            where = f"External table {place.sql}"
            try:
                wide = engine.projection(engine.columns_of(connection, f"FROM {self._dialect.named(place)}", where), {}, where)
                if wide:
                    raise MaterializationError(
                        f"{where}: column {wide[0][0]!r} has integers of 128 bits, which would come as rounded numbers. Read it through a view that casts "
                        f"it to {wide[0][1]}.",
                        column=wide[0][0],
                    )
                return from_arrow(self._schema(connection, place))
            except duckdb.Error as error:
                raise self._translated(error, f"Table {place.sql}", "") from error

    def stream(self, place: Place, schema: TableSchema) -> Any:
        """Return the rows as a reader; the file is held until all are read."""
        columns = ", ".join(map(quote_identifier, schema.names))
        return self.stream_query(f"SELECT {columns} FROM {self._dialect.named(place)}", [place], schema)

    def stream_query(self, query: str, places: Sequence[Place], schema: TableSchema) -> Any:
        """Return the rows as a reader; the file is held until all are read."""
        from pipedag_core.stores import duckdb_arrow

        connection = self._dialect.file.take()
        self._held.append(connection)
        self._check(connection, places, let_go=True)
        try:
            reader = connection.sql(query).to_arrow_reader(_BATCH)
        except duckdb.Error as error:
            self._let_go(connection)
            raise self._translated(error, f"Table {', '.join(place.sql for place in places)}", "") from error
        return duckdb_arrow.restored(reader, to_arrow(schema), lambda: self._let_go(connection))

    def compare_rows(self, before: Place, after: Place, columns: Sequence[str], key: Sequence[str]) -> RowDifference:
        """Count by one query, for which the file is held."""
        from pipedag_core.stores import row_difference

        text = row_difference.query(self._dialect.named(before), self._dialect.named(after), columns, key)
        with self._dialect.file.use() as connection:
            self._check(connection, [before, after])
            try:
                [row] = long_query.execute(connection, text).fetchall()
            except duckdb.Error as error:
                raise self._translated(error, f"Rows of {before.sql} and {after.sql}", text) from error
        return row_difference.read(row, columns, key)

    def _check(self, connection: Any, places: Sequence[Place], *, let_go: bool = False) -> None:
        for place in dict.fromkeys(places):
            if not self._dialect.has(connection, place):
                if let_go:
                    self._let_go(connection)
                raise TableIsGone(self._dialect.named(place))

    # --- writing ------------------------------------------------------------------------------------------------------------------

    def from_query(self, order: Order, query: str, readable: str) -> Made:
        """Make a table with CREATE TABLE AS."""
        with self._dialect.file.use() as connection, self._dialect.claimed(connection, order) as place:
            return self._filled(connection, order, place, query, readable)

    def from_batches(self, order: Order, batches: Any) -> Made:
        """Make a table and let DuckDB read the stream into it."""
        import pyarrow as pa

        from pipedag_core.stores import duckdb_arrow, parquet_files

        table_options.check_columns(order.options, batches.schema.names, order.where)
        parquet_files.check_types(batches.schema, order.where, "a DuckDB file")
        kept = [duckdb_arrow.kept_as(field, order.where) for field in batches.schema]
        raised: list[BaseException] = []
        rows = duckdb_arrow.stored(batches, kept, order.where, raised.append)
        with self._dialect.file.use() as connection, self._dialect.claimed(connection, order) as place:
            for kind in order.options.type_map.values():
                engine.arrow_type(connection, kind, order.where)
            connection.register(_ROWS, rows)
            try:
                with self._whole(connection, place):
                    count = self._create(
                        connection, place, f"FROM {_ROWS}", [(name, kind) for name, kind in order.options.type_map.items()]
                    )
                    self._finish(connection, order, place, count, batches.schema.names)
                    found = self._schema(connection, place)
            except duckdb.Error as error:
                if raised:
                    # DuckDB made a text of it.
                    raise raised[0] from raised[0].__cause__
                raise self._translated(error, order.where, f"(rows of {order.where})") from error
            finally:
                with suppress(duckdb.Error):
                    connection.unregister(_ROWS)
        fields = [
            found.field(field.name) if field.name in order.options.type_map else pa.field(field.name, field.type, metadata=field.metadata)
            for field in batches.schema
        ]
        return Made(place, table_options.with_nullability(from_arrow(pa.schema(fields)), order.options), count)

    def run_script(self, order: ScriptOrder) -> Mapping[str, Made]:
        """Run a script in a database in memory that sees its inputs in the file, and keep what it created."""
        from pipedag_core.stores import script

        if STORE in order.prepared.readable.casefold():
            raise MaterializationError(
                f"{order.where} names {STORE}, the database in which stored tables are. Pass tables as arguments, and create tables in {order.stage}.",
                query=order.prepared.readable,
            )
        made: dict[str, Made] = {}
        with self._dialect.file.beside() as name, self._dialect.file.use() as connection:
            inputs = [(table, self._dialect.named(place)) for table, place in order.inputs]
            created = script.run(connection, order.prepared, inputs, order.stage, order.where, engine.translate, name)
            try:
                for table, query in created.items():
                    where = f"Table {table!r} of {order.where}"
                    one = Order(order.schema, order.attempts(table), TableOptions(), where)
                    with self._dialect.claimed(connection, one) as place:
                        made[table] = self._filled(connection, one, place, query, query)
            except BaseException:
                with suppress(PipedagError, duckdb.Error):
                    for item in made.values():
                        connection.execute(f"DROP TABLE IF EXISTS {self._dialect.named(item.place)}")
                raise
        return made

    def content_hash(self, made: Made) -> str | None:
        """Return a hash of the rows, by one query."""
        from pipedag_core.stores import parquet_files

        digest = parquet_files.schema_hash(to_arrow(made.schema))
        if digest is None:
            return None
        with self._dialect.file.use() as connection:
            try:
                return engine.content_hash(connection, self._dialect.named(made.place), digest)
            except duckdb.Error as error:
                raise self._translated(error, f"Table {made.place.sql}", "(content hash)") from error

    def close(self) -> None:
        """Let the file go."""
        for connection in list(self._held):
            self._let_go(connection)

    # --- steps --------------------------------------------------------------------------------------------------------------------

    def _filled(self, connection: Any, order: Order, place: Place, query: str, readable: str) -> Made:
        casts: list[tuple[str, str]] = []
        try:
            columns = engine.columns_of(connection, query, order.where)
            names = [name for name, _ in columns]
            table_options.check_names(names, order.where)
            table_options.check_columns(order.options, names, order.where)
            for kind in order.options.type_map.values():
                engine.arrow_type(connection, kind, order.where)
            casts = engine.projection(columns, order.options.type_map, order.where)
            with self._whole(connection, place):
                count = self._create(connection, place, query, casts)
                self._finish(connection, order, place, count, names)
                schema = from_arrow(self._schema(connection, place))
        except duckdb.Error as error:
            raise self._translated(error, order.where, readable, casts) from error
        return Made(place, table_options.with_nullability(schema, order.options), count)

    def _create(self, connection: Any, place: Place, query: str, casts: Sequence[tuple[str, str]]) -> int:
        replaced = ", ".join(f"CAST({quote_identifier(name)} AS {kind}) AS {quote_identifier(name)}" for name, kind in casts)
        # The line ends keep a comment at the query's end from swallowing what follows.
        text = f"SELECT * REPLACE ({replaced}) FROM ({query}\n)" if casts else query
        [(count,)] = long_query.execute(connection, f"CREATE TABLE {self._dialect.named(place)} AS {text}\n").fetchall()
        return int(count)

    def _finish(self, connection: Any, order: Order, place: Place, rows: int, names: Sequence[str]) -> None:
        table = self._dialect.named(place)
        options = order.options
        filled = table_options.filled_columns(options, names)
        if filled:
            table_options.refuse_nulls(engine.count_nulls(connection, table, filled), rows, order.where)
        if options.primary_key and (double := engine.duplicate_key(connection, table, options.primary_key)) is not None:
            table_options.refuse_duplicates(options.primary_key, *double, order.where)
        for name in filled:
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN {quote_identifier(name)} SET NOT NULL")
        if options.primary_key:
            connection.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({_columns(options.primary_key)})")
        for number, index in enumerate(options.indexes, start=1):
            connection.execute(f"CREATE INDEX {quote_identifier(f'{place.table}__i{number}')} ON {table} ({_columns(index)})")

    def _schema(self, connection: Any, place: Place) -> Any:
        return connection.sql(f"FROM {self._dialect.named(place)} LIMIT 0").to_arrow_reader(1).schema

    @contextmanager
    def _whole(self, connection: Any, place: Place) -> Generator[None]:
        """Leave nothing at the place if what is done there fails."""
        try:
            connection.execute("BEGIN")
            yield
            connection.execute("COMMIT")
        except BaseException:
            with suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise

    def _let_go(self, connection: Any) -> None:
        if connection in self._held:
            self._held.remove(connection)
            self._dialect.file.give_back(connection)

    def _translated(self, error: duckdb.Error, where: str, query: str, casts: Sequence[tuple[str, str]] = ()) -> Exception:
        if isinstance(error, duckdb.NotImplementedException):
            return QueryFailed(f"{where} ({self._label}): DuckDB cannot do this: {error}\nThe query was:\n{query}", query=query)
        return engine.translate(error, f"{where} ({self._label})", query, casts)


def _columns(names: Sequence[str]) -> str:
    return ", ".join(map(quote_identifier, names))
