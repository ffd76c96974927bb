"""A run whose stages are carried out one call each, as orchestrators do that know tables and not tasks."""

from __future__ import annotations

import polars as pl
import pytest

from pipedag_core import Flow, Stage, execute, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import PlanMismatch, RunError
from pipedag_core.ports.events import Outcome
from pipedag_core.runner import commit_stage, execute_stage, finish_run, open_stage

STEP = 2


@pytest.fixture
def world():
    """What the tasks below read and count: the numbers they start from, whether one fails, and how often each was called."""
    return {"start": 1, "fail": False, "calls": []}


@pytest.fixture
def flow(world):
    @materialize()
    def raw() -> pl.DataFrame:
        world["calls"].append("raw")
        return pl.DataFrame({"x": [world["start"]]})

    @materialize(input_type=pl.DataFrame)
    def doubled(table) -> pl.DataFrame:
        world["calls"].append("doubled")
        return table * STEP

    @materialize(input_type=pl.DataFrame)
    def summed(table) -> pl.DataFrame:
        world["calls"].append("summed")
        if world["fail"]:
            raise ValueError("no sum today")
        return table.sum()

    @materialize()
    def beside() -> pl.DataFrame:
        world["calls"].append("beside")
        return pl.DataFrame({"y": [world["start"]]})

    with Flow("parts") as made:
        with Stage("source"):
            table = raw()
        with Stage("marts"):
            summed(doubled(table))
            with Stage("inner"):
                beside()
    return made


def leases(config):
    with open_session(config) as session:
        return session.catalog.leases()


def test_stages_carried_out_one_by_one_leave_what_a_run_leaves(flow, world, config, tables_of):
    plan = flow.plan()
    for stage in ("source", "marts"):
        report = execute_stage(plan, stage, run_id="r", flow=flow, config=config)
        assert report.is_committed
        assert report.changed
    ended = finish_run(plan, run_id="r", config=config)
    assert (ended.outcome, ended.reason) == (Outcome.FINISHED, "succeeded")
    assert finish_run(plan, run_id="r", config=config) is None
    found = tables_of(config)
    assert found["marts"]["summed"].to_dicts() == [{"x": 2}]
    assert found["inner"]["beside"].to_dicts() == [{"y": 1}]
    assert report.stages == ("marts", "inner")
    assert {stage: list(names) for stage, names in report.entries.items()} == {"marts": ["doubled", "summed"], "inner": ["beside"]}
    assert set(report.results) == {"marts.doubled", "marts.summed", "inner.beside"}
    assert leases(config) == []


def test_a_chosen_task_runs_with_its_dependents_and_the_rest_is_kept(flow, world, config, tables_of):
    flow.run(config=config)
    world.update(start=10, calls=[])
    report = execute_stage(flow.plan(), "marts", run_id="r", tasks=["marts.doubled"], flow=flow, config=config)
    assert world["calls"] == ["doubled", "summed"]
    assert report.results["inner.beside"].reason
    world["calls"].clear()
    report = execute_stage(flow.plan(), "marts", run_id="r", tasks=["inner.beside"], flow=flow, config=config)
    assert world["calls"] == ["beside"]
    assert report.changed
    found = tables_of(config)
    assert found["inner"]["beside"].to_dicts() == [{"y": 10}]
    assert found["marts"]["summed"].to_dicts() == [{"x": 2}]


def test_what_was_never_committed_runs_though_it_was_not_chosen(flow, world, config):
    execute_stage(flow.plan(), "source", run_id="r", flow=flow, config=config)
    report = execute_stage(flow.plan(), "marts", run_id="r", tasks=["inner.beside"], flow=flow, config=config)
    assert report.is_committed
    assert sorted(world["calls"]) == ["beside", "doubled", "raw", "summed"]


def test_what_lost_its_data_runs_though_it_was_not_chosen(flow, world, config, store_folder, tables_of):
    flow.run(config=config)
    [file] = store_folder.glob("marts/*/doubled*.parquet")
    file.unlink()
    world["calls"].clear()
    report = execute_stage(flow.plan(), "marts", run_id="r", tasks=["inner.beside"], flow=flow, config=config)
    assert report.is_committed
    assert sorted(world["calls"]) == ["beside", "doubled", "summed"]
    assert tables_of(config)["marts"]["doubled"].to_dicts() == [{"x": 2}]


