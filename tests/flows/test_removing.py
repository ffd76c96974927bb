"""`pipedag delete-schemas` and `pipedag clear-metadata`: what goes, what stays, and when they refuse."""

from __future__ import annotations

import duckdb
import polars as pl
import psycopg
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pipedag_core import Blob, Flow, Stage, Table, housekeeping, materialize
from pipedag_core.catalogs.owner import this_process
from pipedag_core.cli.app import app
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ConfigError, LeaseHeld, RunError
from pipedag_core.looking import stored_value
from pipedag_core.ports.catalogs import RunInfo


class Demo:
    """A flow: stage `raw` has a table and a blob, stage `mart` has the same table by pointing to it, and one made by SQL."""

    def __init__(self, config):
        self.config = config
        self.calls = []

    def flow(self, number=1):
        @materialize(version=str(number), nout=2)
        def source():
            self.calls.append("source")
            return Table(pl.DataFrame({"x": [number]}), "t"), Blob(number, "b")

        @materialize(version="1", input_type=sa.Table)
        def same(t):
            return Table(t, "same")

        @materialize(lazy=True, input_type=sa.Table)
        def double(t):
            self.calls.append("double")
            return sa.select((t.c.x * 2).label("x"))

        with Flow("demo") as flow:
            with Stage("raw"):
                table, _ = source()
            with Stage("mart"):
                same(table)
                double(table)
        return flow

    def run(self, number=1, *components):
        self.calls.clear()
        self.flow(number).run(*components, config=self.config, fail_fast=True)
        return list(self.calls)

    def names(self):
        """Return what the catalog shows."""
        with open_session(self.config) as session:
            return {stage: sorted(entries) for stage, entries in session.catalog.shown().items()}

    def deposits(self):
        with open_session(self.config) as session:
            return {(item.stage, item.generation) for item in (*session.tables.deposits(), *session.blobs.deposits())}

    def shows_only_what_is_current(self):
        with open_session(self.config) as session:
            shown = session.catalog.shown()
            tables = {s: {n: i for n, i in entries.items() if hasattr(i, "schema")} for s, entries in shown.items()}
            return session.tables.shows(tables)


@pytest.fixture
def demo(each_store):
    demo = Demo(each_store)
    demo.run(1)
    demo.run(2)
    return demo


def test_all_stages_go_with_their_data_and_the_next_run_makes_them_anew(demo):
    assert housekeeping.delete_stages(config=demo.config) >= 6
    assert (demo.names(), demo.deposits(), demo.shows_only_what_is_current()) == ({}, set(), True)
    assert demo.run(2) == ["source", "double"]
    assert demo.names() == {"raw": ["b", "t"], "mart": ["double", "same"]}
    assert stored_value("mart", "double", config=demo.config).to_pylist() == [{"x": 4}]
    with open_session(demo.config) as session:
        assert {row.number for row in session.catalog.generations()} == {3}
        assert len(session.catalog.runs()) == 3


def test_one_stage_goes_and_what_another_points_to_stays(demo):
    housekeeping.delete_stages(["Raw"], demo.config)
    assert demo.names() == {"mart": ["double", "same"]}
    assert stored_value("mart", "same", config=demo.config).to_pylist() == [{"x": 2}]
    assert demo.shows_only_what_is_current()
    housekeeping.delete_stages(["mart"], demo.config)
    assert demo.deposits() == set()


def test_what_other_people_made_stays(demo, store_kind, request):
    read = others(demo.config, store_kind, request)
    housekeeping.delete_stages(config=demo.config)
    housekeeping.clear_catalog(demo.config)
    housekeeping.clean_up(demo.config)
    assert read() == 7


def others(config, kind, request):
    """Put something of other people beside an instance, and return what reads it."""
    with open_session(config) as session:
        table, store = session.catalog.entries("raw", 1)["t"], session.tables
    if kind == "parquet":
        files = [store.base_path / "notes.txt", (store.base_path / table.location).parent / "notes.txt"]
        for file in files:
            file.write_text("7")
        return lambda: max(int(file.read_text()) for file in files)
    if kind == "duckdb":
        connect, schema = lambda: duckdb.connect(str(config.base_dir / "data" / "full.duckdb")), "theirs"
    else:
        url, schema = request.getfixturevalue("postgres_url"), f"{request.getfixturevalue('schema_prefix')}theirs"
        connect = lambda: psycopg.connect(url, autocommit=True)  # noqa: E731
    with connect() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"CREATE TABLE {schema}.t AS SELECT 7 AS x")

    def read():
        with connect() as connection:
            return connection.execute(f"SELECT x FROM {schema}.t").fetchone()[0]

    return read


@pytest.fixture
def at_work(demo):
    """A run at work that reads stage `mart`."""
    with open_session(demo.config) as session:
        session.catalog.begin_run(RunInfo("other", "f", "full", "d", "{}", this_process("another program"), 60.0))
        session.catalog.open_stages("other", ["z"], ["mart"], scratch=False)
        yield
        session.catalog.finish_run("other", "failed")


