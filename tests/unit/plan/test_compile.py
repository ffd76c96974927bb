from __future__ import annotations

import subprocess
import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedag_core.define import AUTO_VERSION, Flow, GroupNode, LazyDict, Stage, Table, materialize
from pipedag_core.errors import DuplicateName, FlowError, PlanMismatch
from pipedag_core.plan.compile import compile_flow, plan_flow
from pipedag_core.plan.model import Plan, PlanStage, StepKind


@materialize
def make(x=None):
    """Make it.

    From nothing.
    """


@materialize(version="1.0", input_type=pl.LazyFrame)
def join(a, b=None) -> pl.LazyFrame: ...


@materialize
def consume(*args, **kwargs):
    return None


def steps(plan):
    return {step.id: step.upstream for step in plan.steps}


def small_flow(constant=1):
    with Flow("f") as flow:
        with Stage("raw"):
            a = make()
            b = make(constant)
        with Stage("features"), GroupNode("joins"), GroupNode():
            c = join(a["x"], b)
            join(c)
        with Stage("empty"):
            pass
    return flow


def test_a_plan_opens_runs_and_commits_unit_by_unit():
    plan = small_flow().plan(instance="mini", source="pkg.mod:flow")
    assert steps(plan) == {
        "open:raw": (),
        "task:raw.make": ("open:raw",),
        "task:raw.make_2": ("open:raw",),
        "commit:raw": ("task:raw.make", "task:raw.make_2"),
        "open:features": ("commit:raw",),
        "task:features.join": ("open:features",),
        "task:features.join_2": ("open:features", "task:features.join"),
        "commit:features": ("task:features.join", "task:features.join_2"),
        "open:empty": (),
        "commit:empty": ("open:empty",),
        "finish": tuple(step.id for step in plan.steps[:-1]),
    }
    assert (plan.flow, plan.instance, plan.source, plan.scratch) == ("f", "mini", "pkg.mod:flow", False)
    assert plan.step("task:features.join").kind is StepKind.TASK
    assert (plan.step("task:features.join").stage, plan.step("task:features.join").task) == ("features", "join")


def test_a_plan_knows_its_tasks_as_they_are_declared():
    plan = small_flow().plan()
    task = plan.task("features", "join_2")
    assert (task.name, task.upstream, task.cached_by, task.version, task.input_type) == (
        "join",
        ("features.join",),
        "version",
        "1.0",
        "polars.LazyFrame",
    )
    assert (task.outputs, task.groups, task.description) == (("join_2",), ("joins",), "")
    assert plan.task("raw", "make").description == "Make it."
    assert plan.task("raw", "make").outputs is None
    assert plan.task("raw", "make").cached_by == "never"


def test_a_plan_made_from_json_is_the_same_plan():
    plan = small_flow().plan(instance="mini")
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    for text in ("", "[]", "{}", plan.to_json().replace('"format": 1', '"format": 99')):
        with pytest.raises(PlanMismatch):
            Plan.from_json(text)


def test_the_source_is_the_flows_own_unless_another_is_given():
    flow = small_flow()
    flow.source = "pkg.mod:flow"
    assert compile_flow(flow).source == "pkg.mod:flow"
    assert plan_flow(flow, source="other:flow").source == "other:flow"


def test_nested_stages_are_one_unit():
    with Flow() as flow:
        with Stage("outer"):
            a = make()
            with Stage("inner"):
                b = make(a)
            make(b)
        with Stage("reader"):
            make(b)
    plan = flow.plan()
    assert plan.stages == (PlanStage("outer", "outer"), PlanStage("inner", "outer", "outer"), PlanStage("reader", "reader"))
    assert steps(plan)["task:inner.make"] == ("open:outer", "task:outer.make")
    assert steps(plan)["commit:outer"] == ("task:outer.make", "task:inner.make", "task:outer.make_2")
    assert steps(plan)["open:reader"] == ("commit:outer",)
    assert [step.id for step in plan.steps if step.kind is StepKind.COMMIT] == ["commit:outer", "commit:reader"]


