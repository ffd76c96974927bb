"""What flows cost in Dagster: to load as definitions, and to materialize, beside what Dagster itself costs and the same flow costs without it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import Row, Stopwatch, Unavailable, in_turns, row

try:
    import dagster as dg
except ModuleNotFoundError:
    dg = None

from pipedag_core import ConfigContext, Flow, PipedagConfig, Plan, Stage, materialize

LOAD_STAGES, LOAD_TABLES = 10, 100
LOAD_LIMIT_TIMES = 1.2
RUN_STAGES, RUN_TABLES = 5, 20
RUN_LIMIT_TIMES, RUN_LIMIT_MS = 0.5, 8

#: Nothing of these may be there after definitions were loaded.
FRAMES = ("pandas", "polars", "pyarrow", "ibis", "duckdb", "numpy", "modin", "dask")

MANY = f"""
import polars as pl
from pipedag_core import Flow, Stage, materialize

@materialize(version="1.0", input_type=pl.DataFrame)
def combine(before, further, number) -> pl.DataFrame:
    \"\"\"Stands for any task; never called.\"\"\"

with Flow("many") as flow:
    earlier = [None, None]
    for stage in range({LOAD_STAGES}):
        with Stage(f"stage_{{stage}}"):
            for number in range({LOAD_TABLES}):
                earlier = [earlier[-1], combine(earlier[-1], earlier[-2], number)]
"""
CONFIG = "instances: {full: {instance_id: full}}\n"
#: Loads what a code location loads, and says which of the libraries are there then.
LOADED = """
import json, sys
from pipedag_dagster import build_definitions
build_definitions("many:flow", "full", config="pipedag.yaml").get_repository_def().load_all_definitions()
print(json.dumps(sorted(set({frames}) & set(sys.modules))))
"""


# --- loading ------------------------------------------------------------------------------------------------------------------------


@contextmanager
def project() -> Iterator[Path]:
    """Work in a folder with a flow of 1,000 tables whose plan is kept."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "many.py").write_text(MANY)
        (folder / "pipedag.yaml").write_text(CONFIG)
        os.chdir(folder)
        sys.path.insert(0, name)
        try:
            yield folder
        finally:
            sys.path.remove(name)
            os.chdir(before)


def load(definitions: Callable[[], dg.Definitions], watch: Stopwatch) -> None:
    """Do what a code location does with definitions: make them, and resolve all jobs and assets."""
    with watch:
        repository = definitions().get_repository_def()
        repository.load_all_definitions()
        keys = repository.asset_graph.materializable_asset_keys
    if len(keys) != LOAD_STAGES * LOAD_TABLES:
        raise RuntimeError(f"There are {len(keys)} assets.")


def of_plan(all_of_it: bool) -> dg.Definitions:
    """A flow as assets, or as definitions with all that comes with them: a job that materializes them, sensors."""
    from pipedag_dagster import build_assets, build_definitions

    if all_of_it:
        return build_definitions("many:flow", "full", config="pipedag.yaml")
    return dg.Definitions(assets=build_assets("many:flow", "full", config="pipedag.yaml"))


def of_specs(plan: Plan, job: bool) -> dg.Definitions:
    """The same keys and dependencies by hand, and a job that materializes them."""
    keys = {task.id: dg.AssetKey([task.stage, task.outputs[0] if task.outputs else task.task]) for task in plan.tasks}

    def stage(name: str) -> dg.AssetsDefinition:
        tasks = [task for task in plan.tasks if task.stage == name]
        specs = [dg.AssetSpec(keys[task.id], deps=[keys[other] for other in task.upstream]) for task in tasks]

        @dg.multi_asset(name=name, specs=specs, can_subset=True)
        def made(context):
            yield from ()

        return made

    jobs = [dg.define_asset_job("all_of_it", selection=dg.AssetSelection.assets(*keys.values()))] if job else []
    return dg.Definitions(assets=[stage(item.name) for item in plan.stages], jobs=jobs)


