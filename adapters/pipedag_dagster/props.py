"""What the adapter knows of a flow before it runs: its plan, and what an earlier run has taught about its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from pipedag_core import ConfigContext, Plan
from pipedag_core.plan.model import PlanTask
from pipedag_dagster.places import address, schema_of, store_kind


@final
@dataclass(frozen=True, slots=True)
class TableFacts:
    """What is known of a table, or blob, because it was stored once.

    Attributes:
        kind: "table" or "blob".
        primary_key: Columns that the task has declared so.
        non_nullable: Columns that were declared to hold no nulls, those of the primary key included.
    """

    kind: str = "table"
    primary_key: tuple[str, ...] = ()
    non_nullable: tuple[str, ...] = ()


_UNKNOWN = TableFacts()


@final
@dataclass(frozen=True, slots=True)
class FlowState:
    """All that definitions are made of; JSON, so that loading them needs neither the flow's code nor the libraries that it imports.

    Attributes:
        plan: The plan.
        facts: `stage.table` -> what is known of it.
        reads: Full id of a task -> the tables (`stage.table`) that it really read, where it takes items of what other tasks give.
        sources: File, relative to the folder that the flow is imported from -> SHA-256 of its content, when this was made.
    """

    plan: Plan
    facts: Mapping[str, TableFacts] = field(default_factory=dict[str, TableFacts])
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True, slots=True)
class TableProps:
    """What an asset stands for; given to each method of the translator.

    Attributes:
        flow, instance: Whose table, on which data.
        stage: Its stage; `unit` is the outermost stage around it, with which it is committed.
        name: Its readable name; the task's id where the asset stands for all that a task returns, because no names are known.
        task: The task that makes it.
        kind: "table", "blob" or "task".
        store: Where tables are kept: "parquet", "duckdb", "postgres", or the name of another kind of store.
        uri: Address of the table, without secrets.
        facts: What is known of it from an earlier run.
    """

    flow: str
    instance: str
    stage: str
    unit: str
    name: str
    task: PlanTask
    kind: str
    store: str
    uri: str
    facts: TableFacts = field(default_factory=TableFacts)

    @property
    def id(self) -> str:
        """`stage.table`."""
        return f"{self.stage}.{self.name}"


def known_tables(state: FlowState, config: ConfigContext) -> list[TableProps]:
    """Return what there will be an asset for, in wiring order: every table or blob whose name is known, else every task."""
    units = {stage.name: stage.unit for stage in state.plan.stages}
    store, base = store_kind(config), address(config)
    places = {stage: f"{base}/{schema_of(config, stage)}" for stage in units}
    found: list[TableProps] = []
    for task in state.plan.tasks:
        names = task.outputs or (task.task,)
        for name in names:
            facts = state.facts.get(f"{task.stage}.{name}", _UNKNOWN)
            kind = facts.kind if task.outputs else "task"
            uri = f"{places[task.stage]}/{name}"
            found.append(
                TableProps(state.plan.flow, config.instance_name, task.stage, units[task.stage], name, task, kind, store, uri, facts)
            )
    return found
