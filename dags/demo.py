"""Run the flights pipeline twice, look at what it has made, and take its production flow out: what `make demo` does.

Everything is done through commands that are shown before they run, so each can be tried by hand. The data stays in `dags/.pipedag`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import duckdb
import score
from rich.console import Console
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent

#: Where MLflow is installed, it is told of everything.
WITH_MLFLOW = find_spec("mlflow") is not None
INSTANCE = score.INSTANCE_WITH_MLFLOW if WITH_MLFLOW else score.INSTANCE
FLOW = "pipelines.flights:get_pipeline"
RUN = ("run", FLOW, "--instance", INSTANCE)

#: Where the production flow is written to; `score.py` reads it there.
BUNDLE = Path(".pipedag", "bundles", "flights")
EXTRACT = ("extract", FLOW, "--instance", INSTANCE, "-o", str(BUNDLE), "--verify")

#: Views of all tables of the last run, for looking around.
EXPLORE = Path(".pipedag", INSTANCE, "explore.duckdb")

EVALUATION = 'FROM "06_model_evaluation"."evaluation"'

#: One to try: from the last stage back to the cleaned input, to see where the model meets its limits.
QUESTION = """\
SELECT
    hour(f.scheduled_departure) // 3 * 3 AS from_hour,
    count(*) AS flights,
    round(avg(o.probability), 3) AS predicted_late,
    round(avg(t.late::INT), 3) AS observed_late
FROM "06_model_evaluation"."output" AS o
JOIN "06_model_evaluation"."target" AS t USING (flight_id)
JOIN "02_early_cleaning"."flights" AS f USING (flight_id)
GROUP BY ALL
ORDER BY ALL"""


@dataclass(frozen=True)
class Measured:
    """What a run told about itself: how many tasks ended how, and how long all of it took, with the start of the process."""

    tasks: Counter[str]
    seconds: float

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.tasks.items()))
        return f"{self.tasks.total()} tasks ({outcomes}) in {self.seconds:.1f} s"


def say(text: str) -> None:
    """Print a line of explanation."""
    print(f"\n# {text}", flush=True)


def pipedag() -> list[str]:
    """Return the command of the environment that runs this script, whether or not it is activated."""
    found = shutil.which("pipedag", path=str(Path(sys.executable).parent))
    return [found] if found else [sys.executable, "-m", "pipedag_core.cli"]


def announced(command: list[str]) -> tuple[list[str], dict[str, str]]:
    """Print a command as one would type it in the folder dags; return it, and the environment to run it in."""
    say("In the folder dags:")
    print(f"$ {shlex.join([os.path.relpath(command[0], HERE), *command[1:]])}", flush=True)
    # The example's own configuration counts, whatever is set outside.
    return command, {name: value for name, value in os.environ.items() if name != "PIPEDAG_CONFIG"} | {"PYTHONUNBUFFERED": "1"}


def follow(command: list[str]) -> None:
    """Run a command whose output speaks for itself."""
    shown, environment = announced(command)
    done = subprocess.run(shown, cwd=HERE, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"This failed with exit code {done.returncode}; its message stands above.")


def run() -> Measured:
    """Run the pipeline through the command line; show the command and, as they come, its lines."""
    command, environment = announced([*pipedag(), *RUN])
    tasks: Counter[str] = Counter()
    started = time.monotonic()
    with subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            # A task's line is its outcome and then `stage.task`; a stage's says `stage` there.
            outcome, *rest = line.split()
            if outcome in {"ran", "cached", "failed", "skipped"} and rest and "." in rest[0]:
                tasks[outcome] += 1
    if process.returncode != 0:
        raise SystemExit(f"The pipeline failed with exit code {process.returncode}; its message stands above.")
    return Measured(tasks, time.monotonic() - started)


def show(query: str, title: str) -> None:
    """Print a query and its rows."""
    print(f"\n{query};\n", flush=True)
    with duckdb.connect(HERE / EXPLORE, read_only=True) as connection:
        answer = connection.execute(query)
        columns = [column[0] for column in answer.description or ()]
        rows = answer.fetchall()
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
        table.add_row(*(Text(text, justify="left" if isinstance(cell, str) else "right") for text, cell in zip(cells, row, strict=True)))
    Console().print(table)


def main() -> int:
    """Run twice, compare, show the evaluation and one query, extract and score; return 0 if the second run had nothing to do."""
    say("Will a flight out of New York arrive more than 15 minutes late? Six stages, from raw files to an evaluated model.")
    first = run()
    say("Once more. Nothing has changed, so nothing needs to run:")
    second = run()
    valid = second.tasks["cached"] == second.tasks.total() > 0
    say(f"First run:  {first}")
    print(f"# Second run: {second}")
    if valid:
        print("# All results of the second run were cache-valid.")
    else:
        print("# NOT all results of the second run were cache-valid.")

    say(f"Every table of every stage is a view in dags/{EXPLORE.as_posix()}, for DuckDB. How good is the model?")
    show(EVALUATION, "On the held-back months, October to December")
    say("A query to try: is the model right at every time of the day?")
    show(QUESTION, "Predicted and observed share of late flights")

    say("The production flow is a part of this one. Take it out, hold its answers against those of training, and keep it as a folder:")
    follow([*pipedag(), *EXTRACT])
    say("A service needs no more than that folder and the modules in dags/pipelines:")
    follow([sys.executable, "score.py", INSTANCE])
    if WITH_MLFLOW:
        say(
            "MLflow has documented both runs. The production flow becomes a model there, once it has shown that it is as good as in training:"
        )
        follow([sys.executable, "register.py"])
        say(f"Look at it, in the folder dags: mlflow ui --backend-store-uri sqlite:///.pipedag/{INSTANCE}/mlflow.db")
    say("Next: change a task in dags/pipelines and run it again; only what depends on the change runs. Smaller: --instance mini")
    return 0 if valid else 1


if __name__ == "__main__":
    sys.exit(main())
