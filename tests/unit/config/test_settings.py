"""Settings are frozen and silent about secrets."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.config.context import PipedagConfig
from pipedag_core.config.expand import Expander
from pipedag_core.config.settings import Attrs, Secret, mask, parse_duration, reveal
from pipedag_core.errors import ConfigError

LEAVES = st.none() | st.booleans() | st.integers() | st.text()
NESTS = st.dictionaries(st.text(), st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))


def as_plain(value):
    return json.loads(json.dumps(value))


@given(NESTS)
def test_attrs_hold_what_they_were_given_and_survive_pickling_and_copying(items):
    attrs = Attrs(items)
    assert as_plain(attrs) == items
    assert pickle.loads(pickle.dumps(attrs)) == attrs == copy.deepcopy(attrs)
    assert Attrs(attrs) == attrs


def test_attrs_are_read_by_item_and_by_attribute_at_every_depth():
    attrs = Attrs({"a": {"b": [{"c": 1}]}})
    assert attrs["a"]["b"][0]["c"] == attrs.a.b[0].c == 1
    with pytest.raises(AttributeError, match=r"no attribute 'aa' here; did you mean a\?"):
        _ = attrs.aa


@pytest.mark.parametrize(
    "change",
    [
        lambda attrs: attrs.update(a=2),
        lambda attrs: attrs.__setitem__("a", 2),
        lambda attrs: attrs.pop("a"),
        lambda attrs: attrs.clear(),
        lambda attrs: attrs.setdefault("b", 1),
        lambda attrs: setattr(attrs, "a", 2),
        lambda attrs: attrs.__ior__({"b": 1}),
    ],
)
def test_attrs_cannot_be_changed(change):
    attrs = Attrs({"a": 1})
    with pytest.raises(TypeError, match="cannot be changed"):
        change(attrs)
    assert attrs == {"a": 1}


def test_attrs_can_be_a_key_of_a_dict():
    assert {Attrs({"a": [1]}): 1}[Attrs({"a": [1]})] == 1


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://ada:top@host/db", "postgresql://ada:***@host/db"),
        ("postgresql://ada:to@p/x@host/db", "postgresql://ada:***@host/db"),
        ("cannot reach postgresql://ada:top@host/db, sorry", "cannot reach postgresql://ada:***@host/db, sorry"),
        ("https://host/x?a=1&api_token=top", "https://host/x?a=1&api_token=***"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("s3://bucket/path", "s3://bucket/path"),
    ],
)
def test_passwords_in_urls_are_masked(text, masked):
    assert mask(text) == masked


def test_no_secret_is_shown_by_a_configuration_or_its_errors():
    raw = {
        "instances": {
            "full": {
                "attrs": {"db": {"password": "hush"}, "url": "https://a:hush@host"},
                "table_store": {"class": "sql", "args": {"url": "postgresql://u:hush@h/{instance_id}"}},
                "blob_store": {"class": "acme.Blobs", "args": {"access_key": "hush"}},
                "metadata_store": {"url": "postgresql://u:hush@h/{instance_id}"},
                "table_hooks": {"acme.Frame": "acme:Hook"},
                "hook_args": {"acme": {"token": "hush"}},
            }
        }
    }
    config = PipedagConfig(raw).get("full")
    assert "hush" not in repr(config)
    assert "hush" not in repr(PipedagConfig(raw))
    assert "hush" not in str(config.blob_store.args.access_key)
    assert reveal(config.table_store.args) == {"url": "postgresql://u:hush@h/full"}
    assert reveal(config.blob_store.args) == {"access_key": "hush"}
    assert config.attrs.db.password == "hush"
    raw["instances"]["full"]["table_store"]["args"]["url"] = "postgresql://u:hush@h/db"
    with pytest.raises(ConfigError) as caught:
        PipedagConfig(raw).get("full")
    assert "hush" not in str(caught.value)


def test_a_secret_does_not_print():
    secret = Secret("hush")
    assert "hush" not in f"{secret} {secret!r} {[secret]}"
    assert pickle.loads(pickle.dumps(secret)).reveal() == "hush"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h", 3600),
        ("30m", 1800),
        ("2d", 172800),
        ("45s", 45),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        (90, 90),
        ("90", 90),
        (0.5, 0.5),
        ("1w", 604800),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1x", "h", "-1h", -1, True, None, float("inf"), "1h soon", "1h 5"])
def test_what_is_no_duration_is_not_read(text):
    assert parse_duration(text) is None


@given(st.text(), st.dictionaries(st.from_regex(r"[A-Z]{1,3}", fullmatch=True), st.text()))
def test_a_text_without_placeholders_is_never_changed(text, environment):
    expander = Expander(environment, {})
    if "{" not in text:
        assert expander.expand(text, "x") == text
        assert expander.faults == []


@given(st.text(), st.text(), st.text())
def test_a_value_is_put_in_as_it_is(before, value, after):
    before, after = before.replace("{", ""), after.replace("{", "")
    assert Expander({"A": value}).expand(before + "{$A}" + after, "x") == before + value + after
