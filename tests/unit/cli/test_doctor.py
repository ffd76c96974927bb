"""`pipedag doctor`: what it finds, what it mends, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest
from typer.testing import CliRunner

from pipedag_core import Blob, Flow, Stage, Table, materialize
from pipedag_core.catalogs.owner import lives, many_processes, this_process
from pipedag_core.cli.app import app
from pipedag_core.config.wire import open_session
from pipedag_core.ports.catalogs import Opened, Owner, RunInfo
from pipedag_core.run.doctor import Trouble, examine, mend, remove_strays


@materialize(version="1.0", nout=2)
def made(value):
    return Table(pl.DataFrame({"value": [value]}), "table"), Blob(value, "blob")


def make_flow(value=1):
    with Flow("f") as flow, Stage("s"):
        made(value)
    return flow


@pytest.fixture
def session(config):
    make_flow().run(config=config, fail_fast=True)
    with open_session(config) as session:
        yield session


@pytest.fixture
def doctor(tmp_path, session):
    """Call the command on the instance of `session`."""
    text = f"instances: {{__any__: {{table_store: {{class: parquet, args: {{base_path: '{tmp_path}/store/{{instance_id}}'}}}}}}}}"
    (tmp_path / "pipedag.yaml").write_text(text)
    return lambda *args: CliRunner().invoke(app, ["doctor", *args])


def dead_owner():
    """Return the owner that a process which has ended by now was."""
    code = "from pipedag_core.catalogs.owner import this_process as t; o = t(); print(o.pid, o.started)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid, started = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split()
    return replace(this_process("a dead program"), pid=int(pid), started=started)


def begin(session, owner, *, run_id="r", ttl_s=3600.0):
    session.catalog.begin_run(RunInfo(run_id, "f", "default", "digest", "{}", owner, ttl_s))
    opened = session.catalog.open_stages(run_id, ["s"], [], scratch=False)
    assert isinstance(opened, Opened)
    return opened.generations["s"]


def troubles(session, **options):
    return [(finding.trouble, finding.subject) for finding in examine(session, lives, **options).findings]


def test_nothing_is_wrong_with_a_healthy_instance(doctor):
    result = doctor()
    assert (result.exit_code, result.stdout) == (0, "instance default: nothing is wrong\n")
    assert doctor("--mend", "--grace", "0s").exit_code == 0


def test_an_instance_that_never_ran_is_wrong_usage(tmp_path):
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, "Nothing has run yet" in result.stderr) == (2, True)
    assert not (tmp_path / ".pipedag").exists()


def test_a_grace_that_is_no_time_is_wrong_usage(doctor):
    assert doctor("--grace", "soon").exit_code == 2


def test_a_run_whose_process_is_gone_is_found_and_its_lease_is_freed(doctor, session):
    begin(session, dead_owner())
    result = doctor()
    assert result.exit_code == 1
    assert "a dead program" in result.stdout
    assert "is gone" in result.stdout
    assert troubles(session) == [(Trouble.DEAD_RUN, "r"), (Trouble.LEFT_OPEN, "s g2")]
    mended = doctor("--mend")
    assert (mended.exit_code, "after mending: nothing is wrong" in mended.stdout) == (0, True)
    assert list(session.catalog.leases()) == []
    assert [row.state for row in session.catalog.runs() if row.info.run_id == "r"] == ["failed"]
    assert [row.state for row in session.catalog.generations()] == ["committed", "failed"]


@pytest.mark.parametrize(
    "owner", [this_process("at work"), many_processes("an orchestrator"), Owner("elsewhere", "boot", 7, "1", "theirs")]
)
def test_a_run_at_work_and_its_files_are_left_alone(doctor, session, owner):
    generation = begin(session, owner)
    with session.tables.session("writer") as access:
        hook = session.hooks.for_type(pl.DataFrame)
        location = write_past_the_catalog(access, hook, session, generation.number)
    shown = doctor("--grace", "0s", "--mend")
    assert (shown.exit_code, "held" in shown.stdout, owner.note in shown.stdout) == (0, True, True)
    assert location in {item.location for item in session.tables.deposits()}
    session.catalog.finish_run("r", "failed")
    assert troubles(session, grace_s=0) == [(Trouble.STRAY, location)]


@pytest.mark.parametrize("owner", [many_processes("an orchestrator"), Owner("elsewhere", "boot", 7, "1", "theirs")])
def test_a_run_that_nobody_renews_is_dead_once_its_time_is_over(session, owner):
    begin(session, owner, ttl_s=0.0)
    assert (Trouble.DEAD_RUN, "r") in troubles(session)
    assert [lease.state for lease in examine(session, lives).leases] == ["expired"]


def test_files_of_a_run_that_may_still_record_are_left_alone_until_it_counts_as_failed(session):
    generation = begin(session, many_processes("an orchestrator"), ttl_s=0.0)
    with session.tables.session("writer") as access:
        location = write_past_the_catalog(access, session.hooks.for_type(pl.DataFrame), session, generation.number)
    assert remove_strays(session, lives, grace_s=0) == 0
    assert location in {item.location for item in session.tables.deposits()}
    assert mend(session, lives, grace_s=0).findings == []
    assert location not in {item.location for item in session.tables.deposits()}


def test_a_slow_run_of_this_machine_is_not_dead_while_its_process_lives(session):
    begin(session, this_process("asleep"), ttl_s=0.0)
    assert troubles(session) == []


def write_past_the_catalog(access, hook, session, generation):
    """Write a table that is never recorded, and return its location."""
    from pipedag_core.ports.data import Target
    from pipedag_core.ports.hooks import WriteContext

    data = hook.write(pl.DataFrame({"x": [1]}), WriteContext(access, session.tables.capabilities, "s.t", ""))
    return access.write(data, Target("s", generation, "late", "t")).location


def test_stray_files_are_found_after_their_time_of_grace(doctor, session, store_folder):
    places = ["s/g1/table.a2.parquet", "gone/g7/%F0%9F%A6%86.parquet", "blobs/s/g1/x.pickle", "blobs/s/g9/y.a2.pickle"]
    for place in places:
        (store_folder / place).parent.mkdir(parents=True, exist_ok=True)
        (store_folder / place).write_bytes(b"lost")
    (store_folder / "notes.txt").write_text("mine")
    (store_folder / "s/g1/notes.txt").write_text("mine")
    assert troubles(session) == []
    assert doctor("--mend").exit_code == 0
    subjects = {place.removeprefix("blobs/") for place in places}
    assert set(troubles(session, grace_s=0)) == {(Trouble.STRAY, subject) for subject in subjects}
    for place in places:
        os.utime(store_folder / place, (1, 1))
    result = doctor("--mend")
    assert (result.exit_code, "(4 bytes)" in result.stdout) == (0, True)
    assert not any((store_folder / place).exists() for place in places)
    assert not (store_folder / "gone").exists()
    assert (store_folder / "notes.txt").exists()
    assert (store_folder / "s/g1/notes.txt").exists()
    assert examine(session, lives, grace_s=0).findings == []


def test_work_files_of_dead_processes_are_removed_unless_somebody_is_at_work(session, store_folder):
    (store_folder / ".overflow/12345").mkdir(parents=True)
    (store_folder / ".overflow/12345/rows.tmp").write_bytes(b"x")
    (store_folder / f".{'0' * 32}.duckdb").write_bytes(b"x")
    begin(session, this_process("at work"))
    assert troubles(session, grace_s=0) == []
    session.catalog.finish_run("r", "failed")
    assert len(troubles(session, grace_s=0)) == 2
    assert mend(session, lives, grace_s=0).findings == []
    assert not (store_folder / ".overflow/12345").exists()


def test_gc_removes_old_stray_files_too(doctor, session, store_folder):
    stray = store_folder / "s/g1/stray.parquet"
    stray.write_bytes(b"")
    assert "0 tables and blobs" in CliRunner().invoke(app, ["gc"]).stdout
    os.utime(stray, (1, 1))
    assert "1 table or blob" in CliRunner().invoke(app, ["gc"]).stdout
    assert not stray.exists()


@pytest.mark.parametrize("place", ["s/g1/table.parquet", "blobs/s/g1/blob.pickle"])
def test_damage_to_what_is_current_is_named_and_comes_back_with_the_next_run(config, doctor, session, store_folder, place):
    (store_folder / place).write_bytes(b"cut short")
    name = "s.table" if "table" in place else "s.blob"
    assert troubles(session) == [(Trouble.DAMAGED, name)]
    for mending in ([], ["--mend"]):
        result = doctor(*mending)
        assert result.exit_code == 1
        assert name in result.stdout
        assert "the next run makes it again" in result.stdout
    make_flow().run(config=config, fail_fast=True)
    assert doctor("--mend").exit_code == 0


def test_damage_to_what_is_only_retained_is_struck(config, doctor, session, store_folder):
    make_flow(2).run(config=config, fail_fast=True)
    (store_folder / "s/g1/table.parquet").unlink()
    assert troubles(session) == [(Trouble.MISSING, "s.table g1")]
    assert doctor().exit_code == 1
    assert doctor("--mend").exit_code == 0
    assert doctor().exit_code == 0


def test_readable_names_that_are_missing_or_old_are_refreshed(doctor, session, store_folder):
    explore = store_folder / "explore.duckdb"
    for damage in (explore.unlink, lambda: explore.write_bytes(b"")):
        damage()
        assert troubles(session) == [(Trouble.NAMES, "readable names")]
        assert doctor().exit_code == 1
        assert doctor("--mend").exit_code == 0
        assert explore.stat().st_size > 0
