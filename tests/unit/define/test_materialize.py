from __future__ import annotations

import inspect
import pickle
from contextlib import nullcontext

import pytest

from pipedag_core.define import AUTO_VERSION, Flow, Stage, TaskFunction, materialize
from pipedag_core.define.context import TaskContext, executing
from pipedag_core.errors import DuplicateName, FlowError


@materialize
def plain(x, y=2):
    """Add two numbers.

    Slowly.
    """
    return x + y


@materialize(name="Load Data", version="1.0", nout=2, input_type=str, outputs=["Names", "ages"], group_node_tag="tag")
def load(a, /, b, *args, c=3, **kwargs):
    return a, b, args, c, kwargs


def test_outside_a_flow_the_plain_function_runs():
    assert plain(1) == 3


def test_inside_a_running_task_the_plain_function_runs_even_where_a_flow_is_declared():
    token = executing.set(TaskContext("f", "s", "t", "r", None, lambda: None))
    try:
        assert plain(1) == 3
    finally:
        executing.reset(token)


def test_a_flow_can_be_declared_inside_a_running_task():
    token = executing.set(TaskContext("f", "s", "t", "r", None, lambda: None))
    try:
        with Flow() as flow, Stage("s"):
            plain(1)
    finally:
        executing.reset(token)
    assert [task.full_id for task in flow.tasks] == ["s.plain"]


def test_a_task_function_looks_like_its_function():
    assert plain.__name__ == "plain"
    assert plain.__doc__.startswith("Add two numbers.")
    assert plain.description == "Add two numbers."
    assert list(inspect.signature(plain).parameters) == ["x", "y"]
    assert isinstance(plain, TaskFunction)
    assert plain.fn(1, 1) == 2


def test_options_are_kept_as_given_and_outputs_normalised():
    assert load.options.name == "Load Data"
    assert load.options.version == "1.0"
    assert load.options.nout == 2
    assert load.options.input_type is str
    assert load.options.outputs == ("names", "ages")
    assert load.options.group_node_tag == "tag"


def test_auto_version_is_one_value_with_a_readable_name():
    assert repr(AUTO_VERSION) == "AUTO_VERSION"
    assert pickle.loads(pickle.dumps(AUTO_VERSION)) is AUTO_VERSION


def double(x):
    return 2 * x


def test_a_task_function_under_another_name_pickles_with_its_function():
    other = pickle.loads(pickle.dumps(materialize(version="1")(double)))
    assert other.options.version == "1"
    assert other(2) == 4


def test_a_task_function_pickles_by_its_name_where_the_name_leads_to_it():
    assert pickle.loads(pickle.dumps(plain)) is plain


def test_a_lazy_task_may_have_a_version_too():
    assert materialize(lazy=True, version="1")(double).options.lazy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": AUTO_VERSION}, "needs input_type"),
        ({"version": AUTO_VERSION, "input_type": str, "lazy": True}, "exclude each other"),
        ({"version": 1.0}, "version must be text"),
        ({"version": " "}, "version must be text"),
        ({"input_type": "polars"}, "input_type must be a type of tables, not 'polars'"),
        ({"nout": 0}, "at least 1"),
        ({"nout": True}, "at least 1"),
        ({"nout": 2.0}, "at least 1"),
        ({"lazy": "yes"}, "lazy must be True or False"),
        ({"cache": 1}, "cache must be a function"),
        ({"call_context": nullcontext()}, "call_context must be a function"),
        ({"add_input_source": True}, "needs input_type"),
        ({"add_input_source": 1}, "must be True or False"),
        ({"invocation": object()}, "not supported yet"),
        ({"outputs": ["x_%%"]}, "not known before a run"),
        ({"outputs": [""]}, "empty"),
        ({"name": "x__g1"}, "suffix"),
    ],
)
def test_options_that_cannot_be_are_refused_at_decoration(options, message):
    with pytest.raises(FlowError, match=message):
        materialize(**options)(double)


def test_two_outputs_that_are_one_name_are_refused_at_decoration():
    with pytest.raises(DuplicateName, match=r"'a/b' and 'A_B'"):
        materialize(outputs=["a/b", "A_B"])(double)


def test_what_is_no_function_is_refused():
    with pytest.raises(FlowError, match="stands above a function"):
        materialize("1.0")
    with pytest.raises(FlowError, match="decorated twice"):
        materialize(plain)

    async def later():
        pass

    def many():
        yield 1

    for fn in (later, many):
        with pytest.raises(FlowError, match="async function or a generator"):
            materialize(fn)


def test_arguments_are_labelled_and_go_back_into_a_call():
    with Flow(), Stage("s"):
        task = load(1, 2, 3, 4, z=5)[0].task
        short = load(1, b=2)[0].task
    assert task.parameters == {"a": 1, "b": 2, "args": (3, 4), "c": 3, "z": 5}
    args, kwargs = task.bind(
        {label: value if label == "args" else -value for label, value in task.parameters.items() if label != "args"} | {"args": (7,)}
    )
    assert task.fn(*args, **kwargs) == (-1, -2, (7,), -3, {"z": -5})
    assert short.parameters == {"a": 1, "b": 2, "args": (), "c": 3}
    assert list(short.parameters) == ["a", "b", "args", "c"]
    args, kwargs = short.bind(short.parameters)
    assert short.fn(*args, **kwargs) == (1, 2, (), 3, {})


def test_a_call_that_does_not_fit_the_signature_is_refused_where_it_stands():
    with Flow("f"), Stage("s"):
        with pytest.raises(FlowError, match=r"task 'plain' \(stage 's', flow 'f'\).*missing a required argument: 'x'") as caught:
            plain()
        with pytest.raises(FlowError, match="keyword 'args' that is also the name of a parameter"):
            load(1, 2, args=3)
    assert isinstance(caught.value.__cause__, TypeError)