def loading(quick: bool) -> list[Row]:
    """Load a flow of 1,000 tables from its plan, and as many specifications that stand in code, in turns."""
    with project() as folder:
        of_plan(False)  # makes the plan, by a process of its own
        [kept] = (folder / ".pipedag" / "plans").iterdir()
        plan = Plan.from_parsed(json.loads(kept.read_text())["plan"])
        runs: dict[str, Callable[[Stopwatch], None]] = {
            "plan": lambda watch: load(lambda: of_plan(False), watch),
            "specs": lambda watch: load(lambda: of_specs(plan, False), watch),
            "all of plan": lambda watch: load(lambda: of_plan(True), watch),
            "all of specs": lambda watch: load(lambda: of_specs(plan, True), watch),
        }
        timings = in_turns(runs, 4 if quick else 14)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        shown = subprocess.run(
            (sys.executable, "-c", LOADED.format(frames=FRAMES)),
            env={**os.environ, "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
    there = json.loads(shown.stdout)
    options: dict[str, Any] = {
        "compared": "times",
        "limit": LOAD_LIMIT_TIMES,
        "holds": not there,
        "note": f"LOADS {', '.join(there)}" if there else "no data frame library loaded",
    }
    what, raw_what = f"Dagster: load {LOAD_STAGES * LOAD_TABLES:,} tables of a plan", "as many bare AssetSpecs, a multi_asset per stage"
    return [
        row(what, timings["plan"], raw=timings["specs"], raw_what=raw_what, **options),
        row(
            f"{what}, and a job for them", timings["all of plan"], raw=timings["all of specs"], raw_what=f"{raw_what}, and a job", **options
        ),
    ]


# --- materializing ------------------------------------------------------------------------------------------------------------------


def begin() -> Any:
    """Return the first frame: one row."""
    import polars as pl

    return pl.DataFrame({"x": [1]})


def work(frame: Any) -> Any:
    """What each of the others does; the same rows twice would be found again."""
    import polars as pl

    return frame.with_columns(x=pl.col("x") + 1)


def chain() -> Flow:
    """100 tables in 5 stages, each made from the one before."""
    import polars as pl

    @materialize(version="1.0")
    def first() -> pl.DataFrame:
        return begin()

    @materialize(version="1.0", input_type=pl.DataFrame)
    def following(frame: Any) -> pl.DataFrame:
        return work(frame)

    with Flow("chain") as flow:
        table = None
        for stage in range(RUN_STAGES):
            with Stage(f"stage_{stage}"):
                for _ in range(RUN_TABLES):
                    table = first() if table is None else following(table)
    return flow


def by_steps(hand_on: bool) -> list[dg.AssetsDefinition]:
    """As many assets by hand, one step each.

    Args:
        hand_on: Each takes the frame that the one before returned, which Dagster keeps as a file meanwhile; else nothing is returned or taken.
    """
    keys = [dg.AssetKey([f"stage_{number // RUN_TABLES}", f"table_{number}"]) for number in range(RUN_STAGES * RUN_TABLES)]

    def one(number: int) -> dg.AssetsDefinition:
        if hand_on and number:

            @dg.asset(key=keys[number], ins={"frame": dg.AssetIn(key=keys[number - 1])})
            def made(frame):
                return work(frame)
        elif hand_on:

            @dg.asset(key=keys[number])
            def made():
                return begin()
        else:

            @dg.asset(key=keys[number], deps=keys[max(number - 1, 0) : number])
            def made() -> None:
                pass

        return made

    return [one(number) for number in range(len(keys))]


def store(folder: str) -> ConfigContext:
    """A new store in a folder."""
    tables = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    return PipedagConfig({"name": "bench", "instances": {"bench": {"instance_id": "bench", "table_store": tables}}}).get("bench")


def by_assets(watch: Stopwatch) -> None:
    """Materialize the flow in this process, all of it for the first time."""
    from pipedag_dagster import build_assets

    with tempfile.TemporaryDirectory() as folder:
        materialize_all(build_assets(chain(), config=store(folder)), watch)


def by_hand(hand_on: bool, watch: Stopwatch) -> None:
    """Materialize the assets that were made by hand."""
    materialize_all(by_steps(hand_on), watch)


def materialize_all(assets: list[dg.AssetsDefinition], watch: Stopwatch) -> None:
    """Materialize assets with an instance of Dagster that is kept in memory, files in a folder."""
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.ephemeral(folder) as instance:
        with watch:
            result = dg.materialize(assets, instance=instance)
        made = sum(event.event_type_value == "ASSET_MATERIALIZATION" for event in result.all_events)
    if made != RUN_STAGES * RUN_TABLES:
        raise RuntimeError(f"{made} assets were materialized.")


def directly(watch: Stopwatch) -> None:
    """Run the flow without Dagster, all of it for the first time."""
    with tempfile.TemporaryDirectory() as folder:
        flow, config = chain(), store(folder)
        with watch:
            result = flow.run(config=config, fail_fast=True)
        if {report.outcome.value for report in result.reports if report.task} != {"ran"}:
            raise RuntimeError("Expected all tasks to run.")


def materializing(quick: bool) -> list[Row]:
    """Materialize the flow, run it directly, and materialize as many assets by hand, in turns."""
    runs: dict[str, Callable[[Stopwatch], None]] = {
        "assets": by_assets,
        "directly": directly,
        "handing on": lambda watch: by_hand(True, watch),
        "empty": lambda watch: by_hand(False, watch),
    }
    before = logging.root.manager.disable
    # What is printed is not of interest; events are kept nevertheless.
    logging.disable(logging.INFO)
    try:
        timings = in_turns(runs, 2 if quick else 8)
    finally:
        logging.disable(before)
    total = RUN_STAGES * RUN_TABLES
    what = f"Dagster: materialize one of {total} tables in {RUN_STAGES} stages"
    return [
        row(
            what,
            timings["assets"],
            per=total,
            raw=timings["handing on"],
            raw_what="an @asset step that takes and returns the frame",
            compared="times",
            limit=RUN_LIMIT_TIMES,
        ),
        row(what, timings["assets"], per=total, raw=timings["empty"], raw_what="an @asset step that does nothing", compared="times"),
        row(
            what,
            timings["assets"],
            per=total,
            raw=timings["directly"],
            raw_what="the same flow, run without Dagster",
            compared="above",
            limit=RUN_LIMIT_MS,
        ),
    ]


def measure(quick: bool) -> list[Row]:
    """Measure loading and materializing."""
    if dg is None:
        raise Unavailable("Dagster is not installed: pip install 'pipedag-core[dagster]'")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    return [*loading(quick), *materializing(quick)]
