"""What a catalog promises about results: recording them, reading them as a run sees them, and finding them again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipedag_core.errors import DuplicateName, RunError, StoredDataMissing
from pipedag_core.ports.catalogs import Catalog, NewObject, Record, TaskKey, TaskResult
from pipedag_core.testing.catalog_samples import Worker, blob, names, table


def _seen(catalog: Catalog, run_id: str, stage: str, task: str = "t", position: str = "") -> str | None:
    key = TaskKey(stage, task, position)
    found = catalog.inputs(run_id, [key]).get(key)
    return None if found is None else next(iter(found.result.entries.values()))


class ResultContract:
    """Results and stored objects."""

    def test_a_result_comes_back_as_it_was_recorded(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        key = worker.open("s")
        new = [NewObject(table("o1", key, "tab"), "k1", "b1"), NewObject(blob("o2", key, "thing"), "k2", "k2")]
        entries = {"tab": "o1", "thing": "o2"}
        result = TaskResult("t", "p", "f", "b", {"version": "1"}, '["o1","o2"]', entries, "ran", "new", None, 1.5)
        catalog.record("a", key, result, new)
        found = catalog.inputs("a", [TaskKey("s", "t")])[TaskKey("s", "t")]
        assert (found.stage, found.generation, found.result) == ("s", 1, result)
        assert found.objects == {"o1": new[0].stored, "o2": new[1].stored}
        assert list(catalog.results("s", 1)) == [result]
        assert catalog.entries("s", 1) == {"tab": new[0].stored, "thing": new[1].stored}
        assert catalog.find_result("a", "s", "f") == found
        assert catalog.find_objects("a", "s", ["k1", "k2", "k3"]) == {"k1": new[0].stored, "k2": new[1].stored}

    def test_objects_without_a_readable_name_come_with_the_result_and_are_not_shown(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.publish("s", t="o1")
        key = worker.open("view")
        result = TaskResult("v", "p", "f", "f", {}, '["o1","o2"]', {}, "ran", "", sources=("o1",))
        catalog.record("a", key, result, [NewObject(table("o2", key, "hidden"), "k", "k")])
        worker.commit("view")
        found = catalog.find_result("a", "view", "f")
        assert found is not None
        assert set(found.objects) == {"o1", "o2"}
        assert names(catalog)["view"] == {}

    def test_all_objects_are_told_struck_and_nameless_ones_too(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        key = worker.open("s")
        new = [table("o2", key, "tab"), blob("o1", key, "thing"), table("o3", key, "unnamed")]
        result = TaskResult("t", "p", "f", "f", {}, "[]", {"tab": "o2", "thing": "o1"}, "ran", "")
        catalog.record("a", key, result, [NewObject(item, item.id, item.id) for item in new])
        catalog.finish_run("a", "failed")
        catalog.forget_objects(["o1"])
        assert [(row.stored, row.struck) for row in catalog.objects()] == [(new[0], False), (new[1], True), (new[2], False)]

    def test_a_retry_replaces_the_result_and_both_are_logged(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1", name="first")
        worker.record("s", "u", "o2")
        last = worker.record("s", "t", "o3", name="second")
        assert set(catalog.entries("s", 1)) == {"u", "second"}
        assert [result.task for result in catalog.results("s", 1)] == ["u", "t"]
        log = catalog.task_log("a")
        assert [(stage, result.task, dict(result.entries)) for stage, result in log] == [
            ("s", "t", {"first": "o1"}),
            ("s", "u", {"u": "o2"}),
            ("s", "t", {"second": "o3"}),
        ]
        assert log[-1][1] == replace(last, output="")

    def test_a_name_that_another_task_has_is_refused_and_both_are_named(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "first", "o1", name="x")
        with pytest.raises(DuplicateName, match=r"'first' and 'second' of stage 's' both want the name 'x'"):
            worker.record("s", "second", "o2", name="x")
        assert [result.task for result in catalog.results("s", 1)] == ["first"]

    def test_a_result_cannot_point_to_what_is_not_there(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        with pytest.raises(StoredDataMissing, match="o1"):
            worker.record("s", "t", "o1", new=False)
        worker.record("s", "t", "o1")
        catalog.forget_objects(["o1"])
        with pytest.raises(StoredDataMissing, match="Run the task again"):
            worker.record("s", "u", "o1", new=False)

    def test_results_go_into_a_scratch_generation_without_a_lease(self, catalog: Catalog) -> None:
        first, second = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        first.open("s")
        key = second.open("s", scratch=True)
        assert (key, second.open("s", scratch=True)) == (key, key)
        second.record("s", "t", "o1")
        assert _seen(catalog, "b", "s") == "o1"
        assert _seen(catalog, "a", "s") is None
        catalog.finish_run("b", "succeeded")
        assert {row.number: row.state for row in catalog.generations()} == {1: "open", 2: "scratch"}

    def test_a_task_in_scratch_reads_the_other_tasks_of_its_stage_from_the_commit(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1", u="o2")
        worker = Worker(catalog, "b").begin()
        worker.open("s", reads=("s",), scratch=True)
        worker.record("s", "t", "o3")
        assert (_seen(catalog, "b", "s", "t"), _seen(catalog, "b", "s", "u")) == ("o3", "o2")

    def test_a_run_reads_what_it_pinned_whatever_is_committed_meanwhile(self, catalog: Catalog) -> None:
        other = Worker(catalog, "other").begin()
        other.publish("s", t="o1")
        Worker(catalog, "opening").begin().open("x", reads=("s",))
        Worker(catalog, "reading").begin()
        assert _seen(catalog, "reading", "s") == "o1"
        other.publish("s", t="o2")
        assert [_seen(catalog, run_id, "s") for run_id in ("opening", "reading", "other")] == ["o1", "o1", "o2"]
        late = Worker(catalog, "late").begin()
        assert _seen(catalog, late.run_id, "s") == "o2"

    def test_a_run_reads_its_own_commit_and_an_unchanged_one(self, catalog: Catalog) -> None:
        first, second, third = (Worker(catalog, run_id).begin() for run_id in "abc")
        first.publish("s", t="o1")
        second.open("s")
        second.record("s", "t", "o1", new=False)
        assert second.commit("s") is False
        third.publish("s", t="o2")
        assert [_seen(catalog, run_id, "s") for run_id in "abc"] == ["o1", "o1", "o2"]

    def test_results_of_others_count_only_at_the_same_place_in_the_wiring(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin().publish("s", t="o1")
        Worker(catalog, "b").begin()
        assert _seen(catalog, "b", "s", position="position-t") == "o1"
        assert _seen(catalog, "b", "s", position="other") is None
        assert _seen(catalog, "a", "s", position="other") == "o1"

    def test_a_stage_that_was_never_committed_has_nothing_until_it_is(self, catalog: Catalog) -> None:
        Worker(catalog, "a").begin()
        assert _seen(catalog, "a", "s") is None
        Worker(catalog, "b").begin().publish("s", t="o1")
        assert _seen(catalog, "a", "s") == "o1"

    def test_a_finished_run_still_reads_what_it_saw_and_pins_nothing_new(self, catalog: Catalog) -> None:
        Worker(catalog, "old").begin().publish("read", t="o1")
        Worker(catalog, "old").publish("unseen", t="o0")
        worker = Worker(catalog, "a").begin()
        worker.publish("written", t="o2")
        worker.open("left", reads=("read",))
        worker.record("left", "t", "o3")
        catalog.finish_run("a", "failed")
        Worker(catalog, "new").begin().publish("written", t="o4")
        assert [_seen(catalog, "a", stage) for stage in ("read", "written", "left", "unseen")] == ["o1", "o2", "o3", None]
        with pytest.raises(RunError, match="not known"):
            _seen(catalog, "nobody", "read")

    def test_a_new_attempt_keeps_its_own_commits_and_pins_afresh(self, catalog: Catalog) -> None:
        other, worker = Worker(catalog, "other").begin(), Worker(catalog, "a").begin()
        other.publish("read", t="o1")
        worker.open("own", reads=("read",))
        worker.record("own", "t", "o2")
        worker.commit("own")
        catalog.finish_run("a", "succeeded")
        other.publish("read", t="o3")
        other.publish("own", t="o4")
        worker.begin()
        assert [_seen(catalog, "a", stage) for stage in ("read", "own")] == ["o3", "o2"]

    def test_a_result_is_found_in_what_was_committed_or_failed_but_not_in_what_others_have_open(self, catalog: Catalog) -> None:
        first, second = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        first.open("s")
        first.record("s", "t", "o1")
        second.open("s", scratch=True)
        second.record("s", "t", "o2")

        def found(run_id: str) -> list[str]:
            objects = catalog.find_objects(run_id, "s", ["key-o1", "key-o2"])
            results = [catalog.find_result(run_id, "s", f"print-{item}") for item in ("o1", "o2")]
            assert [item.id for item in objects.values()] == [found.result.entries["t"] for found in results if found]
            return [item.id for item in objects.values()]

        assert (found("a"), found("b")) == (["o1"], [])
        catalog.finish_run("a", "failed")
        assert found("b") == ["o1"]
        assert catalog.find_result("b", "other stage", "print-o1") is None
        assert catalog.find_objects("b", "other stage", ["key-o1"]) == {}

    def test_the_newest_result_wins_also_by_its_base(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        for number in (1, 2):
            key = worker.open("s")
            result = TaskResult("t", "p", f"f{number}", "base", {}, f'"o{number}"', {"t": f"o{number}"}, "ran", "")
            catalog.record("a", key, result, [NewObject(table(f"o{number}", key, "t"), f"k{number}", "base key")])
            worker.commit("s")
        found = catalog.find_result("a", "s", "base", base=True)
        assert found is not None
        assert found.result.fingerprint == "f2"
        assert catalog.find_result("a", "s", "base") is None
        assert catalog.find_objects("a", "s", ["base key"], base=True)["base key"].id == "o2"
        assert catalog.find_objects("a", "s", ["base key"]) == {}

    def test_nothing_is_found_by_the_empty_fingerprint(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        worker.record("s", "t", "o1", fingerprint="")
        assert catalog.find_result("a", "s", "") is None

    def test_forgotten_objects_are_not_found_and_an_older_result_stands_in(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        for number in (1, 2):
            worker.open("s")
            worker.record("s", "t", f"o{number}", fingerprint="same")
            worker.commit("s")
        catalog.forget_objects(["o2"])
        found = catalog.find_result("a", "s", "same")
        assert found is not None
        assert found.generation == 1
        assert list(catalog.find_objects("a", "s", ["key-o1", "key-o2"])) == ["key-o1"]
        catalog.forget_objects(["o1", "unknown"])
        assert catalog.find_result("a", "s", "same") is None

    def test_recent_are_the_current_generation_and_what_failed_after_it_newest_first(self, catalog: Catalog) -> None:
        worker, other = Worker(catalog, "a").begin(), Worker(catalog, "b").begin()
        worker.publish("s", t="o1")
        worker.publish("s", t="o2", u="o3")
        other.open("s")
        other.record("s", "t", "o4")
        other.record("s", "u", "o3", new=False)
        assert [item.result.entries for item in catalog.recent_results("a", "s")] == [{"u": "o3"}, {"t": "o2"}]
        catalog.finish_run("b", "failed")
        results, objects = catalog.recent_results("a", "s"), catalog.recent_objects("a", "s")
        assert [(item.generation, item.result.entries) for item in results] == [
            (3, {"u": "o3"}),
            (3, {"t": "o4"}),
            (2, {"u": "o3"}),
            (2, {"t": "o2"}),
        ]
        assert {item.stored.id: item.is_current for item in objects} == {"o2": True, "o3": True, "o4": False}
        assert [item.stored.id for item in objects if item.stored.generation == 3] == [objects[0].stored.id]
        assert (objects[0].key, objects[0].base_key) == ("key-o4", "base-key-o4")
        assert results[1] == catalog.find_result("a", "s", "print-o4")
        catalog.forget_objects(["o4"])
        assert "o4" not in [item.stored.id for item in catalog.recent_objects("a", "s")]
        assert [item.result.entries for item in catalog.recent_results("a", "s")] == [{"u": "o3"}, {"u": "o3"}, {"t": "o2"}]

    def test_before_the_first_commit_all_that_failed_is_recent(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        assert (list(catalog.recent_results("a", "s")), list(catalog.recent_objects("a", "s"))) == ([], [])
        worker.open("s")
        worker.record("s", "t", "o1")
        assert list(catalog.recent_results("a", "s")) == []
        catalog.finish_run("a", "failed")
        assert [item.stored.id for item in catalog.recent_objects("b", "s")] == ["o1"]
        assert [item.result.entries for item in catalog.recent_results("b", "s")] == [{"t": "o1"}]

    def test_several_results_are_recorded_at_once_or_not_at_all(self, catalog: Catalog) -> None:
        Worker(catalog, "b").begin().publish("s", t="o1", u="o2")
        worker = Worker(catalog, "a").begin()
        key, other = worker.open("s"), worker.open("r")
        pointing = [Record(key, replace(result, outcome="cached")) for result in catalog.results("s", 1)]
        fresh = Record(
            other, TaskResult("v", "p", "f", "f", {}, "[]", {"v": "o3"}, "ran", ""), [NewObject(table("o3", other, "v"), "k", "k")]
        )
        clash = Record(key, TaskResult("w", "p", "g", "g", {}, "[]", {"t": "o1"}, "ran", ""))
        with pytest.raises(DuplicateName, match="'t' and 'w'"):
            catalog.record_all("a", [*pointing, fresh, clash])
        assert (list(catalog.results("s", key.number)), list(catalog.results("r", other.number))) == ([], [])
        catalog.record_all("a", [*pointing, fresh])
        assert [result.task for result in catalog.results("s", key.number)] == ["t", "u"]
        assert {name: item.id for name, item in catalog.entries("r", other.number).items()} == {"v": "o3"}
        assert [(stage, result.task, result.outcome) for stage, result in catalog.task_log("a")] == [
            ("s", "t", "cached"),
            ("s", "u", "cached"),
            ("r", "v", "ran"),
        ]

    def test_of_several_results_one_that_points_to_nothing_is_named(self, catalog: Catalog) -> None:
        Worker(catalog, "b").begin().publish("s", t="o1")
        worker = Worker(catalog, "a").begin()
        key = worker.open("s")
        records = [
            Record(key, TaskResult("t", "p", "f", "f", {}, "[]", {"t": "o1"}, "cached", "")),
            Record(key, TaskResult("u", "p", "g", "g", {}, "[]", {"u": "gone"}, "cached", "")),
        ]
        with pytest.raises(StoredDataMissing, match="task 'u'") as caught:
            catalog.record_all("a", records)
        assert caught.value.__dict__["ids"] == ("gone",)
        assert list(catalog.results("s", key.number)) == []

    def test_the_previous_result_is_the_current_one_or_else_the_newest(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        assert catalog.previous("s", "t") is None
        worker.publish("s", t="o1")
        worker.open("s")
        worker.record("s", "t", "o2")
        worker.record("s", "new", "o3")
        catalog.finish_run("a", "failed")
        previous, newest = catalog.previous("s", "t"), catalog.previous("s", "new")
        assert previous is not None
        assert newest is not None
        assert (previous.entries, newest.entries) == ({"t": "o1"}, {"new": "o3"})

    def test_many_inputs_are_answered_at_once(self, catalog: Catalog) -> None:
        worker = Worker(catalog, "a").begin()
        worker.open("s")
        key = worker.keys["s"]
        count = 2500
        entries = {f"n{i}": f"o{i}" for i in range(count)}
        new = [NewObject(table(f"o{i}", key, f"n{i}"), f"k{i}", f"k{i}") for i in range(count)]
        catalog.record("a", key, TaskResult("t", "p", "f", "f", {}, "[]", entries, "ran", ""), new)
        assert len(catalog.inputs("a", [TaskKey("s", "t"), *(TaskKey("s", f"t{i}") for i in range(count))])) == 1
        assert len(catalog.find_objects("a", "s", [f"k{i}" for i in range(count)])) == count
