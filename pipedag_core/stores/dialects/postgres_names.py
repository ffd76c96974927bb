"""Readable names in PostgreSQL: a schema of views per stage, which a commit replaces as a whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import psycopg

from pipedag_core.errors import StoreError
from pipedag_core.naming import quote_identifier, quote_literal
from pipedag_core.ports.data import StoredObject, StoredTable
from pipedag_core.stores.sql_names import Names, Place, is_of_script

#: What the comment on a readable schema begins with; the stage's name follows. Other schemas are none of our business: the prefix of one instance
#: (`mini_`) may begin that of another (`mini_alice_`), and people call schemas what they like.
MARK: Final = "pipedag stage "

#: The same for schemas that hold what was written for a generation, and for those that a commit has left behind.
GENERATION_MARK: Final = "pipedag generation of "
OLD_MARK: Final = "pipedag left behind of "

#: Milliseconds that one try to get all views for a commit waits in all. Shorter than the second after which the server looks for deadlocks.
_TRY_MS: Final = 50

#: Milliseconds that a commit waits, after it has switched, for those who still use what it has left behind.
SETTLE_MS: Final = 20

_VIEWS: Final = """
    SELECT DISTINCT n.nspname, obj_description(n.oid, 'pg_namespace'), v.relname, tn.nspname, t.relname
    FROM pg_catalog.pg_namespace n
    LEFT JOIN pg_catalog.pg_class v ON v.relnamespace = n.oid AND v.relkind IN ('v', 'r', 'm', 'f', 'p')
    LEFT JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.oid AND r.rulename = '_RETURN'
    LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> v.oid
    LEFT JOIN pg_catalog.pg_class t ON t.oid = d.refobjid LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
    WHERE {which}"""

#: Whatever is in a schema and is neither a view nor its row type.
_OTHERS: Final = """
    SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = %(schema)s AND c.relkind NOT IN ('v', 'i', 'I', 't', 'c')
    UNION ALL SELECT p.proname FROM pg_catalog.pg_proc p WHERE p.pronamespace = %(schema)s
    UNION ALL SELECT t.typname FROM pg_catalog.pg_type t WHERE t.typnamespace = %(schema)s AND t.typtype IN ('e', 'd', 'r', 'm') ORDER BY 1"""

#: Views and other things of other people on top of the views of a schema, those on top of these included.
_DEPENDENTS: Final = """
    WITH RECURSIVE above (oid, depth) AS (
        SELECT v.oid, 0 FROM pg_catalog.pg_class v WHERE v.relnamespace = %(schema)s AND v.relkind = 'v'
        UNION
        SELECT r.ev_class, a.depth + 1 FROM above a JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = a.oid
            AND d.classid = 'pg_catalog.pg_rewrite'::regclass JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
        WHERE r.ev_class <> a.oid AND a.depth < 100)
    SELECT n.nspname, c.relname, c.relkind::text, array_to_string(c.reloptions, ', '), max(a.depth)
    FROM above a JOIN pg_catalog.pg_class c ON c.oid = a.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE a.depth > 0 AND c.relnamespace <> %(schema)s
    GROUP BY 1, 2, 3, 4 ORDER BY 5, 1, 2"""

_GRANTS: Final = """
    SELECT 'view', c.relname, NULL, coalesce(g.rolname, ''), a.privilege_type, a.is_grantable FROM pg_catalog.pg_class c, aclexplode(c.relacl) a
    LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee WHERE c.relnamespace = %(schema)s AND c.relkind = 'v' AND a.grantee <> c.relowner
    UNION ALL
    SELECT 'column', c.relname, t.attname, coalesce(g.rolname, ''), a.privilege_type, a.is_grantable FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped, aclexplode(t.attacl) a
    LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee WHERE c.relnamespace = %(schema)s AND c.relkind = 'v'
    UNION ALL
    SELECT 'schema', NULL, NULL, coalesce(g.rolname, ''), a.privilege_type, a.is_grantable FROM pg_catalog.pg_namespace n, aclexplode(n.nspacl) a
    LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee WHERE n.oid = %(schema)s AND a.grantee <> n.nspowner
    UNION ALL
    SELECT 'default ' || d.defaclobjtype::text, o.rolname, NULL, coalesce(g.rolname, ''), a.privilege_type, a.is_grantable
    FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_roles o ON o.oid = d.defaclrole, aclexplode(d.defaclacl) a
    LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee WHERE d.defaclnamespace = %(schema)s AND a.grantee <> d.defaclrole"""

#: Comments are found and set where they are, since a commit does not know them.
_TELL: Final = """
DECLARE told record;
BEGIN
    FOR told IN
        SELECT v.view, a.attname, d.description FROM (VALUES {pairs}) AS v (view, source)
        JOIN pg_catalog.pg_description d ON d.objoid = v.source::regclass AND d.classoid = 'pg_catalog.pg_class'::regclass
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
    LOOP
        IF told.attname IS NULL THEN
            EXECUTE format('COMMENT ON VIEW %s IS %L', told.view, told.description);
        ELSE
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', told.view, told.attname, told.description);
        END IF;
    END LOOP;
