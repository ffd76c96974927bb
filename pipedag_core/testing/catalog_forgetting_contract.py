"""What a catalog promises about forgetting stages, or everything."""

from __future__ import annotations

import pytest

from pipedag_core.catalogs.owner import this_process
from pipedag_core.errors import LeaseLost, RunError
from pipedag_core.ports.catalogs import Catalog, Garbage, Held, TaskKey
from pipedag_core.testing.catalog_lease_contract import owner_that_died
from pipedag_core.testing.catalog_samples import TTL_S, Clock, Worker, names, run_info


def _publish(catalog: Catalog, run_id: str, stage: str = "s", **tables: str) -> None:
    Worker(catalog, run_id).begin().publish(stage, **tables)
    catalog.finish_run(run_id, "succeeded")


def _forget(catalog: Catalog, *stages: str) -> Garbage:
    done = catalog.forget_stages(stages)
    assert isinstance(done, Garbage), done
    return done


class ForgettingContract:
    """Forgetting."""

    def test_a_forgotten_stage_has_no_generation_and_gives_back_all_that_it_kept(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1", u="o2")
        _publish(catalog, "b", t="o3", u="o2")
        _publish(catalog, "c", "other", t="o4")
        done = _forget(catalog, "s")
        assert sorted(item.id for item in done.objects) == ["o1", "o2", "o3"]
        assert [(key.stage, key.number) for key in done.generations] == [("s", 1), ("s", 2)]
        assert names(catalog) == {"other": {"t": "o4"}}
        assert catalog.current("s") is None
        assert {row.stage for row in catalog.generations()} == {"other"}
        assert catalog.inputs("a", [TaskKey("s", "t")]) == {}
        assert len(catalog.runs()) == 3

    def test_a_forgotten_stage_can_be_written_again_under_numbers_that_are_new(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        _forget(catalog, "s")
        _publish(catalog, "c", t="o3")
        assert [(row.number, row.current) for row in catalog.generations()] == [(3, True)]
        assert names(catalog) == {"s": {"t": "o3"}}

    def test_what_another_stage_points_to_stays(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1", u="o2")
        worker = Worker(catalog, "b").begin()
        worker.open("other")
        worker.record("other", "copy", "o1", new=False)
        worker.commit("other")
        catalog.finish_run("b", "succeeded")
        assert [item.id for item in _forget(catalog, "s").objects] == ["o2"]
        assert names(catalog) == {"other": {"copy": "o1"}}
        assert [item.id for item in _forget(catalog, "other").objects] == ["o1"]
        assert list(catalog.generations()) == []

    def test_failed_and_scratch_generations_go_too(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1")
        catalog.finish_run("a", "failed")
        other = Worker(catalog, "b").begin()
        other.open("s", scratch=True)
        other.record("s", "t", "o2")
        catalog.finish_run("b", "succeeded")
        assert sorted(item.id for item in _forget(catalog, "s").objects) == ["o1", "o2"]
        assert list(catalog.generations()) == []

    def test_what_was_never_there_is_forgotten_already(self, catalog: Catalog) -> None:
        assert _forget(catalog, "s") == Garbage((), ())

    @pytest.mark.parametrize("use", ["write", "read"])
    def test_a_run_at_work_keeps_what_it_writes_or_reads(self, catalog: Catalog, use: str) -> None:
        _publish(catalog, "a", t="o1")
        worker = Worker(catalog, "b").begin(this_process("b"))
        worker.open(*(("s",) if use == "write" else ("other",)), reads=() if use == "write" else ("s",))
        held = catalog.forget_stages(["s"])
        assert isinstance(held, Held)
        assert (held.stage, held.run_id, held.owner.note) == ("s", "b", "b")
        assert names(catalog) == {"s": {"t": "o1"}}
        assert isinstance(catalog.clear(), Held)
        catalog.finish_run("b", "failed")
        _forget(catalog, "s")

    def test_a_run_at_work_elsewhere_is_not_in_the_way(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        worker = Worker(catalog, "b").begin(this_process("b"))
        worker.open("other")
        _forget(catalog, "s")
        worker.record("other", "t", "o2")
        worker.commit("other")
        assert names(catalog) == {"other": {"t": "o2"}}

    @pytest.mark.parametrize("how", ["died", "expired"])
    def test_a_dead_run_is_not_in_the_way_and_records_nothing_afterwards(self, catalog: Catalog, clock: Clock, how: str) -> None:
        worker = Worker(catalog, "a").begin(owner_that_died() if how == "died" else None)
        worker.open("s")
        if how == "expired":
            clock.advance(TTL_S + 1)
        _forget(catalog, "s")
        assert list(catalog.leases()) == []
        with pytest.raises(LeaseLost):
            worker.record("s", "t", "o1")
        with pytest.raises(LeaseLost):
            worker.commit("s")

    def test_nested_stages_are_forgotten_together_or_not_at_all(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("outer", "inner")
        for stage in ("outer", "inner"):
            worker.record(stage, "t", f"o-{stage}")
        worker.commit("outer", "inner")
        catalog.finish_run("a", "succeeded")
        for one, other in (("outer", "inner"), ("inner", "outer")):
            with pytest.raises(RunError, match=f"{one!r} cannot go alone: {other}"):
                catalog.forget_stages([one])
        assert len(_forget(catalog, "inner", "outer").objects) == 2

    def test_a_cleared_catalog_knows_nothing_and_gives_no_number_twice(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        catalog.note("a", "name", "value")
        assert catalog.clear() is None
        assert (list(catalog.runs()), list(catalog.generations()), list(catalog.objects()), names(catalog)) == ([], [], [], {})
        assert catalog.notes("a") == {}
        assert list(catalog.task_log("a")) == []
        _publish(catalog, "a", t="o2")
        assert [row.number for row in catalog.generations()] == [2]

    def test_a_run_that_has_opened_nothing_yet_keeps_the_catalog_from_being_cleared(self, catalog: Catalog) -> None:
        catalog.begin_run(run_info("a", owner=this_process("a")))
        held = catalog.clear()
        assert isinstance(held, Held)
        assert (held.stage, held.run_id) == ("", "a")
