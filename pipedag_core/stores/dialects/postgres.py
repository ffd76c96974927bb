"""PostgreSQL as a place for tables: the database as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, final

import psycopg

from pipedag_core.databases.postgres import MAX_NAME, Database, text_of
from pipedag_core.errors import MaterializationError, StoreError
from pipedag_core.naming import quote_identifier
from pipedag_core.ports.catalogs import Publication
from pipedag_core.ports.data import Form
from pipedag_core.stores.dialects import postgres_names as readable
from pipedag_core.stores.dialects.port import Found
from pipedag_core.stores.dialects.postgres_errors import translate
from pipedag_core.stores.dialects.postgres_link import PostgresLink
from pipedag_core.stores.sql_names import Names, Place
from pipedag_core.stores.sqlsyntax import POSTGRES, Syntax

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Schemas that are the server's own.
SYSTEM: Final = r"pg_.*|information_schema"

#: Milliseconds that clean-up waits for whoever reads a table.
_DROP_PATIENCE_MS: Final = 500

#: Tables that are dropped in one transaction: each takes locks until its end.
_DROP_AT_ONCE: Final = 50

_FOUND: Final = """
    SELECT n.nspname, coalesce(obj_description(n.oid, 'pg_namespace'), ''), c.relname FROM pg_catalog.pg_namespace n
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
    WHERE starts_with(n.nspname, %s) ORDER BY 1, 3"""


@final
class PostgresDialect:
    """See `Dialect`.

    Args:
        url: As `Database` takes it.
        names: How schemas are named.
        beside_catalog: The catalog is in the same database, so that commits switch readable names in its transaction.
        commit_wait: Seconds for which a commit waits for those who read the old tables through readable names, before it switches without waiting.
        keep_dependent_views: Views of other people on top of readable names are made again, on the new tables, with each commit; else they stop it.
        materialization_details: Label -> `{unlogged, tablespace}`.
        max_connections, connect_timeout, statement_timeout, create_database: As for `Database`.
    """

    def __init__(
        self,
        url: str,
        names: Names,
        *,
        beside_catalog: bool = False,
        commit_wait: float = 5.0,
        keep_dependent_views: bool = False,
        materialization_details: Mapping[str, Mapping[str, Any]] | None = None,
        max_connections: int = 20,
        connect_timeout: float = 10.0,
        statement_timeout: float | None = None,
        create_database: bool = False,
    ) -> None:
        # The catalog's commit waits for the disk, and takes all that was written before it there; without it, every table has to.
        settings = ("synchronous_commit = off",) if beside_catalog else ()
        self.database = Database(
            url,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            create_database=create_database,
            settings=settings,
        )
        self.names = names
        self.labels: Mapping[str, Mapping[str, Any]] = materialization_details or {}
        self._beside_catalog = beside_catalog
        self._commit_wait = commit_wait
        self._keep_dependents = keep_dependent_views
        self._schemas: set[str] = set()
        self._arrow: Any = None

    def __repr__(self) -> str:
        return f"PostgresDialect({self.database.address!r}, prefix={self.names.prefix!r})"

    @property
    def syntax(self) -> Syntax:
        """PostgreSQL's SQL."""
        return POSTGRES

    @property
    def max_name_bytes(self) -> int:
        """63: PostgreSQL cuts longer names off."""
        return MAX_NAME

    @property
    def address(self) -> str:
        """Host, port and database, as the configuration names them."""
        return f"PostgreSQL database {self.database.address}"

    @property
    def reads(self) -> frozenset[Form]:
        """Batches and queries."""
        return frozenset({Form.BATCHES, Form.QUERY})

    @property
    def arrow(self) -> Any:
        """Connections of the Arrow driver, which is loaded with the first rows that pass through our hands."""
        if self._arrow is None:
            from pipedag_core.stores.dialects.postgres_arrow import ArrowConnections

            # Two threads may get here at once; a spare one has opened nothing yet.
            made = ArrowConnections(self.database)
            self._arrow = self._arrow or made
        return self._arrow

    def named(self, place: Place) -> str:
        """Return schema and table, quoted."""
        return place.sql

    def link(self, label: str) -> PostgresLink:
        """Return a task's way to the database."""
        return PostgresLink(self, label)

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()
        if self._arrow is not None:
            self._arrow.close()

    # --- schemas ------------------------------------------------------------------------------------------------------------------

    def ensure_schema(self, schema: str, *, again: bool = False) -> None:
        """Make a schema, if it is not there, in a transaction of its own: nobody has to wait for what is done in it afterwards.

        Raises:
            StoreError: The right is missing.
        """
        if schema in self._schemas and not again:
            return

        def make(connection: Any) -> None:
            try:
                readable.make_generation(connection, self.names, schema)
            except psycopg.errors.InsufficientPrivilege as error:
                raise StoreError(
                    f"The schema {schema} cannot be made in {self.database.address}: {text_of(error)}\nThe user of the table store needs the right to make "
                    f"schemas. Let the database's owner say:\n    GRANT CREATE ON DATABASE {quote_identifier(self.database.name)} TO <user of the table store>;",
                    schema=schema,
                ) from error

        try:
            self.run(make, f"Schema {schema}")
        except MaterializationError as error:
            # Two that make one schema at the same moment: IF NOT EXISTS does not see the other's, and fails once that is there.
            if getattr(error, "sqlstate", "") != "23505":
                raise
        self._schemas.add(schema)

    def has_schema(self, schema: str) -> bool:
        """Return whether a schema is there."""
        return self._ask("SELECT to_regnamespace(%s) IS NOT NULL", (quote_identifier(schema),), f"Schema {schema}")[0][0]

    # --- tables -------------------------------------------------------------------------------------------------------------------

    def missing(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return those of the places at which there is no table, by one query."""
        sql = "SELECT i FROM unnest(%s::text[]) WITH ORDINALITY AS v (place, i) WHERE to_regclass(place) IS NULL"
        rows = self._ask(sql, ([place.sql for place in places],), "Stored tables")
        return [places[number - 1] for (number,) in rows]

    def found(self) -> Iterator[Found]:
        """Yield all tables in schemas of generations, and schemas that a commit left behind."""
        rows = self._ask(_FOUND, (self.names.prefix,), "The tables of the store")
        seen: set[str] = set()
        for schema, comment, table in rows:
            left = comment.removeprefix(readable.OLD_MARK) if comment.startswith(readable.OLD_MARK) else None
            stage = self.names.stage_of(schema)
            if left is not None and self.names.is_old_of(left, schema):
                if schema not in seen:
                    seen.add(schema)
                    yield Found(schema, None)
            elif table is not None and stage is not None and comment == readable.GENERATION_MARK + stage[0]:
                yield Found(schema, table)

    def drop(self, places: Sequence[Place], schemas: Sequence[str]) -> None:
        """Remove tables, and schemas that are empty then."""
        for schema in schemas:
            self._try(lambda connection, schema=schema: readable.drop_old(connection, schema), f"schema {schema}")
        for start in range(0, len(places), _DROP_AT_ONCE):
            some = places[start : start + _DROP_AT_ONCE]
            if not self._try(
                lambda connection, some=some: readable.drop_tables(connection, self.names, some), f"{len(some)} tables", quiet=len(some) > 1
            ):
                for place in some if len(some) > 1 else ():
                    self._try(lambda connection, place=place: readable.drop_tables(connection, self.names, [place]), f"table {place.sql}")
        for schema in dict.fromkeys(place.schema for place in places):
            self._schemas.discard(schema)
            self._try(lambda connection, schema=schema: readable.drop_if_empty(connection, schema), f"schema {schema}", quiet=True)

    def _try(self, action: Callable[[Any], object], what: str, patience_ms: int = _DROP_PATIENCE_MS, *, quiet: bool = False) -> bool:
        """Carry out a part of clean-up; what is in use, or has something of other people on top, stays for the next time."""

        def patient(connection: Any) -> None:
            connection.execute(f"SET LOCAL lock_timeout = {patience_ms}")
            action(connection)

        try:
            self.database.run(patient, "clean-up")
        except psycopg.Error as error:
            if error.sqlstate not in ("55P03", "2BP01", "42501", "40P01"):
                raise translate(error, f"Removing {what}", "") from error
            if not quiet:
                log.warning("PostgreSQL: %s could not be removed and stays until the next clean-up: %s", what, text_of(error))
            return False
        return True

    # --- readable names -----------------------------------------------------------------------------------------------------------

    def shown(self) -> Mapping[str, Mapping[str, Place | None]]:
        """Return what the readable names say now."""
        return self.run(lambda connection: readable.shown(connection, self.names), "The readable names")

    def show(self, stages: Mapping[str, Mapping[str, Place]]) -> None:
        """Make readable names say this, stage by stage."""
        now = self.shown()
        for stage, tables in stages.items():
            if now.get(stage) != tables:
                switch = readable.Switch(self.names, {}, self._commit_wait, keep_dependents=self._keep_dependents)

                def action(connection: Any, stage: str = stage, tables: Mapping[str, Place] = tables, switch: Any = switch) -> None:
                    switch.prepare_places(connection, {stage: tables})
                    switch.publish_places(connection, {stage: tables})

                self.run(action, f"The readable names of stage {stage}")
                self.settle(switch.left)
        for stage in now.keys() - stages.keys():
            schema = self.names.readable(stage)
            self._try(lambda connection, schema=schema: readable.drop_old(connection, schema), f"schema {schema}")

    def settle(self, schemas: Sequence[str]) -> None:
        """Remove schemas that a commit has left behind, if nobody uses them any more; else they are left to clean-up."""
        if schemas:
            self._try(
                lambda connection: readable.drop_left(connection, schemas), "what a commit left behind", readable.SETTLE_MS, quiet=True
            )

    def show_generation(self, stage: str, number: int, tables: Mapping[str, Place]) -> None:
        """Make views in a generation's schema to those of its tables that are elsewhere."""
        schema = self.names.generation(stage, number)
        if any(place.schema != schema for place in tables.values()):
            self.ensure_schema(schema)
        self.run(lambda connection: readable.show_generation(connection, self.names, schema, tables), f"Schema {schema}")

    def hide_generation(self, stage: str, number: int) -> None:
        """Remove the views of a generation's schema, and the schema if it is empty then."""
        schema = self.names.generation(stage, number)
        self._schemas.discard(schema)

        def action(connection: Any) -> None:
            readable.drop_views(connection, schema)
            readable.drop_if_empty(connection, schema)

        self._try(action, f"the views of schema {schema}")

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return what takes part in the catalog's commit, if the catalog is in this database."""
        if not self._beside_catalog:
            return None
        return readable.Switch(self.names, generations, self._commit_wait, keep_dependents=self._keep_dependents, settle=self.settle)

    def run(self, action: Callable[[Any], T], where: str) -> T:
        """Carry out one transaction of the store's own; its errors come out as ours."""
        try:
            return self.database.run(action)
        except psycopg.Error as error:
            raise translate(error, where, "") from error

    def _ask(self, query: str, values: Sequence[Any], where: str) -> list[tuple[Any, ...]]:
        """Return the rows of one query of the store's own."""
        try:
            return self.database.ask(query, values)
        except psycopg.Error as error:
            raise translate(error, where, "") from error
