"""The bundle `.pipedag/bundles/flights`, scored by an Airflow DAG. Generated: change the command, not this file.

Made by: pipedag-core 0.1.0
Command: pipedag airflow generate-scoring .pipedag/bundles/flights --instance full --input 'clean.flights=.pipedag/requests/{{ ds }}.parquet' --input clean.weather=table:02_early_cleaning.weather --input clean.planes=table:02_early_cleaning.planes --input clean.airports=table:02_early_cleaning.airports --output 'model_predict=.pipedag/scores/{{ ds }}.parquet' --schedule @daily -o airflow
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset
from pipedag_airflow.scoring import PipedagScoreOperator

with DAG(
    dag_id="flights_scoring",
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    tags=["pipedag", "scoring"],
    doc_md="The production flow in `.pipedag/bundles/flights`, run on its inputs. A run that is repeated replaces its own outputs.",
):
    PipedagScoreOperator(
        task_id="score",
        bundle=".pipedag/bundles/flights",
        project="..",
        inputs={
            "clean.flights": ".pipedag/requests/{{ ds }}.parquet",
            "clean.weather": "table:02_early_cleaning.weather",
            "clean.planes": "table:02_early_cleaning.planes",
            "clean.airports": "table:02_early_cleaning.airports",
        },
        outputs={"model_predict": ".pipedag/scores/{{ ds }}.parquet"},
        instance="full",
        outlets=[
            Asset("x-pipedag://flights_scoring/default/scores/model_predict"),
        ],
    )
