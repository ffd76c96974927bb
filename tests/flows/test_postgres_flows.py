"""Flows on the PostgreSQL store."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import threading
import uuid

import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pipedag_core import Blob, Flow, PipedagConfig, RawSql, Stage, Table, materialize
from pipedag_core.catalogs.owner import this_process
from pipedag_core.cli.app import app
from pipedag_core.config.wire import open_session
from pipedag_core.errors import PipedagError
from pipedag_core.housekeeping import clean_up
from pipedag_core.ports.data import QueryData, Target
from pipedag_core.ports.events import NamesSwitchedEarly, StepEnded, StepStarted
from pipedag_core.run.rolling_back import roll_back
from tests.postgres_server import url_with


@pytest.fixture
def make_config(tmp_path, postgres_url, schema_prefix):
    def make(**args):
        instance = {
            "table_store": {"class": "sql", "args": {"url": postgres_url, "schema_prefix": schema_prefix + "{instance_id}_", **args}}
        }
        return PipedagConfig({"instances": {"full": instance}}).get("full")

    return make


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def role(postgres_url):
    """A user without any rights."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {name}")
        connection.execute(f"DROP ROLE {name}")


def outcomes(result):
    assert result.successful, result.exception
    return {report.task: report.outcome.value for report in result.reports if report.task}


def make_flow(version="1", limit=1, extra=None):
    @materialize(version=version, nout=2)
    def load():
        return pl.DataFrame({"i": [1, 2, 3], "t": ["a", None, "c"]}), Table(pa.table({"i": [1]}), name="Other", primary_key=["i"])

    @materialize(lazy=True, input_type=sa.Table)
    def select(numbers):
        return Table(
            sa.select(numbers.c.i, (numbers.c.i * 2).label("double")).where(numbers.c.i > limit), name="selected", indexes=[["double"]]
        )

    @materialize(input_type=pl.DataFrame, version="1")
    def last(selected):
        return selected.with_columns(pl.col("double").cast(pl.Float64))

    with Flow("f") as flow:
        with Stage("raw"):
            numbers, _ = load()
        with Stage("features"):
            selected = select(numbers)
            frame = last(selected)
            if extra is not None:
                materialize(lambda: pa.table({"x": [extra]}), name="extra", version=str(extra))()
    return flow, frame


def test_a_flow_runs_in_the_database_and_is_cached_then(config, ask):
    flow, frame = make_flow()
    result = flow.run(config=config)
    assert outcomes(result) == {"load": "ran", "select": "ran", "last": "ran"}
    assert result.get(frame, as_type=pl.DataFrame).to_dict(as_series=False) == {"i": [2, 3], "double": [4.0, 6.0]}
    assert ask("SELECT i, double FROM {}features.selected ORDER BY i") == [(2, 4), (3, 6)]
    assert ask("SELECT * FROM {}raw.other") == [(1,)]
    assert outcomes(flow.run(config=config)) == {"load": "cached", "select": "cached", "last": "cached"}
    flow, _ = make_flow(limit=2)
    assert outcomes(flow.run(config=config)) == {"load": "cached", "select": "ran", "last": "ran"}
    assert ask("SELECT i, double FROM {}features.selected ORDER BY i") == [(3, 6)]


def test_writing_through_the_views_of_stages_and_generations_is_refused(config, ask):
    for extra in (None, 1):
        assert make_flow(extra=extra)[0].run(config=config).successful
    assert ask("SELECT i FROM {}features__g2.selected ORDER BY i") == [(2,), (3,)]
    for schema in ("features", "features__g2"):
        for statement in (
            "DELETE FROM {}%s.selected",
            "UPDATE {}%s.selected SET i = 1",
            "INSERT INTO {}%s.selected VALUES (1, 1)",
            "TRUNCATE {}%s.selected",
        ):
            with pytest.raises(psycopg.errors.Error, match=r"cannot (insert|update|delete)|is not a table"):
                ask(statement % schema)