def test_a_failure_gives_the_stage_back_and_leaves_readers_what_they_had(flow, world, config, tables_of):
    flow.run(config=config)
    world.update(start=10, fail=True)
    plan = flow.plan()
    execute_stage(plan, "source", run_id="r", flow=flow, config=config)
    report = execute_stage(plan, "marts", run_id="r", flow=flow, config=config)
    assert not report.is_committed
    assert [(failure.step, str(failure.error)) for failure in report.failures] == [("task:marts.summed", "no sum today")]
    assert leases(config) == []
    assert tables_of(config)["marts"]["summed"].to_dicts() == [{"x": 2}]
    # Called again, it goes on from there.
    world.update(fail=False, calls=[])
    report = execute_stage(plan, "marts", run_id="r", flow=flow, config=config)
    assert report.is_committed
    assert tables_of(config)["marts"]["summed"].to_dicts() == [{"x": 20}]
    assert finish_run(plan, run_id="r", config=config).reason == "succeeded"


def test_an_interruption_gives_the_stage_back(flow, world, config):
    class Interrupted(BaseException):
        pass

    class Breaking:
        def run(self, plan, run_step, skip_step, *, fail_fast):
            for step in plan.steps[:2]:
                run_step(step)
            raise Interrupted

    with pytest.raises(Interrupted):
        execute_stage(flow.plan(), "source", run_id="r", flow=flow, config=config, orchestration_engine=Breaking())
    assert leases(config) == []
    assert finish_run(flow.plan(), run_id="r", state="aborted", config=config).reason == "aborted"


def test_stages_and_single_steps_of_one_run_go_together(flow, world, config):
    plan = flow.plan()
    execute_stage(plan, "source", run_id="r", flow=flow, config=config)
    for step in plan.steps:
        if step.stage in ("marts", "inner"):
            assert execute(plan, step, run_id="r", flow=flow, config=config).outcome.is_good
    assert finish_run(plan, run_id="r", config=config).reason == "succeeded"


def test_a_task_of_another_stage_cannot_be_chosen(flow, world, config):
    with pytest.raises(RunError, match=r"source\.raw are not part of stage marts"):
        execute_stage(flow.plan(), "marts", run_id="r", tasks=["source.raw"], flow=flow, config=config)
    assert leases(config) == []


def test_a_stage_takes_nothing_that_was_committed_for_another_wiring(config):
    def made(number):
        @materialize(version="1.0")
        def raw(number) -> pl.DataFrame:
            return pl.DataFrame({"x": [number]})

        @materialize(version="1.0", input_type=pl.DataFrame)
        def doubled(table) -> pl.DataFrame:
            return table * STEP

        with Flow("parts") as flow:
            with Stage("source"):
                table = raw(number)
            with Stage("marts"):
                doubled(table)
        return flow

    made(1).run(config=config)
    flow = made(2)
    for tasks in (None, ["marts.doubled"]):
        report = execute_stage(flow.plan(), "marts", run_id="r", tasks=tasks, flow=flow, config=config)
        (failure,) = report.failures
        assert "needs the result of source.raw, which is not there for the flow as it is wired now" in str(failure.error)
    assert leases(config) == []


def test_a_plan_of_another_wiring_is_refused(flow, world, config):
    with Flow("parts") as other, Stage("source"):
        pass
    with pytest.raises(PlanMismatch, match="another wiring"):
        execute_stage(flow.plan(), "source", run_id="r", flow=other, config=config)


def test_tasks_between_the_opening_and_the_commit_of_a_stage_are_anybodys(flow, world, config, tables_of):
    flow.run(config=config)
    plan = flow.plan()
    world.update(start=10, calls=[])
    given = {"run_id": "r", "flow": flow, "config": config}
    opened, wanted = open_stage(plan, "marts", tasks=["marts.summed"], **given)
    assert opened.outcome is Outcome.OPENED
    assert wanted == {"marts.summed"}
    # A stage is committed whole.
    [failure] = commit_stage(plan, "marts", **given).failures
    assert "its tasks summed have no result" in str(failure.error)
    assert execute(plan, "task:marts.summed", **given).outcome is Outcome.RAN
    report = commit_stage(plan, "marts", **given)
    assert (report.is_committed, report.changed) == (True, False)
    assert world["calls"] == ["summed"]
    assert [(item.step, item.outcome) for item in report.reports] == [
        ("task:marts.summed", Outcome.RAN),
        ("commit:marts", Outcome.UNCHANGED),
    ]
    assert set(report.results) == {"marts.doubled", "marts.summed", "inner.beside"}
    # Asked again, it says the same.
    assert commit_stage(plan, "marts", **given).generations == report.generations
    assert finish_run(plan, run_id="r", state="succeeded", config=config).reason == "succeeded"
    assert leases(config) == []


