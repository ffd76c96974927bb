"""What an op needs to know to carry out its part of a flow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, final

import dagster as dg

from pipedag_core import ConfigContext, Flow, Plan
from pipedag_core.config.flows import load_flow
from pipedag_core.hashing import digest
from pipedag_dagster.props import TableProps
from pipedag_dagster.translator import PipedagTranslator, safe

#: What can be chosen when a run is launched. A schema and not a class, since Dagster cannot resolve classes in postponed annotations.
STEP_CONFIG: Final[Mapping[str, dg.Field]] = {
    "cache_validation_mode": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="How strictly stored results are trusted, such as force_cache_invalid; as configured if left out.",
    )
}


@final
@dataclass(frozen=True)
class FlowJob:
    """A flow as its ops see it.

    Attributes:
        plan: The plan of all of it.
        context: The settings of the instance.
        flow: The flow's code, where it is loaded anyway; else it is imported by its reference.
        translator: Says what asset a table is.
        tables: What there is an asset for, by its key.
        deps: What each of them is made from.
        deployment: Tells apart Dagster deployments that share a store.
        preview_rows: How many rows of each table to show.
        root: Folder that the flow's code is imported from, as it was found when the definitions were loaded.
    """

    plan: Plan
    context: ConfigContext
    flow: Flow | None
    translator: PipedagTranslator
    tables: Mapping[dg.AssetKey, TableProps]
    deps: Mapping[dg.AssetKey, Sequence[dg.AssetKey]]
    deployment: str
    preview_rows: int = 0
    root: str = ""

    def code(self) -> Flow:
        """Return the flow's code, imported now if it is not loaded."""
        if self.flow is not None:
            return self.flow
        # Dagster takes back what loading definitions has changed of it.
        if self.root and self.root not in sys.path:
            sys.path.append(self.root)
        return load_flow(str(self.plan.source), self.context.attrs)[0]

    def run_id(self, run: dg.DagsterRun) -> str:
        """Return the id of our run for a Dagster run: the same for all of its ops, and for its re-executions, which go on where it stopped."""
        root = run.root_run_id or run.run_id
        return digest("dagster", self.deployment, root, self.plan.flow, self.context.instance_name)[:32]

    def keys_of(self, unit: str) -> list[dg.AssetKey]:
        """Return the assets of a unit of stages, in wiring order."""
        return [key for key, table in self.tables.items() if table.unit == unit]

    def tasks_of(self, unit: str, selected: AbstractSet[dg.AssetKey]) -> AbstractSet[str] | None:
        """Return full ids of the tasks of a unit of which an asset is selected; None if all of its assets are."""
        keys = self.keys_of(unit)
        return None if set(keys) <= selected else {self.tables[key].task.id for key in keys if key in selected}

    def step_name(self, unit: str) -> str:
        """Return the name of the op, or graph of ops, that carries out a unit of stages."""
        return safe(f"{self.plan.flow}__{self.context.instance_name}__{unit}")
