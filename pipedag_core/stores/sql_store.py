"""The SQL table store: tables in a database, in one schema per generation, with views under the readable names."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from pipedag_core.errors import ConfigError, StoreError
from pipedag_core.ports.catalogs import GenerationKey, Publication
from pipedag_core.ports.data import ExternalTable, Form, StoredTable
from pipedag_core.ports.stores import Capabilities, Deposit
from pipedag_core.stores.dialects.port import Dialect
from pipedag_core.stores.sql_names import Names

if TYPE_CHECKING:
    from pipedag_core.stores.sql_session import SqlSession


@final
class SqlStore:
    """Keeps tables in a database; implements `pipedag_core.ports.stores.TableStore`.

    Args:
        url: The database: `postgresql://...` or `duckdb:///path`.
        schema_prefix, schema_suffix: Stand around the names of all schemas.
        beside_catalog: The catalog is in the same database, so that commits switch readable names in its transaction.
        base_dir: Where the path of a file begins.
        options: What the database's dialect takes besides.

    Raises:
        ConfigError: There is no dialect for this kind of database.
    """

    def __init__(
        self,
        url: str,
        *,
        schema_prefix: str = "",
        schema_suffix: str = "",
        beside_catalog: bool = False,
        base_dir: Path | None = None,
        **options: Any,
    ) -> None:
        self._dialect, self._names = _opened(url, schema_prefix, schema_suffix, beside_catalog, base_dir, options)
        self._capabilities = Capabilities(
            reads=self._dialect.reads,
            writes=frozenset({Form.BATCHES, Form.QUERY}),
            dialect=self._dialect.syntax.name,
            max_name_bytes=self._dialect.max_name_bytes,
            live_names=True,
        )

    def __repr__(self) -> str:
        return f"SqlStore({self._dialect!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Batches and queries, both ways."""
        return self._capabilities

    @property
    def address(self) -> str:
        """The database or the file, whatever the schemas of the instance are called."""
        return self._dialect.address

    def seen_by_others(self, table: StoredTable) -> ExternalTable:
        """Return the table as one in a schema of the same database."""
        place = self._names.place(table.location)
        return ExternalTable("", "", 0, place.schema, place.table, table.identity, table.schema)

    @contextmanager
    def session(self, label: str) -> Generator[SqlSession]:
        """Give one task its own access; nothing is opened before it is needed, and all is given back at the end."""
        from pipedag_core.stores.sql_session import SqlSession

        session = SqlSession(self._dialect, self._names, label)
        try:
            yield session
        finally:
            session.close()

    def missing(self, tables: Sequence[StoredTable]) -> Sequence[StoredTable]:
        """Return those of the tables that are not in the database."""
        places = {table.id: self._place(table) for table in tables}
        known = [place for place in places.values() if place is not None]
        gone = set(self._dialect.missing(known)) if known else set()
        return [table for table in tables if places[table.id] is None or places[table.id] in gone]

    def show(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> None:
        """Make the readable schemas show these tables."""
        self._dialect.show(
            {stage: {name: self._names.place(item.location) for name, item in items.items()} for stage, items in stages.items()}
        )

    def shows(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> bool:
        """Return whether the readable schemas show these tables and no others."""
        wanted = {stage: {name: self._names.place(item.location) for name, item in items.items()} for stage, items in stages.items()}
        return self._dialect.shown() == wanted

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return what takes part in the catalog's commit of these generations; None if the catalog is elsewhere."""
        return self._dialect.publication(generations)

    def show_generation(self, stage: str, generation: int, tables: Mapping[str, StoredTable]) -> None:
        """Let a generation's schema show those of its tables that are elsewhere."""
        elsewhere = {name: self._names.place(table.location) for name, table in tables.items()}
        self._dialect.show_generation(stage, generation, elsewhere)

    def hide_generations(self, generations: Sequence[GenerationKey]) -> None:
        """Remove views from the schemas of generations that have expired."""
        for key in generations:
            self._dialect.hide_generation(key.stage, key.number)

    def deposits(self) -> Sequence[Deposit]:
        """Return all tables in schemas of generations, and schemas that a commit left behind."""
        result: list[Deposit] = []
        for item in self._dialect.found():
            where = self._names.stage_of(item.schema)
            if item.table is None:
                result.append(Deposit(item.schema, None, None, 0.0))
            elif where is not None:
                from pipedag_core.stores.sql_names import Place

                result.append(Deposit(Place(item.schema, item.table).sql, *where, 0.0))
        return result

    def drop(self, locations: Sequence[str]) -> None:
        """Remove tables for good, and schemas that are empty then.

        Raises:
            StoreError: A location is none of this store's; nothing is touched then.
        """
        schemas = [location for location in locations if self._names.is_old(location)]
        self._dialect.drop([self._names.place(location) for location in locations if location not in schemas], schemas)

    def close(self) -> None:
        """Give back all connections."""
        self._dialect.close()

    def _place(self, table: StoredTable) -> Any:
        try:
            return self._names.place(table.location)
        except StoreError:
            return None


#: What only one of the dialects takes.
_ONLY: Final[Mapping[str, frozenset[str]]] = {
    "postgresql": frozenset(
        {
            "commit_wait",
            "keep_dependent_views",
            "materialization_details",
            "max_connections",
            "connect_timeout",
            "statement_timeout",
            "create_database",
        }
    ),
    "duckdb": frozenset({"file_wait", "memory_limit", "temp_directory", "threads"}),
}


def _opened(
    url: str, prefix: str, suffix: str, beside_catalog: bool, base_dir: Path | None, options: Mapping[str, Any]
) -> tuple[Dialect, Names]:
    scheme = url.partition(":")[0].partition("+")[0]
    kind = "postgresql" if scheme == "postgres" else scheme
    if kind not in _ONLY:
        raise ConfigError(f"The SQL store has no dialect for {kind!r} databases. It has: {', '.join(_ONLY)}.", kind=kind)
    foreign = sorted(options.keys() - _ONLY[kind])
    if foreign:
        raise ConfigError(
            f"table_store.args: a {kind} database takes no {', '.join(foreign)}. It takes: url, schema_prefix, schema_suffix, {', '.join(sorted(_ONLY[kind]))}.",
            kind=kind,
        )
    if kind == "postgresql":
        from pipedag_core.stores.dialects.postgres import MAX_NAME, SYSTEM, PostgresDialect

        names = Names(prefix, suffix, MAX_NAME, SYSTEM)
        return PostgresDialect(url, names, beside_catalog=beside_catalog, **options), names
    from pipedag_core.stores.dialects import duckdb

    path = url.removeprefix("duckdb:///")
    if path == url or not path or path == ":memory:":
        raise ConfigError(f"table_store.args.url is {url!r}, but a DuckDB file is written as duckdb:///path, on a local disk.", kind=kind)
    names = Names(prefix, suffix, duckdb.MAX_NAME, duckdb.SYSTEM)
    return duckdb.DuckdbDialect((base_dir or Path.cwd()) / Path(path).expanduser(), names, **options), names
