"""Annotations that are text: contracts in them are found wherever the names can be, and it is said where they cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import dataframely as dy
import polars as pl
import pytest

from pipedag_core import Flow, Stage, Table, materialize
from pipedag_core.errors import FlowError, MaterializationError

if TYPE_CHECKING:
    import pandas as pd
    from elsewhere import Hidden, Settings


class Small(dy.Schema):
    x = dy.Int64(max=10)


@materialize(version="1")
def source(value: int = 1):
    return pl.DataFrame({"x": [value]})


def declare(*tasks, config=None):
    """Declare a flow in which each task gets a table; with a configuration it runs."""
    with Flow("f") as flow, Stage("s"):
        table = source(99)
        for task in tasks:
            task(table)
    return flow if config is None else flow.run(config=config)


def refuses_rows(config, task):
    error = declare(task, config=config).exception
    assert isinstance(error, MaterializationError), error
    return "max" in str(error)


# --- what is found ------------------------------------------------------------------------------------------------------------------


def test_a_contract_inside_a_function_is_found_there(config):
    class Local(dy.Schema):
        x = dy.Int64(max=10)

    @materialize(version="1", input_type=pl.DataFrame)
    def returned(table) -> dy.DataFrame[Local]:
        return table

    @materialize(version="2", input_type=pl.DataFrame)
    def taken(table: dy.DataFrame[Local]):
        return table

    assert refuses_rows(config, returned)
    assert "max" in str(declare(taken, config=config).exception)


def test_so_is_one_of_a_function_further_around(config):
    class Local(dy.Schema):
        x = dy.Int64(max=10)

    def make():
        def inner():
            @materialize(version="1", input_type=pl.DataFrame)
            def returned(table) -> dy.DataFrame[Local]:
                return table

            return returned

        return inner()

    assert refuses_rows(config, make())


def test_text_inside_the_brackets_of_an_annotation_is_evaluated(config):
    def returned(table):
        return {"a": table}

    returned.__annotations__["return"] = dict[str, "dy.DataFrame[Small]"]
    assert refuses_rows(config, materialize(returned, version="1", input_type=pl.DataFrame))


def test_one_field_that_cannot_be_evaluated_does_not_hide_the_contract_of_another(config):
    with pytest.warns(UserWarning, match="field 'settings' of Mixed"):
        result = declare(mixed, config=config)
    assert "max" in str(result.exception)


@dataclass
class Mixed:
    table: dy.DataFrame[Small]
    settings: Settings | None = None


@materialize(version="1", input_type=pl.DataFrame)
def mixed(table) -> Mixed:
    return Mixed(table)


# --- what is not ----------------------------------------------------------------------------------------------------------------------


def unknown(annotation):
    """Return a task whose return annotation is a text."""

    def task(table):
        return table

    task.__annotations__["return"] = annotation
    return materialize(task, version="1", input_type=pl.DataFrame)


@pytest.mark.parametrize(
    "annotation",
    [
        "dy.DataFrame[Hidden]",
        "dict[str, dy.LazyFrame[Hidden]]",
        "hidden.DataFrame[Hidden]",
        "Table[Hidden]",
        "hidden.DataFrame[Small]",
        "dict[str, 'dy.DataFrame[Hidden]']",
        "tuple[Small, Hidden]",
    ],
)
def test_a_contract_that_cannot_be_found_is_refused_when_the_flow_is_declared(annotation):
    with pytest.raises(FlowError, match=r"Task 'task' of stage 's' in flow 'f': the return annotation cannot be evaluated") as caught:
        declare(unknown(annotation))
    assert "is not defined" in str(caught.value)
    assert "Import the name where the module runs" in str(caught.value)


@pytest.mark.parametrize("annotation", ["Hidden", "list[Hidden] | None", "hidden.Flights", "no python"])
def test_what_may_be_a_contract_is_warned_of(annotation):
    task = unknown(annotation)
    with pytest.warns(UserWarning, match="If it names a contract of rows, that is not looked at") as told:
        declare(task)
    assert [item.filename for item in told] == [__file__]


@pytest.mark.parametrize(
    "annotation", ["pd.DataFrame", "dict[str, pd.DataFrame] | None", "tuple[pl.DataFrame, pandas.DataFrame]", "sa.Select[tuple[int]]"]
)
def test_table_types_that_are_imported_for_type_checkers_only_say_enough_as_text(annotation):
    declare(unknown(annotation))


def test_an_argument_is_told_of_only_where_it_may_be_a_table():
    @materialize(version="1", input_type=pl.DataFrame)
    def task(table: pd.DataFrame, settings: Settings = None):
        return table

    declare(task)

    @materialize(version="1", input_type=pl.DataFrame)
    def other(*tables: Hidden, **more: dy.DataFrame[Hidden]):
        return tables[0]

    with pytest.warns(UserWarning, match="annotation of parameter 'tables'"):
        declare(other)
    with Flow("f"), Stage("s"):
        table = source()
        with pytest.raises(FlowError, match="annotation of parameter 'more'"):
            other(a=table)


@pytest.mark.parametrize("kind", ["dataclass", "named tuple", "typed dict"])
def test_a_contract_in_a_field_that_cannot_be_found_is_refused(kind):
    @dataclass
    class Lost:
        table: dy.DataFrame[Hidden]

    class Pair(NamedTuple):
        table: dy.DataFrame[Hidden]

    class Keys(TypedDict):
        table: Annotated[pl.DataFrame, dy.DataFrame[Hidden]]

    cls = {"dataclass": Lost, "named tuple": Pair, "typed dict": Keys}[kind]
    with pytest.raises(FlowError, match=rf"field 'table' of .*{cls.__name__}"):
        declare(unknown(list[cls]))


def test_table_annotation_needs_no_name(config):
    class Local(dy.Schema):
        x = dy.Int64(max=10)

    @materialize(version="1", input_type=pl.DataFrame)
    def task(table):
        return Table(table, annotation=Local)

    assert refuses_rows(config, task)
