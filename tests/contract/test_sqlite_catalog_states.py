"""Whatever two runs do to two stages, the SQLite catalog shows what a dict would show, and never gives up what is pointed to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipedag_core.catalogs.sqlite import SqliteCatalog
from pipedag_core.errors import LeaseLost, RunError
from pipedag_core.ports.catalogs import Held, Retention, TaskKey
from pipedag_core.testing.catalog_samples import TTL_S, Clock, Worker, names, run_info

RUNS = st.sampled_from(["a", "b"])
STAGES = st.sampled_from(["s", "t"])
TASKS = st.sampled_from(["x", "y"])


class GenerationMap(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.catalog = SqliteCatalog(Path(self.folder.name) / "catalog.sqlite", self.clock)
        self.workers = {run_id: Worker(self.catalog, run_id) for run_id in "ab"}
        self.expires = {}  # run that goes on -> when its leases and pins expire
        self.holder = {}  # stage -> run with the lease
        self.open = {}  # (run, stage) -> task -> object, of what is open
        self.made = {}  # (run, stage) -> task -> object, of what the run left committed or failed
        self.own = set()  # (run, stage) with a commit of the run
        self.pinned = {}  # (run, stage) -> what the run has read, None where clean-up may have removed it
        self.current = {}  # stage -> task -> object
        self.objects = []
        self.garbage = set()

    def teardown(self):
        self.catalog.close()
        self.folder.cleanup()

    def lose(self, run_id, stage):
        self.made[run_id, stage] = self.open.pop((run_id, stage))
        del self.holder[stage]

    @rule(run_id=RUNS)
    def begin(self, run_id):
        if run_id not in self.expires:
            self.pinned = {key: value for key, value in self.pinned.items() if key[0] != run_id}
        self.catalog.begin_run(run_info(run_id))
        self.expires[run_id] = self.clock.now + TTL_S

    @rule(run_id=RUNS, stage=STAGES, take_over=st.booleans())
    def open_stage(self, run_id, stage, take_over):
        if run_id not in self.expires:
            with pytest.raises(RunError):
                self.catalog.open_stages(run_id, [stage], [], scratch=False)
            return
        opened = self.catalog.open_stages(run_id, [stage], [], scratch=False, take_over=take_over)
        self.expires[run_id] = self.clock.now + TTL_S
        other = self.holder.get(stage)
        if other not in (None, run_id):
            if not take_over and self.expires[other] > self.clock.now:
                assert isinstance(opened, Held)
                return
            self.lose(other, stage)
        key = opened.generations[stage]
        self.workers[run_id].keys[stage] = key
        self.holder[stage] = run_id
        if (run_id, stage) not in self.open:
            begins_with = {name: item.id for name, item in self.catalog.entries(stage, key.number).items()}
            assert begins_with in ({}, self.made.get((run_id, stage), {}))
            self.open[run_id, stage] = begins_with

    @rule(run_id=RUNS, stage=STAGES, task=TASKS, data=st.data())
    def record(self, run_id, stage, task, data):
        worker = self.workers[run_id]
        if stage not in worker.keys:
            return
        stored = [item for item in self.objects if item not in self.garbage]
        chosen = data.draw(st.sampled_from([*stored[-4:], None]))
        object_id = chosen or f"o{len(self.objects)}"
        if (run_id, stage) not in self.open:
            with pytest.raises(LeaseLost):
                worker.record(stage, task, object_id, new=chosen is None)
            return
        worker.record(stage, task, object_id, new=chosen is None)
        self.open[run_id, stage][task] = object_id
        if chosen is None:
            self.objects.append(object_id)

    @rule(run_id=RUNS, stage=STAGES)
    def commit(self, run_id, stage):
        if (run_id, stage) not in self.open:
            lost = self.workers[run_id].keys.get(stage) is not None and (run_id, stage) in self.made
            try:
                self.catalog.commit(run_id, [stage])
            except LeaseLost:
                return
            assert lost
            return
        changed = self.workers[run_id].commit(stage)
        content = self.open[run_id, stage]
        assert changed == (content != self.current.get(stage))
        self.lose(run_id, stage)
        self.current[stage] = content
        self.own.add((run_id, stage))

    @rule(run_id=RUNS, state=st.sampled_from(["succeeded", "failed", "aborted"]))
    def finish(self, run_id, state):
        if run_id in self.expires:
            self.catalog.finish_run(run_id, state)
            del self.expires[run_id]
            for stage in [stage for other, stage in self.open if other == run_id]:
                self.lose(run_id, stage)

    @rule(run_id=RUNS, stage=STAGES)
    def read(self, run_id, stage):
        if run_id not in self.expires or (run_id, stage) in self.own or (run_id, stage) in self.open or (run_id, stage) in self.made:
            return
        found = self.catalog.inputs(run_id, [TaskKey(stage, task) for task in "xy"])
        seen = {key.task: item.result.entries[key.task] for key, item in found.items()}
        if (run_id, stage) not in self.pinned and stage in self.current:
            self.pinned[run_id, stage] = dict(self.current[stage])
        expected = self.pinned.get((run_id, stage), {})
        assert expected is None or seen == expected

    @rule(seconds=st.sampled_from([TTL_S / 2, TTL_S]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(committed=st.integers(0, 2), failed=st.integers(0, 1), age=st.sampled_from([0, TTL_S]))
    def expire(self, committed, failed, age):
        for run_id, stage in self.pinned:
            if self.expires.get(run_id, 0) <= self.clock.now:
                self.pinned[run_id, stage] = None
        gone = {item.id for item in self.catalog.expire(Retention(committed, failed, age)).objects}
        assert not gone & self.garbage
        self.garbage |= gone

    @invariant()
    def what_is_shown_is_what_was_committed(self):
        assert names(self.catalog) == self.current

    @invariant()
    def nothing_that_is_pointed_to_is_garbage(self):
        for row in self.catalog.generations():
            assert not {item.id for item in self.catalog.entries(row.stage, row.number).values()} & self.garbage

    @invariant()
    def what_is_open_is_as_it_was_recorded(self):
        for (run_id, stage), content in self.open.items():
            number = self.workers[run_id].keys[stage].number
            assert {name: item.id for name, item in self.catalog.entries(stage, number).items()} == content

    @invariant()
    def leases_are_with_those_who_took_them(self):
        assert {row.stage: row.run_id for row in self.catalog.leases()} == self.holder


TestGenerationMap = GenerationMap.TestCase
TestGenerationMap.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
