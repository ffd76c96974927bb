"""What a catalog promises about runs, leases, opening and committing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipedag_core.catalogs.owner import this_process
from pipedag_core.errors import LeaseLost, RunError
from pipedag_core.ports.catalogs import Catalog, Held, Opened, Owner, RunInfo, TaskKey
from pipedag_core.ports.data import StoredObject
from pipedag_core.testing.catalog_samples import TTL_S, Clock, Worker, names, run_info


def _say_who(pipe: Any) -> None:
    pipe.send(this_process("a short life"))


def owner_that_died() -> Owner:
    """Return the owner of a process of this machine that has ended."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_say_who, args=(there,))
    process.start()
    owner: Owner = here.recv()
    process.join()
    process.close()
    here.close()
    there.close()
    return owner


class NotingPublication:
    """Notes what it is told: when, and stage -> readable names."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[tuple[str, dict[str, list[str]]]] = []
        self.exact = True
        self.waited_s = 0.0
        self._fails = fails

    def prepare(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        self._note("prepare", names)

    def publish(self, connection: Any, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        self._note("publish", names)

    def committed(self) -> None:
        pass

    def _note(self, when: str, names: Mapping[str, Mapping[str, StoredObject]]) -> None:
        self.told.append((when, {stage: sorted(entries) for stage, entries in names.items()}))
        if when == self._fails:
            raise ZeroDivisionError


class LeaseContract:
    """Runs, leases, opening and committing."""

    def test_the_first_note_of_a_name_stands(self, catalog: Catalog) -> None:
        catalog.begin_run(run_info("r"))
        catalog.begin_run(run_info("other"))
        assert catalog.note("r", "tracked as", "first") == "first"
        assert catalog.note("r", "tracked as", "second") == "first"
        assert catalog.note("other", "tracked as", "its own") == "its own"
        assert catalog.notes("r") == {"tracked as": "first"}
        assert catalog.notes("unknown") == {}

    def test_notes_are_kept_with_runs_that_are_known(self, catalog: Catalog) -> None:
        with pytest.raises(RunError):
            catalog.note("unknown", "name", "value")

    def test_a_run_comes_back_as_it_was_registered(self, catalog: Catalog, clock: Clock) -> None:
        info = run_info("r", options='{"mode":"normal"}')
        row = catalog.begin_run(info)
        assert (row.info, row.attempt, row.state, row.started, row.ended) == (info, 1, "running", clock.now, None)
        assert list(catalog.runs()) == [row]

    def test_runs_that_have_not_ended_are_told_with_the_end_of_their_right(self, catalog: Catalog, clock: Clock) -> None:
        for run_id in "abc":
            Worker(catalog, run_id).begin()
            clock.advance(1)
        catalog.finish_run("b", "failed")
        catalog.renew("a")
        assert [(row.info.run_id, row.state, row.expires - clock.now) for row in catalog.unfinished()] == [
            ("a", "running", TTL_S),
            ("c", "running", TTL_S - 1),
        ]

    def test_options_of_the_first_call_stay_and_the_owner_of_the_last_counts(self, catalog: Catalog) -> None:
        catalog.begin_run(run_info("r", options="first"))
        owner = this_process("second")
        row = catalog.begin_run(run_info("r", options="second", owner=owner))
        assert (row.info.options, row.info.owner, row.attempt) == ("first", owner, 1)

    @pytest.mark.parametrize("other", [run_info("r", flow="trains"), run_info("r", digest="d2")], ids=["flow", "wiring"])
    def test_one_run_id_cannot_be_used_for_two_flows_or_wirings(self, catalog: Catalog, other: RunInfo) -> None:
        catalog.begin_run(run_info("r"))
        with pytest.raises(RunError, match="Start a new run"):
            catalog.begin_run(other)

    def test_a_run_that_ended_goes_on_as_a_new_attempt(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "r").begin()
        catalog.finish_run("r", "failed")
        with pytest.raises(RunError, match="has ended"):
            catalog.open_stages("r", ["s"], [], scratch=False)
        row = catalog.begin_run(run_info("r"))
        assert (row.attempt, row.state, row.ended) == (2, "running", None)
        assert worker.open("s").number == 1

    def test_the_newest_runs_come_first(self, catalog: Catalog, clock: Clock) -> None:
        for run_id in "abc":
            catalog.begin_run(run_info(run_id))
            clock.advance(1)
        assert [row.info.run_id for row in catalog.runs(2)] == ["c", "b"]

    def test_opening_twice_gives_the_same_generation_with_the_same_fence(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "r").begin()
        assert worker.open("s", "inner") == worker.open("s", "inner")
        assert {row.stage: row.number for row in catalog.generations()} == {"s": 1, "inner": 1}

    def test_a_stage_that_a_live_run_writes_is_held(self, catalog: Catalog, clock: Clock) -> None:
        first, second = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        first.open("s")
        clock.advance(10)
        held = catalog.open_stages(second.run_id, ["s"], [], scratch=False)
        assert held == Held("s", "a", run_info("a").owner, TTL_S - 10)
        assert [(row.stage, row.run_id, row.fence) for row in catalog.leases()] == [("s", "a", 1)]

    def test_a_stage_is_held_too_when_it_is_wired_into_another_unit(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().open("outer", "s")
        assert isinstance(catalog.open_stages(Worker(catalog, "b").begin().run_id, ["s"], [], scratch=False), Held)

    def test_a_lease_expires_unless_it_is_renewed(self, catalog: Catalog, clock: Clock) -> None:
        first, second = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        first.open("s")
        clock.advance(TTL_S - 1)
        catalog.renew("a")
        clock.advance(TTL_S - 1)
        assert isinstance(catalog.open_stages("b", ["s"], [], scratch=False), Held)
        clock.advance(1)
        second.begin()
        assert isinstance(catalog.open_stages("b", ["s"], [], scratch=False), Opened)

    def test_every_step_renews_by_beginning_the_run(self, catalog: Catalog, clock: Clock) -> None:
        Worker(catalog, "a").begin().open("s")
        clock.advance(TTL_S / 2)
        catalog.begin_run(run_info("a"))
        assert [row.expires for row in catalog.leases()] == [clock.now + TTL_S]

    def test_the_lease_of_a_dead_process_is_free_at_once(self, catalog: Catalog) -> None:
        Worker(catalog, "dead").begin(owner_that_died()).open("s")
        worker = Worker(catalog, "b").begin()
        assert (worker.open("s").number, worker.keys["s"].fence) == (2, 2)
        assert {row.number: row.state for row in catalog.generations()} == {1: "failed", 2: "open"}

    def test_the_lease_of_a_living_process_and_of_another_host_is_not(self, catalog: Catalog) -> None:
        Worker(catalog, "alive").begin(this_process()).open("s")
        Worker(catalog, "far").begin(replace(owner_that_died(), host="elsewhere")).open("t")
        Worker(catalog, "b").begin()
        assert isinstance(catalog.open_stages("b", ["s"], [], scratch=False), Held)
        assert isinstance(catalog.open_stages("b", ["t"], [], scratch=False), Held)

    def test_a_lease_can_be_taken_over_and_its_former_owner_can_write_no_more(self, catalog: Catalog) -> None:
        first, second = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        first.open("s")
        first.record("s", "t", "o1")
        second.open("s", take_over=True)
        with pytest.raises(LeaseLost, match="run 'b' holds the lease"):
            first.record("s", "t2", "o2")
        with pytest.raises(LeaseLost):
            first.commit("s")
        second.record("s", "t", "o3")
        second.commit("s")
        assert names(catalog) == {"s": {"t": "o3"}}

    def test_a_fence_is_never_used_twice(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        fences: list[int] = []
        for number in range(3):
            fences.append(worker.open("s").fence)
            worker.record("s", "t", f"o{number}")
            worker.commit("s")
        assert fences == [1, 2, 3]

    def test_a_late_worker_of_the_same_run_is_refused_after_the_commit(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        with pytest.raises(LeaseLost, match="committed"):
            worker.record("s", "t", "o2")
        late = dict(worker.keys)
        worker.open("s")
        worker.keys = late
        with pytest.raises(LeaseLost):
            worker.record("s", "t", "o2")

    def test_nothing_is_shown_before_the_commit_and_all_of_a_unit_after_it(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s", "inner", "empty")
        worker.record("s", "t", "o1")
        worker.record("inner", "t", "o2")
        assert names(catalog) == {}
        assert (catalog.current("s"), catalog.current("unknown")) == (None, None)
        result = catalog.commit("a", ["s", "inner", "empty"])
        assert (dict(result.generations), result.changed) == ({"s": 1, "inner": 1, "empty": 1}, True)
        assert names(catalog) == {"s": {"t": "o1"}, "inner": {"t": "o2"}, "empty": {}}
        assert catalog.leases() == []

    def test_committing_twice_gives_the_same_answer(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        assert worker.commit("s") is True
        again = Worker(catalog, "b").begin()
        again.open("s")
        again.record("s", "t", "o1", new=False)
        assert [again.commit("s"), again.commit("s")] == [False, False]
        assert catalog.commit("b", ["s"]).generations == {"s": 1}

    def test_the_same_content_commits_as_unchanged_and_leaves_no_generation(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1")
        worker = Worker(catalog, "b").begin()
        worker.open("s")
        worker.record("s", "t", "o1", new=False)
        assert worker.commit("s") is False
        assert [(row.number, row.state, row.current) for row in catalog.generations()] == [(1, "committed", True)]
        assert worker.open("s").number == 3

    @pytest.mark.parametrize("change", ["name", "fingerprint", "object", "fewer"])
    def test_any_difference_commits_as_changed(self, catalog: Catalog, change: str) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1", u="o2")
        worker = Worker(catalog, "b").begin()
        worker.open("s")
        worker.record("s", "t", "o1", new=False)
        if change == "name":
            worker.record("s", "u", "o2", new=False, name="renamed")
        elif change == "fingerprint":
            worker.record("s", "u", "o2", new=False, fingerprint="other")
        elif change == "object":
            worker.record("s", "u", "o3", fingerprint="print-o2")
        assert worker.commit("s") is True
        assert catalog.current("s") == 2

    def test_tasks_without_a_fingerprint_are_compared_by_what_they_gave(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        for new in (True, False):
            worker.open("s")
            worker.record("s", "t", "o1", fingerprint="", new=new)
            assert worker.commit("s") is new

    def test_unchanged_results_are_found_by_their_place_in_the_wiring_as_it_is_now(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1")
        worker = Worker(catalog, "b").begin()
        worker.open("s")
        result = replace(worker.record("s", "t", "o1", new=False), position="moved")
        catalog.record("b", worker.keys["s"], result, [])
        assert worker.commit("s") is False
        Worker(catalog, "c").begin()
        assert list(catalog.inputs("c", [TaskKey("s", "t", "moved"), TaskKey("s", "t", "position-t")])) == [TaskKey("s", "t", "moved")]

    def test_what_is_published_is_told_within_the_commit_and_only_if_it_changed(self, catalog: Catalog) -> None:
        publication = NotingPublication()
        Worker(catalog, "a").begin().publish("other", x="o0")
        worker = Worker(catalog, "b").begin()
        for new in (True, False):
            worker.open("s")
            worker.record("s", "t", "o1", new=new)
            catalog.commit("b", ["s"], publication)
        assert publication.told == [("prepare", {"s": ["t"]}), ("publish", {"s": ["t"]})]

    @pytest.mark.parametrize("when", ["prepare", "publish"])
    def test_a_failure_to_publish_undoes_the_commit(self, catalog: Catalog, when: str) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1")
        with pytest.raises(ZeroDivisionError):
            catalog.commit("a", ["s"], NotingPublication(fails=when))
        assert catalog.current("s") is None
        assert worker.commit("s") is True

    def test_what_was_not_opened_cannot_be_committed(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        with pytest.raises(LeaseLost, match="has not opened"):
            worker.commit("s")
        worker.open("s", scratch=True)
        with pytest.raises(LeaseLost, match="has not opened"):
            worker.commit("s")

    def test_a_stage_opened_again_starts_with_what_this_run_has_made_of_it(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1", u="o2")
        second = worker.open("s")
        assert {result.task for result in catalog.results("s", second.number)} == {"t", "u"}
        worker.record("s", "t", "o3")
        catalog.finish_run("a", "failed")
        worker.begin()
        third = worker.open("s")
        assert {name: item.id for name, item in catalog.entries("s", third.number).items()} == {"t": "o3", "u": "o2"}
        assert names(catalog) == {"s": {"t": "o1", "u": "o2"}}

    def test_a_stage_opened_by_another_run_starts_empty(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1")
        assert list(catalog.results("s", Worker(catalog, "b").begin().open("s").number)) == []

    def test_finishing_drops_leases_fails_what_is_open_and_tells_the_snapshot(self, catalog: Catalog, clock: Clock) -> None:
        Worker(catalog, "old").begin().publish("read", t="o1")
        worker = Worker(catalog, "a").begin()
        written = worker.publish("written", t="o2")
        worker.open("left", reads=("read", "nowhere"))
        expected = {"read": 1, "written": written.number}
        assert [dict(catalog.finish_run("a", "failed")), dict(catalog.finish_run("a", "succeeded"))] == [expected, expected]
        assert {row.stage: row.state for row in catalog.generations()} == {"read": "committed", "written": "committed", "left": "failed"}
        assert catalog.leases() == []
        row = next(row for row in catalog.runs() if row.info.run_id == "a")
        assert (row.state, row.ended) == ("failed", clock.now)

    def test_a_run_that_is_not_known_is_an_error(self, catalog: Catalog) -> None:
        with pytest.raises(RunError, match="not known"):
            catalog.open_stages("nobody", ["s"], [], scratch=False)
        with pytest.raises(RunError, match="not known"):
            catalog.finish_run("nobody", "failed")
        with pytest.raises(RunError, match="cannot end as"):
            catalog.finish_run("nobody", "tired")
