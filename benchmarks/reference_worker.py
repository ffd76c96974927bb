"""Measures the reference library, in its own environment: `reference.py` starts this with that environment's Python and reads the JSON it prints."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pydiverse.pipedag as dag
import sqlalchemy as sa
import structlog
from pydiverse.pipedag.core.config import create_basic_pipedag_config
from timing import Stopwatch, in_turns, interpreter


@dag.materialize(lazy=True)
def first() -> Any:
    """A small table."""
    return sa.text("SELECT range AS id, range * 2 AS value FROM range(100)")


@dag.materialize(lazy=True, input_type=sa.Table)
def following(table: sa.Alias, step: int) -> Any:
    """Another one, made from it."""
    return sa.select(table.c.id, (table.c.value + step).label("value")).where(table.c.id >= 0)


def chain(stages: int, tasks: int) -> dag.Flow:
    """Wire `stages` x `tasks` tasks, each reading the one before."""
    with dag.Flow("chain") as flow:
        table = None
        for stage in range(stages):
            with dag.Stage(f"stage_{stage}"):
                for task in range(tasks):
                    table = first() if table is None else following(table, stage * tasks + task)
    return flow


def main() -> None:
    """Measure, and print medians and samples in seconds."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--stages", type=int, required=True)
    arguments.add_argument("--tasks", type=int, required=True)
    arguments.add_argument("--repeats", type=int, required=True)
    arguments.add_argument("--import-repeats", type=int, required=True)
    options = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    fresh: list[float] = []
    cached: list[float] = []
    for turn in range(options.repeats + 1):
        # The first turn is a short one that only loads what is loaded late.
        stages, tasks = (options.stages, options.tasks) if turn else (1, 2)
        with tempfile.TemporaryDirectory() as folder:
            config = create_basic_pipedag_config(f"duckdb:///{Path(folder) / 'db.duckdb'}", disable_stage_locking=True).get("default")
            for seconds in (fresh, cached):
                watch = Stopwatch()
                with watch:
                    result = chain(stages, tasks).run(config=config)
                if not result.successful:
                    raise RuntimeError("The reference library's run failed.")
                if turn:
                    seconds.append(watch.seconds)
    imports = in_turns({"bare": interpreter("pass"), "import": interpreter("import pydiverse.pipedag")}, options.import_repeats)
    print(json.dumps({"fresh": fresh, "cached": cached} | {name: timing.seconds for name, timing in imports.items()}))


if __name__ == "__main__":
    main()
