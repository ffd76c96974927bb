"""`pipedag extract`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipedag_core import ProductionFlow
from pipedag_core.cli.app import app
from tests.flows.production import delays

FLOW = f"{delays.__name__}:make"


@pytest.fixture
def command():
    def run(*words):
        return CliRunner().invoke(app, [*words])

    return run


def test_a_bundle_is_extracted_verified_and_written(command, tmp_path, inputs):
    assert command("run", FLOW).exit_code == 0
    told = command("extract", FLOW, "-o", "bundle", "--verify")
    assert told.exit_code == 0, told.output
    assert "equal: predict (6 rows)" in told.output
    assert "written: bundle" in told.output
    assert ProductionFlow.load(tmp_path / "bundle").run(inputs).shape == (6, 2)


def test_before_training_nothing_is_extracted_and_the_command_that_helps_is_named(command, tmp_path):
    told = command("extract", FLOW, "-o", "bundle", "--instance", "default")
    assert told.exit_code == 1
    assert f"pipedag run {FLOW} --instance default" in told.output
    assert not (tmp_path / "bundle").exists()


def test_a_factory_without_a_specification_is_refused(command, tmp_path):
    (tmp_path / "only_flow.py").write_text(
        "from pipedag_core import Flow, Stage, materialize\n@materialize\ndef t(): return 1\ndef make():\n"
        "    with Flow('f') as flow:\n        with Stage('s'): t()\n    return flow\n"
    )
    told = command("extract", "only_flow.py:make", "-o", "bundle")
    assert told.exit_code == 2
    assert "InOutSpecification" in told.output


def test_code_of_a_file_goes_into_the_bundle(command, tmp_path):
    (tmp_path / "alone.py").write_text(Path(delays.__file__).read_text("utf-8"))
    assert command("run", "alone.py:make").exit_code == 0
    told = command("extract", "alone.py:make", "-o", "bundle")
    assert told.exit_code == 1
    assert "code='package'" in told.output
    assert command("extract", "alone.py:make", "-o", "bundle", "--code", "package").exit_code == 0
    assert (tmp_path / "bundle" / "code" / "pipedag_flow_alone.py").is_file()


def test_a_bundle_scores_files_and_tables_into_a_file(command, tmp_path, inputs):
    import json

    import polars as pl

    assert command("run", FLOW).exit_code == 0
    assert command("extract", FLOW, "-o", "bundle").exit_code == 0
    two = inputs["clean"]["flights"].filter(pl.col("id") < 3)
    two.write_parquet(tmp_path / "flights.parquet")
    words = ["score", "bundle", "--input", "clean.flights=flights.parquet", "--input", "clean.places=table:cleaned.places"]
    told = command(*words, "--output", "predict=out/day=1/scores.parquet", "--instance", "default")
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["outputs"] == {"predict": len(two)}
    found = pl.read_parquet(tmp_path / "out" / "day=1" / "scores.parquet", hive_partitioning=False)
    assert sorted(found["id"]) == sorted(two["id"])
    # Once more for the same day, by another kind of file: it takes the place of what was there.
    assert command(*words, "--output", "predict=out/day=1/scores.parquet").exit_code == 0
    assert [path.name for path in (tmp_path / "out" / "day=1").iterdir()] == ["scores.parquet"]
    assert command(*words, "--output", "predict=scores.csv").exit_code == 0
    assert len(pl.read_csv(tmp_path / "scores.csv")) == len(two)


def test_scores_go_into_a_table_beside_what_its_stage_holds(command, inputs):
    import polars as pl

    from pipedag_core.looking import stored_value
    from pipedag_core.runner import put_table

    assert command("run", FLOW).exit_code == 0
    assert command("extract", FLOW, "-o", "bundle").exit_code == 0
    put_table("scores", "others", pl.DataFrame({"x": [1]}), instance="default")
    words = ["--input", "clean.flights=table:cleaned.flights", "--input", "clean.places=table:cleaned.places", "--instance", "default"]
    for _ in range(2):
        told = command("score", "bundle", *words, "--output", "predict=table:scores.late")
        assert told.exit_code == 0, told.output
    assert stored_value("scores", "late", pl.DataFrame).shape == (6, 2)
    assert stored_value("scores", "others", pl.DataFrame)["x"].to_list() == [1]


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (["--output", "predict=scores.xls"], ".parquet"),
        (["--output", "predict=table:scores"], "write table:STAGE.TABLE"),
        ([], "--output NAME=FILE"),
        (["--input", "clean.flights", "--output", "predict=a.csv"], "write NAME=PLACE"),
        (["--input", "clean.flights=none.parquet", "--output", "predict=a.csv"], "There is no file 'none.parquet'"),
        (["--input", "clean.places=table:cleaned.nothing", "--output", "predict=a.csv"], "no committed table 'cleaned.nothing'"),
        (["--output", "predict=a.csv"], "missing input"),
    ],
)
def test_places_that_cannot_be_are_refused_and_nothing_is_written(command, tmp_path, places, told):
    assert command("run", FLOW).exit_code == 0
    assert command("extract", FLOW, "-o", "bundle").exit_code == 0
    done = command("score", "bundle", *places)
    assert done.exit_code in (1, 2)
    assert told in done.output
    assert not list(tmp_path.glob("a.*"))