def test_a_stage_that_is_passed_to_a_task_is_waited_for():
    with Flow() as flow:
        with Stage("raw") as raw:
            make()
        with Stage("outer") as outer:
            with Stage("inner") as inner:
                make()
            consume(raw, inner, outer)
    plan = flow.plan()
    assert steps(plan)["open:outer"] == ("commit:raw",)
    assert steps(plan)["task:outer.consume"] == ("open:outer", "task:inner.make")


def test_lazydict_reorders_units_and_tasks_only_as_far_as_it_must():
    state = LazyDict()
    with Flow() as flow:
        with Stage("a"):
            make()
        with Stage("model"):
            consume(state["x"])
        with Stage("b"):
            consume(state["y"])
            state["y"] = make()
        with Stage("features"):
            state["x"] = make()
    plan = flow.plan()
    order = [step.id for step in plan.steps]
    assert order == [
        "open:a",
        "task:a.make",
        "commit:a",
        "open:b",
        "task:b.make",
        "task:b.consume",
        "commit:b",
        "open:features",
        "task:features.make",
        "commit:features",
        "open:model",
        "task:model.consume",
        "commit:model",
        "finish",
    ]
    assert [task.id for task in plan.tasks] == ["a.make", "model.consume", "b.consume", "b.make", "features.make"]


def test_units_that_need_each_other_are_an_error_with_the_way_round():
    state = LazyDict()
    with Flow("f") as flow:
        with Stage("a"):
            x = make()
            consume(state["y"])
        with Stage("b"):
            state["y"] = make(x)
    with pytest.raises(FlowError, match=r"flow 'f' need each other: stages .*a -> b -> a.*task a\.consume reads b\.make"):
        flow.plan()


# --- positions and digest


def test_positions_tell_calls_apart_and_never_change_with_versions():
    def declare(version, constant):
        versioned = materialize(name="join", version=version)(join.fn)
        with Flow() as flow, Stage("s"):
            a = make(constant)
            versioned(a["x"])
            versioned(a["y"])
            versioned(a["x"])
        return [task.position for task in flow.plan().tasks]

    first = declare("1", 1)
    assert len(set(first)) == 4
    assert declare("2", 1) == first
    assert not set(declare("1", 2)) & set(first)
    assert not set(declare("1", True)) & set(first)
    assert not set(declare("1", 1.0)) & set(first)
    assert not set(declare("1", "1")) & set(first)


def test_the_digest_is_of_the_wiring_only():
    def digest(constant=1, key="x", swap=False, stage="s", version="1", extra=False):
        versioned = materialize(name="join", version=version)(join.fn)
        with Flow() as flow, Stage(stage):
            a, b = make(constant), make()
            versioned(*((b, a[key]) if swap else (a[key], b)))
            if extra:
                make()
        return flow.plan(instance=str(constant)).digest

    assert digest() == digest(constant=2) == digest(version="2")
    assert len({digest(), digest(key="y"), digest(swap=True), digest(stage="t"), digest(extra=True)}) == 5


