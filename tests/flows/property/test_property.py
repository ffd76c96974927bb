"""Whatever is edited, and whatever happens to runs: what is visible is what a run from scratch would show, and nothing runs without need."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.flows.property.machine import EditedFlow

#: Edits in one life of an instance; at its end it is compared with a run from scratch.
LIFE = 25
PARTS = 4
EDITS = int(os.environ.get("PIPEDAG_PROPERTY_EDITS", "1000"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_an_edited_flow_shows_what_a_run_from_scratch_would_show(part, tmp_path):
    folders = (tmp_path / str(number) for number in itertools.count())

    def machine():
        return EditedFlow(lambda: next(folders))

    if "CI" in os.environ:
        seed(part)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, EDITS // LIFE // PARTS),
            stateful_step_count=LIFE,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
            deadline=None,
            database=None,
        ),
    )
