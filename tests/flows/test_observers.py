"""What observers are told, and what those can do without which nobody wants to run."""

from __future__ import annotations

import pytest

from pipedag_core import Flow, Stage, execute, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ObserverFailed
from pipedag_core.ports.events import RunFinished, RunLeft, RunStarted


class Observer:
    """Remembers all events, and may refuse one kind of them."""

    def __init__(self, refuses=()):
        self.events = []
        self.refuses = refuses

    def on_event(self, event):
        self.events.append(event)
        if isinstance(event, self.refuses):
            raise ObserverFailed(f"{type(event).__name__} was not noted")


def make_flow(calls):
    @materialize(version="1.0")
    def task():
        calls.append(1)
        return 1

    with Flow("f") as flow, Stage("s"):
        task()
    return flow


def runs(config):
    with open_session(config) as session:
        return [row.state for row in session.catalog.runs()]


def test_a_process_says_that_it_takes_part_in_a_run_and_that_it_leaves_it(config):
    flow = make_flow([])
    seen = Observer()
    result = flow.run(config=config, observers=[seen])
    first, last = seen.events[0], seen.events[-1]
    assert first == RunStarted(result.run_id, "f", "default", ("open:s", "task:s.task", "commit:s", "finish"))
    assert (first.plan, first.config) == (result.plan, config)
    assert last == RunLeft(result.run_id)
    assert isinstance(seen.events[-2], RunFinished) or any(isinstance(event, RunFinished) for event in seen.events)


def test_each_call_of_execute_takes_part_and_leaves(config):
    flow = make_flow([])
    plan = flow.plan()
    for step in plan.steps:
        seen = Observer()
        execute(plan, step, run_id="r1", flow=flow, config=config, observers=[seen])
        assert (type(seen.events[0]), type(seen.events[-1])) == (RunStarted, RunLeft)
        assert seen.events[0].plan == plan


def test_an_observer_that_a_run_must_not_do_without_stops_it_before_anything_is_done(config):
    calls = []
    late = Observer()
    with pytest.raises(ObserverFailed):
        make_flow(calls).run(config=config, observers=[Observer(refuses=RunStarted), late])
    assert calls == []
    assert runs(config) == ["failed"]
    assert isinstance(late.events[0], RunStarted)


def test_an_observer_that_a_run_must_not_do_without_says_so_when_all_is_done(config, tables_of):
    calls = []
    with pytest.raises(ObserverFailed):
        make_flow(calls).run(config=config, observers=[Observer(refuses=RunLeft)])
    assert calls == [1]
    assert runs(config) == ["succeeded"]


def test_the_error_of_a_run_is_not_hidden_by_that_of_an_observer(config, caplog):
    @materialize
    def fails():
        raise KeyboardInterrupt

    with Flow("f") as flow, Stage("s"):
        fails()
    with pytest.raises(KeyboardInterrupt):
        flow.run(config=config, observers=[Observer(refuses=RunLeft)])
    assert "an observer failed too" in caplog.text
