"""A process that runs a flow is killed, anywhere: readers see whole generations, nothing is damaged, and the next run just works.

`pytest` kills at every named point, before some file operations and at 20 random moments; `make crash` before all of them, and at 200 moments.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import count

import pytest

from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import open_session
from pipedag_core.ports.events import Outcome, StepEnded
from pipedag_core.run.doctor import examine, mend
from tests.flows.crash import pipeline
from tests.flows.crash.lives import Life
from tests.flows.places import new_place as place_in

IS_LONG = "PIPEDAG_LONG_TESTS" in os.environ

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if IS_LONG else 300)]


class Patient:
    """Notes steps that had to wait for a lease."""

    def __init__(self):
        self.waited = []

    def on_event(self, event):
        if isinstance(event, StepEnded) and event.report.outcome is Outcome.WAITING:
            self.waited.append(event.report.step)


class Ward:
    """One instance in which processes die, and what is checked after each death.

    Attributes:
        shown: Stage -> marker that readers saw last.
        mends_first: Whether the instance is mended before the next run; after every other death it is.
    """

    def __init__(self, place, *, mends_first=False):
        self.place = place
        self.config = place.config
        self.shown = {}
        self.mends_first = mends_first
        self._markers = count(1)
        self._deaths = 0

    def live(self, **how):
        """Return a process that runs the pipeline with a marker of its own, and that marker."""
        marker = next(self._markers)
        return Life(self.place, marker, **how), marker

    def check(self, marker):
        """Check an instance in which the run with this marker has died."""
        self._deaths += 1
        seen = pipeline.read(self.config)
        for stage, found in seen.items():
            assert found in (self.shown.get(stage), marker), (
                f"stage {stage} shows marker {found}, of neither the run that died nor the one before"
            )
        assert self.shown.keys() <= seen.keys()
        if seen.get("outer") == marker:
            assert seen["raw"] == marker
        assert seen.get("outer") == seen.get("inner"), "nested stages are committed together"
        with open_session(self.config) as session:
            assert all(finding.mendable for finding in examine(session, lives, grace_s=0).findings)
            if self.mends_first:
                assert mend(session, lives, grace_s=0).findings == []
                assert list(session.catalog.leases()) == []
                assert list(session.catalog.unfinished()) == []
        self.mends_first = not self.mends_first
        assert pipeline.read(self.config) == seen
        self.recover(marker if self._deaths % 3 else next(self._markers))

    def recover(self, marker):
        """Check that the next run succeeds at once, that everything is its own then, and that nothing remains of the dead one."""
        patient = Patient()
        result = pipeline.run(self.place, marker, observers=[patient])
        assert result.successful, result.exception
        assert patient.waited == []
        self.shown = pipeline.read(self.config)
        assert self.shown == dict.fromkeys(pipeline.TABLES, marker)
        with open_session(self.config) as session:
            assert all(finding.mendable for finding in examine(session, lives, grace_s=0).findings)
            assert mend(session, lives, grace_s=0).findings == []
            on_disk = {item.location for item in session.tables.deposits()}
            assert on_disk == {row.stored.location for row in session.catalog.objects() if hasattr(row.stored, "schema")}


@pytest.fixture
def ward(place):
    return Ward(place)


def healthy_life(ward, **how):
    """Let a process run the pipeline to its end, twice, and return what it passed the second time."""
    for _ in range(2):
        life, marker = ward.live(**how)
        told = life.end()
        assert told is not None
        assert told[0]
    ward.shown = pipeline.read(ward.config)
    assert ward.shown == dict.fromkeys(pipeline.TABLES, marker)
    return told


@pytest.mark.parametrize("half", [0, 1], ids=["even points", "odd points"])
def test_a_process_that_dies_at_a_named_point_harms_nothing(ward, half):
    _, passed, _ = healthy_life(ward)
    wanted = {
        "after_open",
        "after_write",
        "before_record",
        "after_record",
        "before_commit",
        "after_commit",
        "before_finish",
        "after_finish",
    }
    wanted |= {"before_clean_up", "before_deletion", "after_clean_up", "before_show", "after_show", "finished"}
    assert set(passed) == wanted
    numbers: Sequence[int] = range(half, len(passed), 2)
    if ward.place.kind != "parquet" and not IS_LONG:
        # On the embedded store every point has its turn; here each kind of point, half of them in each of the two tests.
        numbers = [random.choice([number for number, one in enumerate(passed) if one == name]) for name in sorted(wanted)[half::2]]
    for number in numbers:
        life, marker = ward.live(points=number)
        assert life.end() is None, f"the run came past point {number}, {passed[number]}"
        ward.check(marker)


def test_a_process_that_dies_before_touching_a_file_harms_nothing(tmp_path):
    # Databases touch their files unseen.
    ward = Ward(place_in("parquet", tmp_path / "store"))
    _, _, touched = healthy_life(ward)
    assert touched > 20
    step = 1 if IS_LONG else 4
    number = 0 if IS_LONG else random.randrange(step)
    while True:
        life, marker = ward.live(files=number)
        if life.end() is not None:
            break
        ward.check(marker)
        number += step
    assert number > 20


@pytest.mark.parametrize("threads", [False, True], ids=["sequential", "threads"])
def test_a_process_that_is_killed_at_any_moment_harms_nothing(ward, threads):
    healthy_life(ward, threads=threads)
    life, _ = ward.live(threads=threads)
    tenths = 0
    while not life.ended_within(0.05):
        tenths += 1
    life.end()
    ward.shown = pipeline.read(ward.config)
    killed = 0
    wanted = 100 if IS_LONG else 10 if ward.place.kind == "parquet" else 5
    for _ in range(10 * wanted):
        life, marker = ward.live(threads=threads)
        life.ended_within(random.uniform(0, 0.05 * tenths))
        if life.kill():
            killed += 1
            ward.check(marker)
        else:
            ward.shown = pipeline.read(ward.config)
        if killed == wanted:
            break
    assert killed == wanted


def test_the_very_first_run_may_die_as_well(new_place):
    for number in range(30 if IS_LONG else 6):
        ward = Ward(new_place(), mends_first=number % 2 == 1)
        life, marker = ward.live()
        life.ended_within(random.uniform(0, 0.4))
        life.kill()
        ward.check(marker)