END"""

_KINDS: Final = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES"}


def view(place: Place, table: Place) -> str:
    """Return the statement that makes a view which reads as fast as its table, and refuses writes.

    PostgreSQL lets writes through views of a single table. The second thing to select from, one row without columns, is gone before the planner
    begins, but the view counts as one of two tables.
    """
    return f"CREATE VIEW {place.sql} AS SELECT stored.* FROM {table.sql} AS stored, (SELECT) AS read_only"


def _telling(views: Mapping[Place, Place]) -> str:
    """Return the statement that gives views the comments of their tables and columns; "" without views."""
    if not views:
        return ""
    pairs = ", ".join(f"({quote_literal(place.sql)}, {quote_literal(table.sql)})" for place, table in views.items())
    return f"DO {quote_literal(_TELL.format(pairs=pairs))}"


# --- looking ------------------------------------------------------------------------------------------------------------------------


def shown(connection: Any, names: Names) -> dict[str, dict[str, Place | None]]:
    """Return what the readable schemas of an instance show: stage -> name -> table."""
    which = f"starts_with(n.nspname, %s) AND starts_with(obj_description(n.oid, 'pg_namespace'), {quote_literal(MARK)})"
    result: dict[str, dict[str, Place | None]] = {}
    for schema, comment, name, table_schema, table in connection.execute(_VIEWS.format(which=which), (names.prefix,)).fetchall():
        stage = comment[len(MARK) :]
        if f"{names.prefix}{stage}{names.suffix}" != schema:
            continue
        tables = result.setdefault(stage, {})
        if name is not None:
            # A view of something else, or of several tables, is none of ours.
            tables[name] = None if table is None or name in tables else Place(table_schema, table)
    return result


def _oid(connection: Any, schema: str) -> int | None:
    [(oid,)] = connection.execute("SELECT to_regnamespace(%s)::oid::bigint", (quote_identifier(schema),)).fetchall()
    return oid


def _views(connection: Any, oid: int) -> list[str]:
    rows = connection.execute("SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = %s AND relkind = 'v' ORDER BY 1", (oid,))
    return [name for (name,) in rows.fetchall()]


# --- switching ----------------------------------------------------------------------------------------------------------------------


@final
class Switch:
    """One change of the readable names of some stages; a `Publication` if the catalog is in the same database.

    What may take long is done in `prepare`: the new views are built in a schema beside, and those who read the old ones are waited for. For a statement
    that reads several tables of a stage must find all of them old, or all of them new. A statement looks names up one after another, so the old views
    are locked before they go; who comes later waits for the commit and finds the new ones. Locks are tried for a moment each, and given back in between,
    so that neither readers nor the commit wait for each other for long. `wait_s` is one allowance for all tries of a switch, however often it is begun.
    When it is used up the names are switched without locks: then a statement that looks up its names in that very moment may see both states.

    Args:
        names: How schemas are named.
        generations: Stage -> number, for stages whose generation becomes current with this switch.
        wait_s: Seconds to wait for readers.
        keep_dependents: Make views of other people again, on top of the new ones.
        settle: Removes schemas that were left behind.
    """

    def __init__(
        self,
        names: Names,
        generations: Mapping[str, int],
        wait_s: float,
        *,
        keep_dependents: bool,
        settle: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._names = names
        self._generations = generations
        self._wait_s = wait_s
        self._keep = keep_dependents
        self._settle = settle
        self._dependents: dict[str, dict[Place, str]] = {}
        self._old: dict[str, list[str]] = {}
        self._since: float | None = None
        self.waited_s = 0.0
        #: Whether no reader can have seen two states.
        self.exact = True
        #: Schemas that nobody should use any more.
        self.left: list[str] = []

    def prepare(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        """See `Publication.prepare`."""
        self.prepare_places(connection, self._places(names))

    def publish(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        """See `Publication.publish`."""
        places = self._places(names)
        if not places.keys() <= self._old.keys():
            self.prepare_places(connection, places)
        self.publish_places(connection, places)

    def committed(self) -> None:
        """Remove what the switch has left behind, after the transaction."""
        if self._settle is not None and self.left:
            self._settle(self.left)

    def _places(self, names: Mapping[str, Mapping[str, StoredObject]]) -> dict[str, dict[str, Place]]:
        return {
            stage: {name: self._names.place(item.location) for name, item in items.items() if isinstance(item, StoredTable)}
            for stage, items in names.items()
        }

    def prepare_places(self, connection: Any, stages: Mapping[str, Mapping[str, Place]]) -> None:
        """Build the new views, and lock the old ones if that can be had in time."""
        self._old.clear()
        self._dependents.clear()
        self.left.clear()
        for stage in sorted(stages):
            # Names of stages change one after another, whoever changes them.
            schema = self._names.readable(stage)
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"pipedag names {schema}",))
            oid = _oid(connection, schema)
            self._old[stage] = [] if oid is None else self._own_views(connection, oid, stage, schema)
            if oid is not None:
                self._note_dependents(connection, oid, stage, schema)
            if stage in self._generations:
                show_generation(connection, self._names, self._names.generation(stage, self._generations[stage]), stages[stage])
            connection.execute(";\n".join(self._building(connection, oid, stage, stages[stage])))
        with self._explained():
            self._lock(connection)

    def publish_places(self, connection: Any, stages: Mapping[str, Mapping[str, Place]]) -> None:
        """Give the new views the readable names."""
        statements: list[str] = []
        for stage in sorted(stages):
            schema, fresh = self._names.readable(stage), self._names.next(stage)
            if _oid(connection, schema) is not None:
                old = self._free_name(connection, stage)
                statements += [_rename(schema, old), _marking(old, OLD_MARK + stage), _rename(fresh, schema)]
                statements += self._dependents[stage].values()
                if self.exact:
                    statements += _dropping(old, self._old[stage])
                else:
                    self.left.append(old)
            else:
                statements.append(_rename(fresh, schema))
        with self._explained():
            connection.execute(";\n".join(statements))

    @contextmanager
    def _explained(self) -> Generator[None]:
        told = ", ".join(sorted(self._old))
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(
                f"The readable names of {told} cannot be switched: {error}\nThe schemas, and views of other people that are to be made again, "
                "have to belong to the user of the table store.",
            ) from error
        except (psycopg.errors.InvalidTableDefinition, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise StoreError(
                f"A view of other people on top of {told} cannot be made again on the new tables: {error}\nDrop or change it, then run again."
            ) from error

    def _own_views(self, connection: Any, oid: int, stage: str, schema: str) -> list[str]:
        """Return the names of the views that a readable schema holds, which is to be replaced.

        Raises:
            StoreError: It is another instance's, or holds something of other people.
        """
        behind: dict[str, set[str | None]] = {}
        for _, comment, name, table_schema, _ in connection.execute(_VIEWS.format(which="n.oid = %s"), (oid,)).fetchall():
            if comment is not None and comment.startswith(MARK) and comment != MARK + stage:
                raise _belongs_elsewhere(schema, stage, comment.removeprefix(MARK))
            if name is not None:
                behind.setdefault(name, set()).add(table_schema)
        others = [name for (name,) in connection.execute(_OTHERS, {"schema": oid}).fetchall()]
        # Views of ours show one table each, which is in the schema of a generation.
        others += [
            name
            for name, schemas in behind.items()
            if name not in others
            and not (len(schemas) == 1 and all(one is not None and self._names.stage_of(one) is not None for one in schemas))
        ]
        if others:
            raise StoreError(
                f"Stage {stage} cannot be shown in schema {schema}: it holds what is not pipedag's ({', '.join(others[:5])}), and it is replaced as a whole. "
                "Move that to another schema, or choose another schema_prefix.",
                stage=stage,
                schema=schema,
            )
        return sorted(behind)

    def _note_dependents(self, connection: Any, oid: int, stage: str, schema: str) -> None:
        found = connection.execute(_DEPENDENTS, {"schema": oid}).fetchall()
        if found and (not self._keep or any(row[2] != "v" for row in found)):
            told = ", ".join(f"{Place(where, name).sql}{'' if kind == 'v' else ' (not a plain view)'}" for where, name, kind, *_ in found)
            raise StoreError(
                f"Stage {stage} cannot be committed: there are views of other people on top of schema {schema}, which is replaced as a whole: {told}. "
                "Drop them, or set keep_dependent_views: true in table_store.args, which makes plain views again with every commit.",
                stage=stage,
                views=[f"{where}.{name}" for where, name, *_ in found],
            )
        definitions: dict[Place, str] = {}
        if found:
            # With an empty path, all names in definitions say where they are.
            [(path,)] = connection.execute("SELECT current_setting('search_path')").fetchall()
            connection.execute("SET LOCAL search_path = ''")
            for where, name, _, options, _ in found:
                place = Place(where, name)
                [(text,)] = connection.execute("SELECT pg_catalog.pg_get_viewdef(%s::regclass)", (place.sql,)).fetchall()
                # Options that are not named would be lost, such as whose rights count when the view is read.
                more = f" WITH ({options})" if options else ""
                definitions[place] = f"CREATE OR REPLACE VIEW {place.sql}{more} AS {text.rstrip().rstrip(';')}"
            connection.execute("SELECT pg_catalog.set_config('search_path', %s, true)", (path,))
        self._dependents[stage] = definitions

    def _building(self, connection: Any, old: int | None, stage: str, tables: Mapping[str, Place]) -> list[str]:
        fresh = self._names.next(stage)
        grants = [] if old is None else connection.execute(_GRANTS, {"schema": old}).fetchall()
        statements = [
            f"CREATE SCHEMA {quote_identifier(fresh)}",
            _marking(fresh, MARK + stage),
            # What new views are born with has to be said before there are any.
            *(_grant(fresh, row) for row in grants if row[0].startswith("default ")),
            *(view(Place(fresh, name), place) for name, place in tables.items()),
            *(_grant(fresh, row) for row in grants if row[0] == "schema" or (row[0] in ("view", "column") and row[1] in tables)),
            _telling({Place(fresh, name): place for name, place in tables.items()}),
        ]
        return [statement for statement in statements if statement]

    def _lock(self, connection: Any) -> None:
        views = [Place(self._names.readable(stage), name) for stage in sorted(self._old) for name in self._old[stage]]
        # In the order in which a reader of theirs takes the locks. Making a view what it is changes nothing, but takes its lock.
        theirs = [text for stage in sorted(self._dependents) for text in reversed(self._dependents[stage].values())]
        self.exact = True
        if not views:
            return
        now = time.monotonic()
        self._since = self._since or now
        deadline = self._since + self._wait_s
        while not _has_locked(connection, [*theirs, *_resetting(views)], min(_TRY_MS, (deadline - now) * 1000)):
            now = time.monotonic()
            if now >= deadline:
                self.exact = False
                break
            # Not in step with readers who come in a rhythm.
            time.sleep(min(random.uniform(0.002, 0.04), deadline - now))  # noqa: S311 -- no secret
            now = time.monotonic()
        self.waited_s = time.monotonic() - self._since
        if not self.exact and theirs and not _has_locked(connection, theirs, _TRY_MS):
            told = ", ".join(place.sql for places in self._dependents.values() for place in places)
            raise StoreError(
                f"The readable names of {', '.join(sorted(self._old))} cannot be switched: somebody has been reading {told} for longer than commit_wait "
                f"({self._wait_s:g} s), and these views have to be made again on the new tables. Run again when that is over, or set a longer commit_wait."
            )

    def _free_name(self, connection: Any, stage: str) -> str:
        number = 1
        while _oid(connection, self._names.old(stage, number)) is not None:
            number += 1
        return self._names.old(stage, number)


def _resetting(views: Sequence[Place]) -> list[str]:
    # LOCK would lock the tables behind the views too, and with them everybody who reads a generation. This changes nothing but takes the lock.
    return [f"ALTER VIEW {view.sql} RESET (security_barrier)" for view in views]


def _has_locked(connection: Any, taking: Sequence[str], patience_ms: float) -> bool:
    """Take locks, waiting so long for all of them together; if that is not enough, give back those that were had.

    Args:
        connection: In a transaction.
        taking: Statements, each of which takes one lock.
        patience_ms: Milliseconds; at least one for each lock.
    """
    allowed = max(1, round(patience_ms))
    # The server counts from the moment in which it got these statements, all at once.
    left = f"{allowed} - extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000"
    less = f"SELECT set_config('lock_timeout', greatest(1, ceil({left}))::bigint::text, true)"
    [(patience,)] = connection.execute("SELECT current_setting('lock_timeout')").fetchall()
    connection.execute(f"SAVEPOINT pipedag_names; SET LOCAL lock_timeout = {allowed}")
    try:
        connection.execute(f";{less};".join(taking))
    except psycopg.errors.LockNotAvailable:
        connection.execute("ROLLBACK TO SAVEPOINT pipedag_names; RELEASE SAVEPOINT pipedag_names")
        return False
    connection.execute(f"RELEASE SAVEPOINT pipedag_names; SET LOCAL lock_timeout = {quote_literal(patience)}")
    return True


def _marking(schema: str, mark: str) -> str:
    return f"COMMENT ON SCHEMA {quote_identifier(schema)} IS {quote_literal(mark)}"


def _belongs_elsewhere(schema: str, stage: str, other: str) -> StoreError:
    return StoreError(
        f"Stage {stage} cannot be kept in schema {schema}: that belongs to stage {other} of an instance with another schema_prefix or schema_suffix. "
        "Choose prefixes of which none, with the name of a stage, gives the name of another's schema, such as '{instance_id}__'.",
        stage=stage,
        schema=schema,
    )


def _rename(old: str, new: str) -> str:
    return f"ALTER SCHEMA {quote_identifier(old)} RENAME TO {quote_identifier(new)}"


def _dropping(schema: str, views: Sequence[str]) -> list[str]:
    dropped = [f"DROP VIEW {', '.join(Place(schema, name).sql for name in views)}"] if views else []
    return [*dropped, f"DROP SCHEMA {quote_identifier(schema)}"]


def _grant(schema: str, row: Sequence[Any]) -> str:
    kind, name, column, grantee, privilege, grantable = row
    to = f"TO {quote_identifier(grantee) if grantee else 'PUBLIC'}{' WITH GRANT OPTION' if grantable else ''}"
    if kind == "schema":
        return f"GRANT {privilege} ON SCHEMA {quote_identifier(schema)} {to}"
    if kind == "view":
        return f"GRANT {privilege} ON {Place(schema, name).sql} {to}"
    if kind == "column":
        # A column that is gone takes its grants along.
        return f"GRANT {privilege} ({quote_identifier(column)}) ON {Place(schema, name).sql} {to}"
    objects = _KINDS.get(kind.removeprefix("default "))
    if objects is None:
        return ""
    return f"ALTER DEFAULT PRIVILEGES FOR ROLE {quote_identifier(name)} IN SCHEMA {quote_identifier(schema)} GRANT {privilege} ON {objects} {to}"


# --- schemas of generations, and clean-up -------------------------------------------------------------------------------------------


def make_generation(connection: Any, names: Names, schema: str) -> None:
    """Make a schema for what is written for a generation, if it is not there, and mark it.

    Raises:
        StoreError: It is another instance's, or holds something of other people.
    """
    stage = _stage_of(names, schema)
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(schema)}")
    [(comment, is_empty)] = connection.execute(
        """SELECT obj_description(s.oid, 'pg_namespace'), NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = s.oid)
        FROM (SELECT to_regnamespace(%s)::oid) AS s (oid)""",
        (quote_identifier(schema),),
    ).fetchall()
    if comment == GENERATION_MARK + stage:
        return
    if comment is not None and comment.startswith(GENERATION_MARK):
        raise _belongs_elsewhere(schema, stage, comment.removeprefix(GENERATION_MARK))
    if not is_empty:
        raise StoreError(
            f"Stage {stage} cannot be kept in schema {schema}: it holds what is not pipedag's. Rename that schema, or choose another schema_prefix.",
            stage=stage,
            schema=schema,
        )
    connection.execute(marking_generation(names, schema))


def marking_generation(names: Names, schema: str) -> str:
    """Return the statement that marks the schema of a generation as ours."""
    return _marking(schema, GENERATION_MARK + _stage_of(names, schema))


def _stage_of(names: Names, schema: str) -> str:
    found = names.stage_of(schema)
    return "" if found is None else found[0]


def show_generation(connection: Any, names: Names, schema: str, tables: Mapping[str, Place]) -> None:
    """Make views in a generation's schema to those of its tables that are elsewhere; what stands under such a name already stays."""
    oid = _oid(connection, schema)
    if oid is None:
        if not any(place.schema != schema for place in tables.values()):
            return
        make_generation(connection, names, schema)
    taken = (
        {}
        if oid is None
        else dict(connection.execute("SELECT relname, relkind::text FROM pg_catalog.pg_class WHERE relnamespace = %s", (oid,)).fetchall())
    )
    views = [view(Place(schema, name), place) for name, place in tables.items() if place != Place(schema, name) and name not in taken]
    if views:
        connection.execute(";\n".join(views))


