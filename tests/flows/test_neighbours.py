"""Instances and people who keep their tables in one database, beside each other."""

from __future__ import annotations

import polars as pl
import pytest
import sqlalchemy as sa

from pipedag_core import Flow, PipedagConfig, RawSql, Stage, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import FlowError, StoreError
from pipedag_core.housekeeping import clean_up, clear_catalog, delete_stages
from pipedag_core.ports.data import Form
from pipedag_core.run.doctor import examine
from pipedag_core.stores.sql_store import SqlStore


def make_config(url, common, instance, folder):
    store = {"class": "sql", "args": {"url": url, "schema_prefix": common + "{instance_id}_"}}
    blobs = {"class": "file", "args": {"base_path": f"{folder}/blobs/{{instance_id}}"}}
    return PipedagConfig({"instances": {instance: {"table_store": store, "blob_store": blobs}}}).get(instance)


@pytest.fixture(params=["duckdb", "postgres"])
def instances(request, tmp_path):
    """Makes instances in the database that all instances of the test share, in schemas that begin with their names."""
    if request.param == "duckdb":
        return lambda name: make_config(f"duckdb:///{tmp_path}/all.duckdb", "", name, tmp_path)
    url, common = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema_prefix")
    return lambda name: make_config(url, common, name, tmp_path)


@pytest.fixture
def full(postgres_url, schema_prefix, tmp_path):
    """An instance in PostgreSQL."""
    return make_config(postgres_url, schema_prefix, "full", tmp_path)


def run(config, value, stage="features", table="numbers"):
    @materialize(version=str(value), name=table)
    def numbers():
        return pl.DataFrame({"i": [value]})

    with Flow("f") as flow, Stage(stage):
        numbers()
    return flow.run(config=config)


def read(config, stage="features", table="numbers"):
    with open_session(config, read_only=True) as session, session.tables.session("test") as access:
        return pl.DataFrame(access.read(session.catalog.shown()[stage][table], Form.BATCHES).stream)["i"].to_list()


def findings(config):
    with open_session(config) as session:
        return list(examine(session, lambda owner: True, grace_s=0.0).findings)


@pytest.mark.parametrize("other", ["mini_alice", "mini_mini", "minimal"])
def test_clean_up_leaves_an_instance_alone_whose_name_begins_with_the_own_one(instances, other):
    configs = instances("mini"), instances(other)
    for number, config in enumerate(configs):
        assert run(config, number).successful
    assert [findings(config) for config in configs] == [[], []]
    assert [clean_up(config) for config in configs] == [0, 0]
    assert [read(config) for config in configs] == [[0], [1]]


def test_what_another_instance_has_written_before_its_first_commit_is_left_alone(instances):
    @materialize(version="1")
    def numbers():
        return pl.DataFrame({"i": [1]})

    @materialize(version="1", input_type=pl.DataFrame)
    def look(numbers):
        assert clean_up(instances("mini")) == 0

    assert run(instances("mini"), 1).successful
    with Flow("f") as flow, Stage("features"):
        look(numbers())
    result = flow.run(config=instances("mini_alice"))
    assert result.successful, result.exception
    assert read(instances("mini_alice")) == [1]


def test_two_stages_of_two_instances_that_would_share_a_schema_are_refused(postgres_url, schema_prefix, tmp_path):
    mini, alice = (make_config(postgres_url, schema_prefix, name, tmp_path) for name in ("mini", "mini_alice"))
    assert run(alice, 1).successful
    result = run(mini, 2, stage="alice_features")
    assert isinstance(result.exception, StoreError)
    assert "belongs to stage features of an instance with another schema_prefix" in str(result.exception)
    assert read(alice) == [1]


@pytest.mark.parametrize(
    "inside", ["CREATE VIEW {}features.sums AS SELECT 1 AS a", "CREATE VIEW {}features.sums AS SELECT sum(i) FROM {}features.numbers"]
)
def test_a_view_of_somebody_else_in_a_readable_schema_stops_the_commit_by_name(full, ask, inside):
    assert run(full, 1).successful
    ask(inside)
    result = run(full, 2)
    assert isinstance(result.exception, StoreError)
    assert "it holds what is not pipedag's (sums)" in str(result.exception)
    assert ask("SELECT count(*) FROM {}features.sums") == [(1,)]
    ask("DROP VIEW {}features.sums")
    assert run(full, 2).successful
    assert read(full) == [2]


