"""The SQLite catalog keeps the promises of all catalogs, and says what is wrong with a file."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipedag_core.catalogs.owner import is_gone, many_processes, this_process
from pipedag_core.catalogs.sqlite import SqliteCatalog
from pipedag_core.errors import CatalogError
from pipedag_core.testing.catalog_contract import CatalogContract
from pipedag_core.testing.catalog_lease_contract import owner_that_died
from pipedag_core.testing.catalog_samples import Worker, names


class TestSqliteCatalog(CatalogContract):
    @pytest.fixture
    def opener(self, tmp_path):
        return partial(SqliteCatalog, tmp_path / "folder" / "catalog.sqlite")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "catalog.sqlite"


def test_what_was_recorded_is_there_when_the_file_is_opened_again(path):
    first = SqliteCatalog(path)
    Worker(first, "a").begin().publish("s", t="o1")
    first.close()
    second = SqliteCatalog(str(path))
    assert names(second) == {"s": {"t": "o1"}}
    second.close()


def test_many_may_make_the_same_catalog_at_once(path):
    count = 8
    barrier = threading.Barrier(count)

    def make(_):
        barrier.wait()
        catalog = SqliteCatalog(path)
        catalog.close()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(make, range(count)))
    catalog = SqliteCatalog(path)
    assert names(catalog) == {}
    catalog.close()


def test_a_newer_catalog_is_refused_with_both_versions(path):
    SqliteCatalog(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '7'")
    connection.close()
    with pytest.raises(CatalogError, match=r"schema version 7.*knows version 3.*[Ii]nstall") as caught:
        SqliteCatalog(path)
    assert (caught.value.found, caught.value.known) == ("7", "3")


def as_the_first_version_left_it(path):
    """Take away what later versions added."""
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE objects DROP COLUMN seal")
        connection.execute("DROP TABLE run_notes")
        connection.execute("UPDATE meta SET value = '1'")
    connection.close()


def test_an_older_catalog_is_brought_up_to_date_with_all_that_it_holds(path):
    first = SqliteCatalog(path)
    Worker(first, "a").begin().publish("s", t="o1")
    first.close()
    as_the_first_version_left_it(path)
    with pytest.raises(CatalogError, match=r"older version.*next run"):
        SqliteCatalog(path, read_only=True).shown()
    second = SqliteCatalog(path)
    assert names(second) == {"s": {"t": "o1"}}
    assert second.shown()["s"]["t"].seal is None
    assert second.note("a", "name", "value") == "value"
    second.close()
    SqliteCatalog(path, read_only=True).close()


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused_with_its_path(path, content):
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite.*(not an SQLite database|damaged|could not be used)"):
        SqliteCatalog(path)


def test_a_database_of_somebody_else_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE meta (x)")
    connection.close()
    with pytest.raises(CatalogError, match="not a catalog"):
        SqliteCatalog(path)


def test_a_file_that_is_damaged_while_it_is_used_is_named(path):
    catalog = SqliteCatalog(path)
    worker = Worker(catalog, "a").begin()
    for number in range(20):
        worker.publish("s", t=f"o{number}")
    catalog.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * (size - 4096))
    with pytest.raises(CatalogError, match=r"catalog\.sqlite.*[Rr]estore it from a copy"):
        _ = SqliteCatalog(path).shown()


def test_a_closed_catalog_says_so(path):
    catalog = SqliteCatalog(path)
    catalog.close()
    catalog.close()
    with pytest.raises(CatalogError, match="is closed"):
        catalog.current("s")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CatalogError, match="folder"):
        SqliteCatalog(tmp_path / "file" / "catalog.sqlite")


def _commit_in_child(catalog, code):
    Worker(catalog, "child").begin().publish("s", t="of the child")
    catalog.close()
    code.value = 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_works_on_a_connection_of_its_own(path):
    catalog = SqliteCatalog(path)
    Worker(catalog, "parent").begin().publish("s", t="of the parent")
    context = multiprocessing.get_context("fork")
    code = context.Value("i", 0)
    child = context.Process(target=_commit_in_child, args=(catalog, code))
    child.start()
    child.join()
    assert (child.exitcode, code.value) == (0, 1)
    assert names(catalog) == {"s": {"t": "of the child"}}
    Worker(catalog, "parent").publish("s", t="of the parent again")
    catalog.close()


def test_this_process_is_not_gone_and_nothing_is_known_of_others():
    me = this_process("note")
    assert (me.pid, me.note) == (os.getpid(), "note")
    assert not is_gone(me)
    assert not is_gone(many_processes())
    dead = owner_that_died()
    assert is_gone(dead)
    assert not is_gone(replace(dead, host="elsewhere"))
    assert not is_gone(replace(dead, boot="another boot"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_id_that_was_given_again_is_not_the_same_process():
    assert is_gone(replace(this_process(), started="1"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_start_time_is_found_behind_a_command_with_brackets_and_spaces(tmp_path):
    command = tmp_path / "odd) S 1 ("
    command.symlink_to("/bin/sleep")
    pid = os.posix_spawn(command, [str(command), "60"], {})
    try:
        # The name is seen once the new program has begun.
        while b"odd)" not in Path(f"/proc/{pid}/stat").read_bytes():
            pass
        mine, its = int(this_process().started), Path(f"/proc/{pid}/stat").read_text().split()[-31]
        owner = replace(this_process(), pid=pid, started=its)
        assert int(its) >= mine
        assert not is_gone(owner)
    finally:
        os.kill(pid, 9)
    # Not yet waited for, it is still in the table of processes, but it is dead.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(owner)
    os.waitpid(pid, 0)
    assert is_gone(owner)
