"""Flow `flights`, instance `full`, as an Airflow DAG. Generated: change the flow, the configuration or the command, not this file.

Made by: pipedag-core 0.1.0
Command: pipedag airflow generate pipelines.flights:get_pipeline --instance full -o airflow
Plan:    a4f0a242c1eab35ad48e1b8ad3f08950e6ca56a0
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset, TaskGroup
from pipedag_airflow.operators import PipedagStepOperator, run_params

FLOW = {
    "flow": "pipelines.flights:get_pipeline",
    "instance": "full",
    "digest": "a4f0a242c1eab35ad48e1b8ad3f08950e6ca56a0",
    "project": "..",
}

with DAG(
    dag_id="flights_full",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["pipedag"],
    doc_md="Flow `flights` of `pipelines.flights:get_pipeline`. Stages: 01_raw_input, 02_early_cleaning, 03_economic_representation, 04_features, 05_model_training, 06_model_evaluation.",
    default_args={"pipedag": FLOW},
    params=run_params(
        [
            "01_raw_input",
            "02_early_cleaning",
            "03_economic_representation",
            "04_features",
            "05_model_training",
            "06_model_evaluation",
        ],
    ),
):
    with TaskGroup(group_id="01_raw_input"):
        s01_raw_input__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:01_raw_input",
            task_display_name="open 01_raw_input",
        ).as_setup()
        s01_raw_input__read_input_data = PipedagStepOperator(
            task_id="read_input_data",
            step="task:01_raw_input.read_input_data",
            doc_md="Read the five tables as they are, with a number for each flight.",
        )
        s01_raw_input__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:01_raw_input",
            task_display_name="commit 01_raw_input",
            outlets=[
                Asset("x-pipedag://flights/full/01_raw_input/flights"),
                Asset("x-pipedag://flights/full/01_raw_input/weather"),
                Asset("x-pipedag://flights/full/01_raw_input/planes"),
                Asset("x-pipedag://flights/full/01_raw_input/airports"),
                Asset("x-pipedag://flights/full/01_raw_input/airlines"),
            ],
        )
        s01_raw_input__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:01_raw_input",
            task_display_name="close 01_raw_input",
        ).as_teardown(setups=[s01_raw_input__open_stage])

        s01_raw_input__open_stage >> s01_raw_input__read_input_data
        s01_raw_input__read_input_data >> s01_raw_input__commit_stage
        [
            s01_raw_input__read_input_data,
            s01_raw_input__commit_stage,
        ] >> s01_raw_input__close_stage

    with TaskGroup(group_id="02_early_cleaning"):
        s02_early_cleaning__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:02_early_cleaning",
            task_display_name="open 02_early_cleaning",
            trigger_rule="none_failed",
        ).as_setup()
        s02_early_cleaning__clean = PipedagStepOperator(
            task_id="clean",
            step="task:02_early_cleaning.clean",
            doc_md="Give columns their types and names, and drop impossible values. Of a flight, only its plan is kept.",
        )
        s02_early_cleaning__observe_outcomes = PipedagStepOperator(
            task_id="observe_outcomes",
            step="task:02_early_cleaning.observe_outcomes",
            doc_md="Keep what happened to each flight, in minutes behind its plan. No feature may be made from this.",
        )
        s02_early_cleaning__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:02_early_cleaning",
            task_display_name="commit 02_early_cleaning",
            outlets=[
                Asset("x-pipedag://flights/full/02_early_cleaning/flights"),
                Asset("x-pipedag://flights/full/02_early_cleaning/weather"),
                Asset("x-pipedag://flights/full/02_early_cleaning/planes"),
                Asset("x-pipedag://flights/full/02_early_cleaning/airports"),
                Asset(
                    "x-pipedag://flights/full/02_early_cleaning/observe_outcomes",
                ),
            ],
        )
        s02_early_cleaning__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:02_early_cleaning",
            task_display_name="close 02_early_cleaning",
        ).as_teardown(setups=[s02_early_cleaning__open_stage])

        s02_early_cleaning__open_stage >> [
            s02_early_cleaning__clean,
            s02_early_cleaning__observe_outcomes,
        ]
        [
            s02_early_cleaning__clean,
            s02_early_cleaning__observe_outcomes,
        ] >> s02_early_cleaning__commit_stage
        [
            s02_early_cleaning__clean,
            s02_early_cleaning__observe_outcomes,
            s02_early_cleaning__commit_stage,
        ] >> s02_early_cleaning__close_stage

    with TaskGroup(group_id="03_economic_representation"):
        s03_economic_representation__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:03_economic_representation",
            task_display_name="open 03_economic_representation",
            trigger_rule="none_failed",
        ).as_setup()
        s03_economic_representation__mark_train_test_set = PipedagStepOperator(
            task_id="mark_train_test_set",
            step="task:03_economic_representation.mark_train_test_set",
            doc_md="Split the flights by time: trained is on the past, tested on what comes after.",
        )
        s03_economic_representation__economic_representation = PipedagStepOperator(
            task_id="economic_representation",
            step="task:03_economic_representation.economic_representation",
            doc_md="Say the same in terms of the trade: how long a flight is planned to take, across time zones, and metric units.",
        )
        s03_economic_representation__define_target = PipedagStepOperator(
            task_id="define_target",
            step="task:03_economic_representation.define_target",
            doc_md="Say which flights arrived late. Cancelled and diverted flights have no delay and no target: the model is about those that arrive.",
        )
        s03_economic_representation__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:03_economic_representation",
            task_display_name="commit 03_economic_representation",
            outlets=[
                Asset(
                    "x-pipedag://flights/full/03_economic_representation/mark_train_test_set",
                ),
                Asset(
                    "x-pipedag://flights/full/03_economic_representation/flights",
                ),
                Asset(
                    "x-pipedag://flights/full/03_economic_representation/weather",
                ),
                Asset(
                    "x-pipedag://flights/full/03_economic_representation/planes",
                ),
                Asset(
                    "x-pipedag://flights/full/03_economic_representation/define_target",
                ),
            ],
        )
        s03_economic_representation__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:03_economic_representation",
            task_display_name="close 03_economic_representation",
        ).as_teardown(setups=[s03_economic_representation__open_stage])

        s03_economic_representation__open_stage >> [
            s03_economic_representation__mark_train_test_set,
            s03_economic_representation__economic_representation,
            s03_economic_representation__define_target,
        ]
        [
            s03_economic_representation__mark_train_test_set,
            s03_economic_representation__economic_representation,
            s03_economic_representation__define_target,
        ] >> s03_economic_representation__commit_stage
        [
            s03_economic_representation__mark_train_test_set,
            s03_economic_representation__economic_representation,
            s03_economic_representation__define_target,
            s03_economic_representation__commit_stage,
        ] >> s03_economic_representation__close_stage

    with TaskGroup(group_id="04_features"):
        s04_features__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:04_features",
            task_display_name="open 04_features",
            trigger_rule="none_failed",
        ).as_setup()
        s04_features__features = PipedagStepOperator(
            task_id="features",
            step="task:04_features.features",
            doc_md="Describe each flight by its plan, the weather at its airport, and its plane.",
        )
        s04_features__calibrate_late_rate = PipedagStepOperator(
            task_id="calibrate_late_rate",
            step="task:04_features.calibrate_late_rate",
            doc_md="Return the share of late flights in the training set: the guess for whatever the training set has not seen.",
        )
        s04_features__calibrate_tables = PipedagStepOperator(
            task_id="calibrate_tables",
            step="task:04_features.calibrate_tables",
            doc_md="Count on the training set: how often flights of a group are late, and how many depart in a usual hour.",
        )
        s04_features__apply_calibration = PipedagStepOperator(
            task_id="apply_calibration",
            step="task:04_features.apply_calibration",
            doc_md="Look up, for each flight, how often the likes of it are late and how busy its hour usually is.",
        )
        s04_features__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:04_features",
            task_display_name="commit 04_features",
            outlets=[
                Asset("x-pipedag://flights/full/04_features/schedule"),
                Asset("x-pipedag://flights/full/04_features/conditions"),
                Asset("x-pipedag://flights/full/04_features/aircraft"),
                Asset(
                    "x-pipedag://flights/full/04_features/calibrate_late_rate",
                ),
                Asset(
                    "x-pipedag://flights/full/04_features/late_rate_by_carrier",
                ),
                Asset(
                    "x-pipedag://flights/full/04_features/late_rate_by_route",
                ),
                Asset(
                    "x-pipedag://flights/full/04_features/late_rate_by_departure_hour",
                ),
                Asset("x-pipedag://flights/full/04_features/usual_traffic"),
                Asset("x-pipedag://flights/full/04_features/history"),
            ],
        )
        s04_features__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:04_features",
            task_display_name="close 04_features",
        ).as_teardown(setups=[s04_features__open_stage])

        s04_features__open_stage >> [
            s04_features__features,
            s04_features__calibrate_late_rate,
            s04_features__calibrate_tables,
        ]
        [
            s04_features__calibrate_late_rate,
            s04_features__calibrate_tables,
        ] >> s04_features__apply_calibration
        [
            s04_features__features,
            s04_features__apply_calibration,
        ] >> s04_features__commit_stage
        [
            s04_features__features,
            s04_features__calibrate_late_rate,
            s04_features__calibrate_tables,
            s04_features__apply_calibration,
            s04_features__commit_stage,
        ] >> s04_features__close_stage

    with TaskGroup(group_id="05_model_training"):
        s05_model_training__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:05_model_training",
            task_display_name="open 05_model_training",
            trigger_rule="none_failed",
        ).as_setup()
        s05_model_training__model_encoding = PipedagStepOperator(
            task_id="model_encoding",
            step="task:05_model_training.model_encoding",
            doc_md="Put the features into one table of numbers.",
        )
        s05_model_training__model_train = PipedagStepOperator(
            task_id="model_train",
            step="task:05_model_training.model_train",
            doc_md="Train the classifier, and return it with its predictions for the flights that it was trained on.",
        )
        s05_model_training__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:05_model_training",
            task_display_name="commit 05_model_training",
            outlets=[
                Asset(
                    "x-pipedag://flights/full/05_model_training/model_encoding",
                ),
                Asset(
                    "x-pipedag://flights/full/05_model_training/model_train",
                ),
            ],
        )
        s05_model_training__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:05_model_training",
            task_display_name="close 05_model_training",
        ).as_teardown(setups=[s05_model_training__open_stage])

        s05_model_training__open_stage >> s05_model_training__model_encoding
        s05_model_training__model_encoding >> s05_model_training__model_train
        s05_model_training__model_train >> s05_model_training__commit_stage
        [
            s05_model_training__model_encoding,
            s05_model_training__model_train,
            s05_model_training__commit_stage,
        ] >> s05_model_training__close_stage

    with TaskGroup(group_id="06_model_evaluation"):
        s06_model_evaluation__open_stage = PipedagStepOperator(
            task_id="open_stage",
            step="open:06_model_evaluation",
            task_display_name="open 06_model_evaluation",
            trigger_rule="none_failed",
        ).as_setup()
        s06_model_evaluation__model_encoding = PipedagStepOperator(
            task_id="model_encoding",
            step="task:06_model_evaluation.model_encoding",
            doc_md="Put the features into one table of numbers.",
        )
        s06_model_evaluation__model_predict = PipedagStepOperator(
            task_id="model_predict",
            step="task:06_model_evaluation.model_predict",
            doc_md="Return each flight's probability of arriving late.",
        )
        s06_model_evaluation__evaluate_model = PipedagStepOperator(
            task_id="evaluate_model",
            step="task:06_model_evaluation.evaluate_model",
            doc_md="Compare the predictions with what happened, and with knowing no more than the training set's share of late flights.",
        )
        s06_model_evaluation__evaluate_airlines = PipedagStepOperator(
            task_id="evaluate_airlines",
            step="task:06_model_evaluation.evaluate_airlines",
            doc_md="Show for each airline how many of its flights were predicted to be late, and how many were.",
        )
        s06_model_evaluation__commit_stage = PipedagStepOperator(
            task_id="commit_stage",
            step="commit:06_model_evaluation",
            task_display_name="commit 06_model_evaluation",
            outlets=[
                Asset(
                    "x-pipedag://flights/full/06_model_evaluation/model_encoding",
                ),
                Asset(
                    "x-pipedag://flights/full/06_model_evaluation/model_predict",
                ),
                Asset(
                    "x-pipedag://flights/full/06_model_evaluation/evaluation",
                ),
                Asset(
                    "x-pipedag://flights/full/06_model_evaluation/reliability",
                ),
                Asset(
                    "x-pipedag://flights/full/06_model_evaluation/evaluate_airlines",
                ),
            ],
        )
        s06_model_evaluation__close_stage = PipedagStepOperator(
            task_id="close_stage",
            step="close:06_model_evaluation",
            task_display_name="close 06_model_evaluation",
        ).as_teardown(setups=[s06_model_evaluation__open_stage])

        s06_model_evaluation__open_stage >> s06_model_evaluation__model_encoding
        s06_model_evaluation__model_encoding >> s06_model_evaluation__model_predict
        [
            s06_model_evaluation__model_encoding,
            s06_model_evaluation__model_predict,
        ] >> s06_model_evaluation__evaluate_model
        [
            s06_model_evaluation__model_encoding,
            s06_model_evaluation__model_predict,
        ] >> s06_model_evaluation__evaluate_airlines
        [
            s06_model_evaluation__evaluate_model,
            s06_model_evaluation__evaluate_airlines,
        ] >> s06_model_evaluation__commit_stage
        [
            s06_model_evaluation__model_encoding,
            s06_model_evaluation__model_predict,
            s06_model_evaluation__evaluate_model,
            s06_model_evaluation__evaluate_airlines,
            s06_model_evaluation__commit_stage,
        ] >> s06_model_evaluation__close_stage

    finish_run = PipedagStepOperator(
        task_id="finish_run",
        step="finish",
        task_display_name="finish the run",
    ).as_teardown()

    s01_raw_input__commit_stage >> s02_early_cleaning__open_stage
    s02_early_cleaning__commit_stage >> s03_economic_representation__open_stage
    s03_economic_representation__commit_stage >> s04_features__open_stage
    [
        s03_economic_representation__commit_stage,
        s04_features__commit_stage,
    ] >> s05_model_training__open_stage
    [
        s01_raw_input__commit_stage,
        s03_economic_representation__commit_stage,
        s04_features__commit_stage,
        s05_model_training__commit_stage,
    ] >> s06_model_evaluation__open_stage
    [
        s01_raw_input__close_stage,
        s02_early_cleaning__close_stage,
        s03_economic_representation__close_stage,
        s04_features__close_stage,
        s05_model_training__close_stage,
        s06_model_evaluation__close_stage,
    ] >> finish_run
