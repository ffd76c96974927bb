"""Every rule and every error of an InOutSpecification, on flows that are only declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.define import ExternalTableReference, Flow, InOutSpecification, LazyDict, Stage, materialize
from pipedag_core.errors import ExtractionRefused
from pipedag_core.plan.production import cut
from pipedag_core.plan.specification import Place


@materialize
def source():
    return {}


@materialize
def clean(tbl):
    return {}


@materialize(nout=2)
def train(features, target=None):
    return {}, {}


@materialize
def predict(model, features, note=None):
    return {}


@materialize(cache=lambda *_: 1)
def from_outside(x):
    return {}


@dataclass
class Tables:
    flights: Any
    weather: Any


def example():
    """Return a flow of three stages and its references: raw -> cleaned -> model, parameters -> predictions."""
    with Flow("f") as flow:
        with Stage("input"):
            raw = source()
            cleaned = clean(raw)
        with Stage("training"):
            features = clean(cleaned["flights"])
            model, parameters = train(features, cleaned["weather"])
        with Stage("scoring"):
            predictions = predict(model, features)
            report = predict(parameters, predictions)
    return flow, raw, cleaned, features, model, parameters, predictions, report


def ids(carved):
    return [task.full_id for task in carved.tasks]


def problems(flow, **spec):
    with pytest.raises(ExtractionRefused) as caught:
        cut(flow, InOutSpecification(**spec))
    return caught.value.problems


# --- rules


def test_every_task_on_a_path_to_the_output_runs_up_to_the_cuts():
    flow, _, cleaned, features, model, _, predictions, _ = example()
    carved = cut(flow, InOutSpecification(input=cleaned, const=model, output=predictions))
    assert ids(carved) == ["training.clean", "scoring.predict"]
    assert carved.inputs == {"clean": Place(cleaned)}
    assert carved.consts == (Place(model.task, (0,)),)
    assert carved.outputs == {"predict": predictions}
    assert features in carved.tasks


def test_an_input_is_named_by_its_key_else_by_its_task_else_by_task_and_item():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    by_key = cut(flow, InOutSpecification(input={"planes": cleaned["flights"]}, const=model, output=predictions))
    assert list(by_key.inputs) == ["planes"]
    by_item = cut(flow, InOutSpecification(input=[cleaned["flights"]], const=model, output=predictions))
    assert list(by_item.inputs) == ["clean.flights"]
    nested = cut(flow, InOutSpecification(input={"a": {"b": cleaned["flights"]}}, const=model, output=predictions))
    assert list(nested.inputs) == ["a.b"]


def test_lazydicts_and_dataclasses_nest_and_name_their_entries():
    state = LazyDict()
    with Flow("f") as flow, Stage("s"):
        spec = InOutSpecification(
            input=Tables(flights=state["flights"], weather=state["weather"]), const={"state": state}, output=state["answer"]
        )
        raw = source()
        state["flights"], state["weather"] = raw["a"], raw["b"]
        state["answer"] = predict(state["flights"], state["weather"])
    spec = InOutSpecification(input=spec.input, output=spec.output)
    carved = cut(flow, spec)
    assert carved.inputs == {"flights": Place(raw, ("a",)), "weather": Place(raw, ("b",))}
    assert ids(carved) == ["s.predict"]


def test_a_calibration_state_can_be_the_const_as_a_whole():
    @dataclass
    class State:
        parameters: LazyDict = field(default_factory=LazyDict)
        tables: LazyDict = field(default_factory=LazyDict)

    state = State()
    with Flow("f") as flow, Stage("s"):
        raw = source()
        state.parameters["rate"] = clean(raw)
        state.tables["lookup"] = clean(raw)["lookup"]
        answer = predict(state.parameters, raw, state.tables)
    carved = cut(flow, InOutSpecification(input=raw, const=state, output=answer))
    assert len(carved.consts) == 2
    assert ids(carved) == ["s.predict"]


def test_a_stage_stands_for_its_tables_used_outside_of_it():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    for stage in (flow["input"], "input"):
        carved = cut(flow, InOutSpecification(input=stage, const=model, output=predictions))
        assert carved.inputs == {"clean": Place(cleaned)}
    named = cut(flow, InOutSpecification(input={"data": "input"}, const=model, output=predictions))
    assert list(named.inputs) == ["data.clean"]


def test_a_task_can_be_named_by_text():
    flow, *_ = example()
    carved = cut(flow, InOutSpecification(input="input.clean", const="training.train", output="scoring.predict"))
    assert list(carved.inputs) == ["clean"]
    assert ids(carved) == ["training.clean", "scoring.predict"]


def test_a_stage_as_output_gives_all_tasks_in_it():
    flow, _, cleaned, _, model, parameters, _, _ = example()
    carved = cut(flow, InOutSpecification(input=cleaned, const=[model, parameters], output=flow["scoring"]))
    assert list(carved.outputs) == ["predict", "predict_2"]


def test_an_item_beats_its_task_and_a_task_beats_its_stage():
    with Flow("f") as flow:
        with Stage("s"):
            raw = source()
            other = source()
            rest = source()
        with Stage("end"):
            answer = predict(raw["a"], raw["b"], [other, rest])
    carved = cut(flow, InOutSpecification(input=raw["a"], const=[raw, flow["s"]], ignore=other, output=answer))
    assert carved.inputs == {"source.a": Place(raw, ("a",))}
    assert carved.consts == (Place(raw), Place(rest))
    assert carved.ignored == (Place(other),)


def test_an_inner_stage_beats_an_outer_one():
    with Flow("f") as flow:
        with Stage("outer"):
            a = source()
            with Stage("inner"):
                b = source()
        with Stage("end"):
            answer = predict(a, b)
    carved = cut(flow, InOutSpecification(input=flow["inner"], const=flow["outer"], output=answer))
    assert carved.inputs == {"source": Place(b)}
    assert carved.consts == (Place(a),)


def test_items_of_a_value_may_have_other_roles_than_the_rest_of_it():
    with Flow("f") as flow, Stage("s"):
        raw = source()
        answer = predict(raw, raw["b"])
    carved = cut(flow, InOutSpecification(input=raw["b"], const=raw, output=answer))
    assert carved.inputs == {"source.b": Place(raw, ("b",))}
    assert carved.consts == (Place(raw),)


def test_updates_recorded_before_the_specification_count():
    with Flow("f") as flow, Stage("s"):
        raw = source()
        features = clean(raw)
        features.update({"extra": source()["x"]})
        spec = InOutSpecification(input=raw, const="s.source_2", output=predict(None, features))
    carved = cut(flow, spec)
    assert ids(carved) == ["s.clean", "s.predict"]


def test_an_output_that_is_an_input_or_a_const_is_returned_as_it_is():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    carved = cut(flow, InOutSpecification(input=cleaned, const=model, output={"p": predictions, "m": model, "c": cleaned}))
    assert list(carved.outputs) == ["p", "m", "c"]
    assert ids(carved) == ["training.clean", "scoring.predict"]


def test_an_ignored_value_is_not_computed():
    flow, _, _, features, model, _, predictions, _ = example()
    carved = cut(flow, InOutSpecification(input=features, ignore=model, output=predictions))
    assert carved.ignored == (Place(model.task, (0,)),)
    assert ids(carved) == ["scoring.predict"]


def test_tasks_run_in_an_order_in_which_they_can():
    state = LazyDict()
    with Flow("f") as flow, Stage("s"):
        raw = source()
        last = predict(state["x"], raw)
        state["x"] = clean(raw)
    carved = cut(flow, InOutSpecification(input=raw, output=last))
    assert ids(carved) == ["s.clean", "s.predict"]


# --- errors


def test_all_problems_are_found_at_once():
    flow, _, cleaned, features, _, _, predictions, _ = example()
    found = problems(flow, input=[features, "nowhere"], const=[cleaned, 3], ignore=predictions, output=[predictions, None])
    assert len(found) >= 5
    with pytest.raises(ExtractionRefused) as caught:
        cut(flow, InOutSpecification(input=[features, "nowhere"], const=[cleaned, 3], ignore=predictions, output=[predictions, None]))
    assert all(problem in str(caught.value) for problem in found)
    assert "flow 'f'" in str(caught.value)


def test_without_an_output_there_is_nothing_to_do():
    flow, _, cleaned, *_ = example()
    assert "nothing is to be computed" in problems(flow, input=cleaned, output=[])[0]


def test_a_name_that_is_not_there_is_refused_with_the_nearest_one():
    flow, *_ = example()
    found = problems(flow, input="input.claen", const="training.train", output="scoring.predict")
    assert any("'input.claen'" in text and "'input.clean'" in text for text in found)


def test_an_output_of_another_flow_cannot_be_reached():
    flow, _, cleaned, *_ = example()
    other, *_, foreign, _ = example()
    found = problems(flow, input=cleaned, output=foreign)
    assert any("belongs to flow 'f'" in text and "cannot be reached" in text for text in found)
    assert any("stage 'scoring' is not part of flow" in text for text in problems(flow, input=cleaned, output=other["scoring"]))


def test_an_ignored_output_cannot_be_reached():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    found = problems(flow, input=cleaned, const=model, ignore=predictions, output=predictions)
    assert any("cannot be reached" in text and "scoring.predict" in text for text in found)
    found = problems(flow, input=cleaned, ignore=flow["scoring"], output=flow["scoring"])
    assert any("same stage is ignored" in text for text in found)


def test_a_stage_without_tasks_has_no_output():
    with Flow("f") as flow:
        with Stage("empty"):
            pass
    assert any("has no tasks" in text for text in problems(flow, input=(), output=flow["empty"]))


def test_a_source_left_inside_is_named_with_the_way_to_the_output():
    flow, _, _, _, model, _, predictions, _ = example()
    [found] = problems(flow, input=(), const=model, output=predictions)
    assert "input.source would run in production, but is a source" in found
    assert "(input.source -> input.clean -> training.clean -> scoring.predict -> output)" in found


def test_a_source_of_which_only_items_have_a_role_says_so():
    with Flow("f") as flow, Stage("s"):
        raw = source()
        answer = predict(raw, raw["b"])
    [found] = problems(flow, input=raw["b"], output=answer)
    assert "Items of it have a role (s.source['b']), but more of it is needed" in found


def test_a_task_with_a_cache_function_left_inside_is_named():
    with Flow("f") as flow, Stage("s"):
        raw = source()
        answer = clean(from_outside(raw))
    [found] = problems(flow, input=raw, output=answer)
    assert "s.from_outside" in found
    assert "cache function" in found
    assert "s.from_outside -> s.clean -> output" in found


def test_an_external_table_left_inside_is_named():
    with Flow("f") as flow, Stage("s"):
        raw = source()
        answer = predict(raw, {"deep": [ExternalTableReference("t", "theirs")]})
    [found] = problems(flow, input=raw, output=answer)
    assert "external table theirs.t as argument 'features.deep.0'" in found


def test_a_task_that_gets_a_stage_is_named():
    with Flow("f") as flow:
        with Stage("s") as stage:
            raw = source()
            answer = predict(raw, stage)
    [found] = problems(flow, input=raw, output=answer)
    assert "s.predict would run in production, but gets the stage s as argument 'features'" in found


def test_an_input_or_const_that_no_output_depends_on_is_named_with_what_hides_it():
    flow, raw, cleaned, _, model, parameters, predictions, _ = example()
    [found] = problems(flow, input=[raw, cleaned], const=model, output=predictions)
    assert "no output depends on the input input.source (input.0)" in found
    assert "All paths from it end at" in found
    assert "input.clean" in found
    [found] = problems(flow, input=cleaned, const=[model, parameters], output=predictions)
    assert "no output depends on the const training.train[1] (const.1)" in found


def test_one_reference_in_two_roles_at_equal_depth_is_refused():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    found = problems(flow, input=[cleaned, model], const=model, output=predictions)
    assert any("training.train[0] has two roles: input (at input.1) and const (at const)" in text for text in found)
    found = problems(flow, input=flow["input"], const=[flow["input"], model], output=predictions)
    assert any("the stage input has two roles" in text for text in found)


def test_the_same_reference_twice_in_one_role_is_no_error():
    flow, _, cleaned, _, model, _, predictions, _ = example()
    assert cut(flow, InOutSpecification(input=cleaned, const=[model, {"again": model}], output=predictions)).consts


def test_an_ignored_value_for_a_parameter_that_needs_one_is_refused():
    @materialize
    def needs(table: dict, text: str = "x"):
        return {}

    @materialize
    def takes(table: dict | None, text=None):
        return {}

    with Flow("f") as flow, Stage("s"):
        raw, other = source(), source()
        bad, good = needs(raw, other), takes(raw, other)
    [found] = problems(flow, input=other, ignore=raw, output=bad)
    assert "s.needs needs its argument 'table'" in found
    assert cut(flow, InOutSpecification(input=other, ignore=raw, output=good)).ignored
    assert cut(flow, InOutSpecification(input=raw, ignore=other, output=bad)).ignored


def test_two_inputs_with_one_name_are_refused():
    with Flow("f") as flow:
        with Stage("a"):
            one = source()
        with Stage("b"):
            two = source()
            answer = predict(one, two)
    [found] = problems(flow, input=[one, two], output=answer)
    assert "two inputs are called 'source': a.source and b.source" in found
    assert cut(flow, InOutSpecification(input={"one": one, "two": two}, output=answer)).inputs


def test_two_outputs_with_one_name_are_refused():
    with Flow("f") as flow:
        with Stage("a"):
            raw = source()
            one = clean(raw)
        with Stage("b"):
            two = clean(raw)
    [found] = problems(flow, input=raw, output=[one, two])
    assert "two outputs are called 'clean'" in found


def test_a_fact_that_is_supplied_and_computed_is_refused_unless_forced():
    with Flow("g") as flow:
        with Stage("s"):
            raw = source()
            features = clean(raw)
            enriched = clean(features)
            answer = predict(enriched, features)
    [found] = problems(flow, input=[raw, enriched], output=answer)
    assert "s.clean_2" in found
    assert "supplied and computed" in found
    assert "force=True" in found
    assert cut(flow, InOutSpecification(input=[raw, enriched], output=answer, force=True)).inputs


def test_an_entry_that_is_never_written_is_named_with_its_place():
    state = LazyDict()
    with Flow("other"), Stage("s"):
        asked = state["missing"]
        state["missing"] = source()
    open_end = LazyDict()
    with Flow("f") as flow, Stage("s"):
        raw = source()
        answer = clean(raw)
    with Flow("g"), Stage("s"):
        try:
            spec = InOutSpecification(input=raw, const=[open_end["rates"], asked], output=answer)
        finally:
            open_end["rates"] = None
    open_end._entries.clear()
    with pytest.raises(ExtractionRefused, match=r"'rates' of a LazyDict was read at .*test_production.py:\d+ in stage 's'"):
        cut(flow, spec)


def test_what_is_no_part_of_a_flow_is_refused():
    flow, _, cleaned, _, _, _, predictions, _ = example()
    found = problems(flow, input=cleaned, const=[7, predict], output=predictions)
    assert any("const.0: a int (7) is no part of a flow" in text for text in found)
    assert any("const.1: the function 'predict'" in text for text in found)


# --- whatever the flow


@st.composite
def random_cuts(draw):
    """Draw the edges of a flow of up to ten tasks, and roles for some of them."""
    count = draw(st.integers(2, 10))
    edges = [draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set() for number in range(count)]
    roles = [draw(st.sampled_from(["", "", "", "input", "const", "ignore"])) for _ in range(count)]
    outputs = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    return edges, roles, outputs


@materialize
def step(*needs):
    return {}


@given(random_cuts())
def test_what_runs_is_exactly_what_the_outputs_need_up_to_the_cuts(drawn):
    edges, roles, outputs = drawn
    tasks = []
    with Flow("f") as flow, Stage("s"):
        for needs in edges:
            tasks.append(step(*(tasks[number] for number in sorted(needs))))
    needed, met, todo = set(), set(), list(outputs)
    while todo:
        number = todo.pop()
        if roles[number]:
            met.add(number)
        elif number not in needed:
            needed.add(number)
            todo += edges[number]
    by_role = {role: [(f"t{n}", tasks[n]) for n, given in enumerate(roles) if given == role] for role in ("input", "const", "ignore")}
    spec = InOutSpecification(
        input=dict(by_role["input"]),
        const=[task for _, task in by_role["const"]],
        ignore=[task for _, task in by_role["ignore"]],
        output={f"o{number}": tasks[number] for number in outputs},
        force=True,
    )
    sources = {number for number in needed if not edges[number]}
    unused = {number for number, role in enumerate(roles) if role in ("input", "const")} - met
    lost = {number for number in outputs if roles[number] == "ignore"}
    if sources or unused or lost:
        with pytest.raises(ExtractionRefused) as caught:
            cut(flow, spec)
        assert len(caught.value.problems) == len(sources) + len(unused) + len(lost)
        return
    carved = cut(flow, spec)
    assert {task.number for task in carved.tasks} == needed
    assert {place.task.number for place in (*carved.inputs.values(), *carved.consts, *carved.ignored)} == met
    seen = set()
    for task in carved.tasks:
        assert {up.number for up in task.upstream} & needed <= seen
        seen.add(task.number)
