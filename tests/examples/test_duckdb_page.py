"""The configuration that docs/duckdb.md shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pyarrow as pa

from pipedag_core import Flow, PipedagConfig, Stage, materialize

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_page_runs(tmp_path):
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "duckdb.md").read_text(), re.DOTALL)
    (tmp_path / "pipedag.yaml").write_text(text)

    @materialize(version="1")
    def numbers():
        return pa.table({"i": [1, 2, 3]})

    with Flow("f") as flow, Stage("features"):
        numbers()
    assert flow.run(config=PipedagConfig(tmp_path / "pipedag.yaml").get("full")).successful
    with duckdb.connect(tmp_path / "data" / "full.duckdb", read_only=True) as connection:
        assert connection.execute("SELECT sum(i) FROM features.numbers").fetchall() == [(6,)]
    assert (tmp_path / "data" / "full.duckdb.catalog.sqlite").exists()
