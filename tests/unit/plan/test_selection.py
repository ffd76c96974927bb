from __future__ import annotations

import pytest

from pipedag_core.define import Flow, Stage, materialize
from pipedag_core.errors import FlowError
from pipedag_core.plan.selection import Selection, resolve, select


@materialize(nout=2)
def make(x=None):
    return 1, 2


@materialize
def consume(*args):
    return None


@pytest.fixture
def flow():
    with Flow("f") as flow:
        with Stage("raw"):
            a, _ = make()
        with Stage("outer"):
            with Stage("inner"):
                b = consume(a)
            c = consume(b)
        with Stage("end"):
            consume(c)
            consume(a)
    return flow


def steps(plan):
    return {step.id: step.upstream for step in plan.steps}


def test_components_are_stages_tasks_items_and_names(flow):
    assert resolve(flow, [flow["inner"], "RAW", "raw"]) == Selection(stages=("inner", "raw"))
    assert resolve(flow, [flow["raw"]["make"][0], "Outer.consume", flow["end"].get_task("consume", 1)]) == Selection(
        tasks=("raw.make", "outer.consume", "end.consume_2")
    )
    assert resolve(flow.plan(), ["raw", flow["outer"]]) == Selection(stages=("raw", "outer"))
    assert resolve(flow, []) == Selection()


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (["ouder"], "Did you mean 'outer'"),
        (["raw.mke"], "Did you mean 'raw.make'"),
        (["raw", "outer.consume"], r"Stages \(raw\) and tasks \(outer.consume\)"),
        ([make], r"flow\['stage'\]\['make'\]"),
        ([3], "not a int: 3"),
    ],
)
def test_what_is_no_part_of_the_flow_is_refused(flow, components, message):
    with pytest.raises(FlowError, match=message):
        resolve(flow, components)


def test_parts_of_another_flow_are_refused(flow):
    with Flow("g"), Stage("raw") as raw:
        a, _ = make()
    for component in (raw, a):
        with pytest.raises(FlowError, match="is not part of flow 'f'"):
            resolve(flow, [component])


def test_a_named_stage_runs_and_commits_with_its_whole_unit(flow):
    whole = flow.plan()
    plan = select(whole, stages=["inner"])
    assert steps(plan) == {
        "open:outer": (),
        "task:inner.consume": ("open:outer",),
        "task:outer.consume": ("open:outer", "task:inner.consume"),
        "commit:outer": ("task:inner.consume", "task:outer.consume"),
        "finish": ("open:outer", "task:inner.consume", "task:outer.consume", "commit:outer"),
    }
    assert not plan.scratch
    assert (plan.digest, plan.stages, plan.tasks) == (whole.digest, whole.stages, whole.tasks)


def test_order_through_what_is_left_out_is_kept(flow):
    plan = select(flow.plan(), stages=["raw", "end"])
    assert steps(plan)["open:end"] == ("commit:raw",)


def test_named_tasks_run_into_scratch_and_commit_nothing(flow):
    plan = select(flow.plan(), tasks=["raw.make", "end.consume"])
    assert plan.scratch
    assert steps(plan) == {
        "open:raw": (),
        "task:raw.make": ("open:raw",),
        "open:end": ("task:raw.make",),
        "task:end.consume": ("open:end",),
        "finish": ("open:raw", "task:raw.make", "open:end", "task:end.consume"),
    }


def test_nothing_named_is_everything(flow):
    plan = flow.plan()
    assert select(plan) is plan


def test_a_subflow_is_a_part_that_can_be_planned(flow):
    part = flow.get_subflow("inner")
    assert part.stages == (flow["inner"],)
    assert part.plan(instance="mini") == select(flow.plan(instance="mini"), stages=["inner"])
    tasks = flow.get_subflow(flow["raw"]["make"])
    assert tasks.tasks == (flow["raw"]["make"],)
    assert tasks.plan().scratch
    assert repr(tasks) == "<part of flow f: raw.make>"
