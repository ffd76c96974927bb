"""Flows as Airflow DAGs: generated files that import nothing of the project, and operators that carry out one step of a plan each.

The names are loaded when they are first used, so that generating files needs no Airflow, and parsing them nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipedag_airflow.build import StageTasks as StageTasks
    from pipedag_airflow.build import flow_to_dag as flow_to_dag
    from pipedag_airflow.build import flow_to_task_group as flow_to_task_group
    from pipedag_airflow.build import stage_tasks as stage_tasks
    from pipedag_airflow.kubernetes import PipedagKubernetesStepOperator as PipedagKubernetesStepOperator
    from pipedag_airflow.names import asset_uri as asset_uri
    from pipedag_airflow.operators import PipedagStepOperator as PipedagStepOperator
    from pipedag_airflow.operators import run_params as run_params

_HOME = {
    "PipedagKubernetesStepOperator": "kubernetes",
    "PipedagStepOperator": "operators",
    "StageTasks": "build",
    "asset_uri": "names",
    "flow_to_dag": "build",
    "flow_to_task_group": "build",
    "run_params": "operators",
    "stage_tasks": "build",
}

__all__ = [
    "PipedagKubernetesStepOperator",
    "PipedagStepOperator",
    "StageTasks",
    "asset_uri",
    "flow_to_dag",
    "flow_to_task_group",
    "run_params",
    "stage_tasks",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
