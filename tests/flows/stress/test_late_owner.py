"""A run of another machine, of which nothing can be known but that its lease has expired."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import open_session
from pipedag_core.errors import LeaseLost
from pipedag_core.ports.catalogs import Owner, RunInfo
from pipedag_core.ports.events import Outcome, PointReached
from pipedag_core.run.doctor import Trouble, examine, mend
from pipedag_core.run.session import Run, RunOptions
from pipedag_core.run.steps import execute_step
from tests.flows.crash import pipeline
from tests.flows.stress.traffic import Worker

ELSEWHERE = Owner("another-machine", "its boot", 77, "1", "a run elsewhere")


class At:
    """Calls a function when a named point is passed for the first time."""

    def __init__(self, point, action):
        self.point, self.action = point, action

    def on_event(self, event):
        if isinstance(event, PointReached) and event.point == self.point and self.action is not None:
            action, self.action = self.action, None
            action()


class Elsewhere:
    """A run that this process carries out as if it were another machine's, whose lease nobody renews."""

    def __init__(self, place, marker, *observers):
        self.flow = pipeline.make_flow(marker)
        self.config = place.config
        self.plan = self.flow.plan(instance=self.config.instance_name)
        self.observers = observers
        info = RunInfo("late", self.plan.flow, self.plan.instance or "", self.plan.digest, RunOptions().to_json(), ELSEWHERE, ttl_s=1.0)
        self.run = Run(info, RunOptions())

    def step(self, *names):
        with open_session(self.config, self.observers) as session:
            session.catalog.begin_run(self.run.info)
            return [execute_step(session, self.run, self.flow, self.plan, self.plan.step(name)) for name in names]


def die_elsewhere(place):
    """Die with files written and nothing recorded."""
    Elsewhere(place, 1, At("before_record", lambda: os.kill(os.getpid(), signal.SIGKILL))).step("open:raw", "task:raw.load")


def test_a_late_owner_cannot_record_what_it_wrote(place):
    config = place.config
    done = []
    late = Elsewhere(place, 1, At("before_record", lambda: done.append(pipeline.run(place, 2))))
    opened, refused = late.step("open:raw", "task:raw.load")
    assert opened.outcome is Outcome.OPENED
    # The other run waited for the lease to expire, and went on.
    assert done[0].successful
    assert refused.outcome is Outcome.FAILED
    assert isinstance(refused.error, LeaseLost)
    assert pipeline.read(config) == dict.fromkeys(pipeline.TABLES, 2)
    with open_session(config) as session:
        # What was refused has been removed by the late owner itself.
        assert [finding.trouble for finding in examine(session, lives, grace_s=0).findings if finding.trouble is Trouble.STRAY] == []


def test_a_late_owner_cannot_commit(place):
    config = place.config
    late = Elsewhere(place, 1)
    late.step("open:raw", "task:raw.load", "task:raw.query")
    assert pipeline.run(place, 2).successful
    with open_session(config) as session, pytest.raises(LeaseLost, match="may not write"):
        session.catalog.commit("late", ["raw"])
    assert pipeline.read(config) == dict.fromkeys(pipeline.TABLES, 2)


def test_stray_files_of_an_owner_that_died_elsewhere_do_no_harm(place):
    config = place.config
    worker = Worker(die_elsewhere, place)
    with pytest.raises(EOFError):
        worker.result(120)
    worker.end()
    assert pipeline.run(place, 2).successful
    assert pipeline.read(config) == dict.fromkeys(pipeline.TABLES, 2)
    with open_session(config) as session:
        while session.catalog.unfinished()[0].expires > time.time():
            time.sleep(0.05)
        found = examine(session, lives, grace_s=0).findings
        assert {finding.trouble for finding in found} == {Trouble.DEAD_RUN, Trouble.STRAY}
        strays = [finding.subject for finding in found if finding.trouble is Trouble.STRAY]
        assert sorted(name for where in strays for name in ("blob", "first", "second") if name in where) == ["blob", "first", "second"]
        assert len(strays) == 3
        # Databases do not tell when a table was written; there it is enough that its owner can no longer record it.
        if place.kind == "parquet":
            assert examine(session, lives).stray_tables == [], "strays are left alone for an hour"
        assert mend(session, lives, grace_s=0).findings == []
    assert pipeline.read(config) == dict.fromkeys(pipeline.TABLES, 2)