# --- everything that tasks may return ---------------------------------------------------------------------------------------------------


def test_everything_that_tasks_return_is_kept_and_cached(config, ask):
    @materialize(version="1")
    def given():
        return Blob({"number": 1}, "blob")

    @materialize(version="1", input_type=sa.Table)
    def frames():
        return {"pandas": pd.DataFrame({"p": [1]}), "lazy": pl.LazyFrame({"l": ["x"]}), "arrow": pa.table({"a": [1.5]})}

    @materialize(lazy=True, input_type=sa.Table)
    def script(frames):
        return RawSql(
            """
            -- one; comment
            CREATE FUNCTION twice(n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT n * 2; $$;
            CREATE TABLE semicolons AS SELECT 'a;b' AS t, twice(p) AS n FROM raw.frames_pandas;
            CREATE VIEW seen AS SELECT t || '!' AS t FROM semicolons /* ; */
            """
        )

    @materialize(lazy=True, input_type=sa.Table)
    def joined(made, number):
        table = made["semicolons"]
        return sa.select(table.c.t, (table.c.n + number["number"]).label("n"))

    with Flow("f") as flow:
        with Stage("raw"):
            blob = given()
            tables = frames()
        with Stage("mart"):
            made = script(tables)
            last = joined(made, blob)
    for outcome in ("ran", "cached"):
        result = flow.run(config=config)
        assert set(outcomes(result).values()) == {outcome}
        assert result.get(last, as_type=pl.DataFrame).rows() == [("a;b", 3)]
    assert ask("SELECT t FROM {}mart.seen") == [("a;b!",)]
    assert ask("SELECT a FROM {}raw.frames_arrow") == [(1.5,)]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("CREATE TABLE a AS SELECT 1 AS x; SELECT nonsense FROM a", r"statement 2 of 2[\s\S]*nonsense"),
        ("CREATE TABLE a AS SELECT 1 AS x; DELETE FROM raw.numbers", "did not create itself"),
        ("CREATE TABLE a AS SELECT 1 AS x; COMMIT", "cannot be part of a script"),
        ("CREATE SCHEMA {}mine", "outside of its stage"),
    ],
)
def test_a_script_that_fails_or_reaches_out_says_where_and_leaves_nothing(config, ask, schema_prefix, script, message):
    @materialize(version="1")
    def numbers():
        return pa.table({"i": [1, 2]})

    @materialize(lazy=True, input_type=sa.Table)
    def go(numbers):
        return RawSql(script.format(schema_prefix))

    with Flow("f") as flow:
        with Stage("raw"):
            table = numbers()
        with Stage("mart"):
            go(table)
    result = flow.run(config=config, fail_fast=False)
    assert not result.successful
    with pytest.raises(PipedagError, match=message):
        flow.run(config=config, fail_fast=True)
    assert ask("SELECT count(*) FROM {}raw.numbers") == [(2,)]
    assert ask("SELECT n.nspname FROM pg_namespace n WHERE n.nspname LIKE '{}mart%'") in (
        [],
        ask("SELECT n.nspname FROM pg_namespace n WHERE n.nspname ~ '^{}mart__g[0-9]+$'"),
    )


