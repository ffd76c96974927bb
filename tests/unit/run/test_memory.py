"""A run that carries out all its steps itself remembers what the catalog knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, materialize
from pipedag_core.catalogs.sqlite import SqliteCatalog
from pipedag_core.errors import DuplicateName, LeaseLost
from pipedag_core.ports.catalogs import NewObject, TaskKey, TaskResult
from pipedag_core.run import memory as memory_module
from pipedag_core.run.memory import RunMemory
from pipedag_core.testing.catalog_samples import Worker, table


@pytest.fixture
def catalog(tmp_path):
    opened = SqliteCatalog(tmp_path / "catalog.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def asked(monkeypatch):
    """Count the transactions of all catalogs."""
    counts = Counter()
    for name in ("_reading", "_writing"):
        original = getattr(SqliteCatalog, name)

        def counting(self, name=name, original=original):
            counts[name] += 1
            return original(self)

        monkeypatch.setattr(SqliteCatalog, name, counting)
    return counts


@pytest.fixture
def patient(monkeypatch):
    """Nothing is recorded because of the time that has passed."""
    monkeypatch.setattr(memory_module, "PATIENCE_S", 3600.0)


def chain(length):
    @materialize(lazy=True)
    def start():
        import sqlalchemy as sa

        return sa.text("SELECT 1 AS x")

    @materialize(version="1.0")
    def number(step: int):
        return step

    with Flow("chain") as flow:
        for stage in ("a", "b"):
            with Stage(stage):
                for step in range(length):
                    start()
                    number(step)
    return flow


def transactions_of_a_cached_run(length, folder, asked):
    store = {"class": "parquet", "args": {"base_path": f"{folder}/{{instance_id}}"}}
    config = PipedagConfig({"name": "p", "instances": {"i": {"instance_id": "i", "table_store": store}}}).get("i")
    chain(length).run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    asked.clear()
    chain(length).run(config=config, orchestration_engine=SequentialEngine(), fail_fast=True)
    return dict(asked)


def test_a_cached_run_asks_the_catalog_as_often_for_many_tasks_as_for_few(tmp_path, asked, patient):
    few = transactions_of_a_cached_run(2, tmp_path / "few", asked)
    assert transactions_of_a_cached_run(20, tmp_path / "many", asked) == few


class TestRemembering:
    def test_results_that_point_to_the_current_generation_wait_for_the_next_new_one(self, catalog, patient):
        worker = Worker(catalog, "a").begin()
        Worker(catalog, "b").begin().publish("s", t="o1", u="o2")
        [u, t] = catalog.recent_results("a", "s")
        key = worker.open("s")
        memory = RunMemory(catalog, "a", remembers=True)
        assert memory.find_result("s", "print-o1") == t
        memory.record(key, t.result, (), list(t.objects.values()))
        memory.record(key, u.result, (), list(u.objects.values()))
        assert list(catalog.results("s", key.number)) == []
        # The run itself sees them all the same.
        assert memory.inputs([TaskKey("s", "t")])[TaskKey("s", "t")].result == t.result
        memory.flush()
        assert [result.task for result in catalog.results("s", key.number)] == ["t", "u"]

    def test_a_result_that_points_to_a_failed_generation_is_recorded_at_once(self, catalog, patient):
        worker, failing = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        worker.publish("s", t="o1")
        failing.open("s")
        failing.record("s", "t", "o2")
        catalog.finish_run("b", "failed")
        key = worker.open("s")
        memory = RunMemory(catalog, "a", remembers=True)
        found = memory.find_result("s", "print-o2")
        memory.record(key, found.result, (), list(found.objects.values()))
        assert [result.entries for result in catalog.results("s", key.number)] == [{"t": "o2"}]

    def test_a_name_that_another_task_has_taken_is_refused_while_its_result_still_waits(self, catalog, patient):
        worker = Worker(catalog, "a").begin()
        Worker(catalog, "first").begin().publish("s", t="o1")
        key = worker.open("s")
        memory = RunMemory(catalog, "a", remembers=True)
        found = memory.find_result("s", "print-o1")
        memory.record(key, found.result, (), list(found.objects.values()))
        with pytest.raises(DuplicateName, match="'t' and 'v'"):
            memory.record(key, replace(found.result, task="v"), (), list(found.objects.values()))

    def test_what_waits_is_refused_when_the_lease_was_lost(self, catalog, patient):
        worker, thief = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        Worker(catalog, "first").begin().publish("s", t="o1")
        key = worker.open("s")
        memory = RunMemory(catalog, "a", remembers=True)
        found = memory.find_result("s", "print-o1")
        memory.record(key, found.result, (), list(found.objects.values()))
        thief.open("s", take_over=True)
        with pytest.raises(LeaseLost):
            memory.flush()
        memory.leave(["s"])
        memory.flush()

    def test_what_was_read_ahead_is_asked_for_again_once_an_object_is_gone(self, catalog):
        worker = Worker(catalog, "a").begin()
        Worker(catalog, "first").begin().publish("s", t="o1")
        worker.open("s")
        memory = RunMemory(catalog, "a", remembers=True)
        assert list(memory.find_objects("s", ["key-o1", "key-o9"])) == ["key-o1"]
        memory.forget_objects(["o1"])
        assert memory.find_objects("s", ["key-o1"]) == {}
        assert memory.find_result("s", "print-o1") is None

    def test_without_remembering_everything_is_recorded_at_once(self, catalog):
        worker = Worker(catalog, "a").begin()
        Worker(catalog, "first").begin().publish("s", t="o1")
        [found] = catalog.recent_results("a", "s")
        key = worker.open("s")
        memory = RunMemory(catalog, "a", remembers=False)
        memory.record(key, found.result, (), list(found.objects.values()))
        assert [result.task for result in catalog.results("s", key.number)] == ["t"]


class TestWhatWasWrittenInAMoment:
    """Quick tasks are recorded together; no more than a moment's work is lost if the process dies before."""

    @pytest.fixture
    def memory(self, catalog, patient):
        self.worker = Worker(catalog, "a").begin()
        return RunMemory(catalog, "a", remembers=True)

    def write(self, memory, key, task, seconds):
        stored = table(f"o-{task}", key, task)
        result = TaskResult(task, "", f"print-o-{task}", f"base-o-{task}", {}, "{}", {task: stored.id}, "ran", "", 7, seconds)
        memory.record(key, result, (NewObject(stored, f"key-{stored.id}", f"base-{stored.id}"),), (stored,))

    def recorded(self, catalog, key):
        return [result.task for result in catalog.results(key.stage, key.number)]

    def test_results_of_quick_tasks_wait_until_they_stand_for_a_moment(self, catalog, memory):
        key = self.worker.open("s")
        for number in range(5):
            self.write(memory, key, f"t{number}", 0.012)
        assert self.recorded(catalog, key) == ["t0", "t1", "t2", "t3", "t4"]
        self.write(memory, key, "t5", 0.012)
        assert len(self.recorded(catalog, key)) == 5
        memory.flush()
        assert len(self.recorded(catalog, key)) == 6

    def test_the_result_of_a_slow_task_is_recorded_at_once(self, catalog, memory):
        key = self.worker.open("s")
        self.write(memory, key, "slow", 1.0)
        assert self.recorded(catalog, key) == ["slow"]

    def test_what_waits_is_found_by_tasks_with_equal_work(self, catalog, memory):
        key = self.worker.open("s")
        assert memory.find_result("s", "print-o-t") is None
        self.write(memory, key, "t", 0.001)
        assert memory.find_result("s", "print-o-t").result.task == "t"
        assert list(memory.find_objects("s", ["key-o-t"])) == ["key-o-t"]

    def test_a_stage_that_was_lost_does_not_keep_another_one_from_being_recorded(self, catalog, memory):
        lost, kept = self.worker.open("lost"), self.worker.open("kept")
        self.write(memory, lost, "t", 0.001)
        self.write(memory, kept, "t", 0.001)
        Worker(catalog, "thief").begin().open("lost", take_over=True)
        with pytest.raises(LeaseLost):
            memory.flush()
        assert self.recorded(catalog, kept) == ["t"]
        self.write(memory, kept, "slow", 1.0)
        assert self.recorded(catalog, kept) == ["t", "slow"]
