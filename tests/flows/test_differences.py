"""`pipedag diff`: what differs between generations and instances, on every store."""

from __future__ import annotations

import json

import polars as pl
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pipedag_core import Blob, Flow, PipedagConfig, RawSql, Stage, Table, materialize
from pipedag_core.cli.app import app
from pipedag_core.comparing import compare_generations, compare_instances
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ConfigError, RunError
from pipedag_core.ports.data import RowDifference
from pipedag_core.run.differing import ColumnDifference, TableDifference

FIRST = {"id": [1, 2, 3], "x": [1.0, 2.0, 3.0], "s": ["a", "b", "c"]}
SECOND = {"id": [2, 3, 4], "x": [2.0, 9.0, 4.0], "s": ["b", "c", "d"]}


def run(config, columns, *, version="1", more=False, key="id", **options):
    """Run a flow: stage `raw` has a table with a key, one without and a blob; stage `mart` doubles a number by SQL."""

    @materialize(version=version, nout=3)
    def source():
        frame = pl.DataFrame(columns)
        return Table(frame, "keyed", primary_key=key, **options), Table(frame, "keyless"), Blob(columns["id"], "blob")

    @materialize(lazy=True, input_type=sa.Table)
    def doubled(keyed):
        return sa.select(keyed.c.id, (keyed.c.x * 2).label("x2"))

    @materialize(version="1")
    def another():
        return Table(pl.DataFrame({"y": [1]}), "another")

    with Flow("f") as flow:
        with Stage("raw"):
            keyed, _, _ = source()
        with Stage("mart"):
            doubled(keyed)
            if more:
                another()
    result = flow.run(config=config, fail_fast=True)
    assert result.successful


def tables(found):
    return {f"{table.stage}.{table.name}": table for table in found.tables}


def test_rows_columns_and_tasks_of_two_generations(each_store):
    run(each_store, FIRST)
    run(each_store, SECOND, version="2", more=True)
    found = compare_generations(config=each_store)
    assert found.generations == {"raw": (1, 2), "mart": (1, 2)}
    assert [(task.task, task.change, task.why) for task in sorted(found.tasks, key=lambda task: (task.stage, task.task))] == [
        ("another", "new", ""),
        ("doubled", "changed", "input keyed changed"),
        ("source", "changed", "version 1 -> 2"),
    ]
    by_name = tables(found)
    assert by_name["raw.keyed"] == TableDifference("raw", "keyed", "changed", (3, 3), key=("id",), rows=RowDifference(1, 1, 1, {"x": 1}))
    assert by_name["raw.keyless"] == TableDifference("raw", "keyless", "changed", (3, 3), rows=RowDifference(2, 2))
    assert by_name["raw.blob"].note.startswith("a blob of ")
    assert by_name["mart.doubled"].rows == RowDifference(2, 2)
    assert by_name["mart.another"] == TableDifference("mart", "another", "new", (None, 1))
    assert found.same == 0


def test_what_is_the_same_does_not_show_and_its_rows_are_not_read(each_store):
    run(each_store, FIRST)
    run(each_store, FIRST, version="2", more=True)
    with open_session(each_store) as session:
        session.tables.drop([session.catalog.entries("mart", 2)["doubled"].location])
    found = compare_generations(["mart"], config=each_store)
    assert (list(tables(found)), found.same) == (["mart.another"], 1)


def test_equal_rows_that_only_a_look_at_them_shows_to_be_equal_are_the_same(each_store):
    run(each_store, FIRST)
    run(each_store, {name: values[::-1] for name, values in FIRST.items()}, version="2")
    found = compare_generations(["raw", "mart"], config=each_store)
    assert list(tables(found)) == ["raw.blob"]
    assert {task.task: task.why for task in found.tasks} == {"source": "version 1 -> 2", "doubled": "input keyed changed"}


def test_columns_that_come_go_or_change_their_type_are_told_and_the_rest_is_compared(each_store):
    run(each_store, FIRST)
    run(each_store, {"id": [1, 2, 3], "x": [1.0, 2.0, 3.5], "s": [1, 2, 3], "n": [None, True, False]}, version="2")
    table = tables(compare_generations(["raw.keyed"], config=each_store))["raw.keyed"]
    told = {item.name: item for item in table.columns}
    assert told["n"] == ColumnDifference("n", "", "bool")
    assert "string" in told["s"].before
    assert told["s"].after == "int64"
    assert (table.rows, table.note) == (RowDifference(0, 0, 1, {"x": 1}), "not compared: s")


def test_another_key_is_told_and_rows_are_compared_as_wholes(each_store):
    run(each_store, FIRST)
    run(each_store, FIRST, version="2", key=("id", "s"), indexes=[["x"]])
    table = tables(compare_generations(["raw"], config=each_store))["raw.keyed"]
    assert table.options == ("primary key id -> id, s", "indexes none -> (x)")
    assert (table.key, table.rows) == ((), RowDifference(0, 0))


def test_two_instances_are_compared_by_what_each_has_committed(make_store):
    one, other = make_store("full"), make_store("mini")
    run(one, FIRST)
    run(other, SECOND)
    found = compare_instances(one, other)
    assert found.generations == {"raw": (1, 1), "mart": (1, 1)}
    assert tables(found)["raw.keyed"].rows == RowDifference(1, 1, 1, {"x": 1})
    assert tables(found)["mart.doubled"].rows == RowDifference(2, 2)
    assert {task.task for task in found.tasks} <= {"doubled"}


