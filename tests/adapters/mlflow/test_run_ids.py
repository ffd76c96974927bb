"""The id of a run's MLflow run inside of a flow: who gets which, and when one is made at all."""

from __future__ import annotations

import polars as pl
import pytest

from pipedag_core import Flow, PipedagConfig, Stage, execute, materialize
from pipedag_core.errors import RunError
from pipedag_mlflow import MlflowObserver, document_evaluation, document_link, get_run_id


@pytest.fixture
def config(tmp_path):
    store = {"class": "parquet", "args": {"base_path": str(tmp_path / "store" / "{instance_id}")}}
    return PipedagConfig({"instances": {"full": {"instance_id": "full", "table_store": store}}}).get("full")


class Training:
    """A flow that trains and evaluates, each of which can be changed."""

    def __init__(self):
        self.trained = []
        self.depth = 3
        self.shift = 0.0
        self.beside = None

    def flow(self):
        @materialize(version="1.0")
        def train(depth, run_id):
            self.trained.append(run_id)
            return {"weight": depth * 2.0}

        @materialize(version="1.0")
        def evaluate(model, shift):
            return {"test": {"auc": model["weight"] / 10 + shift}}

        with Flow("trains") as flow:
            with Stage("training"):
                run_id = get_run_id()
                model = train(self.depth, run_id)
            with Stage("evaluation"):
                found = evaluate(model, self.shift)
                evaluation_run_id = get_run_id(run_id)
                document_evaluation(found, evaluation_run_id)
                document_link(evaluation_run_id, run_id)
            if self.beside is not None:
                with Stage("apart"):
                    self.beside()
        return flow

    def run(self, config, *observers):
        result = self.flow().run(config=config, observers=observers)
        assert result.successful, result.exception
        for observer in observers:
            assert observer.flush()
        return {report.task: report.outcome.value for report in result.reports if report.task}


def only(found):
    assert len(found) == 1
    return found[0]


def ids(runs):
    return [run.info.run_id for run in runs]


def test_the_id_is_that_of_the_run_that_the_observer_logs(config, database, runs_of):
    work = Training()
    work.run(config, MlflowObserver(database))
    run = only(runs_of(database, "trains"))
    assert work.trained == [run.info.run_id]
    assert run.info.status == "FINISHED"
    # What the observer says of a run is all there, although a task wanted the id first.
    assert run.data.params["flow"] == "trains"
    assert run.data.metrics["tasks/ran"] == 6
    assert run.data.metrics["test/auc"] == pytest.approx(0.6)
    assert "pipedag.linked_run" not in run.data.tags


def test_without_an_observer_a_run_is_made_where_mlflow_is_set_to_and_none_where_all_is_valid(config, by_default, runs_of):
    work = Training()
    work.run(config)
    run = only(runs_of(by_default, "trains"))
    assert (run.info.status, run.data.tags["pipedag.flow"]) == ("FINISHED", "trains")
    assert work.trained == [run.info.run_id]
    assert set(work.run(config).values()) == {"cached"}
    assert ids(runs_of(by_default, "trains")) == work.trained


def test_an_evaluation_of_a_cached_model_has_a_run_of_its_own_that_names_the_training(config, by_default, runs_of, client):
    work = Training()
    work.run(config)
    work.shift = 0.1
    outcomes = work.run(config)
    assert (outcomes["train"], outcomes["evaluate"], outcomes["document_evaluation"]) == ("cached", "ran", "ran")
    trained, evaluated = runs_of(by_default, "trains")
    assert work.trained == [trained.info.run_id]
    assert trained.data.metrics["test/auc"] == pytest.approx(0.6)
    assert evaluated.data.metrics["test/auc"] == pytest.approx(0.7)
    assert evaluated.data.tags["pipedag.linked_run"] == trained.info.run_id
    found = client(by_default).search_runs([trained.info.experiment_id], f"tags.pipedag.linked_run = '{trained.info.run_id}'")
    assert ids(found) == [evaluated.info.run_id]
    assert set(work.run(config).values()) == {"cached"}


def test_a_new_training_gets_a_new_id_and_its_evaluation_the_same(config, by_default, runs_of):
    work = Training()
    work.run(config)
    work.depth = 4
    work.run(config)
    first, second = runs_of(by_default, "trains")
    assert work.trained == [first.info.run_id, second.info.run_id]
    assert second.data.metrics["test/auc"] == pytest.approx(0.8)
    assert "pipedag.linked_run" not in second.data.tags


def test_going_back_to_an_earlier_model_documents_nothing_anew(config, by_default, runs_of):
    work = Training()
    work.run(config)
    work.depth = 4
    work.run(config)
    work.depth = 3
    assert set(work.run(config).values()) == {"cached"}
    assert len(runs_of(by_default, "trains")) == 2


