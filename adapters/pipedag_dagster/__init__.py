"""Flows as Dagster assets: an asset per table, a step per stage, materialized by the stage's commit.

The public names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipedag_dagster.automation import eager_when_changed as eager_when_changed
    from pipedag_dagster.component import PipedagFlowComponent as PipedagFlowComponent
    from pipedag_dagster.definitions import build_assets as build_assets
    from pipedag_dagster.definitions import build_definitions as build_definitions
    from pipedag_dagster.props import TableProps as TableProps
    from pipedag_dagster.resource import PipedagIOManager as PipedagIOManager
    from pipedag_dagster.resource import PipedagResource as PipedagResource
    from pipedag_dagster.scoring import build_scoring_assets as build_scoring_assets
    from pipedag_dagster.scoring_component import PipedagScoringComponent as PipedagScoringComponent
    from pipedag_dagster.scoring_runs import build_scoring_definitions as build_scoring_definitions
    from pipedag_dagster.translator import PipedagTranslator as PipedagTranslator

_HOME = {
    "PipedagFlowComponent": "component",
    "PipedagIOManager": "resource",
    "PipedagResource": "resource",
    "PipedagScoringComponent": "scoring_component",
    "PipedagTranslator": "translator",
    "TableProps": "props",
    "build_assets": "definitions",
    "build_definitions": "definitions",
    "build_scoring_assets": "scoring",
    "build_scoring_definitions": "scoring_runs",
    "eager_when_changed": "automation",
}

__all__ = [
    "PipedagFlowComponent",
    "PipedagIOManager",
    "PipedagResource",
    "PipedagScoringComponent",
    "PipedagTranslator",
    "TableProps",
    "build_assets",
    "build_definitions",
    "build_scoring_assets",
    "build_scoring_definitions",
    "eager_when_changed",
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
