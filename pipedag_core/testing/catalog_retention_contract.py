"""What a catalog promises about clean-up."""

from __future__ import annotations

import pytest

from pipedag_core.errors import RunError
from pipedag_core.ports.catalogs import Catalog, Retention, TaskKey
from pipedag_core.testing.catalog_samples import TTL_S, Clock, Worker, names

_SMALL = Retention(committed=1, failed=0, minimum_age_s=0)


def _numbers(catalog: Catalog) -> list[int]:
    return [row.number for row in catalog.generations() if row.state != "expired"]


def _garbage(catalog: Catalog, retention: Retention = _SMALL) -> list[str]:
    return sorted(item.id for item in catalog.expire(retention).objects)


class RetentionContract:
    """Clean-up."""

    def test_the_newest_generations_are_kept_and_what_only_others_point_to_is_garbage(self, catalog: Catalog) -> None:
        for number in range(1, 5):
            worker = Worker(catalog, f"r{number}").begin()
            worker.publish("s", t=f"o{number}")
            catalog.finish_run(worker.run_id, "succeeded")
        garbage = catalog.expire(Retention(committed=2, failed=1, minimum_age_s=0))
        assert [item.id for item in garbage.objects] == ["o1", "o2"]
        assert [key.number for key in sorted(garbage.generations, key=lambda key: key.number)] == [1, 2]
        assert _numbers(catalog) == [3, 4]
        assert _garbage(catalog, Retention(2, 1, 0)) == []

    def test_nothing_young_goes(self, catalog: Catalog, clock: Clock) -> None:
        for number in range(3):
            Worker(catalog, f"r{number}").begin().publish("s", t=f"o{number}")
            catalog.finish_run(f"r{number}", "succeeded")
            clock.advance(100)
        assert _garbage(catalog, Retention(1, 1, 300.5)) == []
        assert _garbage(catalog, Retention(1, 1, 299)) == ["o0"]

    def test_a_failed_generation_is_young_until_long_after_its_end(self, catalog: Catalog, clock: Clock) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1")
        clock.advance(1000)
        catalog.finish_run("a", "failed")
        clock.advance(10)
        assert _garbage(catalog, Retention(1, 0, 20)) == []
        clock.advance(10)
        assert _garbage(catalog, Retention(1, 1, 20)) == []
        assert _garbage(catalog, Retention(1, 0, 20)) == ["o1"]

    def test_what_a_later_generation_points_to_outlives_its_own(self, catalog: Catalog) -> None:
        for number, new in ((1, True), (2, False), (3, False)):
            worker = Worker(catalog, f"r{number}").begin()
            worker.open("s")
            worker.record("s", "kept", "o1", new=new)
            worker.record("s", "t", f"t{number}")
            worker.commit("s")
            catalog.finish_run(worker.run_id, "succeeded")
        assert _garbage(catalog) == ["t1", "t2"]
        assert {row.number: row.state for row in catalog.generations()} == {1: "expired", 3: "committed"}
        assert names(catalog) == {"s": {"kept": "o1", "t": "t3"}}
        worker = Worker(catalog, "last").begin()
        worker.publish("s", t="t4")
        catalog.finish_run("last", "succeeded")
        assert _garbage(catalog) == ["o1", "t3"]
        assert {row.number: row.state for row in catalog.generations()} == {4: "committed"}

    def test_what_another_stage_points_to_is_kept(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        worker.open("consumer")
        worker.record("consumer", "same", "o1", new=False)
        worker.commit("consumer")
        worker.publish("s", t="o2")
        catalog.finish_run("a", "succeeded")
        assert _garbage(catalog) == []
        assert names(catalog)["consumer"] == {"same": "o1"}

    def test_open_generations_are_never_touched(self, catalog: Catalog, clock: Clock) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1")
        clock.advance(10_000_000)
        assert _garbage(catalog) == []
        worker.begin()
        assert worker.commit("s") is True

    def test_what_a_run_that_goes_on_has_pinned_is_kept_until_its_pins_expire(self, catalog: Catalog, clock: Clock) -> None:
        key = TaskKey("s", "t")
        Worker(catalog, "w1").begin().publish("s", t="o1")
        catalog.finish_run("w1", "succeeded")
        Worker(catalog, "reader").begin()
        assert key in catalog.inputs("reader", [key])
        Worker(catalog, "w2").begin().publish("s", t="o2")
        catalog.finish_run("w2", "succeeded")
        assert _garbage(catalog) == []
        clock.advance(TTL_S - 1)
        catalog.renew("reader")
        clock.advance(TTL_S - 1)
        assert _garbage(catalog) == []
        clock.advance(1)
        assert _garbage(catalog) == ["o1"]
        assert catalog.inputs("reader", [key]) == {}

    def test_pins_end_with_their_run(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        worker.publish("s", t="o2")
        Worker(catalog, "reader").begin().open("x", reads=("s",))
        worker.publish("s", t="o3")
        catalog.finish_run("a", "succeeded")
        assert _garbage(catalog) == ["o1"]
        catalog.finish_run("reader", "succeeded")
        assert _garbage(catalog) == ["o2"]

    def test_what_was_current_before_a_run_is_kept_for_it_across_its_own_commit(self, catalog: Catalog) -> None:
        Worker(catalog, "old").begin().publish("s", t="o1")
        catalog.finish_run("old", "succeeded")
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        assert catalog.before("a", ["s", "new"]) == {"s": 1}
        worker.record("s", "t", "o2")
        worker.commit("s")
        assert _garbage(catalog) == []
        assert catalog.before("a", ["s", "new"]) == {"s": 1}
        assert set(catalog.entries("s", 1)) == {"t"}
        catalog.finish_run("a", "succeeded")
        assert _garbage(catalog) == ["o1"]

    def test_what_was_before_a_run_is_never_its_own_also_when_it_is_begun_again(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        assert catalog.before("a", ["s"]) == {}
        worker.record("s", "t", "o1")
        worker.commit("s")
        catalog.finish_run("a", "succeeded")
        worker.begin().open("s")
        assert catalog.before("a", ["s"]) == {}
        # Nobody had asked before the first commit of this one.
        other = Worker(catalog, "b").begin()
        other.open("s", take_over=True)
        other.record("s", "t", "o2")
        other.commit("s")
        assert catalog.before("b", ["s"]) == {"s": 1}
        catalog.finish_run("b", "succeeded")
        with pytest.raises(RunError):
            catalog.before("b", ["x"])

    def test_what_was_before_a_run_is_asked_anew_where_another_run_came_between(self, catalog: Catalog) -> None:
        Worker(catalog, "old").begin().publish("s", t="o1")
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        assert catalog.before("a", ["s"]) == {"s": 1}
        other = Worker(catalog, "b").begin()
        other.open("s", take_over=True)
        other.record("s", "t", "o2")
        other.commit("s")
        assert worker.open("s").number == 4
        assert catalog.before("a", ["s"]) == {"s": 3}

    def test_of_a_stage_that_a_run_only_reads_both_versions_are_what_it_pins(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        reader = Worker(catalog, "reader").begin()
        reader.open("x", reads=("s",))
        worker.publish("s", t="o2")
        assert catalog.before("reader", ["s"]) == {"s": 1}
        key = TaskKey("s", "t")
        assert catalog.inputs("reader", [key])[key].generation == 1

    def test_what_was_before_a_run_is_not_what_it_reads(self, catalog: Catalog) -> None:
        Worker(catalog, "old").begin().publish("s", t="o1")
        key = TaskKey("s", "t")
        Worker(catalog, "reader").begin()
        assert catalog.before("reader", ["s"]) == {"s": 1}
        assert catalog.inputs("reader", [key])[key].generation == 1
        assert catalog.finish_run("reader", "succeeded") == {"s": 1}

    def test_scratch_goes_by_age_alone(self, catalog: Catalog, clock: Clock) -> None:
        for number in (1, 2):
            worker = Worker(catalog, f"r{number}").begin()
            worker.open("s", scratch=True)
            worker.record("s", "t", f"o{number}")
            catalog.finish_run(worker.run_id, "succeeded")
            clock.advance(100)
        assert _garbage(catalog, Retention(9, 9, 150)) == ["o1"]
        assert _garbage(catalog, Retention(9, 9, 50)) == ["o2"]
        assert _numbers(catalog) == []

    def test_what_a_retry_has_replaced_is_garbage(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1")
        worker.record("s", "t", "o2")
        assert _garbage(catalog) == ["o1"]

    def test_the_log_outlives_its_generations_by_a_month(self, catalog: Catalog, clock: Clock) -> None:
        for run_id in "ab":
            Worker(catalog, run_id).begin().publish("s", t=f"o{run_id}")
            catalog.note(run_id, "name", "value")
            catalog.finish_run(run_id, "succeeded")
        catalog.expire(_SMALL)
        assert [result.task for _, result in catalog.task_log("a")] == ["t"]
        clock.advance(31 * 24 * 3600)
        catalog.expire(_SMALL)
        assert [row.info.run_id for row in catalog.runs()] == ["b"]
        assert list(catalog.task_log("a")) == []
        assert (catalog.notes("a"), catalog.notes("b")) == ({}, {"name": "value"})
        assert [result.task for _, result in catalog.task_log("b")] == ["t"]
