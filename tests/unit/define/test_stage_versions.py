"""How a task of two versions is declared, and what its call may hold."""

from __future__ import annotations

import pytest

from pipedag_core import (
    AUTO_VERSION,
    ExternalTableReference,
    Flow,
    GroupNode,
    LazyDict,
    PipedagConfig,
    Stage,
    View,
    input_stage_versions,
    materialize,
)
from pipedag_core.errors import FlowError, UnsupportedValue


@materialize(version="1")
def make():
    return 1


@input_stage_versions
def check(now, before):
    return (now, before)


def ids(tasks):
    return [task.full_id for task in tasks]


def needs(flow):
    """Return task -> the tasks for which its step waits."""
    return {
        step.id.removeprefix("task:"): [other.removeprefix("task:") for other in step.upstream if other.startswith("task:")]
        for step in flow.plan().steps
        if step.id.startswith("task:")
    }


def test_outside_of_a_flow_the_plain_function_is_called():
    assert check({"a": 1}, {}) == ({"a": 1}, {})


def test_without_arguments_it_takes_what_its_stage_has_before_it():
    with Flow("f") as flow:
        with Stage("other"):
            make()
        with Stage("s"):
            make()
            make()
            one = check()
            make()
    assert ids(one.upstream) == ["s.make", "s.make_2"]
    assert needs(flow)["s.make_3"] == ["s.check"]


def test_as_an_ordering_barrier_it_may_be_switched_off():
    @input_stage_versions(ordering_barrier=False)
    def beside(now, before):
        pass

    with Flow("f") as flow, Stage("s"):
        make()
        beside()
        make()
    assert needs(flow) == {"s.make": [], "s.beside": ["s.make"], "s.make_2": []}


def test_what_groups_hold_belongs_to_the_stage():
    with Flow("f"), Stage("s"):
        with GroupNode("g"):
            make()
        one = check()
        with Stage("inner"):
            make()
            two = check()
    assert ids(one.upstream) == ["s.make"]
    assert ids(two.upstream) == ["inner.make"]


def test_a_stage_stands_for_its_tasks_and_a_configuration_for_nothing():
    config = PipedagConfig({}).get()
    with Flow("f") as flow:
        with Stage("raw") as raw:
            make()
            make()
        with Stage("s"):
            make()
            one, two, three = check(raw), check(config), check(raw.get_task("make", 0), other=config)
    assert [ids(task.upstream) for task in (one, two, three)] == [["raw.make", "raw.make_2"], ["s.make", "s.check"], ["raw.make"]]
    assert [[stage.name for stage in task.whole] for task in (one, two, three)] == [["raw"], ["s"], []]
    assert flow.plan().step("open:s").upstream == ("commit:raw",)


def test_entries_of_a_lazy_dict_are_known_at_the_end():
    state = LazyDict()
    with Flow("f"), Stage("s"):
        made = make()
        one, two = check(state), check(state["x"])
        state["x"] = made
    assert [ids(task.upstream) for task in (one, two)] == [["s.make"], ["s.make"]]
    assert (one.whole, two.whole) == ((), ())


def test_its_place_in_the_wiring_is_another_one_with_more_tables():
    def position(count):
        with Flow("f") as flow, Stage("s"):
            for _ in range(count):
                make()
            check()
        return flow.plan().task("s", "check").position

    assert position(1) == position(1) != position(2)


def test_defaults_and_a_configuration_reach_the_function_by_name():
    config = PipedagConfig({}).get()

    @input_stage_versions(pass_args=["limit", "more"])
    def three(now, before, cfg=None, limit=3, *, factor=2, **rest):
        pass

    with Flow("f"), Stage("s"):
        plain, full = three(), three(make(), config, limit=5, more="x")
    assert plain.bind({**plain.parameters, "now": 1, "before": 2}) == ((1, 2, None, 3), {"factor": 2, "tables": {}})
    args, kwargs = full.bind({**full.parameters, "now": 1, "before": 2})
    assert args == (1, 2, config, 5)
    assert (kwargs["factor"], kwargs["more"]) == (2, "x")


@pytest.mark.parametrize(
    ("function", "options", "match"),
    [
        (lambda: None, {}, r"needs two positional parameters\. Write def"),
        (lambda now: None, {}, "needs two positional parameters"),
        (lambda now, before, *, limit: None, {}, "nothing would be given to the parameter 'limit'"),
        (lambda now, before: None, {"pass_args": ["limit"]}, "pass_args names 'limit', which is no keyword"),
        (lambda now, before: None, {"pass_args": ["now"]}, "pass_args names 'now', which is no keyword"),
        (lambda now, before: None, {"pass_args": "limit"}, r"Write pass_args=\['limit'\]"),
        (lambda now, before: None, {"version": AUTO_VERSION}, "needs input_type"),
        (lambda now, before: None, {"add_input_source": True, "input_type": object}, "add_input_source is of no use"),
        (lambda now, before: None, {"ordering_barrier": {"label": "x"}}, "ordering_barrier must be True or False"),
        (make, {}, "is decorated twice"),
        (3, {}, "stands above a function, not 3"),
    ],
)
def test_a_wrong_declaration_says_how_to_write_it(function, options, match):
    with pytest.raises(FlowError, match=match):
        input_stage_versions(**options)(function)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((3,), r"as argument '0', 3, which is no table\. Give values by a keyword, and name that in pass_args"),
        (({"x": [None]},), r"as argument '0\.x\.0', None, which is no table"),
        ((ExternalTableReference("t", "s"),), "which has no name in a stage and so no other version"),
        ((PipedagConfig({}),), r"Choose one of its instances: config\.get"),
        ((PipedagConfig({}).get(), [PipedagConfig({}).get()]), "gets 2 configurations"),
    ],
)
def test_a_wrong_argument_says_where_it_is(arguments, match):
    with Flow("f"), Stage("s"), pytest.raises(FlowError, match=match):
        check(*arguments)


def test_a_view_and_an_unknown_object_are_refused():
    with Flow("f"), Stage("s"):
        made = make()
        with pytest.raises(FlowError, match="a View, which has no name in a stage"):
            check(View(made))
        with pytest.raises(UnsupportedValue, match=r"as argument 'tables\.0'"):
            check(object())


def test_a_configuration_that_the_function_needs_has_to_be_given():
    @input_stage_versions
    def with_config(now, other, config):
        pass

    with Flow("f"), Stage("s"), pytest.raises(FlowError, match="is called without another instance's configuration"):
        with_config()

    @input_stage_versions(pass_args=["limit"])
    def with_limit(now, other, *, limit):
        pass

    with Flow("f"), Stage("s"), pytest.raises(FlowError, match=r"is called without the keyword limit=\.\.\."):
        with_limit()
