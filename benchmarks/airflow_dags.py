"""What a generated DAG costs Airflow: parsing it, storing it, and running its tasks, beside a DAG of as many EmptyOperators.

All figures are the time for which processors have worked, which is the same on a busy machine. Not called `airflow.py`, which Python would take for Airflow.
Needs Airflow, so it runs in Airflow's environment: `make bench-airflow`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import Row, Timing, Unavailable, row

HERE = Path(__file__).resolve().parent
STAGES, TASKS = 10, 1_000
LIMIT_TIMES = 1.15
TRIVIAL = 100
LIMIT_MS = 30

#: A flow of trivial tasks; the first task of each stage needs the last one of the stage before.
FLOW = '''
from pipedag_core import Flow, Stage, materialize


@materialize(version="1.0")
def work(before, number):
    """Stand for any task."""
    return number


with Flow("large") as flow:
    last = None
    for stage in range({stages}):
        with Stage(f"stage_{{stage}}"):
            first = last = work(last, 0)
            for number in range(1, {tasks} // {stages}):
                last = work(first, number)
'''
CONFIG = """
name: large
instances:
  full:
    table_store:
      class: parquet
      args: {base_path: "store/{instance_id}"}
"""


def generated(folder: Path, tasks: int, stages: int = STAGES) -> Path:
    """Write a flow and its DAG file into a folder; return the file."""
    folder.mkdir(parents=True)
    (folder / "large_flow.py").write_text(FLOW.format(tasks=tasks, stages=stages), encoding="utf-8")
    (folder / "pipedag.yaml").write_text(CONFIG, encoding="utf-8")
    words = ("airflow", "generate", "large_flow:flow", "--instance", "full", "-o", "dags")
    subprocess.run((sys.executable, "-m", "pipedag_core", *words), cwd=folder, check=True, capture_output=True)
    return folder / "dags" / "large_full.py"


def by_hand(folder: Path, tasks: int, stages: int = STAGES) -> Path:
    """Write a DAG file as a person would who has as many EmptyOperators and edges, in the same groups; return the file.

    It says nothing else: no steps, Assets, display names or parameters, and its tasks are no setups or teardowns.
    """
    from pipedag_airflow.layout import lay_out
    from pipedag_airflow.names import identifier
    from pipedag_core.config.flows import load_flow

    flow = folder / "by_hand_flow.py"
    flow.write_text(FLOW.format(tasks=tasks, stages=stages), encoding="utf-8")
    layout = lay_out(load_flow(f"{flow}:flow", {})[0].plan("full"))
    names = {node.full_id: identifier(*node.group, node.task_id) for node in layout.nodes}
    lines = [
        "from airflow.providers.standard.operators.empty import EmptyOperator",
        "from airflow.sdk import DAG, TaskGroup",
        "",
        'with DAG(dag_id="by_hand", schedule=None, catchup=False):',
    ]
    group: tuple[str, ...] = ()
    for node in layout.nodes:
        if node.group != group:
            group = node.group
            lines += [f'    with TaskGroup(group_id="{group[-1]}"):'] if group else []
        lines.append(f'{"        " if group else "    "}{names[node.full_id]} = EmptyOperator(task_id="{node.task_id}")')
    for edge in layout.edges:
        sides = [names[side[0]] if len(side) == 1 else f"[{', '.join(names[id] for id in side)}]" for side in (edge.before, edge.after)]
        lines.append(f"    {' >> '.join(sides)}")
    (folder / "by_hand").mkdir()
    file = folder / "by_hand" / "by_hand.py"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def measured(
    what: str, home: Path, files: Mapping[str, Path], repeats: int = 1, *, python: str = sys.executable, database: bool = False
) -> Any:
    """Return what the worker measures; with `database`, in a home that has Airflow's database."""
    words = [python, str(HERE / "airflow_worker.py"), what, "--home", str(home), "--repeats", str(repeats)]
    words += ["--database"] if database else []
    words += [word for name, path in files.items() for word in ("--file", f"{name}={path}")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode != 0:
        raise Unavailable(f"Airflow failed: {' '.join((done.stderr or done.stdout).strip().splitlines()[-3:])}")
    return json.loads((home / "measured.json").read_text(encoding="utf-8"))


def timing(seconds: Sequence[float]) -> Timing:
    """Return seconds as a timing."""
    return Timing(tuple(seconds))


def parsing(folder: Path, repeats: int) -> list[Row]:
    """Measure parsing and storing of a DAG of 1,000 tasks."""
    files = {"generated": generated(folder / "large", TASKS), "by hand": by_hand(folder, TASKS)}
    strange = measured("loads", folder / "home", {"generated": files["generated"]})["generated"]
    found = measured("parse", folder / "home", files, repeats)
    anew = measured("compile", folder / "home", files, repeats)
    count = found["generated"]["tasks"]
    if count != found["by hand"]["tasks"]:
        raise RuntimeError(f"The DAGs have {count} and {found['by hand']['tasks']} tasks.")
    what = f"{count:,} EmptyOperators by hand"
    loads = "loads no pandas, polars, Airflow models, core or user's module" if not strange else f"LOADS {', '.join(strange)}"

    def compared(title: str, results: Any, key: str, **options: Any) -> Row:
        times = timing(results["generated"][key]), timing(results["by hand"][key])
        return row(title, times[0], raw=times[1], raw_what=what, compared="times", **options)

    return [
        compared(f"parse a DAG file of {TASKS:,} tasks", found, "parse", limit=LIMIT_TIMES, holds=not strange, note=loads),
        compared("the same where nothing compiled can be kept", anew, "parse"),
        compared("bring that DAG into the form that is stored", found, "store"),
    ]


def running(folder: Path, repeats: int) -> list[Row]:
    """Measure runs of a DAG of 100 trivial tasks, in one process."""
    again = generated(folder / "again", TRIVIAL, 1)
    # A DAG of its own for each way to run, so that nothing of one is seen by the other.
    anew = generated(folder / "anew", TRIVIAL, 1)
    for file, name in ((again, "again"), (anew, "anew")):
        file.write_text(file.read_text(encoding="utf-8").replace('dag_id="large_full"', f'dag_id="{name}"'), encoding="utf-8")
        flow = file.parents[1] / "large_flow.py"
        flow.rename(flow.with_name(f"{name}_flow.py"))
        file.write_text(file.read_text(encoding="utf-8").replace("large_flow:flow", f"{name}_flow:flow"), encoding="utf-8")
    (folder / "small").mkdir()
    files = {"again": again, "anew": anew, "by hand": by_hand(folder / "small", TRIVIAL, 1)}
    found = measured("run", folder / "home", files, repeats)
    raw = timing(found["by hand"]["processors"])

    def compared(title: str, name: str) -> Row:
        waited = (timing(found[name]["run"]).median - timing(found["by hand"]["run"]).median) * 1000 / TRIVIAL
        return row(
            title,
            timing(found[name]["processors"]),
            per=TRIVIAL,
            raw=raw,
            raw_what=f"{found['by hand']['tasks']} EmptyOperators",
            compared="above",
            limit=LIMIT_MS,
            note=f"per task, time of processors; {waited:.1f} ms more by the clock",
        )

    return [
        compared(f"dag.test() of {TRIVIAL} trivial tasks that run", "anew"),
        compared("the same where their results are valid", "again"),
    ]


def measure(quick: bool) -> list[Row]:
    """Measure in processes that have a home of Airflow of their own."""
    if importlib.util.find_spec("airflow") is None:
        raise Unavailable("Airflow has an environment of its own: make bench-airflow.")
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        return [*parsing(folder / "parsing", 4 if quick else 12), *running(folder / "running", 2 if quick else 4)]
