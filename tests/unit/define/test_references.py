from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.define import Flow, Merged, RawSql, Stage, TaskGetItem, materialize
from pipedag_core.define.evaluate import evaluate
from pipedag_core.errors import FlowError, UnknownItem, UnsupportedValue


@dataclass
class Inner:
    x: Any = 1


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    tables: dict[str, Inner] = field(default_factory=dict)


class Pair(NamedTuple):
    left: int
    right: int


class Keys(TypedDict):
    a: int
    b: Inner


@materialize
def anything():
    return {}


@materialize
def outer() -> Outer:
    return Outer()


@materialize(nout=2)
def two():
    return 1, 2


@materialize
def consume(x):
    return None


@pytest.fixture
def stage():
    with Flow("f"), Stage("s") as stage:
        yield stage


def test_items_and_attributes_name_places_in_an_output(stage):
    out = anything()
    item = out["a"][0].b
    assert isinstance(item, TaskGetItem)
    assert (item.kind, item.key, item.task, item.tasks) == ("attr", "b", out, (out,))
    assert (item.parent.kind, item.parent.key, item.parent.parent.key) == ("item", 0, "a")
    assert repr(item) == "<task s.anything>['a'][0].b"


def test_the_same_place_is_the_same_reference_and_equal_to_nothing_else(stage):
    out = anything()
    assert out["a"] is out["a"]
    assert out["a"] != out.a
    assert out[1] is not out[True]
    assert len({out, out["a"], out["a"]}) == 2


def test_nout_unpacks_and_limits_the_items(stage):
    out = two()
    a, b = out
    assert (a.key, b.key, len(out)) == (0, 1, 2)
    for index in (2, -1):
        with pytest.raises(UnknownItem, match=r"<task s\.two> has no \[-?\d\]: it is declared with nout=2, so its items are 0 to 1"):
            out[index]
    with pytest.raises(ValueError, match="too many"):
        (_,) = out


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (bool, "neither true nor false"),
        (list, "cannot be unpacked"),
        (len, "no known length"),
        (lambda ref: 1 in ref, "cannot be searched"),
        (lambda ref: ref < 1, "cannot be compared"),
        (lambda ref: 1 < ref < 2, "cannot be compared"),
        (lambda ref: ref >= 1, "cannot be compared"),
        (int, "no number"),
        (float, "no number"),
        (operator.index, "no number"),
        (lambda ref: ref(), "cannot be called"),
        (lambda ref: operator.setitem(ref, "a", 1), r"\.update"),
        (lambda ref: ref[1:2], "cannot be indexed with a slice"),
        (lambda ref: ref[ref], "cannot be indexed with a"),
        (lambda ref: {} | ref, "Write the reference first"),
    ],
)
def test_what_only_a_value_can_do_is_refused_while_wiring(stage, act, message):
    for reference in (anything(), anything()["a"], anything() | {}):
        with pytest.raises(FlowError, match=message):
            act(reference)


def test_private_names_are_no_attributes_of_an_output(stage):
    assert not hasattr(anything(), "__arrow_c_stream__")
    assert not hasattr(anything(), "_x")


def test_fields_of_a_dataclass_are_known(stage):
    out = outer()
    assert out.inner.x.kind == "attr"
    assert out["inner"]["x"].kind == "item"
    assert out.tables["any"].x.key == "x"
    for act, message in [
        (lambda: out.other, r"\.other: .*Outer has no field 'other'; its fields are: inner, tables"),
        (lambda: out["other"], "no field 'other'"),
        (lambda: out[0], "no field 0"),
        (lambda: out.inner.z, r"<task s\.outer>\.inner has no \.z: .*Inner has no field 'z'"),
        (lambda: out.tables["any"].z, "no field 'z'"),
        (lambda: out.tables.x, r"has no fields; use \[\.\.\.\]"),
    ]:
        with pytest.raises(UnknownItem, match=message):
            act()


def returning(annotation, **options):
    def fn():
        return None

    fn.__annotations__["return"] = annotation
    return materialize(**options)(fn)()


@pytest.mark.parametrize(
    "annotation",
    [dict, list, tuple, dict[str, int], list[int], "dict[str, int]", str, pd.DataFrame, pl.LazyFrame, "pl.LazyFrame", "pd.DataFrame"],
)
def test_outputs_known_to_have_no_attributes_refuse_them(stage, annotation):
    with pytest.raises(UnknownItem, match=r"has no \.x"):
        _ = returning(annotation).x


@pytest.mark.parametrize("annotation", [pd.DataFrame, pl.DataFrame, "pl.LazyFrame", int, None])
def test_outputs_known_to_have_no_items_refuse_them(stage, annotation):
    with pytest.raises(UnknownItem, match=r"has no \['x'\]"):
        returning(annotation)["x"]


@pytest.mark.filterwarnings("ignore:.*cannot be evaluated")
@pytest.mark.parametrize("annotation", [Any, object, "Unresolvable", "dict[str, Unresolvable]", Inner | Outer, "no python"])
def test_outputs_about_which_nothing_is_known_allow_everything(stage, annotation):
    out = returning(annotation)
    assert out["a"].b[0].key == 0


def test_named_tuples_and_typed_dicts_are_known_too(stage):
    pair, keys = returning(Pair), returning(Keys)
    assert pair.left.key == "left"
    assert pair[1].key == 1
    assert keys["b"].x.key == "x"
    for act in (lambda: pair.top, lambda: pair[2], lambda: keys["c"], lambda: keys.a, lambda: keys["b"].z):
        with pytest.raises(UnknownItem):
            act()


