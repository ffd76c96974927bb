from __future__ import annotations

import pytest

from pipedag_core.define import Flow, GroupNode, Stage, VisualizationStyle, materialize
from pipedag_core.errors import DuplicateName, FlowError


@materialize
def one(x=None):
    return x


@materialize
def two(x=None):
    return x


def test_a_flow_knows_its_stages_and_tasks_in_wiring_order():
    with Flow("f") as flow:
        with Stage("Raw Data") as raw:
            a = one()
            with Stage("inner") as inner:
                b = one(a)
            c = two()
        with Stage("features") as features:
            d = one(b)
    assert flow.stages == [raw, inner, features]
    assert flow.tasks == [a, b, c, d]
    assert flow.nodes == [raw, features]
    assert raw.nodes == [a, inner, c]
    assert (raw.name, raw.display_name, raw.parent, raw.unit) == ("raw data", "Raw Data", None, raw)
    assert (inner.parent, inner.unit, inner.tasks) == (raw, raw, [b])
    assert raw.transaction_name == raw.current_name == "raw data"
    assert [task.full_id for task in flow.tasks] == ["raw data.one", "inner.one", "raw data.two", "features.one"]
    assert d.upstream == (b,)


def test_repeated_calls_are_numbered_in_wiring_order():
    other = materialize(name="One_2")(one.fn)
    with Flow() as flow, Stage("s"):
        one()
        other()
        one()
        one()
    assert [task.id for task in flow.tasks] == ["one", "one_2", "one_3", "one_4"]


def test_stages_and_tasks_are_found_by_name():
    with Flow("f") as flow:
        with Stage("s"):
            a = one()
            b = two()
            c = two()
    assert flow["S"] is flow.get_stage("s")
    assert flow["s"]["one"] is a
    assert flow["s"]["two_2"] is c
    assert flow["s"].get_task("two", 0) is b
    assert flow["s"].get_task("two", -1) is c


def test_a_name_that_is_not_there_is_answered_with_the_nearest():
    with Flow("f") as flow, Stage("features"):
        two()
        two()
    with pytest.raises(FlowError, match="Did you mean 'features'"):
        flow["feature"]
    with pytest.raises(FlowError, match="Did you mean 'two'"):
        flow["features"]["tow"]
    with pytest.raises(FlowError, match=r"called 2 times.*index=0"):
        flow["features"]["two"]
    with pytest.raises(FlowError, match="no call 5"):
        flow["features"].get_task("two", 5)


def test_two_stages_of_one_name_are_refused_and_both_named():
    def declare():
        with Flow("f"):
            with Stage("A/b"):
                pass
            with Stage("a_B"):
                pass

    with pytest.raises(DuplicateName, match=r"'A/b' and 'a_B'"):
        declare()


def test_a_stage_or_group_is_used_once():
    stage, group = Stage("s"), GroupNode("g")
    with Flow("f"):
        with stage, group:
            pass
        with pytest.raises(FlowError, match="used twice"):
            with stage:
                pass
        with pytest.raises(FlowError, match="used twice"):
            with group:
                pass


def test_stages_and_groups_need_a_flow_and_tasks_a_stage():
    def declare():
        with Stage("s"):
            pass

    with pytest.raises(FlowError, match=r"stage 's' is used outside a flow"):
        declare()

    def declare():
        with GroupNode("g"):
            pass

    with pytest.raises(FlowError, match=r"group 'g' is used outside a flow"):
        declare()
    with Flow("f"):
        with pytest.raises(FlowError, match=r"Task 'one' is called outside a stage of flow 'f'"):
            one()


def test_a_stage_cannot_have_a_name_of_ours():
    for name in ("pipedag__in", "x__next", ""):
        with pytest.raises(FlowError):
            Stage(name)


def test_flows_do_not_nest_and_are_declared_once():
    with Flow("outer"):
        with pytest.raises(FlowError, match="'inner' is declared inside flow 'outer'"):
            with Flow("inner"):
                pass
    flow = Flow("f")
    with flow:
        pass

    def declare():
        with flow:
            pass

    with pytest.raises(FlowError, match="second time"):
        declare()


@pytest.mark.parametrize("verb", ["run", "plan", "graph", "visualize", "visualize_url", "visualize_pydot", "get_subflow"])
def test_a_flow_is_used_after_its_declaration_has_ended_well(verb):
    flow = Flow("f")
    with pytest.raises(FlowError, match="has no tasks yet"):
        getattr(flow, verb)()
    with flow:
        with pytest.raises(FlowError, match="still being declared"):
            getattr(flow, verb)()
    broken = Flow("g")

    def declare():
        with broken, Stage("s"):
            one()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        declare()
    with pytest.raises(FlowError, match="ended with an error"):
        getattr(broken, verb)()


def test_after_a_broken_flow_another_one_can_be_declared():
    def declare():
        with Flow("f"), Stage("s"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        declare()
    assert one(1) == 1
    with Flow("g") as flow, Stage("s"):
        one()
    assert len(flow.tasks) == 1


def test_ids_that_would_be_told_apart_by_a_dot_only_are_refused():
    dotted = materialize(name="b.c")(one.fn)
    short = materialize(name="c")(one.fn)
    with Flow("f"):
        with Stage("a"):
            dotted()
        with Stage("a.b"):
            with pytest.raises(DuplicateName, match=r"'a\.b\.c'"):
                short()


def test_groups_hold_what_is_wired_in_them():
    with Flow("f") as flow:
        with GroupNode("outer") as outer:
            with Stage("s") as stage:
                with GroupNode("inner", VisualizationStyle(hide_label=True), ordering_barrier=True) as inner:
                    a = one()
    assert (flow.nodes, outer.nodes, stage.nodes, inner.nodes) == ([outer], [stage], [inner], [a])
    with pytest.raises(FlowError, match="both a style and a style_tag"):
        GroupNode("g", VisualizationStyle(), style_tag="x")


def test_a_notebook_shows_an_outline_and_never_fails():
    flow = Flow("<f>")
    assert flow._repr_html_() == "&lt;flow &lt;f&gt;: 0 stages, 0 tasks&gt;"
    with flow, Stage("<s>"):
        one()
    assert "<li><b>&lt;s&gt;</b><ul><li>one</li></ul></li>" in flow._repr_html_()