def test_instances_on_different_stores_are_compared_through_files(config, tmp_path):
    url = f"duckdb:///{tmp_path}/data/{{instance_id}}.duckdb"
    elsewhere = PipedagConfig(
        {
            "instances": {
                "mini": {
                    "table_store": {"class": "sql", "args": {"url": url}},
                    "blob_store": {"class": "file", "args": {"base_path": str(tmp_path / "blobs" / "{instance_id}")}},
                }
            }
        }
    ).get("mini")
    run(config, FIRST)
    run(elsewhere, SECOND)
    for one, other, difference in (
        (config, elsewhere, RowDifference(1, 1, 1, {"x": 1})),
        (elsewhere, config, RowDifference(1, 1, 1, {"x": 1})),
    ):
        assert tables(compare_instances(one, other, ["raw"]))["raw.keyed"].rows == difference
    assert not list(tmp_path.glob("pipedag-diff-*"))


def test_any_two_generations_of_one_stage_can_be_named(config):
    for version, columns in (("1", FIRST), ("2", SECOND), ("3", FIRST)):
        run(config, columns, version=version)
    assert compare_generations(["raw"], before=1, after=3, config=config).tables == ()
    assert compare_generations(["RAW"], before=3, after=2, config=config).generations == {"raw": (3, 2)}
    assert compare_generations(["raw"], after=2, config=config).generations == {"raw": (1, 2)}


def test_a_generation_that_failed_can_be_compared(config):
    run(config, FIRST)

    @materialize(version="2", nout=3)
    def source():
        return Table(pl.DataFrame(SECOND), "keyed", primary_key="id"), Table(pl.DataFrame(SECOND), "keyless"), Blob([1], "blob")

    @materialize
    def fails():
        raise ValueError

    with Flow("f") as flow, Stage("raw"):
        source()
        fails()
    assert not flow.run(config=config).successful
    found = compare_generations(["raw.keyed"], before=1, after=2, config=config)
    assert tables(found)["raw.keyed"].rows == RowDifference(1, 1, 1, {"x": 1})


def test_a_table_whose_data_is_gone_is_told_and_the_rest_is_compared(each_store):
    run(each_store, FIRST)
    run(each_store, SECOND, version="2")
    with open_session(each_store) as session:
        session.tables.drop([session.catalog.entries("raw", 1)["keyed"].location])
    found = tables(compare_generations(["raw"], config=each_store))
    assert found["raw.keyed"].rows is None
    assert "raw.keyed cannot be read" in found["raw.keyed"].note
    assert found["raw.keyless"].rows == RowDifference(2, 2)


def test_tables_of_a_script_are_compared(each_store):
    def script(value):
        @materialize(version=str(value))
        def made():
            return RawSql(f"CREATE TABLE raw.t AS SELECT {value} AS x")

        with Flow("f") as flow, Stage("raw"):
            made()
        flow.run(config=each_store, fail_fast=True)

    script(1)
    script(2)
    assert tables(compare_generations(config=each_store))["raw.t"].rows == RowDifference(1, 1)


def test_what_is_not_there_is_refused_with_what_is(config):
    run(config, FIRST)
    with pytest.raises(RunError, match=r"'raw'.*no committed generation before 1.*Kept are: 1"):
        compare_generations(["raw"], config=config)
    assert compare_generations(config=config).generations == {}
    with pytest.raises(ConfigError, match="Did you mean raw"):
        compare_generations(["rav"], config=config)
    with pytest.raises(ConfigError, match=r"no table 'keyedd'.*Did you mean keyed"):
        compare_generations(["raw.keyedd"], config=config)
    with pytest.raises(ConfigError, match="name one stage"):
        compare_generations(after=1, config=config)
    with pytest.raises(RunError, match="no generation 7"):
        compare_generations(["raw"], before=7, config=config)


@pytest.fixture
def cli(tmp_path):
    """Call the command on instances below the test's folder."""
    text = (
        f"instances: {{__any__: {{table_store: {{class: parquet, args: {{base_path: '{tmp_path}/store/{{instance_id}}'}}}}}}, mini: {{}}}}"
    )
    (tmp_path / "pipedag.yaml").write_text(text)
    return lambda *args: CliRunner().invoke(app, ["diff", *args])


def test_the_command_shows_all_of_it_and_ends_with_1(config, cli):
    run(config, FIRST)
    run(config, SECOND, version="2")
    result = cli("--instance", "default")
    assert result.exit_code == 1, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "raw 1 2" in lines
    assert "raw.source changed version 1 -> 2" in lines
    assert "raw.keyed changed 3 1 1 1 id" in lines
    assert "raw.keyless changed 3 2 2 whole rows" in lines
    assert "raw.keyed.x other values in 1 row" in lines
    read = json.loads(cli("--instance", "default", "raw.keyed", "--json").stdout)
    assert read["tables"][0]["rows"] == {"added": 1, "removed": 1, "changed": 1, "columns": {"x": 1}}
    assert "rows were not compared" in cli("--instance", "default", "--no-rows").stdout


def test_the_command_ends_with_0_if_nothing_differs(config, cli):
    run(config, FIRST)
    run(config.evolve(instance_name="mini", instance_id="mini"), FIRST)
    same = cli("-i", "default", "--against", "default")
    assert (same.exit_code, "nothing differs; 4 tables and blobs the same" in same.stdout) == (0, True), same.output


def test_an_instance_that_never_ran_is_wrong_usage(config, cli):
    assert cli("-i", "mini").exit_code == 2
    run(config, FIRST)
    result = cli("-i", "default", "--against", "mini")
    assert (result.exit_code, "Nothing has run yet in instance 'mini'" in result.stderr) == (2, True)
    assert cli("-i", "default", "--against", "mini", "--from", "1").exit_code == 2
