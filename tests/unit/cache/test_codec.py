"""Values survive the way into the catalog and back, and different values have different texts."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.cache.codec import decode, dumps, encode
from pipedag_core.errors import UnsupportedValue


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: object = None
    made: int = field(init=False, default=3)


Pair = namedtuple("Pair", "a b")


def no_leaf(value, path=""):
    return None


def round_trip(value):
    return decode(json.loads(dumps(encode(value, no_leaf))), no_leaf)


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from([Colour.RED, Level.LOW, Path("a/b"), Pair(1, "x"), Point(1, Point(2))])
)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(st.integers()), inner, max_size=2)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=8,
)


@given(nested)
def test_every_value_comes_back_as_it_was(value):
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)
    assert dumps(encode(back, no_leaf)) == dumps(encode(value, no_leaf))


@given(nested, nested)
def test_equal_texts_mean_equal_values(one, other):
    if dumps(encode(one, no_leaf)) == dumps(encode(other, no_leaf)):
        assert one == other


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), ("1", 1), ((1,), [1]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (b"x", "x")]
)
def test_values_that_python_may_call_equal_have_different_texts(one, other):
    assert dumps(encode(one, no_leaf)) != dumps(encode(other, no_leaf))


def test_numbers_that_are_no_numbers_come_back():
    assert math.isnan(round_trip(float("nan")))
    assert round_trip([float("inf"), -float("inf")]) == [float("inf"), -float("inf")]


def test_scalars_of_numpy_are_plain_numbers():
    assert round_trip({"mean": np.float64(0.5), "n": np.int64(3), "ok": np.bool_(True)}) == {"mean": 0.5, "n": 3, "ok": True}


def test_a_set_has_one_text_whatever_its_order():
    assert dumps(encode({"a", "b", "c"}, no_leaf)) == dumps(encode({"c", "b", "a"}, no_leaf))


def test_an_unsupported_value_is_named_with_its_path():
    with pytest.raises(UnsupportedValue, match=r"'inner\.1\.y'"):
        encode({"inner": [1, Point(1, object())]}, no_leaf)


def test_a_class_inside_a_function_is_refused():
    @dataclass
    class Local:
        x: int

    with pytest.raises(UnsupportedValue, match="top of a module"):
        encode(Local(1), no_leaf)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "nowhere:Thing", "builtins:dict"])
def test_text_from_a_catalog_cannot_name_any_class(name):
    for kind in ("dataclass", "enum", "namedtuple"):
        with pytest.raises(UnsupportedValue):
            decode({"$": kind, "type": name, "fields": {}, "items": [], "name": "x"}, no_leaf)


def test_dates_and_ids_keep_their_type():
    value = [dt.date(2013, 1, 1), dt.datetime(2013, 1, 1, tzinfo=dt.UTC), Decimal("1.10"), UUID(int=5)]
    assert round_trip(value) == value
    assert str(round_trip(value)[2]) == "1.10"
