"""`flow.run(...)` and what it gives: their options, and the answers to wrong ones."""

from __future__ import annotations

import inspect

import polars as pl
import pytest

from pipedag_core import Flow, PipedagConfig, SequentialEngine, Stage, ThreadEngine, materialize
from pipedag_core.config.wire import open_catalog
from pipedag_core.errors import ConfigError, FlowError
from pipedag_core.runner import run_flow


@materialize(version="1.0")
def numbers():
    return pl.DataFrame({"x": [1, 2]})


@pytest.fixture
def flow():
    with Flow("probe") as flow, Stage("s"):
        numbers()
    return flow


def runs(config):
    catalog = open_catalog(config)
    try:
        return catalog.runs()
    finally:
        catalog.close()


def test_the_flow_names_the_options_of_the_runner():
    own, below = (inspect.signature(call).parameters for call in (Flow.run, run_flow))
    assert [name for name in own if name != "self"] == [name for name in below if name != "flow"]
    assert [item.default for item in own.values() if item.kind is item.KEYWORD_ONLY] == [
        item.default for item in below.values() if item.kind is item.KEYWORD_ONLY
    ]


def test_an_option_that_there_is_not_is_refused_with_the_nearest(flow, config):
    with pytest.raises(ConfigError, match=r"flow\.run has no option 'instnace'\. Did you mean instance\?"):
        flow.run(config=config, instnace="full")
    with pytest.raises(ConfigError, match="Did you mean max_workers"):
        flow.run(config=config, max_worker=2)
    with pytest.raises(ConfigError, match="Did you mean fail_fast"):
        flow.run(config=config, orchestration_engine=SequentialEngine(), failfast=True)
    with pytest.raises(ConfigError, match=r"There are: .*max_workers"):
        flow.run(config=config, colour="red")
    assert runs(config) == []


def test_an_engine_may_be_named_as_in_the_configuration(flow, config):
    assert flow.run(config=config, orchestration_engine="sequential").successful
    assert flow.run(config=config, orchestration_engine="threads", max_workers=2).successful
    with pytest.raises(ConfigError, match="no option 'max_workers'"):
        flow.run(config=config, orchestration_engine="sequential", max_workers=2)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("sequental", "Did you mean 'sequential'"),
        (ThreadEngine, r"the class ThreadEngine. Write ThreadEngine\(\)"),
        (3, "or its name, not int"),
        (Flow("other"), "or its name, not Flow"),
    ],
)
def test_what_is_no_engine_is_refused_before_the_run_begins(flow, config, engine, message):
    with pytest.raises(ConfigError, match=message):
        flow.run(config=config, orchestration_engine=engine)
    assert runs(config) == []


@pytest.mark.parametrize("given", [{"name": "x"}, "pipedag.yaml", 3])
def test_what_is_no_configuration_is_refused_with_what_is_one(flow, given):
    with pytest.raises(ConfigError, match="config= takes a PipedagConfig, or a ConfigContext"):
        flow.run(config=given)


def test_a_run_may_use_an_instance_of_the_users_own(flow, config, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    settings = PipedagConfig({"instances": {"__any__": {}}})
    assert flow.run(config=settings, per_user=True).successful
    assert len(runs(settings.get(per_user=True))) == 1
    with pytest.raises(ConfigError, match="per_user cannot change a ConfigContext"):
        flow.run(config=config, per_user=True)


def test_a_result_is_asked_for_by_reference(flow, config):
    result = flow.run(config=config)
    for wrong in ("numbers", flow, numbers, {}):
        with pytest.raises(FlowError, match="Pass the reference that the call of the task returned"):
            result.get(wrong)
    assert result.get(flow["s"]["numbers"], as_type=pl.DataFrame)["x"].to_list() == [1, 2]


@pytest.mark.parametrize("as_type", [int, "polars"])
def test_a_type_in_which_tables_cannot_be_had_is_refused_by_its_own_name(flow, config, as_type):
    result = flow.run(config=config)
    with pytest.raises(ConfigError, match=r"as_type: .*polars\.DataFrame") as caught:
        result.get(flow["s"]["numbers"], as_type=as_type)
    assert "input_type" not in str(caught.value)
    with pytest.raises(ConfigError, match="Tables cannot be had as"):
        flow["s"]["numbers"].get_output_from_store(as_type=as_type, config=config)
