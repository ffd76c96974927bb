"""`take_over`: a run takes a stage away from another one, which then can change nothing any more."""

from __future__ import annotations

import json
import logging
import sys
import threading

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipedag_core import Flow, Stage, Table, execute, materialize
from pipedag_core.catalogs.owner import this_process
from pipedag_core.cli.app import app
from pipedag_core.config.wire import open_session
from pipedag_core.errors import LeaseLost
from pipedag_core.looking import stored_value
from pipedag_core.ports.catalogs import Opened, RunInfo
from pipedag_core.ports.events import Outcome


def make_flow(number, wait=lambda: None):
    @materialize(version=str(number))
    def table():
        wait()
        return Table(pa.table({"x": [number]}), "t")

    with Flow("f") as flow, Stage("s"):
        table()
    return flow


def test_the_run_that_takes_over_commits_and_the_other_one_fails(each_store, caplog):
    begun, go_on = threading.Event(), threading.Event()
    results = []

    def wait():
        begun.set()
        assert go_on.wait(60)

    first = threading.Thread(target=lambda: results.append(make_flow(1, wait).run(config=each_store)))
    first.start()
    try:
        assert begun.wait(60)
        with caplog.at_level(logging.WARNING, "pipedag_core.run"):
            assert make_flow(2).run(config=each_store, take_over=True, fail_fast=True).successful
        assert stored_value("s", "t", config=each_store).to_pylist() == [{"x": 2}]
    finally:
        go_on.set()
        first.join()
    assert any("takes stage s over from flow f" in record.getMessage() for record in caplog.records)
    assert isinstance(results[0].exception, LeaseLost)
    assert stored_value("s", "t", config=each_store).to_pylist() == [{"x": 2}]
    assert make_flow(1).run(config=each_store, fail_fast=True).successful


@pytest.fixture
def held(config):
    """Another run that is at work holds stage `s`."""
    with open_session(config) as session:
        session.catalog.begin_run(RunInfo("other", "f", "default", "d", "{}", this_process("another program"), 600.0))
        assert isinstance(session.catalog.open_stages("other", ["s"], [], scratch=False), Opened)
        yield session.catalog


def test_a_step_takes_over_what_it_opens(config, held):
    flow = make_flow(1)
    plan = flow.plan()
    assert execute(plan, "open:s", run_id="r", flow=flow, config=config).outcome is Outcome.WAITING
    assert execute(plan, "open:s", run_id="r", flow=flow, config=config, take_over=True).outcome is Outcome.OPENED
    assert [lease.run_id for lease in held.leases()] == ["r"]
    for step in ("task:s.table", "commit:s", "finish"):
        assert execute(plan, step, run_id="r", flow=flow, config=config).outcome.is_good


def test_where_nobody_holds_anything_it_changes_nothing(config, caplog):
    with caplog.at_level(logging.WARNING, "pipedag_core.run"):
        assert make_flow(1).run(config=config, take_over=True, fail_fast=True).successful
    assert not caplog.records


CODE = """
import pyarrow as pa
from pipedag_core import Flow, Stage, Table, materialize

@materialize(version="1")
def table():
    return Table(pa.table({"x": [1]}), "t")

with Flow("f") as flow, Stage("s"):
    table()
"""


@pytest.fixture
def cli(tmp_path):
    """Call a command beside a flow in `taken.py`, on the instance of `config`."""
    (tmp_path / "taken.py").write_text(CODE)
    text = f"instances: {{__any__: {{table_store: {{class: parquet, args: {{base_path: '{tmp_path}/store/{{instance_id}}'}}}}, lease_wait: 0s}}}}"
    (tmp_path / "pipedag.yaml").write_text(text)
    before, path = set(sys.modules), list(sys.path)
    yield lambda *args: CliRunner().invoke(app, args)
    for name in set(sys.modules) - before:
        if name.startswith("pipedag_flow_"):
            del sys.modules[name]
    sys.path[:] = path


def test_the_command_that_waits_in_vain_names_the_option_and_with_it_runs(cli, held):
    refused = cli("run", "taken.py:flow")
    assert (refused.exit_code, "--take-over" in refused.stderr) == (1, True), refused.output
    done = cli("run", "taken.py:flow", "--take-over")
    assert done.exit_code == 0, done.output
    assert [row.run_id for row in held.generations() if row.current] != ["other"]


def test_the_command_of_a_step_takes_over_too(cli, held):
    assert cli("step", "taken.py:flow", "open:s", "--run-id", "r").exit_code == 75
    done = cli("step", "taken.py:flow", "stage:s", "--run-id", "r", "--take-over")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "committed"
