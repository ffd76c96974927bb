from __future__ import annotations

from functools import partial

import psycopg
import pytest

from pipedag_core.catalogs.postgres import PostgresCatalog
from pipedag_core.catalogs.statements import SCHEMA_VERSION
from pipedag_core.errors import CatalogError
from pipedag_core.testing.catalog_contract import CatalogContract
from pipedag_core.testing.catalog_samples import Worker, names


class TestPostgresCatalog(CatalogContract):
    @pytest.fixture
    def opener(self, postgres_url, schema_prefix):
        return partial(PostgresCatalog, postgres_url, f"{schema_prefix}catalog")


@pytest.fixture
def opener(postgres_url, schema_prefix):
    return partial(PostgresCatalog, postgres_url, f'{schema_prefix}"Odd; schema')


def test_what_was_recorded_is_there_when_the_catalog_is_opened_again(opener):
    first = opener()
    Worker(first, "a").begin().publish("s", t="o1")
    first.close()
    second = opener()
    assert names(second) == {"s": {"t": "o1"}}
    second.close()


def test_a_newer_catalog_is_refused_with_both_versions(opener, postgres_url, schema_prefix):
    opener().close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f'UPDATE "{schema_prefix}""Odd; schema".meta SET value = \'7\'')
    with pytest.raises(CatalogError, match=r"schema version 7.*knows version\s+\d+.*[Ii]nstall") as caught:
        opener()
    assert (caught.value.found, caught.value.known) == ("7", str(SCHEMA_VERSION))


def test_an_older_catalog_is_brought_up_to_date_with_all_that_it_holds(opener, postgres_url, schema_prefix):
    first = opener()
    Worker(first, "a").begin().publish("s", t="o1")
    first.close()
    with psycopg.connect(postgres_url) as connection:
        schema = f'"{schema_prefix}""Odd; schema"'
        connection.execute(
            f"ALTER TABLE {schema}.objects DROP COLUMN seal; DROP TABLE {schema}.run_notes; UPDATE {schema}.meta SET value = '1'"
        )
    with pytest.raises(CatalogError, match=r"older version.*next run"):
        opener(read_only=True)
    second = opener()
    assert names(second) == {"s": {"t": "o1"}}
    assert second.note("a", "name", "value") == "value"
    second.close()
    opener(read_only=True).close()


def test_a_schema_of_somebody_else_is_refused_and_left_alone(postgres_url, schema_prefix):
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"CREATE SCHEMA {schema_prefix}x; CREATE TABLE {schema_prefix}x.meta (x int)")
    with pytest.raises(CatalogError, match="not a catalog"):
        PostgresCatalog(postgres_url, f"{schema_prefix}x")


def test_looking_makes_nothing_and_cannot_write(opener):
    with pytest.raises(CatalogError, match="nothing has run there yet"):
        opener(read_only=True)
    catalog = opener()
    Worker(catalog, "a").begin().publish("s", t="o1")
    looking = opener(read_only=True)
    assert names(looking) == {"s": {"t": "o1"}}
    with pytest.raises(CatalogError, match="read-only"):
        Worker(looking, "b").begin()
    catalog.close()
    looking.close()


def test_connections_that_the_server_ended_while_idle_are_replaced(opener, postgres_url):
    catalog = opener()
    worker = Worker(catalog, "a").begin()
    _end_sessions(postgres_url, catalog)
    worker.publish("s", t="o1")
    _end_sessions(postgres_url, catalog)
    assert names(catalog) == {"s": {"t": "o1"}}
    catalog.close()


def test_a_connection_that_is_lost_in_a_commit_undoes_it_and_the_next_try_succeeds(opener, postgres_url):
    catalog = opener()
    worker = Worker(catalog, "a").begin()
    worker.open("s")
    worker.record("s", "t", "o1")

    class Lost:
        def prepare(self, connection, names):
            pass

        def committed(self):
            pass

        def publish(self, connection, names):
            with psycopg.connect(postgres_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    with pytest.raises(CatalogError, match="Execute the step again"):
        catalog.commit("a", ["s"], Lost())
    assert catalog.current("s") is None
    assert worker.commit("s") is True
    catalog.close()


def test_text_with_a_null_character_does_not_stop_a_run(opener):
    catalog = opener()
    worker = Worker(catalog, "a").begin()
    worker.open("s")
    catalog.log_task("a", "s", worker.record("s", "t", "o\x001"))
    catalog.close()


def _end_sessions(url, catalog):
    with catalog.database.connection() as connection:
        pid = connection.info.backend_pid
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        while other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall():
            pass
