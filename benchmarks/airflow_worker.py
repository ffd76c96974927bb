"""Measures DAG files in an environment with Airflow: `airflow_dags.py` starts this, in a home of its own, and reads the JSON file that it writes.

Knows nothing of this package: a file is given as a path, so that files for Cosmos are measured in the same way in Cosmos' environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What must not be loaded by a file that is parsed: frames, the metadata database, this package's core, and the user's module.
HEAVY = ("pandas", "polars", "pyarrow", "duckdb", "airflow.models", "pipedag_core", "large_flow")


def prepare(home: Path) -> None:
    """Give Airflow a home; to be called before anything imports it."""
    (home / "dags").mkdir(parents=True, exist_ok=True)
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__DAGS_FOLDER=str(home / "dags"),
        AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT="300",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    )


def worked() -> float:
    """Return for how many seconds processors have worked for this process and for the commands that it has called."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


@contextmanager
def stopwatch(of_processors: list[float], seconds: list[float] | None = None) -> Iterator[None]:
    """Add the seconds for which processors have worked for what stands inside, and those that it took.

    What else a machine does slows all of its processes, but hardly adds to the first of these.
    """
    gc.collect()
    start, before = time.perf_counter(), worked()
    yield
    of_processors.append(worked() - before)
    if seconds is not None:
        seconds.append(time.perf_counter() - start)


def in_turns(names: list[str], repeats: int) -> Iterator[tuple[str, bool]]:
    """Yield each name once per turn, every second turn backwards, and whether the turn counts: the first is for warming up."""
    for turn in range(repeats + 1):
        for name in names if turn % 2 else reversed(names):
            yield name, turn > 0


def parse(files: dict[str, Path], repeats: int, *, bytecode: bool) -> dict[str, Any]:
    """Parse files as the dag-processor does, in a process that has loaded Airflow; return processors' seconds for parsing and for
    storing, and how many tasks.

    Args:
        files: Name -> file.
        repeats: Measurements of each.
        bytecode: Whether Python may keep what it has compiled, as it does unless the folder cannot be written to.
    """
    import airflow.sdk  # noqa: F401 -- loaded, as it is in the dag-processor
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    sys.dont_write_bytecode = not bytecode
    found: dict[str, Any] = {name: {"parse": [], "store": [], "tasks": 0} for name in files}
    for name, counts in in_turns([*files], repeats):
        parsing: list[float] = []
        storing: list[float] = []
        if not bytecode:
            for kept in (files[name].parent / "__pycache__").glob("*"):
                kept.unlink()
        with stopwatch(parsing):
            bag = DagBag(dag_folder=str(files[name]), bundle_path=files[name].parent)
        if bag.import_errors or len(bag.dags) != 1:
            raise RuntimeError(f"{files[name]} was not parsed: {bag.import_errors}")
        (dag,) = bag.dags.values()
        with stopwatch(storing):
            LazyDeserializedDAG.from_dag(dag)
        found[name]["tasks"] = len(dag.tasks)
        if counts:
            found[name]["parse"] += parsing
            found[name]["store"] += storing
    return found


def loads(file: Path) -> list[str]:
    """Return what a DAG file loads that it must not load; Airflow's own needs are loaded before."""
    import runpy

    import airflow.sdk  # noqa: F401 -- as above

    before = set(sys.modules)
    runpy.run_path(str(file))
    return sorted({name for name in HEAVY if name in sys.modules and name not in before})


def run(files: dict[str, Path], repeats: int) -> dict[str, Any]:
    """Run the DAGs of files by `dag.test()`, in turns; return seconds and processors' seconds of each run, and how many tasks."""
    from airflow.utils.db import initdb

    initdb()
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.collection import update_dag_parsing_results_in_db
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    dags: dict[str, Any] = {}
    for name, file in files.items():
        bag = DagBag(dag_folder=str(file), bundle_path=file.parent)
        if bag.import_errors:
            raise RuntimeError(f"{file} was not parsed: {bag.import_errors}")
        (dags[name],) = bag.dags.values()
        with create_session() as session:
            DagBundlesManager().sync_bundles_to_db(session=session)
            session.commit()
            update_dag_parsing_results_in_db(
                "dags-folder", None, [LazyDeserializedDAG.from_dag(dags[name])], {}, None, set(), session=session
            )
            session.commit()
    found: dict[str, Any] = {name: {"run": [], "processors": [], "tasks": len(dag.tasks)} for name, dag in dags.items()}
    for name, counts in in_turns([*dags], repeats):
        of_processors: list[float] = []
        seconds: list[float] = []
        with stopwatch(of_processors, seconds):
            # Nothing is to be found again where the name says so, as after a change of every task.
            conf = {"cache_validation_mode": "force_cache_invalid"} if name.endswith("anew") else None
            done = dags[name].test(run_conf=conf)
        if str(done.state) != "success":
            raise RuntimeError(f"The run of {name} ended as {done.state}.")
        if counts:
            found[name]["run"] += seconds
            found[name]["processors"] += of_processors
    return found


def main() -> None:
    """Measure what is asked for, and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("parse", "compile", "loads", "run"))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--database", action="store_true", help="make Airflow's database first, for files that look into it")
    options = parser.parse_args()
    prepare(options.home)
    if options.database:
        from airflow.utils.db import initdb

        initdb()
    files = {name: Path(path) for name, _, path in (item.partition("=") for item in options.file)}
    match options.what:
        case "loads":
            found: Any = {name: loads(path) for name, path in files.items()}
        case "run":
            found = run(files, options.repeats)
        case _:
            found = parse(files, options.repeats, bytecode=options.what == "parse")
    (options.home / "measured.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