def test_a_schema_of_views_of_somebody_else_is_not_replaced(full, ask):
    ask("CREATE SCHEMA {}features; CREATE VIEW {}features.theirs AS SELECT 1 AS a")
    result = run(full, 1)
    assert isinstance(result.exception, StoreError)
    assert "it holds what is not pipedag's (theirs)" in str(result.exception)
    assert ask("SELECT * FROM {}features.theirs") == [(1,)]


def test_an_empty_schema_that_was_made_before_is_taken_over_with_its_grants(full, ask):
    ask("CREATE SCHEMA {}features; GRANT USAGE ON SCHEMA {}features TO PUBLIC")
    assert run(full, 1).successful
    assert ask("SELECT has_schema_privilege('pg_monitor', '{}features', 'usage')") == [(True,)]


def test_a_table_of_somebody_else_in_a_schema_called_like_a_generation_is_left_alone(full, ask):
    ask(
        "CREATE SCHEMA {}features__g1; CREATE TABLE {}features__g1.theirs AS SELECT 1 AS a; CREATE SCHEMA {}other__g7; CREATE TABLE {}other__g7.x (a int)"
    )
    result = run(full, 1)
    assert isinstance(result.exception, StoreError)
    assert "it holds what is not pipedag's" in str(result.exception)
    assert clean_up(full) == 0
    assert ask("SELECT * FROM {}features__g1.theirs") == [(1,)]


@pytest.mark.parametrize("stage", ["information_schema", "pg_catalog"])
def test_a_stage_called_like_a_schema_of_duckdb_is_refused_and_stops_no_other_stage(tmp_path, stage):
    store = {"class": "sql", "args": {"url": f"duckdb:///{tmp_path}/full.duckdb"}}
    config = PipedagConfig({"instances": {"full": {"table_store": store}}}).get("full")
    result = run(config, 1, stage=stage)
    assert isinstance(result.exception, FlowError)
    assert "one of those that the database has for itself" in str(result.exception)
    assert run(config, 1).successful


@pytest.mark.parametrize("stage", ["information_schema", "pg_catalog", "pg_mine"])
def test_a_stage_called_like_a_schema_of_the_server_is_refused(postgres_url, stage):
    store = SqlStore(postgres_url)
    with pytest.raises(FlowError, match="one of those that the database has for itself"):
        store.show_generation(stage, 1, {})
    store.close()


def test_a_query_that_names_the_schema_that_people_read_follows_the_stage_or_is_refused(full, schema_prefix):
    def flow_of(value, *, as_input):
        @materialize(version=str(value), name="numbers")
        def numbers():
            return pl.DataFrame({"i": [value]})

        @materialize(lazy=True, input_type=sa.Table)
        def read_by_name(*numbers):
            return sa.text(f"SELECT i FROM {schema_prefix}full_features.numbers")

        with Flow("f") as flow:
            with Stage("features"):
                table = numbers()
            with Stage("read"):
                read_by_name(table) if as_input else read_by_name()
        return flow

    for value in (1, 2):
        assert flow_of(value, as_input=True).run(config=full).successful
        assert read(full, "read", "read_by_name") == [value]
    result = flow_of(3, as_input=False).run(config=full)
    assert "which is not an input of the task" in str(result.exception)


def test_deleting_the_stages_of_an_instance_leaves_one_alone_whose_name_begins_with_its_own(instances):
    mini, alice = instances("mini"), instances("mini_alice")
    for number, config in enumerate((mini, alice)):
        assert run(config, number).successful
    delete_stages(["features"], mini)
    assert findings(alice) == []
    assert read(alice) == [1]
    clear_catalog(mini)
    clean_up(mini)
    assert read(alice) == [1]


@pytest.mark.parametrize("named", ["{}features.numbers", "features.numbers"], ids=["schema", "stage"])
def test_a_script_cannot_read_a_table_of_another_stage_that_is_called_like_its_own(full, schema_prefix, named):
    place = named.replace("{}", f"{schema_prefix}full_")

    @materialize(version="1")
    def numbers():
        return pl.DataFrame({"i": [1]})

    @materialize(lazy=True)
    def again():
        return RawSql(f"CREATE TABLE numbers AS SELECT i FROM {place}")

    with Flow("f") as flow:
        with Stage("features"):
            numbers()
        with Stage("later"):
            again()
    result = flow.run(config=full)
    assert "which is not an input of the task" in str(result.exception)
