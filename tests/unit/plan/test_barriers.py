from __future__ import annotations

import pytest

from pipedag_core.define import Flow, GroupNode, LazyDict, Stage, materialize
from pipedag_core.errors import FlowError


@materialize
def task(*args):
    return None


@materialize(ordering_barrier=True)
def barrier(*args):
    return None


def behind(flow):
    found: dict[str, set[str]] = {}
    for step in flow.plan().steps:
        found[step.id] = set(step.upstream).union(*(found[other] for other in step.upstream))
    return {key: {item for item in value if not item.startswith("open:s")} for key, value in found.items()}


def test_a_barrier_task_separates_what_is_wired_before_from_what_is_wired_later():
    with Flow() as flow, Stage("s"):
        a = task()
        task(a)
        barrier()
        task()
    steps = {step.id: step.upstream for step in flow.plan().steps}
    assert steps["task:s.barrier"] == ("open:s", "task:s.task_2")
    assert steps["task:s.task_3"] == ("open:s", "task:s.barrier")
    assert behind(flow)["task:s.task_3"] == {"task:s.task", "task:s.task_2", "task:s.barrier"}


def test_a_barrier_group_starts_after_what_is_before_and_ends_before_what_is_later():
    with Flow() as flow, Stage("s"):
        task()
        with GroupNode(ordering_barrier=True):
            task()
            task()
        task()
    found = behind(flow)
    assert found["task:s.task_2"] == found["task:s.task_3"] == {"task:s.task"}
    assert found["task:s.task_4"] == {"task:s.task", "task:s.task_2", "task:s.task_3"}


def test_a_barrier_acts_in_its_own_container_only():
    with Flow() as flow, Stage("s"):
        task()
        with GroupNode():
            task()
            barrier()
        task()
    found = behind(flow)
    assert found["task:s.barrier"] == {"task:s.task_2"}
    assert found["task:s.task_3"] == set()


def test_a_barrier_waits_for_tasks_of_stages_and_groups_beside_it():
    with Flow() as flow, Stage("s"):
        with Stage("inner"):
            task()
        with GroupNode():
            task()
        barrier()
        with Stage("later"):
            task()
    found = behind(flow)
    assert found["task:s.barrier"] == {"task:inner.task", "task:s.task"}
    assert "task:s.barrier" in found["task:later.task"]


def test_around_stages_a_barrier_holds_back_opening():
    with Flow() as flow:
        with Stage("s1"):
            task()
        with GroupNode(ordering_barrier=True):
            with Stage("s2"):
                task()
            with Stage("s3"):
                pass
        with Stage("s4"):
            task()
    steps = {step.id: step.upstream for step in flow.plan().steps}
    assert steps["open:s2"] == steps["open:s3"] == ("commit:s1",)
    assert steps["open:s4"] == ("commit:s2", "commit:s3")


def test_barriers_after_each_other_make_a_chain():
    with Flow() as flow, Stage("s"):
        barrier()
        barrier()
        barrier()
    steps = {step.id: step.upstream for step in flow.plan().steps}
    assert steps["task:s.barrier_3"] == ("open:s", "task:s.barrier_2")


def test_a_barrier_against_the_flow_of_data_is_an_error():
    state = LazyDict()
    with Flow() as flow, Stage("s"):
        barrier(state["x"])
        state["x"] = task()
    with pytest.raises(FlowError, match=r"tasks s\.barrier -> s\.task -> s\.barrier|tasks s\.task -> s\.barrier -> s\.task"):
        flow.plan()
    state = LazyDict()
    with Flow() as flow:
        with GroupNode(ordering_barrier=True), Stage("a"):
            task(state["x"])
        with Stage("b"):
            state["x"] = task()
    with pytest.raises(FlowError, match="held back by an ordering barrier"):
        flow.plan()