def test_the_page_of_an_observed_evaluation_leads_to_the_training(config, database, runs_of):
    work = Training()
    work.run(config, MlflowObserver(database))
    work.shift = 0.1
    work.run(config, MlflowObserver(database))
    trained, evaluated = runs_of(database, "trains")
    assert evaluated.data.tags["pipedag.linked_run"] == trained.info.run_id
    path = f"#/experiments/{trained.info.experiment_id}/runs/{trained.info.run_id}"
    assert f"Belongs to [{trained.info.run_name}]({path})." in evaluated.data.tags["mlflow.note.content"]


def test_processes_of_one_run_get_one_id(config, database, runs_of):
    work = Training()
    flow = work.flow()
    plan = flow.plan()
    observers = []
    for step in plan.steps:
        observers.append(MlflowObserver(database))
        assert execute(plan, step, run_id="r1", flow=flow, config=config, observers=observers[-1:]).outcome.is_good
        observers[-1].flush()
    run = only(runs_of(database, "trains"))
    assert work.trained == [run.info.run_id]
    assert (run.data.params["flow"], run.data.metrics["test/auc"], run.info.status) == ("trains", pytest.approx(0.6), "FINISHED")


def test_two_runs_that_somebody_else_has_made_can_be_linked(config, by_default, client):
    experiment = client(by_default).create_experiment("by hand")
    one, other = (client(by_default).create_run(experiment).info.run_id for _ in range(2))
    with Flow("links") as flow, Stage("s"):
        document_link(one, other)
    for _ in range(2):
        assert flow.run(config=config).successful
    assert client(by_default).get_run(one).data.tags["pipedag.linked_run"] == other


def test_an_id_that_a_task_has_made_in_this_very_run_is_given_again(config, by_default, client):
    seen = []
    version = ["1.0"]

    def flow():
        @materialize(version="1.0", nout=2)
        def train():
            experiment = client(by_default).get_experiment_by_name("own") or client(by_default).create_experiment("own")
            return 1.5, client(by_default).create_run(getattr(experiment, "experiment_id", experiment)).info.run_id

        @materialize(version=version[0])
        def evaluate(model, run_id):
            seen.append(run_id)

        with Flow("own ids") as made:
            with Stage("training"):
                model, own_id = train()
            with Stage("evaluation"):
                evaluate(model, get_run_id(own_id))
        return made, own_id

    made, own_id = flow()
    result = made.run(config=config)
    trained = result.get(own_id)
    assert seen == [trained]
    version[0] = "2.0"
    assert flow()[0].run(config=config).successful
    assert seen[1] != trained
    assert client(by_default).get_run(seen[1]).data.tags["pipedag.linked_run"] == trained


def test_what_mlflow_has_to_offer_can_log_under_the_id(config, by_default, runs_of):
    @materialize(version="1.0")
    def train(run_id):
        import mlflow

        with mlflow.start_run(run_id=run_id):
            mlflow.log_metric("loss", 0.25)

    with Flow("by mlflow") as flow, Stage("s"):
        train(get_run_id())
    observer = MlflowObserver()
    assert flow.run(config=config, observers=[observer]).successful
    observer.flush()
    run = only(runs_of(by_default, "by mlflow"))
    assert (run.data.metrics["loss"], run.data.metrics["tasks/ran"], run.info.status) == (0.25, 2, "FINISHED")


def test_a_running_task_can_ask_by_itself(config, by_default, runs_of):
    @materialize
    def asks():
        return get_run_id()

    with Flow("asks") as flow, Stage("s"):
        told = asks()
    result = flow.run(config=config)
    assert result.get(told) == only(runs_of(by_default, "asks")).info.run_id


def test_asking_where_nothing_runs_is_an_error():
    with pytest.raises(RunError, match="no flow is wired and no task runs"):
        get_run_id()


def test_a_task_that_needs_an_id_fails_where_mlflow_is_gone_and_the_rest_goes_on(config):
    @materialize(version="1.0")
    def other():
        return pl.DataFrame({"x": [1]})

    work = Training()
    work.beside = other
    result = work.flow().run(config=config, observers=[MlflowObserver("http://127.0.0.1:9")])
    assert isinstance(result.exception, RunError)
    assert "needs the id of its MLflow run" in str(result.exception)
    assert work.trained == []
    outcomes = {report.task: report.outcome.value for report in result.reports if report.task}
    assert (outcomes["other"], outcomes["train"], outcomes["document_evaluation"]) == ("ran", "failed", "skipped")
