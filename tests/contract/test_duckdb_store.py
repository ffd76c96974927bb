from __future__ import annotations

import subprocess
import sys
from functools import partial

import duckdb
import pyarrow as pa
import pytest

from pipedag_core.errors import ConfigError, MaterializationError, StoreError
from pipedag_core.ports.data import BatchData, Form, QueryData
from pipedag_core.stores.sql_store import SqlStore
from pipedag_core.testing.table_store_contract import TableStoreContract
from pipedag_core.testing.table_store_samples import keep, rows


class TestDuckdbStore(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = SqlStore("duckdb:///data/tables.duckdb", base_dir=tmp_path)
        yield store
        store.close()

    @pytest.fixture
    def make_external(self, tmp_path):
        return partial(_make_external, tmp_path / "data" / "tables.duckdb")


class TestDuckdbStoreWithAStrangePrefix(TableStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        store = SqlStore(f'duckdb:///{tmp_path}/it\'s a "file".db', schema_prefix="It's\"a;", schema_suffix="-ß")
        yield store
        store.close()

    @pytest.fixture
    def make_external(self, tmp_path):
        return partial(_make_external, tmp_path / 'it\'s a "file".db', "view")


def _make_external(path, kind, table=None):
    kind, table = ("table", kind) if table is None else (kind, table)
    path.parent.mkdir(exist_ok=True)
    with duckdb.connect(path) as connection:
        connection.register("rows", table)
        connection.execute("CREATE SCHEMA theirs")
        connection.execute('CREATE TABLE theirs."Table" AS FROM rows')
        if kind == "view":
            connection.execute('CREATE VIEW theirs."View of it" AS FROM theirs."Table"')
    return "theirs", "View of it" if kind == "view" else "Table"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tables.duckdb"


@pytest.fixture
def store(path):
    store = SqlStore(f"duckdb:///{path}", file_wait=0.3)
    yield store
    store.close()


def test_the_file_is_free_between_actions_and_people_find_readable_names_in_it(store, path):
    with store.session("f.t") as session:
        stored = keep(session, BatchData(lambda: pa.table({"i": [1, 2]}), in_memory=True))
        with duckdb.connect(path) as other:
            assert other.execute("SELECT count(*) FROM raw__g1.t").fetchall() == [(2,)]
        assert [row["i"] for row in rows(session, stored)] == [1, 2]
        store.show({"raw": {"readable": stored}})
        with duckdb.connect(path, read_only=True) as other:
            assert other.execute("SELECT i FROM raw.readable ORDER BY i").fetchall() == [(1,), (2,)]


def test_another_process_that_holds_the_file_is_waited_for(store, path):
    with store.session("f.t") as session:
        keep(session, QueryData("SELECT 1 AS a"))
        with _held_elsewhere(path, 0.2):
            keep(session, QueryData("SELECT 2 AS a"))


def test_one_that_keeps_it_is_named_with_what_to_do(store, path):
    with store.session("f.t") as session:
        keep(session, QueryData("SELECT 1 AS a"))
        with _held_elsewhere(path, 60, read_only=True) as process:
            with pytest.raises(StoreError, match=rf"process {process.pid}.*file_wait.*parquet.*PostgreSQL"):
                keep(session, QueryData("SELECT 2 AS a"))
            process.kill()
        with duckdb.connect(path), pytest.raises(StoreError, match="another connection of this process"):
            keep(session, QueryData("SELECT 2 AS a"))
        keep(session, QueryData("SELECT 2 AS a"))


def _held_elsewhere(path, seconds, *, read_only=False):
    code = (
        f"import duckdb, time; c = duckdb.connect({str(path)!r}, read_only={read_only}); print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_processes_take_turns(path):
    code = (
        "import sys; from pipedag_core.stores.sql_store import SqlStore; from pipedag_core.ports.data import QueryData;"
        "from pipedag_core.testing.table_store_samples import keep\n"
        f"store = SqlStore('duckdb:///{path}')\n"
        "for number in range(10):\n"
        "    with store.session('f.t') as session: keep(session, QueryData(f'SELECT {number} AS a'), f't{sys.argv[1]}')\n"
        "store.close()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    store = SqlStore(f"duckdb:///{path}")
    assert len(store.deposits()) == 30
    store.close()


_TYPES = {
    "integers": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array([0.5, None], pa.float16()),
    "large text": pa.array(["ä", None], pa.large_string()),
    "text view": pa.array(["ä", None], pa.string_view()),
    "bytes": pa.array([b"\x00a", None]),
    "fixed bytes": pa.array([b"abc", None], pa.binary(3)),
    "date64": pa.array([86_400_000, None], pa.date64()),
    "seconds": pa.array([1, None], pa.timestamp("s")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "zone": pa.array([1, None], pa.timestamp("ms", "Europe/Berlin")),
    "zone in nanoseconds": pa.array([1, None], pa.timestamp("ns", "Asia/Tokyo")),
    "time32": pa.array([1, None], pa.time32("s")),
    "time in nanoseconds": pa.array([1, None], pa.time64("ns")),
    "duration": pa.array([-1, None], pa.duration("ns")),
    "decimal": pa.array([None, 1], pa.decimal128(38, 10)),
    "small decimal": pa.array([None, 1], pa.decimal32(5, 2)),
    "list": pa.array([[1, None], None, []][:2], pa.list_(pa.int8())),
    "large list": pa.array([["a"], None], pa.large_list(pa.large_string())),
    "array": pa.array([[1.0, None], None], pa.list_(pa.float32(), 2)),
    "struct": pa.array(
        [{"a": 1, "b": [{"c": "x"}]}, None], pa.struct([("a", pa.int8()), ("b", pa.list_(pa.struct([("c", pa.string())])))])
    ),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "categories": pa.array(["b", None]).dictionary_encode(),
    "nothing": pa.nulls(2),
    "uuid": pa.array([b"0123456789abcdef", None], pa.uuid()),
    "not a number": pa.array([float("nan"), float("-inf")]),
    "text with a null character": pa.array(["a\x00b", ""]),
    "early date": pa.array([-700_000, 2_000_000], pa.date32()),
}


@pytest.mark.parametrize("name", _TYPES)
def test_arrow_types_come_back_as_they_were(store, name):
    table = pa.table({"i": [1, 2], "x": _TYPES[name]})
    with store.session("f.t") as session:
        stored = keep(session, BatchData(lambda: table, in_memory=True), hash_content=True)
        found = pa.table(pa.RecordBatchReader.from_stream(session.read(stored, Form.BATCHES).stream).read_all())
    assert found.schema == table.schema
    # Not a number is not equal to itself, but is written in the same way.
    assert str(found.to_pydict()) == str(table.to_pydict())


@pytest.mark.parametrize("column", [pa.array([1], pa.decimal256(40, 0)), pa.nulls(1, pa.list_view(pa.int64()))])
def test_types_that_would_change_are_refused_with_the_column(store, column):
    with store.session("f.t") as session, pytest.raises(MaterializationError, match=r"'x'.*DuckDB file.*Cast"):
        keep(session, BatchData(lambda: pa.table({"x": column}), in_memory=True))


def test_arguments_of_other_databases_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"duckdb database takes no commit_wait.*file_wait"):
        SqlStore("duckdb:///x.duckdb", commit_wait=1)
    with pytest.raises(ConfigError, match=r"postgresql database takes no threads.*commit_wait"):
        SqlStore("postgresql://localhost/x", threads=1)
    with pytest.raises(ConfigError, match="duckdb:///path"):
        SqlStore("duckdb://")


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path):
    file = tmp_path / "x.duckdb"
    file.write_text("no database" * 1000)
    store = SqlStore(f"duckdb:///{file}")
    with store.session("f.t") as session, pytest.raises(StoreError, match="could not be opened"):
        keep(session, QueryData("SELECT 1 AS a"))
    store.close()