def test_a_run_at_work_is_not_disturbed(demo, at_work):
    before, there = demo.names(), demo.deposits()
    with pytest.raises(LeaseHeld, match="'mart' is used by another program"):
        housekeeping.delete_stages(["mart", "raw"], demo.config)
    with pytest.raises(LeaseHeld, match="run other"):
        housekeeping.clear_catalog(demo.config)
    assert (demo.names(), demo.deposits()) == (before, there)
    housekeeping.delete_stages(["raw"], demo.config)
    assert demo.names() == {"mart": ["double", "same"]}


def test_a_cleared_catalog_leaves_tables_readable_until_the_next_run_and_to_clean_up_after_that(demo):
    housekeeping.clear_catalog(demo.config)
    assert demo.names() == {}
    assert demo.deposits()
    assert demo.run(2) == ["source", "double"]
    assert demo.shows_only_what_is_current()
    assert stored_value("raw", "t", config=demo.config).to_pylist() == [{"x": 2}]
    with open_session(demo.config) as session:
        assert [row.number for row in session.catalog.generations()] == [3, 3]
        kept = {row.stored.location for row in session.catalog.objects()}
        from pipedag_core.catalogs.owner import lives
        from pipedag_core.run.doctor import remove_strays

        assert remove_strays(session, lives, grace_s=0.0) >= 6
        assert {item.location for item in (*session.tables.deposits(), *session.blobs.deposits())} == kept


def test_a_deletion_that_was_broken_off_is_brought_to_its_end_by_clean_up(demo):
    with open_session(demo.config) as session:
        session.catalog.forget_stages(["raw", "mart"])
    assert demo.names() == {}
    with open_session(demo.config) as session:
        from pipedag_core.catalogs.owner import lives
        from pipedag_core.run.doctor import mend

        assert mend(session, lives, grace_s=0.0).findings == []
    assert (demo.deposits(), demo.shows_only_what_is_current()) == (set(), True)
    assert demo.run(2) == ["source", "double"]


def test_nested_stages_go_together_only(config):
    @materialize(version="1")
    def one():
        return Table(pl.DataFrame({"x": [1]}), "t")

    with Flow("nest") as flow, Stage("outer"):
        one()
        with Stage("inner"):
            one()
    flow.run(config=config, fail_fast=True)
    with pytest.raises(RunError, match="'inner' cannot go alone: outer"):
        housekeeping.delete_stages(["inner"], config)
    assert housekeeping.delete_stages(["inner", "outer"], config) >= 1


def test_a_stage_that_is_not_there_is_named(config):
    Demo(config).run()
    with pytest.raises(ConfigError, match=r"nothing of a stage 'Rav'.*Did you mean raw"):
        housekeeping.delete_stages(["Rav"], config)


# --- the commands ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path, config):
    """Call a command on the instance of `config`."""
    text = f"instances: {{__any__: {{table_store: {{class: parquet, args: {{base_path: '{tmp_path}/store/{{instance_id}}'}}}}}}}}"
    (tmp_path / "pipedag.yaml").write_text(text)
    Demo(config).run()
    return lambda *args, **options: CliRunner().invoke(app, args, **options)


def test_the_command_shows_what_would_go_and_asks(cli, config):
    result = cli("delete-schemas", "raw", input="n\n")
    assert result.exit_code == 1
    lines = [line.split()[:5] for line in result.stdout.splitlines()]
    assert ["raw", "g1", "1", "1", "1"] in lines
    assert not any(line[:1] == ["mart"] for line in lines)
    assert cli("delete-schemas", input="").exit_code == 1
    assert Demo(config).names() == {"raw": ["b", "t"], "mart": ["double", "same"]}
    done = cli("delete-schemas", "raw", input="y\n")
    assert (done.exit_code, "1 stage removed, with 1 table or blob" in done.stdout) == (0, True), done.output
    assert Demo(config).names() == {"mart": ["double", "same"]}


def test_the_command_does_not_ask_with_yes_and_has_nothing_to_do_the_second_time(cli):
    assert cli("delete-schemas", "--yes").exit_code == 0
    again = cli("delete-schemas", "--yes")
    assert (again.exit_code, "nothing to remove" in again.stdout) == (0, True)
    assert cli("delete-schemas", "raw", "--yes").exit_code == 2


def test_the_metadata_are_cleared_after_a_yes(cli, config):
    assert cli("clear-metadata", input="n\n").exit_code == 1
    assert Demo(config).names() != {}
    done = cli("clear-metadata", input="y\n")
    assert (done.exit_code, "has forgotten everything" in done.stdout) == (0, True), done.output
    assert Demo(config).names() == {}
    assert "runs, newest first" in cli("status").stdout


def test_a_run_at_work_makes_the_commands_refuse(cli, config):
    with open_session(config) as session:
        session.catalog.begin_run(RunInfo("other", "f", "default", "d", "{}", this_process("another program"), 60.0))
        session.catalog.open_stages("other", ["raw"], [], scratch=False)
        for command in ("delete-schemas", "clear-metadata"):
            result = cli(command, "--yes")
            assert (result.exit_code, "another program" in result.stderr) == (1, True), result.output
        session.catalog.finish_run("other", "failed")


@pytest.mark.parametrize("command", ["delete-schemas", "clear-metadata"])
def test_an_instance_that_never_ran_is_wrong_usage(tmp_path, command):
    result = CliRunner().invoke(app, [command, "--yes"])
    assert (result.exit_code, "Nothing has run yet" in result.stderr) == (2, True)
