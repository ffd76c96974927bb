"""A DuckDB file as a place for tables: the database as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, final

import duckdb

from pipedag_core.errors import MaterializationError, StoreError
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.ports.catalogs import Publication
from pipedag_core.ports.data import Form
from pipedag_core.stores import duckdb_engine as engine
from pipedag_core.stores.dialects.duckdb_file import STORE, DuckdbFile
from pipedag_core.stores.dialects.duckdb_link import DuckdbLink
from pipedag_core.stores.dialects.port import Found, Order
from pipedag_core.stores.sql_names import Names, Place
from pipedag_core.stores.sqlsyntax import DUCKDB, Syntax

T = TypeVar("T")

#: DuckDB keeps names of any length; what is longer than this is surely a mistake.
MAX_NAME: Final = 255

#: Schemas that are DuckDB's own.
SYSTEM: Final = r"pg_catalog|information_schema"

#: Times that an action is carried out when another thread changed the same names.
_TRIES: Final = 5

#: What the schema of an instance itself is called, with its prefix and suffix around it.
OWN: Final = "pipedag__catalog"

_SCHEMAS: Final = f"SELECT schema_name FROM duckdb_schemas() WHERE database_name = '{STORE}'"

_TABLES: Final = f"SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = '{STORE}' AND NOT internal"

_VIEWS: Final = f"SELECT schema_name, view_name, comment FROM duckdb_views() WHERE database_name = '{STORE}' AND NOT internal"


@final
class DuckdbDialect:
    """See `Dialect`. Readable names are views whose comment says which table they show; a small table of ours lists the stages that are shown.

    Args:
        path: The file.
        names: How schemas are named.
        file_wait: Seconds to wait for other processes that hold the file.
        memory_limit, temp_directory, threads: As for `Engine`.
    """

    def __init__(
        self,
        path: Path,
        names: Names,
        *,
        file_wait: float = 60.0,
        memory_limit: str | None = None,
        temp_directory: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.file = DuckdbFile(
            path,
            wait_s=file_wait,
            memory_limit=memory_limit,
            temp_directory=None if temp_directory is None else str(temp_directory),
            threads=threads,
        )
        self.names = names
        self._guard = threading.Lock()
        self._claimed: set[tuple[str, str]] = set()
        own = quote_identifier(f"{names.prefix}{OWN}{names.suffix}")
        self._own_schema = f"{quote_identifier(STORE)}.{own}"
        self._is_known = False
        self._stages = f"{self._own_schema}.{quote_identifier('stages')}"

    def __repr__(self) -> str:
        return f"DuckdbDialect({str(self.file.path)!r}, prefix={self.names.prefix!r})"

    @property
    def syntax(self) -> Syntax:
        """DuckDB's SQL."""
        return DUCKDB

    @property
    def max_name_bytes(self) -> int:
        """More than anybody needs."""
        return MAX_NAME

    @property
    def address(self) -> str:
        """The file."""
        return f"DuckDB file {self.file.path.resolve()}"

    @property
    def reads(self) -> frozenset[Form]:
        """Batches and queries."""
        return frozenset({Form.BATCHES, Form.QUERY})

    def named(self, place: Place) -> str:
        """Return the place with the name under which the file is attached, which leads there from a script's own database too."""
        return f"{quote_identifier(STORE)}.{place.sql}"

    def link(self, label: str) -> DuckdbLink:
        """Return a task's way to the database."""
        return DuckdbLink(self, label)

    def close(self) -> None:
        """Give all memory back."""
        self.file.close()

    # --- tables -------------------------------------------------------------------------------------------------------------------

    def has(self, connection: Any, place: Place) -> bool:
        """Return whether there is a table at a place; where others keep theirs, a view is as good, and case does not matter."""
        if self.names.stage_of(place.schema) is not None:
            return bool(connection.execute(f"{_TABLES} AND schema_name = ? AND table_name = ?", [place.schema, place.table]).fetchall())
        everything = (
            f"SELECT schema_name, name FROM ({_TABLES} UNION ALL SELECT schema_name, view_name FROM ({_VIEWS})) AS t(schema_name, name)"
        )
        return bool(
            connection.execute(
                f"{everything} WHERE lower(schema_name) = lower(?) AND lower(name) = lower(?)", [place.schema, place.table]
            ).fetchall()
        )

    @contextmanager
    def claimed(self, connection: Any, order: Order) -> Generator[Place]:
        """Take the first place that nobody has; other threads leave it alone until the end, other processes cannot come in between."""
        schema = quote_identifier(STORE), quote_identifier(order.schema)
        place = None
        with self._guard:
            if not self._is_known:
                # Other instances in the same file know by it what is not theirs.
                self._retried(lambda: connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._own_schema}"), "The schema of the store")
                self._is_known = True
            self._retried(lambda: connection.execute(f"CREATE SCHEMA IF NOT EXISTS {'.'.join(schema)}"), f"Schema {order.schema}")
            taken = {name.casefold() for name in self._in_schema(connection, order.schema)}
            for item in order.places:
                if item.table.casefold() not in taken and _key(item) not in self._claimed:
                    place = item
                    break
            if place is None:
                raise MaterializationError(f"{order.where}: all names for further attempts are taken. Let clean-up run.")
            self._claimed.add(_key(place))
        try:
            yield place
        finally:
            with self._guard:
                self._claimed.discard(_key(place))

    def _in_schema(self, connection: Any, schema: str) -> list[str]:
        rows = connection.execute(
            f"SELECT table_name FROM ({_TABLES} UNION ALL SELECT schema_name, view_name FROM ({_VIEWS})) WHERE schema_name = ?", [schema]
        )
        return [name for (name,) in rows.fetchall()]

    def missing(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return those of the places at which there is no table, by one query."""
        if not self.file.path.exists():
            return places
        there = set(self._run(lambda connection: connection.execute(_TABLES).fetchall(), "Stored tables"))
        return [place for place in places if (place.schema, place.table) not in there]

    def found(self) -> Iterator[Found]:
        """Yield all tables in schemas of generations."""
        if not self.file.path.exists():
            return
        schemas, tables = self._run(
            lambda connection: (
                [name for (name,) in connection.execute(_SCHEMAS).fetchall()],
                connection.execute(f"{_TABLES} ORDER BY 1, 2").fetchall(),
            ),
            "The tables of the store",
        )
        others = [names for schema in schemas if (names := self._neighbour(schema)) is not None]
        for schema, table in tables:
            if self.names.stage_of(schema) is not None and not any(names.stage_of(schema) is not None for names in others):
                yield Found(schema, table)

    def _neighbour(self, schema: str) -> Names | None:
        """Return how another instance names its schemas, if this is its own one; None for one whose names say less than ours."""
        prefix, found, suffix = schema.rpartition(OWN)
        if not found or (prefix, suffix) == (self.names.prefix, self.names.suffix):
            return None
        is_shorter = len(prefix) + len(suffix) < len(self.names.prefix) + len(self.names.suffix)
        return None if is_shorter else Names(prefix, suffix, self.names.max_bytes)

    def drop(self, places: Sequence[Place], schemas: Sequence[str]) -> None:
        """Remove tables, our views of them, and schemas that are empty then. A commit leaves no schemas behind here, so there are none to remove."""

        def action(connection: Any) -> None:
            gone = {place.sql for place in places}
            for schema, view, comment in connection.execute(_VIEWS).fetchall():
                if comment in gone:
                    connection.execute(f"DROP VIEW IF EXISTS {self.named(Place(schema, view))}")
            for place in places:
                connection.execute(f"DROP TABLE IF EXISTS {self.named(place)}")

        if places and self.file.path.exists():
            self._run(action, f"Removing {len(places)} tables")
            self._drop_if_empty([place.schema for place in places])

    def _drop_if_empty(self, schemas: Sequence[str]) -> None:
        for schema in dict.fromkeys(schemas):
            with self._guard:
                if any(claimed == schema.casefold() for claimed, _ in self._claimed):
                    continue
                with self.file.use() as connection, suppress(duckdb.Error):
                    # Without CASCADE, DuckDB refuses if anything is in it.
                    connection.execute(f"DROP SCHEMA IF EXISTS {quote_identifier(STORE)}.{quote_identifier(schema)}")

    # --- readable names -----------------------------------------------------------------------------------------------------------

    def shown(self) -> Mapping[str, Mapping[str, Place | None]]:
        """Return what the readable names say now."""
        return self._run(self._shown, "The readable names") if self.file.path.exists() else {}

    def _shown(self, connection: Any) -> dict[str, dict[str, Place | None]]:
        if not self._has_stages(connection):
            return {}
        stages: dict[str, dict[str, Place | None]] = {
            stage: {} for (stage,) in connection.execute(f"SELECT stage FROM {self._stages}").fetchall()
        }
        schemas = {self.names.readable(stage): stage for stage in stages}
        for schema, view, comment in connection.execute(_VIEWS).fetchall():
            if schema in schemas and comment is not None:
                with suppress(StoreError):
                    stages[schemas[schema]][view] = self.names.place(comment)
        return stages

    def _has_stages(self, connection: Any) -> bool:
        own = f"{self.names.prefix}{OWN}{self.names.suffix}"
        return bool(connection.execute(f"{_TABLES} AND schema_name = ? AND table_name = 'stages'", [own]).fetchall())

    def show(self, stages: Mapping[str, Mapping[str, Place]]) -> None:
        """Make readable names say this, all in one transaction."""

        def action(connection: Any) -> None:
            now = self._shown(connection)
            if not self._has_stages(connection):
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._own_schema}")
                connection.execute(f"CREATE TABLE IF NOT EXISTS {self._stages} (stage VARCHAR)")
            for stage in now.keys() - stages.keys():
                self._change(connection, stage, now[stage], {})
                connection.execute(f"DELETE FROM {self._stages} WHERE stage = ?", [stage])
            for stage, tables in stages.items():
                if stage not in now:
                    connection.execute(
                        f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(STORE)}.{quote_identifier(self.names.readable(stage))}"
                    )
                    connection.execute(f"INSERT INTO {self._stages} VALUES (?)", [stage])
                if now.get(stage) != tables:
                    self._change(connection, stage, now.get(stage, {}), tables)

        self._run(action, "The readable names")
        self._drop_if_empty([self.names.readable(stage) for stage in self.shown().keys() ^ stages.keys()])

    def _change(self, connection: Any, stage: str, now: Mapping[str, Place | None], tables: Mapping[str, Place]) -> None:
        schema = self.names.readable(stage)
        for name in now:
            if now[name] != tables.get(name):
                connection.execute(f"DROP VIEW {self.named(Place(schema, name))}")
        for name, place in tables.items():
            if now.get(name) != place:
                self._view(connection, Place(schema, name), place)

    def _view(self, connection: Any, view: Place, table: Place) -> None:
        # The name of the file in it would lead nowhere on the connections of other people.
        connection.execute(f"CREATE VIEW {self.named(view)} AS SELECT * FROM {table.sql}")
        connection.execute(f"COMMENT ON VIEW {self.named(view)} IS {quote_literal(table.sql)}")

    def show_generation(self, stage: str, number: int, tables: Mapping[str, Place]) -> None:
        """Make views in a generation's schema to those of its tables that are elsewhere."""
        schema = self.names.generation(stage, number)

        def action(connection: Any) -> None:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(STORE)}.{quote_identifier(schema)}")
            taken = {name.casefold() for name in self._in_schema(connection, schema)}
            for name, place in tables.items():
                if name.casefold() not in taken:
                    self._view(connection, Place(schema, name), place)

        if any(place.schema != schema for place in tables.values()):
            self._run(action, f"Schema {schema}")

    def hide_generation(self, stage: str, number: int) -> None:
        """Remove the views of a generation's schema, and the schema if it is empty then."""
        schema = self.names.generation(stage, number)
        if not self.file.path.exists():
            return

        def action(connection: Any) -> None:
            for where, view, _ in connection.execute(_VIEWS).fetchall():
                if where == schema:
                    connection.execute(f"DROP VIEW {self.named(Place(schema, view))}")

        self._run(action, f"Schema {schema}")
        self._drop_if_empty([schema])

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return None: the catalog is in another database."""
        return None

    # --- running ------------------------------------------------------------------------------------------------------------------

    def _run(self, action: Callable[[Any], T], where: str) -> T:
        """Carry out one transaction of the store's own; its errors come out as ours."""

        def attempt() -> T:
            with self.file.use() as connection:
                connection.execute("BEGIN")
                try:
                    result = action(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    with suppress(duckdb.Error):
                        connection.execute("ROLLBACK")
                    raise
                return result

        return self._retried(attempt, where)

    def _retried(self, action: Callable[[], T], where: str) -> T:
        for number in range(1, _TRIES + 1):
            try:
                return action()
            except duckdb.TransactionException as error:
                # Another thread changed the same names.
                if number == _TRIES:
                    raise engine.translate(error, where, "") from error
            except duckdb.Error as error:
                raise StoreError(f"{where} in {self.file.path}: {error}", path=str(self.file.path)) from error
        raise AssertionError


def _key(place: Place) -> tuple[str, str]:
    return place.schema.casefold(), place.table.casefold()
