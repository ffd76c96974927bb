from __future__ import annotations

from pathlib import Path

import pytest

from pipedag_core.define import Flow, LazyDict, Stage, View, materialize
from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.lazydict import as_wired
from pipedag_core.errors import DuplicateName, FlowError, UnknownItem, UnsupportedValue


@materialize
def make():
    return {}


@materialize
def consume(x, y=None):
    return {}


def test_an_entry_can_be_read_before_it_is_written():
    state = LazyDict()
    with Flow():
        with Stage("model"):
            task = consume([state["mean"]["x"].y], y=View(state["table"]))
        with Stage("features"):
            source = make()
            state["mean"] = source["stats"]
            state["table"] = source
    assert task.parameters["x"] == [source["stats"]["x"].y]
    assert task.parameters["y"].src is source
    assert task.upstream == (source,)


def test_a_whole_lazydict_is_captured_at_the_end_of_the_wiring():
    state = LazyDict()
    with Flow(), Stage("s"):
        source = make()
        state["early"] = source
        task = consume({"state": state})
        state["late"] = [source["x"], 1]
    assert task.parameters["x"] == {"state": {"early": source, "late": [source["x"], 1]}}


def test_lazydicts_nest():
    outer, inner = LazyDict(), LazyDict()
    with Flow(), Stage("s"):
        task = consume(outer["in"]["x"], y=outer)
        outer["in"] = inner
        inner["x"] = source = make()
    assert task.parameters == {"x": source, "y": {"in": {"x": source}}}


def test_entries_may_be_made_of_other_entries_and_updates():
    state = LazyDict()
    with Flow(), Stage("s"):
        task = consume(state["b"] | {"k": 1}, y=state["c"]["k"])
        state["b"] = state["a"]
        state["c"] = state["a"] | {"k": 2}
        state["a"] = source = make()
    assert evaluate(task.parameters["x"], lambda _: {"z": 0}) == {"z": 0, "k": 1}
    assert task.parameters["y"] == 2
    assert task.upstream == (source,)


def test_an_entry_that_is_a_plain_dict_is_updated_at_once():
    state = LazyDict()
    with Flow(), Stage("s"):
        task = consume(state["a"] | {"k": 1}, y=state["a"] | make())
        state["a"] = {"z": 0}
    assert task.parameters["x"] == {"z": 0, "k": 1}
    assert evaluate(task.parameters["y"], lambda _: {"q": 1}) == {"z": 0, "q": 1}


def test_what_is_written_so_far_can_be_looked_at():
    state = LazyDict()
    with Flow(), Stage("s"):
        state["a"] = source = make()
        state.update({"b": 1}, c=2)
        _ = state["later"]
        assert list(state) == ["a", "b", "c"]
        assert dict(state.items()) == {"a": source, "b": 1, "c": 2}
        assert (len(state), "a" in state, "later" in state, state.get("later")) == (3, True, False, None)
        state["later"] = 3
    assert state["a"] is source


def test_an_entry_that_nobody_writes_is_an_error_with_its_place():
    state = LazyDict()
    flow = Flow()

    def declare():
        with flow, Stage("s"):
            _ = state["aa"]
            state["ab"] = 1

    with pytest.raises(UnknownItem, match=rf"entry 'aa' of a LazyDict was read at .*{Path(__file__).name}:\d+ in stage 's'.*There is 'ab'"):
        declare()
    with pytest.raises(FlowError, match="ended with an error"):
        flow.plan()


def test_an_item_that_a_nested_lazydict_does_not_get_is_an_error():
    outer, inner = LazyDict(), LazyDict()

    def declare():
        with Flow(), Stage("s"):
            consume(outer["in"]["x"])
            outer["in"] = inner
            inner["y"] = make()

    with pytest.raises(UnknownItem, match="no item 'x'"):
        declare()


def test_two_writers_of_one_entry_are_refused_and_both_places_named():
    state = LazyDict()
    state["a"] = 1
    with pytest.raises(DuplicateName, match=r"written twice: at .*test_lazydict\.py:\d+ and at .*test_lazydict\.py:\d+"):
        state["a"] = 2
    with pytest.raises(FlowError, match="cannot be removed"):
        del state["a"]


def test_an_entry_made_of_itself_is_an_error_with_its_path():
    state = LazyDict()

    def declare():
        with Flow(), Stage("s"):
            first, second = state["a"], state["b"]
            consume(first)
            state["a"] = second
            state["b"] = [first]

    with pytest.raises(FlowError, match=r"made of itself: 'a' -> 'b' -> 'a'"):
        declare()


def test_tasks_that_need_each_other_are_an_error_with_their_names():
    state = LazyDict()

    def declare():
        with Flow(), Stage("s"):
            first = consume(state["x"])
            state["x"] = consume(first)

    with pytest.raises(FlowError, match=r"need each other through a LazyDict: s\.consume -> s\.consume_2 -> s\.consume\b"):
        declare()


def test_values_are_checked_when_they_are_captured():
    state = LazyDict()

    def declare():
        with Flow(), Stage("s"):
            consume(state)
            state["a"] = object()

    with pytest.raises(UnsupportedValue, match=r"argument 'x\.a'"):
        declare()


def test_keys_are_plain_data():
    state = LazyDict()
    with pytest.raises(UnsupportedValue, match="keys of plain data"):
        state[object()] = 1
    with Flow(), pytest.raises(UnsupportedValue, match="keys of plain data"):
        state[object()]


def test_after_the_wiring_an_unknown_entry_is_an_error():
    state = LazyDict()
    state["mean"] = 1
    with pytest.raises(UnknownItem, match="Did you mean 'mean'"):
        state["meen"]


def test_a_placeholder_stands_for_what_was_written_once_it_is():
    state = LazyDict()
    with Flow(), Stage("s"):
        asked = state["a"]
        with pytest.raises(UnknownItem, match="nothing has written it"):
            _ = asked.tasks
        state["a"] = source = make()
        item = asked["x"]
    assert as_wired(asked) is source
    assert as_wired([asked["z"]]) == [source["z"]]
    assert asked.tasks == (source,)
    assert item.task is source
    assert repr(asked) == "<entry 'a' of a LazyDict>"
