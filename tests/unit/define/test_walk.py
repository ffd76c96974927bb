from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.define import Blob, RawSql, Stage, Table
from pipedag_core.define.walk import iter_leaves, map_leaves
from pipedag_core.errors import UnsupportedValue

Point = namedtuple("Point", "x y")


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = 0


@dataclass
class Counted:
    a: Any
    made: int = field(default=0, init=False)

    def __post_init__(self):
        self.made += 1


class Colour(Enum):
    RED = 1


keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
leaves = st.none() | st.integers() | st.text() | st.dates()
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(keys, inner)
        | st.lists(inner).map(tuple)
        | st.builds(Frozen, inner, inner)
        | st.builds(Point, inner, inner)
        | st.frozensets(leaves)
    ),
)


@given(nests)
def test_mapping_with_the_identity_gives_an_equal_nest(value):
    assert map_leaves(value, lambda leaf, path: leaf) == value


@given(nests)
def test_no_two_leaves_share_a_path(value):
    paths = [path for path, _ in iter_leaves(value, "arg")]
    assert len(set(paths)) == len(paths)


@given(nests)
def test_mapping_and_iterating_meet_the_same_leaves_in_the_same_order(value):
    met: list[tuple[str, Any]] = []
    map_leaves(value, lambda leaf, path: met.append((path, leaf)))
    assert met == list(iter_leaves(value))


def test_paths_read_like_code():
    value = {"flights": [1, Point(2, 3)], "b": Frozen(4, {"c": 5}), 7: 6, "a.b": 8, "7": 9}
    assert dict(iter_leaves(value, "tbls")) == {
        "tbls.flights.0": 1,
        "tbls.flights.1.0": 2,
        "tbls.flights.1.1": 3,
        "tbls.b.a": 4,
        "tbls.b.b.c": 5,
        "tbls.7": 6,
        "tbls.['a.b']": 8,
        "tbls.['7']": 9,
    }


def test_containers_are_new_so_that_later_changes_are_not_seen():
    inner = [1]
    value = {"a": inner, "b": Frozen(inner)}
    copy = map_leaves(value, lambda leaf, path: leaf)
    inner.append(2)
    assert copy == {"a": [1], "b": Frozen([1])}


def test_a_dataclass_is_copied_without_running_its_init_again():
    assert map_leaves(Counted(1), lambda leaf, path: leaf if path == "made" else leaf + 1) == Counted(2)


def test_a_dict_of_another_class_comes_out_as_a_dict():
    assert type(map_leaves(OrderedDict(a=1), lambda leaf, path: leaf)) is dict


@pytest.mark.parametrize(
    "leaf", [Table([1], name="t"), Blob({"a": 1}), RawSql("SELECT 1"), Stage("s"), Colour.RED, date(2026, 1, 1), b"x", Frozen, Point]
)
def test_what_is_no_container_is_a_leaf(leaf):
    assert list(iter_leaves({"x": leaf})) == [("x", leaf)]


def test_a_value_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnsupportedValue, match="contains itself"):
        map_leaves(endless, lambda leaf, path: leaf)
    with pytest.raises(UnsupportedValue, match="contains itself"):
        iter_leaves(endless)


def test_a_key_that_is_no_plain_data_is_refused_with_its_place():
    with pytest.raises(UnsupportedValue, match=r"dictionary at 'a'.*key of type object"):
        iter_leaves({"a": {object(): 1}})


def test_a_set_that_would_hold_a_list_is_refused():
    with pytest.raises(UnsupportedValue, match="Use a list"):
        map_leaves({1, 2}, lambda leaf, path: [leaf])