def test_plans_are_equal_in_every_process():
    code = (
        "from pipedag_core.define import *\n"
        "@materialize\n"
        "def t(*args, **kwargs): ...\n"
        "with Flow() as flow, Stage('s'):\n"
        "    a = t({'b', 'a', 'c', None, 1}, k={'z': 1, 'y': 2})\n"
        "    t(frozenset({a['x'], a['y'], a}), View(a, sort_by='x'))\n"
        "print(flow.plan().to_json())\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


# --- known outputs


def returning(annotation, **options):
    def task():
        return None

    task.__annotations__["return"] = annotation
    with Flow() as flow, Stage("s"):
        materialize(**options)(task)()
    return flow.plan().tasks[0].outputs


@pytest.mark.parametrize(
    "annotation",
    [
        pd.DataFrame,
        pl.DataFrame,
        pl.LazyFrame,
        pa.Table,
        pa.RecordBatchReader,
        sa.Select,
        sa.Select[tuple[int]],
        sa.TextClause,
        sa.Selectable,
        sa.CompoundSelect,
    ],
)
def test_one_unnamed_table_is_known_by_its_annotation(annotation):
    assert returning(annotation) == ("task",)


@pytest.mark.parametrize(
    "annotation", ["pd.DataFrame", "pl.LazyFrame", "sa.Select[tuple[int]]", "pa.Table", "DataFrame", "pandas.DataFrame"]
)
def test_the_annotation_may_be_text_that_cannot_be_evaluated(annotation):
    assert returning(annotation) == ("task",)


@pytest.mark.filterwarnings("ignore:.*cannot be evaluated")
@pytest.mark.parametrize(
    "annotation",
    [dict, "dict[str, pd.DataFrame]", Table, Table[pd.DataFrame], int, "Table", "pd.DataFrame | int", "MyDataFrame", list[pl.DataFrame]],
)
def test_anything_else_is_not_known_before_a_run(annotation):
    assert returning(annotation) is None


def test_declared_outputs_are_known():
    assert returning(dict, outputs=["A", "b"]) == ("a", "b")
    assert returning(pl.DataFrame, outputs=[]) == ()
    assert returning(pl.DataFrame, nout=2) is None


def test_two_tasks_that_are_known_to_make_one_table_are_refused():
    declared = materialize(outputs=["x", "Join"])(make.fn)
    with Flow("f") as flow, Stage("s"):
        join(1)
        declared()
    with pytest.raises(DuplicateName, match=r"Tasks 'join' and 'make' of stage 's' \(flow 'f'\) both make a table 'join'"):
        flow.plan()


def test_how_a_task_is_cached_is_in_the_plan():
    with Flow() as flow, Stage("s"):
        materialize(lazy=True, version="2")(make.fn)()
        materialize(version=AUTO_VERSION, input_type=pl.LazyFrame, group_node_tag="t")(make.fn)()
    lazy, auto = flow.plan().tasks
    assert (lazy.cached_by, lazy.version) == ("lazy", "2")
    assert (auto.cached_by, auto.version, auto.tag) == ("auto", "AUTO_VERSION", "t")


# --- any flow


@st.composite
def flows(draw):
    """A flow of nested stages with groups, barriers and LazyDict entries written before or after they are read (backward only, so no circles)."""
    state = LazyDict()
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    barrier = materialize(name="barrier", ordering_barrier=True)(consume.fn)
    made = []
    with Flow() as flow:
        for number, size in enumerate(sizes):
            with Stage(f"s{number}"):
                for index in range(size):
                    inputs = draw(st.lists(st.sampled_from(made), max_size=3)) if made else []
                    task = draw(st.sampled_from([consume, consume, barrier]))
                    if draw(st.booleans()):
                        with GroupNode(f"g{index}", ordering_barrier=draw(st.booleans())):
                            made.append(task(*inputs))
                    elif draw(st.booleans()):
                        with Stage(f"s{number}_{index}"):
                            made.append(task(*inputs))
                    else:
                        made.append(task(*inputs))
                    key = (number, index)
                    if draw(st.booleans()):
                        made.append(state[key])
                        state[key] = task(*inputs)
    return flow


@settings(max_examples=60, deadline=None)
@given(flows())
def test_every_step_stands_after_all_that_it_needs(flow):
    plan = flow.plan()
    seen: set[str] = set()
    for step in plan.steps:
        assert set(step.upstream) <= seen
        assert step.id not in seen
        seen.add(step.id)
    assert len(seen) == len(flow.tasks) + 2 * len(flow.nodes) + 1
    behind: dict[str, set[str]] = {}
    for step in plan.steps:
        behind[step.id] = set(step.upstream).union(*(behind[other] for other in step.upstream))
    for task in plan.tasks:
        assert {f"task:{other}" for other in task.upstream} <= behind[f"task:{task.id}"]
    assert behind["finish"] == seen - {"finish"}
    assert Plan.from_json(plan.to_json()) == plan