def test_a_stage_that_was_given_back_is_committed_with_what_the_run_has_made_of_it(flow, world, config, tables_of):
    plan = flow.plan()
    given = {"run_id": "r", "flow": flow, "config": config}
    execute_stage(plan, "source", **given)
    _, wanted = open_stage(plan, "marts", **given)
    for task in ("marts.doubled", "marts.summed", "inner.beside"):
        assert task in wanted
        assert execute(plan, f"task:{task}", **given).outcome is Outcome.RAN
    execute(plan, "close:marts", **given)
    assert leases(config) == []
    report = commit_stage(plan, "marts", **given)
    assert report.is_committed
    assert world["calls"] == ["raw", "doubled", "summed", "beside"]
    assert tables_of(config)["marts"]["summed"].to_dicts() == [{"x": 2}]


def test_what_is_valid_by_its_version_is_done_with_the_opening_of_its_stage(config, tables_of):
    world = {"start": 1, "calls": []}

    @materialize()
    def raw() -> pl.DataFrame:
        return pl.DataFrame({"x": [world["start"]]})

    @materialize(version="1", input_type=pl.DataFrame)
    def doubled(table) -> pl.DataFrame:
        world["calls"].append("doubled")
        return table * STEP

    @materialize(version="1", input_type=pl.DataFrame)
    def summed(table) -> pl.DataFrame:
        world["calls"].append("summed")
        return table.sum()

    @materialize(version="1", cache=lambda table: world["start"], input_type=pl.DataFrame)
    def asked(table) -> pl.DataFrame:
        world["calls"].append("asked")
        return table

    @materialize(input_type=pl.DataFrame)
    def fresh(table) -> pl.DataFrame:
        return table

    @materialize(version="1", input_type=pl.DataFrame)
    def after(table) -> pl.DataFrame:
        world["calls"].append("after")
        return table

    with Flow("valid") as flow:
        with Stage("source"):
            table = raw()
        with Stage("marts"):
            summed(doubled(table))
            asked(table)
            after(fresh(table))
    flow.run(config=config)
    world["calls"].clear()
    plan = flow.plan()
    seen = []

    class Watching:
        def on_event(self, event):
            seen.append(getattr(getattr(event, "report", None), "step", ""))

    given = {"run_id": "r", "flow": flow, "config": config}
    execute_stage(plan, "source", **given)
    _, wanted = open_stage(plan, "marts", observers=[Watching()], **given)
    # Whether the others run is for their own steps to say.
    assert wanted == {"marts.asked", "marts.fresh", "marts.after"}
    assert [step for step in seen if step.startswith("task:")] == ["task:marts.doubled", "task:marts.summed"]
    for task in ("fresh", "after", "asked"):
        execute(plan, f"task:marts.{task}", **given)
    report = commit_stage(plan, "marts", **given)
    assert (report.is_committed, report.changed, world["calls"]) == (True, False, [])
    assert {item.step: item.outcome.value for item in report.reports if item.task} == {
        "task:marts.doubled": "cached",
        "task:marts.summed": "cached",
        "task:marts.fresh": "ran",
        "task:marts.after": "cached",
        "task:marts.asked": "cached",
    }
    # With another input they are wanted, and so is everything when all is to run.
    world["start"] = 5
    given["run_id"] = "s"
    execute_stage(plan, "source", **given)
    assert len(open_stage(plan, "marts", **given)[1]) == 5
    given["run_id"] = "t"
    execute(plan, "close:marts", run_id="s", flow=flow, config=config)
    assert len(open_stage(plan, "marts", cache_validation_mode="force_cache_invalid", **given)[1]) == 5