def test_types_come_back_as_they_are_or_are_refused(config):
    moment = dt.datetime(2020, 1, 1, 12, tzinfo=dt.UTC)
    table = pa.table(
        {
            "decimal": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(20, 2)),
            "wide": pa.array([decimal.Decimal("1" * 50), None], pa.decimal256(60, 0)),
            "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
            "zoned": pa.array([moment, None], pa.timestamp("us", "Europe/Berlin")),
            "duration": pa.array([dt.timedelta(days=1, microseconds=1), None], pa.duration("us")),
            "time": pa.array([dt.time(1, 2, 3, 4), None], pa.time64("us")),
            "old": pa.array([dt.date(1000, 1, 1), dt.date(9999, 12, 31)], pa.date32()),
            "bytes": pa.array([b"\x00\xff", None], pa.binary()),
            "floats": pa.array([float("inf"), None], pa.float64()),
            "nothing": pa.nulls(2),
            "list": pa.array([[1, None], None], pa.list_(pa.int64())),
            "words": pa.array([["a", None, ""], None], pa.list_(pa.string())),
            "category": pa.array(["a", None]).dictionary_encode(),
            "nested": pa.array([{"a": 1, "b": ["x"]}, None]),
        }
    )

    @materialize(version="1")
    def typed():
        return table

    with Flow("f") as flow, Stage("s"):
        out = typed()
    result = flow.run(config=config)
    assert result.successful, result.exception
    back = result.get(out, as_type=pa.Table)
    plain = [name for name in table.column_names if name not in ("category", "nested")]
    assert back.select(plain).equals(table.select(plain))
    assert back["category"].to_pylist() == ["a", None]
    assert [None if text is None else json.loads(text) for text in back["nested"].to_pylist()] == [{"a": 1, "b": ["x"]}, None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"t": ["a", "b\x00"]}), r"row 2 of column 't'"),
        (pa.table({"ä" * 40: [1]}), "80 bytes long"),
        (pa.table({"t": pa.array([1], pa.timestamp("ns"))}), "column 't' cannot be kept exactly"),
    ],
)
def test_what_postgresql_cannot_keep_is_refused_by_name(config, table, message):
    @materialize(version="1")
    def broken():
        return table

    with Flow("f") as flow, Stage("s"):
        broken()
    with pytest.raises(PipedagError, match=message):
        flow.run(config=config, fail_fast=True)


def test_nothing_that_stays_valid_is_copied(config, ask):
    for extra in (1, 2):
        assert make_flow(extra=extra)[0].run(config=config).successful
    places = ask(
        "SELECT n.nspname, c.relfilenode FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = 'selected' AND c.relkind = 'r' AND starts_with(n.nspname, '{}')"
    )
    assert [name.rpartition("__")[2] for name, _ in places] == ["g1"]
    assert ask("SELECT x FROM {}features.extra") == [(2,)]


def test_a_failed_generation_can_be_explored_while_readers_see_the_old_one(config, ask):
    assert make_flow()[0].run(config=config).successful

    @materialize(version="2")
    def load():
        return pa.table({"i": [100]})

    @materialize(version="1")
    def fails(numbers):
        raise ZeroDivisionError

    with Flow("f") as flow, Stage("raw"):
        fails(load())
    assert not flow.run(config=config, fail_fast=False).successful
    assert ask("SELECT * FROM {}raw.other") == [(1,)]
    assert ask("SELECT i FROM {}raw__g2.load") == [(100,)]


def test_declared_options_become_keys_indexes_and_storage(make_config, ask):
    config = make_config(materialization_details={"quick": {"unlogged": True}})

    @materialize(version="1")
    def keyed():
        return Table(
            pa.table({"i": [1, 2], "t": ["a", "b"]}), name="keyed", primary_key="i", indexes=[["t"]], materialization_details="quick"
        )

    with Flow("f") as flow, Stage("s"):
        keyed()
    assert flow.run(config=config).successful
    [(oid, persistence)] = ask("SELECT oid, relpersistence::text FROM pg_class WHERE oid = '{}s__g1.keyed'::regclass")
    assert persistence == "u"
    assert ask(f"SELECT contype::text FROM pg_constraint WHERE conrelid = {oid} AND contype = 'p'") == [("p",)]
    assert ask(f"SELECT count(*) FROM pg_index WHERE indrelid = {oid}") == [(2,)]


# --- commits and readers ----------------------------------------------------------------------------------------------------------------


