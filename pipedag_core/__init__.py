"""Declare a flow of tasks over tables; run only what changed; see each stage's tables appear all at once.

The public names are loaded when they are first used, so that importing this package loads no third-party module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipedag_core.cache.modes import CacheValidationMode as CacheValidationMode
    from pipedag_core.config.context import ConfigContext as ConfigContext
    from pipedag_core.config.context import PipedagConfig as PipedagConfig
    from pipedag_core.config.context import create_basic_pipedag_config as create_basic_pipedag_config
    from pipedag_core.define.flow import Flow as Flow
    from pipedag_core.define.flow import Stage as Stage
    from pipedag_core.define.group import GroupNode as GroupNode
    from pipedag_core.define.group import VisualizationStyle as VisualizationStyle
    from pipedag_core.define.inout import InOutSpecification as InOutSpecification
    from pipedag_core.define.lazydict import LazyDict as LazyDict
    from pipedag_core.define.options import AUTO_VERSION as AUTO_VERSION
    from pipedag_core.define.refs import TaskGetItem as TaskGetItem
    from pipedag_core.define.task import Task as Task
    from pipedag_core.define.task import materialize as materialize
    from pipedag_core.define.values import Blob as Blob
    from pipedag_core.define.values import ExternalTableReference as ExternalTableReference
    from pipedag_core.define.values import InputSource as InputSource
    from pipedag_core.define.values import RawSql as RawSql
    from pipedag_core.define.values import Schema as Schema
    from pipedag_core.define.values import SortCol as SortCol
    from pipedag_core.define.values import SortOrder as SortOrder
    from pipedag_core.define.values import Table as Table
    from pipedag_core.define.values import View as View
    from pipedag_core.define.versions import input_stage_versions as input_stage_versions
    from pipedag_core.engines.sequential import SequentialEngine as SequentialEngine
    from pipedag_core.engines.threads import ThreadEngine as ThreadEngine
    from pipedag_core.errors import PipedagError as PipedagError
    from pipedag_core.plan.model import Plan as Plan
    from pipedag_core.plan.model import Step as Step
    from pipedag_core.ports.events import RunObserver as RunObserver
    from pipedag_core.ports.events import StepReport as StepReport
    from pipedag_core.production.flow import ProductionFlow as ProductionFlow
    from pipedag_core.run.keeping import StageLockContext as StageLockContext
    from pipedag_core.run.result import Result as Result
    from pipedag_core.runner import execute as execute

_HOME = {
    "AUTO_VERSION": "define.options",
    "Blob": "define.values",
    "CacheValidationMode": "cache.modes",
    "ConfigContext": "config.context",
    "ExternalTableReference": "define.values",
    "Flow": "define.flow",
    "GroupNode": "define.group",
    "InOutSpecification": "define.inout",
    "InputSource": "define.values",
    "LazyDict": "define.lazydict",
    "PipedagConfig": "config.context",
    "PipedagError": "errors",
    "Plan": "plan.model",
    "ProductionFlow": "production.flow",
    "RawSql": "define.values",
    "Result": "run.result",
    "RunObserver": "ports.events",
    "Schema": "define.values",
    "SequentialEngine": "engines.sequential",
    "SortCol": "define.values",
    "SortOrder": "define.values",
    "Stage": "define.flow",
    "StageLockContext": "run.keeping",
    "Step": "plan.model",
    "StepReport": "ports.events",
    "Table": "define.values",
    "Task": "define.task",
    "TaskGetItem": "define.refs",
    "ThreadEngine": "engines.threads",
    "View": "define.values",
    "VisualizationStyle": "define.group",
    "create_basic_pipedag_config": "config.context",
    "execute": "runner",
    "input_stage_versions": "define.versions",
    "materialize": "define.task",
}

__all__ = [
    "AUTO_VERSION",
    "Blob",
    "CacheValidationMode",
    "ConfigContext",
    "ExternalTableReference",
    "Flow",
    "GroupNode",
    "InOutSpecification",
    "InputSource",
    "LazyDict",
    "PipedagConfig",
    "PipedagError",
    "Plan",
    "ProductionFlow",
    "RawSql",
    "Result",
    "RunObserver",
    "Schema",
    "SequentialEngine",
    "SortCol",
    "SortOrder",
    "Stage",
    "StageLockContext",
    "Step",
    "StepReport",
    "Table",
    "Task",
    "TaskGetItem",
    "ThreadEngine",
    "View",
    "VisualizationStyle",
    "create_basic_pipedag_config",
    "execute",
    "input_stage_versions",
    "materialize",
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