def test_optional_outputs_are_as_known_as_the_others(stage):
    with pytest.raises(UnknownItem, match="no field 'z'"):
        _ = returning(Inner | None).z
    assert returning(tuple[Inner, int])[0].x.key == "x"
    with pytest.raises(UnknownItem):
        _ = returning(tuple[Inner, ...])[5].z


def test_items_of_a_script_are_its_declared_tables(stage):
    out = returning(RawSql, outputs=["flights"])
    assert out["Flights"].key == "Flights"
    with pytest.raises(UnknownItem, match=r"outputs=\['flights'\]"):
        out["flight"]


# --- updates


def test_a_union_is_a_new_reference(stage):
    a, b = anything(), anything()
    merged = a | {"x": 1} | b
    assert isinstance(merged, Merged)
    assert merged.base is a
    assert merged.others == ({"x": 1}, b)
    assert merged.tasks == (a, b)
    assert consume(a).parameters["x"] is a


def test_consumers_wired_later_see_an_update_and_those_wired_earlier_do_not(stage):
    a, b = anything(), anything()
    before = consume(a)
    a.update({"x": b})
    after = consume([a])
    a.update(y=1)
    last = consume(a)
    assert before.parameters["x"] is a
    assert before.upstream == (a,)
    (merged,) = after.parameters["x"]
    assert (merged.base, merged.others) == (a, ({"x": b},))
    assert after.upstream == (a, b)
    assert last.parameters["x"].others == ({"x": b}, {"y": 1})


def test_an_item_that_was_updated_no_longer_depends_on_the_rest(stage):
    a, b, c = anything(), anything(), anything()
    a.update({"x": b, "z": c})
    assert consume(a["x"]).parameters["x"] is b
    assert consume(a["y"]).upstream == (a,)
    assert consume((a | {"k": [c]})["k"]).parameters["x"] == [c]


def test_an_update_with_another_output_may_hold_any_item(stage):
    a, b = anything(), anything()
    a.update(b)
    task = consume(a["x"])
    assert task.upstream == (a, b)
    assert task.parameters["x"].parent.others == (b,)


def test_items_can_be_updated_and_the_whole_shows_it(stage):
    a, b = anything(), anything()
    a["k"].update({"x": b})
    assert consume(a["k"]["x"]).parameters["x"] is b
    whole = consume(a)
    assert evaluate(whole.parameters["x"], lambda task: {"k": {"x": 0, "y": 1}, "l": 2} if task is a else "B") == {
        "k": {"x": "B", "y": 1},
        "l": 2,
    }


def test_an_update_is_taken_as_it_is_at_that_moment(stage):
    a, values = anything(), {"x": 1}
    a.update(values)
    values["x"] = 2
    assert consume(a).parameters["x"].others == ({"x": 1},)


@pytest.mark.parametrize("other", [1, "x", [1], None])
def test_only_what_has_entries_can_update(stage, other):
    with pytest.raises(UnsupportedValue, match="cannot be updated with a"):
        anything() | other


def test_a_value_that_cannot_be_passed_on_is_refused_inside_an_update_too(stage):
    with pytest.raises(UnsupportedValue, match="cannot be passed on"):
        consume(anything() | {"x": object()})


def test_evaluating_gives_items_fields_and_updates(stage):
    a, b = anything(), outer()
    outputs = {a: {"l": [1, 2], "p": Pair(3, 4)}, b: Outer(Inner(5))}
    value = {
        "item": a["l"][-1],
        "field": b["inner"].x,
        "named": a["p"].right,
        "list": a["l"] | {0: 9},
        "pair": a["p"] | {"left": 8},
        "data": b | {"tables": a["l"]},
        "both": a | b,
    }
    assert evaluate(value, outputs.__getitem__) == {
        "item": 2,
        "field": 5,
        "named": 4,
        "list": [9, 2],
        "pair": Pair(8, 4),
        "data": Outer(Inner(5), [1, 2]),
        "both": {"l": [1, 2], "p": Pair(3, 4), "inner": Inner(5), "tables": {}},
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: a["z"], r"no item 'z' in the output of <task s\.anything>: it has 'l', 'i'"),
        (lambda a: a["l"][2], r"a list of 2"),
        (lambda a: a.l, r"Write \['l'\] instead of \.l"),
        (lambda a: a["i"].z, r"no field 'z'.*'x'"),
        (lambda a: a["l"] | {5: 1}, r"no item 5 to update"),
        (lambda a: a["i"] | {"z": 1}, r"no field 'z' to update"),
        (lambda a: a["l"][0]["b"], "has no items"),
    ],
)
def test_an_item_that_turns_out_not_to_be_there_is_named(stage, make, message):
    with pytest.raises(UnknownItem, match=message):
        evaluate(make(anything()), lambda task: {"l": [1, 2], "i": Inner()})


steps = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b"]),
        st.dictionaries(st.sampled_from(["a", "b", "x"]), st.dictionaries(st.sampled_from("xyz"), st.integers())),
    ),
    max_size=6,
)


@given(steps)
def test_recorded_updates_give_what_the_same_updates_give_on_the_value(updates):
    with Flow(), Stage("s"):
        out = anything()
        value: dict[str, Any] = {"a": {"x": 0}, "b": {}}
        for where, other in updates:
            (out[where] if where else out).update(other)
            (value[where] if where else value).update({key: dict(item) for key, item in other.items()})
        whole = consume(out)
        parts = {key: consume(out[key]) for key in value}
    result = {"a": {"x": 0}, "b": {}}
    assert evaluate(whole.parameters["x"], lambda task: result) == value
    assert {key: evaluate(part.parameters["x"], lambda task: result) for key, part in parts.items()} == value
