from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pytest

from pipedag_core.define import ExternalTableReference, Flow, RawSql, Stage, Table, View, materialize
from pipedag_core.errors import FlowError, UnsupportedValue


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Params:
    table: Any
    rate: float


class Config:
    __pipedag_config__ = True


@materialize
def source():
    return Table(pd.DataFrame())


@materialize
def consume(x, y=None):
    return None


PLAIN = [
    None,
    True,
    1,
    1.5,
    "text",
    b"bytes",
    date(2026, 1, 2),
    datetime(2026, 1, 2, 3, tzinfo=UTC),
    time(1, 2),
    timedelta(seconds=1),
    Decimal("1.10"),
    UUID(int=1),
    Path("a/b"),
    Colour.RED,
    ExternalTableReference("t", "s"),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_are_passed_as_they_are(value):
    with Flow(), Stage("s"):
        task = consume({"a": [value]})
    assert task.parameters == {"x": {"a": [value]}, "y": None}


def test_stages_configurations_and_views_are_passed():
    config = Config()
    with Flow(), Stage("s") as stage:
        out = source()
        task = consume([stage, config], View([out, out["x"]], columns=["a"]))
    assert task.parameters == {"x": [stage, config], "y": View([out, out["x"]], columns=["a"])}
    assert task.upstream == (out,)
    assert task.reads == (stage,)


def test_arguments_are_those_of_the_moment_of_the_call():
    values = {"a": [1]}
    with Flow(), Stage("s"):
        task = consume(values)
        values["a"].append(2)
    assert task.parameters["x"] == {"a": [1]}


def test_references_are_found_however_deeply_they_nest():
    with Flow(), Stage("s"):
        first, second = source(), source()
        task = consume({"a": [(second["k"], 1)]}, y=Params(first, 0.1))
    assert task.upstream == (first, second)
    assert task.parameters["y"] == Params(first, 0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pd.DataFrame(), r"DataFrame, which cannot be passed on. Make it in a task of its own"),
        (print, r"an object of type builtin_function_or_method.*use it there"),
        (int, r"an object of type type"),
        (object(), r"an object of type object"),
        (Table(pd.DataFrame()), r"define\.values\.Table"),
        (RawSql("SELECT 1"), "Return the RawSql from a task"),
        (source, r"the task 'source' itself instead of its output. Call it: source\(\.\.\.\)"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_with_its_path(value, message):
    with Flow("f"), Stage("s"):
        with pytest.raises(
            UnsupportedValue, match=r"(?s)Task 'consume' \(stage 's', flow 'f'\) got, as argument 'y\.tables\.1\.table'.*" + message
        ) as caught:
            consume(1, {"tables": [0, Params(value, 1.0)]})
    assert caught.value.path == "y.tables.1.table"
    assert caught.value.task == "consume"


def test_a_default_that_cannot_be_passed_on_is_refused_too():
    @materialize
    def odd(x=object()):  # noqa: B008 -- what is tested
        return x

    with Flow(), Stage("s"):
        with pytest.raises(UnsupportedValue, match="argument 'x'"):
            odd()


def test_a_view_stands_for_tables_only():
    with Flow(), Stage("s"):
        with pytest.raises(UnsupportedValue, match=r"argument 'x\.src\.0', a str as the source of a View"):
            consume(View(["flights"]))


def test_references_and_stages_of_another_flow_are_refused():
    with Flow("other"), Stage("s") as stage:
        foreign = source()
    with Flow("f"), Stage("s"):
        with pytest.raises(FlowError, match=r"'consume'.*'x\.0'.*<task s\.source> of another flow \('other'\)"):
            consume([foreign["a"]])
        with pytest.raises(FlowError, match=r"stage 's', which is not part of this flow"):
            consume(stage)
        with pytest.raises(FlowError, match="another flow"):
            consume(View(foreign))
        with pytest.raises(FlowError, match="another flow"):
            consume(source() | {"a": foreign})
