"""What a fingerprint depends on, and how a change is said in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.cache.fingerprint import content_identity, explain, query_key, result_identity, task_fingerprint
from pipedag_core.hashing import digest
from pipedag_core.ports.data import TableOptions

FACTS = ("stage", "task", "kind", "token", "arguments")


@given(st.fixed_dictionaries({name: st.text(max_size=3) for name in FACTS}), st.sampled_from(FACTS), st.text(min_size=1, max_size=2))
def test_every_fact_counts(facts, changed, more):
    one = task_fingerprint(**facts, cache_value=None, parts={})
    other = task_fingerprint(**{**facts, changed: facts[changed] + more}, cache_value=None, parts={})
    assert one.full != other.full
    assert one.full == task_fingerprint(**facts, cache_value=None, parts={"x": "y"}).full


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_digests_know_where_a_field_ends(one, other):
    assert (digest(*one) == digest(*other)) == (one == other)


def test_text_and_bytes_differ():
    assert digest("a") != digest(b"a")


def test_the_cache_value_counts_in_full_and_not_in_base():
    facts = dict.fromkeys(FACTS, "x")
    monday = task_fingerprint(**facts, cache_value="1", parts={})
    tuesday = task_fingerprint(**facts, cache_value="2", parts={})
    assert monday.full != tuesday.full
    assert monday.base == tuesday.base
    assert monday.base == task_fingerprint(**facts, cache_value=None, parts={}).full


def test_options_count_in_every_identity():
    keyed = TableOptions(primary_key=("a",))
    assert content_identity("h", keyed) != content_identity("h", TableOptions())
    assert result_identity("f", "p", keyed) != result_identity("f", "p", TableOptions())
    facts = {"stage": "s", "task": "t", "version": "", "canonical": "q"}
    assert query_key(**facts, options=keyed) != query_key(**facts, options=TableOptions())


def test_changes_are_said_in_words():
    before = {"version": "1.0", "input flights": "a", "argument year": "x", "input gone": "z"}
    assert explain(None, before) == "first run"
    assert explain(before, before) == ""
    assert explain(before, {**before, "version": "1.1"}) == "version 1.0 -> 1.1"
    after = {"version": "1.0", "input flights": "b", "argument year": "y", "input new": "c"}
    assert explain(before, after) == "input flights changed, argument year changed, input new is new, input gone is gone"
    many = {f"input {number}": "1" for number in range(9)}
    assert explain({}, many).endswith("and 5 more")
