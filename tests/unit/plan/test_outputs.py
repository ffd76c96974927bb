from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.errors import DuplicateName, MaterializationError
from pipedag_core.plan.outputs import check_declared, name_outputs


def test_one_unnamed_table_has_the_name_of_its_task():
    assert name_outputs("join_2", [("", None)], "p") == ["join_2"]
    assert name_outputs("join", [("deep.inside", None)], "p") == ["join"]


def test_several_unnamed_tables_have_task_and_path():
    assert name_outputs("split", [("0", None), ("b.C", None), ("['x.y']", None)], "p") == ["split_0", "split_b_c", "split_x_y"]


def test_declared_names_are_normalised():
    assert name_outputs("t", [("a", " A/b "), ("c", None)], "p") == ["a_b", "t_c"]


def test_a_hash_of_the_place_makes_a_name_unique():
    (first,) = name_outputs("t", [("a", "X_%%")], "p")
    assert first.startswith("x_")
    assert len(first) == 10
    assert name_outputs("t", [("a", "X_%%"), ("b", "x_%%")], "p")[0] == first
    assert len({first, *name_outputs("t", [("b", "x_%%")], "p"), *name_outputs("t", [("a", "x_%%")], "q")}) == 3


@pytest.mark.parametrize(
    "leaves", [[("a", "X"), ("b", "x")], [("a", "t_b"), ("b", None)], [("a.b", None), ("a_b", None)], [("a", "a/b"), ("b", "a_b")]]
)
def test_two_tables_of_one_name_are_refused_and_both_places_named(leaves):
    with pytest.raises(DuplicateName, match=rf"'{leaves[0][0]}' and at '{leaves[1][0]}'"):
        name_outputs("t", leaves, "p")


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z0-9]{1,3}(\.[a-z0-9]{1,3}){0,2}", fullmatch=True), st.none() | st.just("n_%%")),
        unique_by=lambda item: item[0].replace(".", "_"),
        max_size=6,
    )
)
def test_names_of_a_task_are_as_many_as_its_tables_and_differ(leaves):
    names = name_outputs("task", leaves, "p")
    assert len(set(names)) == len(leaves)
    assert names == name_outputs("task", leaves, "p")


def test_a_task_returns_exactly_what_it_declares():
    check_declared("t", None, ["x"])
    check_declared("t", ("a", "b"), ["b", "a"])
    with pytest.raises(MaterializationError, match=r"Task 't' of stage 's'.*missing: 'b'; unexpected: 'c', 'd'") as caught:
        check_declared("t", ("a", "b"), ["c", "a", "d"], "s")
    assert (caught.value.missing, caught.value.unexpected) == (["b"], ["c", "d"])
