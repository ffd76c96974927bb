"""What a catalog promises about going back to an earlier generation."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipedag_core.catalogs.owner import this_process
from pipedag_core.errors import LeaseLost, RunError, StoredDataMissing
from pipedag_core.ports.catalogs import Catalog, CommitResult, Held, Retention, TaskKey
from pipedag_core.ports.data import StoredObject
from pipedag_core.testing.catalog_lease_contract import NotingPublication, owner_that_died
from pipedag_core.testing.catalog_samples import TTL_S, Clock, Worker, names, run_info


def _publish(catalog: Catalog, run_id: str, **tables: str) -> int:
    """Let a run commit stage `s` and end; return the generation."""
    number = Worker(catalog, run_id).begin().publish("s", **tables).number
    catalog.finish_run(run_id, "succeeded")
    return number


def _publish_nest(catalog: Catalog, run_id: str, *stages: str) -> None:
    worker = Worker(catalog, run_id).begin()
    worker.open(*stages)
    for stage in stages:
        worker.record(stage, "t", f"{run_id}-{stage}")
    worker.commit(*stages)
    catalog.finish_run(run_id, "succeeded")


def _roll_back(catalog: Catalog, stage: str = "s", generation: int | None = None, run_id: str = "back") -> CommitResult:
    catalog.begin_run(run_info(run_id, owner=this_process("rollback")))
    done = catalog.rollback(run_id, stage, generation)
    assert isinstance(done, CommitResult), done
    catalog.finish_run(run_id, "succeeded")
    return done


class RollbackContract:
    """Going back."""

    def test_the_generation_before_becomes_current_again_under_a_new_number(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1", u="o2")
        _publish(catalog, "b", t="o3")
        assert _roll_back(catalog) == CommitResult({"s": 3}, changed=True)
        assert names(catalog) == {"s": {"t": "o1", "u": "o2"}}
        assert [(row.number, row.state, row.run_id, row.current) for row in catalog.generations()] == [
            (1, "committed", "a", False),
            (2, "committed", "b", False),
            (3, "committed", "back", True),
        ]
        assert [result.task for result in catalog.results("s", 3)] == ["t", "u"]
        assert catalog.results("s", 3) == catalog.results("s", 1)
        assert list(catalog.leases()) == []

    def test_going_back_twice_undoes_it(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        _roll_back(catalog)
        assert _roll_back(catalog, run_id="forth").changed
        assert names(catalog) == {"s": {"t": "o2"}}

    def test_any_kept_generation_can_be_named(self, catalog: Catalog) -> None:
        for number in range(1, 5):
            _publish(catalog, f"r{number}", t=f"o{number}")
        assert _roll_back(catalog, generation=2).generations == {"s": 5}
        assert names(catalog) == {"s": {"t": "o2"}}
        assert _roll_back(catalog, generation=4, run_id="forth").generations == {"s": 6}
        assert names(catalog) == {"s": {"t": "o4"}}

    def test_going_to_what_is_current_changes_nothing(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        assert _roll_back(catalog, generation=2) == CommitResult({"s": 2}, changed=False)
        _roll_back(catalog, run_id="there")
        assert _roll_back(catalog, generation=1, run_id="again") == CommitResult({"s": 3}, changed=False)
        assert [row.number for row in catalog.generations()] == [1, 2, 3]

    @pytest.mark.parametrize("wanted", [None, 1, 7])
    def test_what_clean_up_has_removed_is_refused_with_what_is_kept(self, catalog: Catalog, wanted: int | None) -> None:
        for number in range(1, 4):
            _publish(catalog, f"r{number}", t=f"o{number}")
        catalog.expire(Retention(1 if wanted is None else 2, 0, 0))
        catalog.begin_run(run_info("back"))
        with pytest.raises(RunError, match="'s'") as error:
            catalog.rollback("back", "s", wanted)
        assert error.value.__dict__["kept"] == (() if wanted is None else (2,))
        assert names(catalog) == {"s": {"t": "o3"}}

    def test_only_what_was_committed_can_be_gone_back_to(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        worker = Worker(catalog, "b").begin()
        worker.open("s")
        worker.record("s", "t", "o2")
        catalog.finish_run("b", "failed")
        _publish(catalog, "c", t="o3")
        catalog.begin_run(run_info("back"))
        with pytest.raises(RunError, match="Kept are: 1"):
            catalog.rollback("back", "s", 2)
        assert _roll_back(catalog, run_id="older").generations == {"s": 4}
        assert names(catalog) == {"s": {"t": "o1"}}

    def test_a_stage_that_was_never_committed_is_refused(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().open("s")
        catalog.begin_run(run_info("back"))
        for stage in ("s", "other"):
            with pytest.raises(RunError, match="never committed"):
                catalog.rollback("back", stage)

    def test_a_run_that_writes_the_stage_is_not_disturbed(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        worker = Worker(catalog, "writer").begin()
        worker.open("s")
        catalog.begin_run(run_info("back"))
        held = catalog.rollback("back", "s")
        assert isinstance(held, Held)
        assert (held.stage, held.run_id) == ("s", "writer")
        assert names(catalog) == {"s": {"t": "o2"}}
        worker.record("s", "t", "o3")
        assert worker.commit("s") is True

    @pytest.mark.parametrize("end", ["expired", "died"])
    def test_a_late_writer_is_refused_afterwards(self, catalog: Catalog, clock: Clock, end: str) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        worker = Worker(catalog, "late").begin(owner_that_died() if end == "died" else None)
        worker.open("s")
        if end == "expired":
            clock.advance(TTL_S)
        assert _roll_back(catalog).changed
        with pytest.raises(LeaseLost):
            worker.record("s", "t", "o4")
        with pytest.raises(LeaseLost):
            worker.commit("s")
        assert names(catalog) == {"s": {"t": "o1"}}

    def test_who_reads_keeps_what_it_has_pinned(self, catalog: Catalog) -> None:
        key = TaskKey("s", "t")
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        for run_id in ("reader", "later"):
            Worker(catalog, run_id).begin()
        assert list(catalog.inputs("reader", [key])[key].objects) == ["o2"]
        _roll_back(catalog)
        assert list(catalog.inputs("reader", [key])[key].objects) == ["o2"]
        assert list(catalog.inputs("later", [key])[key].objects) == ["o1"]

    def test_stages_that_were_committed_together_go_back_together(self, catalog: Catalog) -> None:
        _publish_nest(catalog, "a", "outer", "inner")
        _publish_nest(catalog, "b", "outer", "inner")
        assert _roll_back(catalog, "inner").generations == {"outer": 3, "inner": 3}
        assert names(catalog) == {"outer": {"t": "a-outer"}, "inner": {"t": "a-inner"}}
        assert _roll_back(catalog, "outer", run_id="forth").generations == {"outer": 4, "inner": 4}

    def test_stages_that_are_nested_otherwise_by_now_are_refused(self, catalog: Catalog) -> None:
        _publish_nest(catalog, "a", "outer")
        _publish_nest(catalog, "b", "outer", "inner")
        _publish_nest(catalog, "c", "inner")
        catalog.begin_run(run_info("back"))
        with pytest.raises(RunError, match="nesting has changed"):
            catalog.rollback("back", "inner", 1)
        assert _roll_back(catalog, "outer", run_id="alone").generations == {"outer": 3}

    def test_lost_data_is_refused(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        catalog.forget_objects(["o1"])
        catalog.begin_run(run_info("back"))
        with pytest.raises(StoredDataMissing, match="data of t is gone"):
            catalog.rollback("back", "s")
        assert names(catalog) == {"s": {"t": "o2"}}

    def test_what_is_to_become_current_can_be_checked_and_refused(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        seen: list[str] = []

        def check(entries: Mapping[str, Mapping[str, StoredObject]]) -> None:
            seen.append(str({stage: {n: item.id for n, item in found.items()} for stage, found in entries.items()}))
            raise StoredDataMissing("not there")

        catalog.begin_run(run_info("back"))
        with pytest.raises(StoredDataMissing, match="not there"):
            catalog.rollback("back", "s", check=check)
        assert seen == ["{'s': {'t': 'o1'}}"]
        assert names(catalog) == {"s": {"t": "o2"}}

    def test_names_in_the_stores_are_shown_within_the_commit(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        publication = NotingPublication()
        catalog.begin_run(run_info("back"))
        catalog.rollback("back", "s", publication=publication)
        assert publication.told == [("publish", {"s": ["t"]})]

    def test_names_that_cannot_be_shown_undo_it(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        catalog.begin_run(run_info("back"))
        with pytest.raises(ZeroDivisionError):
            catalog.rollback("back", "s", publication=NotingPublication(fails="publish"))
        assert names(catalog) == {"s": {"t": "o2"}}

    def test_what_was_gone_back_to_outlives_the_first_copy_of_its_map(self, catalog: Catalog) -> None:
        _publish(catalog, "a", t="o1")
        _publish(catalog, "b", t="o2")
        _roll_back(catalog)
        assert sorted(item.id for item in catalog.expire(Retention(1, 0, 0)).objects) == ["o2"]
        assert names(catalog) == {"s": {"t": "o1"}}

    def test_the_newest_of_equal_results_is_the_one_that_was_gone_back_to(self, catalog: Catalog) -> None:
        for run_id, object_id in (("a", "o1"), ("b", "o2")):
            worker = Worker(catalog, run_id).begin()
            worker.open("s")
            worker.record("s", "t", object_id, fingerprint="same")
            worker.commit("s")
            catalog.finish_run(run_id, "succeeded")
        _roll_back(catalog)
        Worker(catalog, "c").begin().open("s")
        found = catalog.find_result("c", "s", "same")
        assert found is not None
        assert list(found.objects) == ["o1"]
