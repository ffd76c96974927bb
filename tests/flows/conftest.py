"""One configuration per kind of store, for tests that must pass on all of them."""

from __future__ import annotations

import pytest

from pipedag_core import PipedagConfig
from tests.flows import places


@pytest.fixture(params=places.STORES)
def store_kind(request):
    """Each kind of store in turn."""
    return request.param


@pytest.fixture
def make_store(store_kind, tmp_path, request):
    """Return what makes the configuration of an instance on the store, by its name; the keywords are further keys of the instance."""
    if store_kind == "parquet":
        store = {
            "class": "parquet",
            "args": {"base_path": str(tmp_path / "tables" / "{instance_id}"), "external_schemas": {"theirs": str(tmp_path / "theirs")}},
        }
    elif store_kind == "duckdb":
        store = {"class": "sql", "args": {"url": f"duckdb:///{tmp_path}/data/{{instance_id}}.duckdb"}}
    else:
        prefix = request.getfixturevalue("schema_prefix")
        store = {"class": "sql", "args": {"url": request.getfixturevalue("postgres_url"), "schema_prefix": prefix + "{instance_id}_"}}
    blobs = {"class": "file", "args": {"base_path": str(tmp_path / "blobs" / "{instance_id}")}}

    def make(name="full", **instance):
        return PipedagConfig({"instances": {name: {"table_store": store, "blob_store": blobs, **instance}}}).get(name)

    return make


@pytest.fixture
def each_store(make_store):
    """The configuration of an instance on each kind of store in turn."""
    return make_store()


@pytest.fixture
def ask(postgres_url, schema_prefix):
    """Asks PostgreSQL directly; `{}` in the query is the prefix of all schemas of instance `full`."""

    def ask(query):
        import psycopg

        with psycopg.connect(postgres_url, autocommit=True) as connection:
            cursor = connection.execute(query.replace("{}", f"{schema_prefix}full_"))
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    return ask


@pytest.fixture
def new_place(store_kind, tmp_path, request):
    """Return what gives places on each kind of store in turn, for other processes to work in."""
    url = request.getfixturevalue("postgres_url") if store_kind == "postgres" else ""
    given = []

    def new():
        given.append(places.new_place(store_kind, tmp_path / f"place{len(given)}", url))
        return given[-1]

    yield new
    for place in given:
        places.clear(place)


@pytest.fixture
def place(new_place):
    """A place on each kind of store in turn."""
    return new_place()
