"""Every engine keeps its promises, on random graphs and random failures."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedag_core.engines.sequential import SequentialEngine
from pipedag_core.engines.threads import ThreadEngine
from pipedag_core.plan.model import Plan, Step, StepKind
from pipedag_core.ports.events import Outcome, StepReport


def plan_of(edges):
    steps = [
        Step(f"task:s.t{number}", StepKind.TASK, "s", f"t{number}", tuple(f"task:s.t{up}" for up in ups))
        for number, ups in enumerate(edges)
    ]
    finish = Step("finish", StepKind.FINISH, None, None, tuple(step.id for step in steps))
    return Plan("f", None, None, "d", (), (), (*steps, finish))


@st.composite
def graphs(draw):
    size = draw(st.integers(0, 8))
    edges = [sorted(draw(st.sets(st.integers(0, number - 1), max_size=3))) if number else [] for number in range(size)]
    failing = draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=2))
    waiting = draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=2))
    return plan_of(edges), {f"task:s.t{number}" for number in failing}, {f"task:s.t{number}" for number in waiting}


class Work:
    """Carries out steps by noting them."""

    def __init__(self, failing=(), waiting=()):
        self.failing, self.waiting = failing, set(waiting)
        self.calls, self.ended_before = [], {}
        self.ended = set()
        self.lock = threading.Lock()

    def run(self, step, computed=None):
        with self.lock:
            self.calls.append(step.id)
            self.ended_before[step.id] = set(self.ended)
            if step.id in self.waiting:
                self.waiting.discard(step.id)
                return StepReport(step.id, Outcome.WAITING)
            self.ended.add(step.id)
        return StepReport(step.id, Outcome.FAILED if step.id in self.failing else Outcome.RAN)

    def skip(self, step, because):
        return StepReport(step.id, Outcome.SKIPPED, because.id)


def make(name):
    return SequentialEngine() if name == "sequential" else ThreadEngine(max_workers=3)


@pytest.mark.parametrize("name", ["sequential", "threads"])
@settings(max_examples=60, deadline=None)
@given(graphs(), st.booleans())
def test_engines_keep_their_promises(name, graph, fail_fast):
    plan, failing, waiting = graph
    work = Work(failing, waiting)
    reports = make(name).run(plan, work.run, work.skip, fail_fast=fail_fast)
    outcome = {report.step: report.outcome for report in reports}
    assert len(reports) == len(plan.steps)
    assert set(outcome) == {step.id for step in plan.steps}
    assert work.calls[-1:] == ["finish"]
    assert work.calls.count("finish") == 1
    for step in plan.steps[:-1]:
        ups = [outcome[up] for up in step.upstream]
        if outcome[step.id] is not Outcome.SKIPPED:
            assert set(step.upstream) <= work.ended_before[step.id]
            assert all(up is Outcome.RAN for up in ups)
        elif not fail_fast:
            assert any(up in (Outcome.FAILED, Outcome.SKIPPED) for up in ups)
        times = work.calls.count(step.id)
        assert times == (2 if step.id in waiting and times > 1 else times if outcome[step.id] is Outcome.SKIPPED else 1)
    if not fail_fast:
        assert {id for id, how in outcome.items() if how is Outcome.FAILED} <= failing


def test_with_fail_fast_nothing_starts_after_a_failure():
    plan = plan_of([[], [], []])
    work = Work(failing={"task:s.t0"})
    reports = SequentialEngine().run(plan, work.run, work.skip, fail_fast=True)
    assert [report.outcome.value for report in reports[:-1]] == ["failed", "skipped", "skipped"]


@pytest.mark.parametrize("name", ["sequential", "threads"])
def test_an_interruption_comes_out_after_the_finish_step(name):
    plan = plan_of([[], [0]])
    seen = []

    def run(step, computed=None):
        seen.append(step.id)
        if step.id == "task:s.t0":
            raise KeyboardInterrupt
        return StepReport(step.id, Outcome.FINISHED)

    with pytest.raises(KeyboardInterrupt):
        make(name).run(plan, run, Work().skip, fail_fast=False)
    assert seen == ["task:s.t0", "finish"]


def test_the_sequential_engine_goes_in_the_order_of_the_plan():
    plan = plan_of([[], [], [0], [1]])
    work = Work()
    SequentialEngine().run(plan, work.run, work.skip, fail_fast=False)
    assert work.calls == [step.id for step in plan.steps]


def test_independent_steps_run_at_the_same_time():
    plan = plan_of([[], [], []])
    meet = threading.Barrier(3)

    def run(step, computed=None):
        if step.kind is StepKind.TASK:
            meet.wait(30)
        return StepReport(step.id, Outcome.RAN)

    reports = ThreadEngine(max_workers=3).run(plan, run, Work().skip, fail_fast=False)
    assert len(reports) == 4


def test_a_step_that_only_writes_any_more_makes_room_for_the_next_one_to_compute():
    second_began = threading.Event()

    def run(step, computed=None):
        if step.id == "task:s.t0":
            computed()
            # Ends only once the other one has begun, though there is one worker.
            assert second_began.wait(10)
        elif step.id == "task:s.t1":
            second_began.set()
        return StepReport(step.id, Outcome.RAN)

    reports = ThreadEngine(max_workers=1).run(plan_of([[], []]), run, Work().skip, fail_fast=False)
    assert [report.step for report in reports] == ["task:s.t1", "task:s.t0", "finish"]


def test_no_more_steps_write_at_a_time_than_may_compute():
    at_work, most, lock, enough = set(), [], threading.Lock(), threading.Event()

    def run(step, computed=None):
        with lock:
            at_work.add(step.id)
            most.append(len(at_work))
            if len(most) == 2:
                enough.set()
        if step.id.startswith("task"):
            computed()
            enough.wait(10)
        with lock:
            at_work.discard(step.id)
        return StepReport(step.id, Outcome.RAN)

    ThreadEngine(max_workers=1).run(plan_of([[] for _ in range(8)]), run, Work().skip, fail_fast=False)
    assert max(most) == 2