def test_grants_survive_commits(config, ask, role):
    assert make_flow(extra=1)[0].run(config=config).successful
    ask(f"GRANT USAGE ON SCHEMA {{}}features TO {role}; GRANT SELECT ON {{}}features.selected TO {role}")
    ask(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {{}}features GRANT SELECT ON TABLES TO {role}")
    assert make_flow(extra=2, limit=0)[0].run(config=config).successful
    assert ask(f"SET ROLE {role}; SELECT count(*) FROM {{}}features.selected") == [(3,)]
    assert ask(f"SET ROLE {role}; SELECT x FROM {{}}features.extra") == [(2,)]


def test_a_view_of_somebody_else_stops_the_commit_by_name_or_is_made_again(make_config, ask):
    assert make_flow(extra=1)[0].run(config=make_config()).successful
    ask(
        "CREATE SCHEMA {}theirs; CREATE VIEW {}theirs.v AS SELECT x + 1 AS y FROM {}features.extra; CREATE VIEW {}theirs.w AS SELECT y FROM {}theirs.v"
    )
    with pytest.raises(PipedagError, match=r'theirs"\."v".*keep_dependent_views'):
        make_flow(extra=2)[0].run(config=make_config(), fail_fast=True)
    assert ask("SELECT y FROM {}theirs.w") == [(2,)]
    assert make_flow(extra=2)[0].run(config=make_config(keep_dependent_views=True)).successful
    assert ask("SELECT y FROM {}theirs.w") == [(3,)]


def test_a_reader_that_stays_is_not_waited_for_longer_than_commit_wait_and_is_told(make_config, postgres_url, ask, schema_prefix):
    config = make_config(commit_wait="0s")
    assert make_flow(extra=1)[0].run(config=config).successful
    events = []

    class Listener:
        def on_event(self, event):
            events.append(event)

    with psycopg.connect(postgres_url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert reader.execute(f"SELECT x FROM {schema_prefix}full_features.extra").fetchall() == [(1,)]
        assert make_flow(extra=2)[0].run(config=config, observers=[Listener()]).successful
        assert ask("SELECT x FROM {}features.extra") == [(2,)]
        assert reader.execute(f"SELECT x FROM {schema_prefix}full_features__g1.extra").fetchall() == [(1,)]
    assert [event.stages for event in events if isinstance(event, NamesSwitchedEarly)] == [("features",)]
    # What was left behind goes with a later commit's clean-up.
    assert make_flow(extra=3)[0].run(config=config).successful
    clean_up(config)
    assert ask("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, '{}features__old')") == []


def test_all_waits_of_a_commit_share_one_allowance(make_config, postgres_url, schema_prefix, ask, monkeypatch):
    config = make_config(commit_wait=0.3, keep_dependent_views=True)
    assert make_flow(extra=1)[0].run(config=config).successful
    ask(
        "CREATE SCHEMA {}theirs; CREATE VIEW {}theirs.v WITH (security_invoker = true) AS SELECT x FROM {}features.extra; CREATE VIEW {}theirs.w AS SELECT x FROM {}theirs.v"
    )
    waits = []
    is_committing = False
    execute = psycopg.Connection.execute

    def recorded(self, query, *args, **more):
        if is_committing:
            waits.extend(int(ms) for ms in re.findall(r"lock_timeout = (\d+)", str(query)))
        return execute(self, query, *args, **more)

    class Listener:
        def on_event(self, event):
            nonlocal is_committing
            if isinstance(event, (StepStarted, StepEnded)):
                step = event.step if isinstance(event, StepStarted) else event.report.step
                is_committing = isinstance(event, StepStarted) and step == "commit:features"

    monkeypatch.setattr(psycopg.Connection, "execute", recorded)
    with psycopg.connect(postgres_url) as one, psycopg.connect(postgres_url) as other:
        one.execute(f"SELECT x FROM {schema_prefix}full_features.extra")
        other.execute(f"SELECT i FROM {schema_prefix}full_features.selected")
        assert make_flow(extra=2)[0].run(config=config, observers=[Listener()]).successful
    assert len(waits) > 3
    assert sum(waits) <= 300 + 100
    assert ask("SELECT x FROM {}theirs.w") == [(2,)]
    assert ask("SELECT reloptions FROM pg_class WHERE oid = '{}theirs.v'::regclass") == [(["security_invoker=true"],)]

    # Their views cannot be made again while somebody reads them.
    with psycopg.connect(postgres_url) as reader:
        reader.execute(f"SELECT x FROM {schema_prefix}full_theirs.w")
        with pytest.raises(PipedagError, match=r'reading .*theirs"\."w".* longer than commit_wait \(0\.3 s\)'):
            make_flow(extra=3)[0].run(config=config, fail_fast=True)
    assert ask("SELECT x FROM {}theirs.w") == [(2,)]


def test_single_statements_never_see_two_states_while_commits_wait_for_them(make_config, postgres_url, schema_prefix):
    config = make_config(commit_wait="60s")

    def flow(number):
        with Flow("f") as flow, Stage("s"):
            for table in range(8):
                materialize(lambda: pa.table({"x": [number]}), name=f"t{table}", version=str(number))()
        return flow

    assert flow(0).run(config=config).successful
    query = " UNION ALL ".join(f"SELECT x FROM {schema_prefix}full_s.t{table}" for table in range(8))
    seen, done, early = [], threading.Event(), []

    class Listener:
        def on_event(self, event):
            early.extend([event] * isinstance(event, NamesSwitchedEarly))

    def read():
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            while not done.wait(0.005):
                seen.append({x for (x,) in connection.execute(query).fetchall()})

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 6):
            assert flow(number).run(config=config, observers=[Listener()]).successful
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert early == []
    assert [states for states in seen if len(states) != 1] == []
    assert seen


def test_going_back_switches_the_names_and_clean_up_removes_what_is_not_kept(config, ask):
    for extra in (1, 2):
        assert make_flow(extra=extra)[0].run(config=config).successful
    with open_session(config) as session:
        assert roll_back(session, "features", None, "full", this_process("test")).changed
    assert ask("SELECT x FROM {}features.extra") == [(1,)]
    assert ask("SELECT i FROM {}features__g3.selected ORDER BY i") == [(2,), (3,)]


def test_rows_and_queries_can_be_looked_at(config, ask, tmp_path, postgres_url, schema_prefix):
    assert make_flow()[0].run(config=config).successful
    instance = {"table_store": {"class": "sql", "args": {"url": postgres_url, "schema_prefix": schema_prefix + "{instance_id}_"}}}
    (tmp_path / "pipedag.yaml").write_text(json.dumps({"instances": {"full": instance}}))
    told = {command: CliRunner().invoke(app, [command, "features.selected", "--instance", "full"]) for command in ("sql", "show")}
    assert {command: result.exit_code for command, result in told.items()} == {"sql": 0, "show": 0}
    assert f"{schema_prefix}full_raw.load_0" in told["sql"].output.replace('"', "")
    assert sorted(ask(told["sql"].output)) == [(2, 4), (3, 6)]
    assert "2 rows" in told["show"].output


# --- servers, rights and connections ------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_lost_in_a_task_fails_its_step_and_the_next_run_goes_on(config, ask):
    calls = []

    @materialize(lazy=True)
    def query():
        calls.append(1)
        if len(calls) == 1:
            return sa.text(
                "SELECT pg_terminate_backend(pid) AS x FROM pg_stat_activity WHERE application_name LIKE 'pipedag%' AND pid = pg_backend_pid()"
            )
        return sa.text("SELECT 1 AS x")

    with Flow("f") as flow, Stage("s"):
        query()
    result = flow.run(config=config, fail_fast=False)
    assert not result.successful
    assert "connection was lost" in str(result.exception)
    assert flow.run(config=config).successful
    assert ask("SELECT x FROM {}s.query") == [(1,)]


def test_a_database_that_is_not_there_is_an_error_with_the_statement_or_is_made(make_config, postgres_url):
    name = f"db_{uuid.uuid4().hex[:8]}"
    url = url_with(postgres_url, database=name)
    with pytest.raises(PipedagError, match=f'CREATE DATABASE "{name}"'):
        make_flow()[0].run(config=make_config(url=url), fail_fast=True)
    try:
        assert make_flow()[0].run(config=make_config(url=url, create_database=True)).successful
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_a_missing_right_is_named_with_what_to_grant(make_config, postgres_url, role):
    url = url_with(postgres_url, user=f"{role}:secret")
    with pytest.raises(PipedagError, match="CREATE SCHEMA") as caught:
        make_flow()[0].run(config=make_config(url=url), fail_fast=True)
    assert "secret" not in str(caught.value)


def test_a_statement_that_takes_too_long_is_ended_and_told(make_config):
    @materialize(lazy=True)
    def slow():
        return sa.text("SELECT pg_sleep(60)::text AS x")

    with Flow("f") as flow, Stage("s"):
        slow()
    with pytest.raises(PipedagError, match="statement_timeout"):
        flow.run(config=make_config(statement_timeout="1s"), fail_fast=True)


def test_many_scripts_of_one_process_do_not_disturb_each_other(config, ask):
    with Flow("f") as flow, Stage("s"):
        for number in range(8):
            materialize(lambda number=number: RawSql(f"CREATE TABLE made_{number} AS SELECT {number} AS n"), name=f"t{number}", lazy=True)()
    assert set(outcomes(flow.run(config=config, fail_fast=True)).values()) == {"ran"}
    assert ask("SELECT n FROM {}s.made_7") == [(7,)]


def test_a_script_that_the_server_wants_to_be_tried_again_is_tried_again(config, ask):
    name = f"once_{uuid.uuid4().hex[:8]}"
    ask(
        f"CREATE SEQUENCE public.{name}; CREATE FUNCTION public.{name}_fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('public.{name}') = 1 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF; RETURN 1; END $$"
    )

    @materialize(lazy=True)
    def script():
        return RawSql(f"CREATE TABLE made AS SELECT public.{name}_fails() AS n")

    with Flow("f") as flow, Stage("s"):
        script()
    try:
        assert outcomes(flow.run(config=config, fail_fast=True)) == {"script": "ran"}
        assert ask("SELECT n FROM {}s.made") == [(1,)]
    finally:
        ask(f"DROP FUNCTION public.{name}_fails; DROP SEQUENCE public.{name}")


def test_connections_that_were_lost_while_idle_are_made_anew_however_many_they_were(config, ask):
    with Flow("f") as flow, Stage("s"):
        first = materialize(lambda: sa.text("SELECT 1 AS x"), name="first", lazy=True)
        first()
    with open_session(config) as session:
        database = session.tables._dialect.database
        held = [database.take("test") for _ in range(8)]
        for one in held:
            database.give_back(one)
        pids = {one.connection.info.backend_pid for one in held}
        ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid IN ({', '.join(map(str, pids))})")
        with session.tables.session("test") as access:
            made = access.write(QueryData("SELECT 1 AS x"), Target("s", 1, "made", "test"))
        session.tables.drop([made.location])
    assert flow.run(config=config, fail_fast=True).successful


@pytest.mark.parametrize("make", [sa.text, lambda query: RawSql(f"CREATE TABLE told AS {query}")], ids=["query", "script"])
def test_columns_that_differ_in_case_only_are_refused_as_in_the_other_stores(config, ask, make):
    @materialize(lazy=True, name="told")
    def told():
        return make('SELECT 1 AS a, 2 AS "A"')

    with Flow("f") as flow, Stage("s"):
        told()
    result = flow.run(config=config)
    assert isinstance(result.exception, PipedagError)
    assert "two columns named 'a' and 'A'" in str(result.exception)
    assert ask("SELECT count(*) FROM pg_tables WHERE starts_with(schemaname, '{}s__g')") == [(0,)]