def drop_views(connection: Any, schema: str) -> None:
    """Remove all views from a schema of ours."""
    oid = _oid(connection, schema)
    views = [] if oid is None else _views(connection, oid)
    if views:
        connection.execute(f"DROP VIEW {', '.join(Place(schema, name).sql for name in views)}")


def drop_left(connection: Any, schemas: Sequence[str]) -> list[str]:
    """Remove schemas of views that a commit has just left behind, unless somebody uses them; return those that stay for clean-up."""
    views = [Place(schema, name) for schema in schemas if (oid := _oid(connection, schema)) is not None for name in _views(connection, oid)]
    if not _has_locked(connection, _resetting(views), SETTLE_MS):
        return list(schemas)
    for schema in schemas:
        drop_old(connection, schema)
    return []


def drop_old(connection: Any, schema: str) -> None:
    """Remove a schema of views. Locks are taken in the order in which commits take them."""
    if _oid(connection, schema) is not None:
        drop_views(connection, schema)
        connection.execute(f"DROP SCHEMA {quote_identifier(schema)}")


def drop_if_empty(connection: Any, schema: str) -> None:
    """Remove the schema of a generation once nothing is in it but what a script left beside its tables.

    In the schema of a script, which nobody writes any more, functions and types may be left. In all others a task of the same generation may be about to
    make a table: there PostgreSQL looks once more when it has the schema to itself, and refuses.
    """
    oid = _oid(connection, schema)
    if oid is None:
        return
    rows = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_class WHERE relnamespace = %s AND relkind IN ('r', 'p', 'v', 'm', 'f')", (oid,)
    ).fetchall()
    if not rows:
        connection.execute(f"DROP SCHEMA {quote_identifier(schema)}{' CASCADE' if is_of_script(schema) else ''}")


def drop_tables(connection: Any, names: Names, places: Sequence[Place]) -> None:
    """Remove tables, with the views of ours that still show them."""
    listed = [place.sql for place in places]
    rows = connection.execute(
        """SELECT DISTINCT n.nspname, v.relname, coalesce(obj_description(n.oid, 'pg_namespace'), '') FROM unnest(%s::text[]) AS p (place)
        JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = to_regclass(p.place)
            AND d.classid = 'pg_catalog.pg_rewrite'::regclass
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
        JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace ORDER BY 1, 2""",
        (listed,),
    ).fetchall()
    ours = [
        Place(schema, name)
        for schema, name, comment in rows
        if names.stage_of(schema) is not None or names.is_old(schema) or comment.startswith(MARK)
    ]
    if ours:
        connection.execute(f"DROP VIEW IF EXISTS {', '.join(place.sql for place in ours)}")
    connection.execute(f"DROP TABLE IF EXISTS {', '.join(listed)}")
