"""Whatever is edited, and whatever happens to runs: what is visible is what a run from scratch would show, and nothing runs without need.

A life of an instance is 25 edits, each followed by a run, then by comparisons with two oracles: `contents.evaluate` works out what every table must hold from the
flow alone; `simulation` replays the run by the words of docs/caching.md and says what had to run, what was found again within retention, and what
readers see. At the end of a life an empty instance runs the flow and must show the same.

    make property                 5,000 edits
    make property EDITS=50000     and more

A failure shows the shortest life that hypothesis found. Its lines are calls that can be made again, for instance in a debugger:

    state = EditedFlow(lambda: Path(tempfile.mkdtemp()) / "life")
    state.begin(...)
    state.edit(...)
    state.teardown()
"""

from __future__ import annotations

import os
from itertools import count

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.flows.property.edits import EDITS, Drawn, apply
from tests.flows.property.machine import WAYS, EditedFlow
from tests.flows.property.memory import Retention
from tests.flows.property.model import KINDS, Model, Source, Stage, Task
from tests.flows.property.on_duckdb import EditedOnDuckdb
from tests.flows.property.on_postgres import EditedOnPostgres

LIFE = 25
PARTS = 4
IS_CI = "CI" in os.environ
EDITS_WANTED = int(os.environ.get("PIPEDAG_PROPERTY_EDITS", "1000" if IS_CI else "300"))

EDITS_ON_POSTGRES = int(os.environ.get("PIPEDAG_PROPERTY_EDITS_POSTGRES", "200" if IS_CI else "50"))
EDITS_ON_DUCKDB = int(os.environ.get("PIPEDAG_PROPERTY_EDITS_DUCKDB", "200" if IS_CI else "50"))


@pytest.fixture
def new_folder(tmp_path):
    folders = (tmp_path / str(number) for number in count())
    return lambda: next(folders)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_an_edited_flow_shows_what_a_run_from_scratch_would_show(part, new_folder):
    def machine() -> EditedFlow:
        return EditedFlow(new_folder)

    if IS_CI:
        # A change is blamed for its own faults only.
        seed(part)(machine)
    run_state_machine_as_test(
        machine,  # pyright: ignore[reportArgumentType]
        settings=settings(
            max_examples=max(1, EDITS_WANTED // LIFE // PARTS),
            stateful_step_count=LIFE,
            suppress_health_check=list(HealthCheck),
            deadline=None,
            derandomize=False,
            database=None,
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_an_edited_flow_on_postgresql_shows_what_the_flow_says(new_folder, postgres_url):
    _live(lambda: EditedOnPostgres(new_folder, postgres_url), EDITS_ON_POSTGRES)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_an_edited_flow_in_a_duckdb_file_shows_what_the_flow_says(new_folder):
    _live(lambda: EditedOnDuckdb(new_folder, ""), EDITS_ON_DUCKDB)


def _live(new_machine, edits):
    def machine() -> EditedFlow:
        return new_machine()

    if IS_CI:
        seed(0)(machine)
    run_state_machine_as_test(
        machine,  # pyright: ignore[reportArgumentType]
        settings=settings(
            max_examples=max(1, edits // LIFE),
            stateful_step_count=LIFE,
            suppress_health_check=list(HealthCheck),
            deadline=None,
            derandomize=False,
            database=None,
        ),
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.mode} {kind.engine} {kind.shape}")
def test_every_kind_of_task_gives_what_is_computed_for_it_and_is_found_again(kind, new_folder):
    source = Task(1, KINDS[0], "raw", "alpha", constant=3)
    task = Task(2, kind, "mart", "beta", (Source(1), Source(1)), constant=1, letter="a")
    state = EditedFlow(new_folder)
    state.start(Retention(), Model((Stage("raw"), Stage("mart")), (source, task)))
    for change in (
        "nothing",
        "change_letter",
        "toggle_key",
        "change_options",
        "toggle_version",
        "rename_table",
        "change_world",
        "rename_task",
        "move_task",
    ):
        state.edit(change, 1, 1, "twice", 0)
    for way in sorted(set(WAYS) - {"not yet", "killed"}):
        state.edit("change_constant", 0, len(way), way, 0)
    state.teardown()


@pytest.mark.parametrize("kind", EDITS)
def test_every_kind_of_edit_does_something(kind):
    first, second = Task(1, KINDS[0], "raw", "alpha"), Task(2, KINDS[1], "mart", "beta")
    third = Task(3, KINDS[0], "mart", "gamma", (Source(1), Source(2)), table_name="t_one")
    model = Model((Stage("raw"), Stage("mart")), (first, second, third)).check()
    drawn = [Drawn(at, value, 9, [Model()]) for at in range(6) for value in range(6)]
    changed = [apply(kind, model, one) for one in drawn]
    if kind == "mend":
        failing = apply("fail", model, drawn[0])
        assert apply(kind, failing, drawn[0]) == model != failing
    else:
        assert (kind == "nothing") == all(other == model for other in changed)
