"""From a table of a flow to an asset: one method per aspect, to be overridden where a project wants it otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import dagster as dg

from pipedag_core.plan.model import PlanTask
from pipedag_dagster.props import TableProps

_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")

#: Top package of an input type -> the kind that Dagster shows a picture for.
_LIBRARIES: Mapping[str, str] = {"sqlalchemy": "sql", "duckdb": "duckdb", "pydiverse": "sql"}


@cache
def safe(text: str) -> str:
    """Return a text as Dagster takes it for names of groups and ops: letters, digits and underscores."""
    return _UNSAFE.sub("_", text) or "_"


class PipedagTranslator:
    """Says what asset a table becomes. Override the methods whose answer should be another.

    Args:
        key_prefix: What all asset keys begin with, such as `["analytics"]`.
        owners: Stage, or `stage.table` -> owners (e-mail addresses, or `team:name`).
        tags: Stage, or `stage.table` -> tags.
        automation_condition: For all assets; see `eager_when_changed`.
    """

    def __init__(
        self,
        key_prefix: Sequence[str] | str = (),
        *,
        owners: Mapping[str, Sequence[str]] | None = None,
        tags: Mapping[str, Mapping[str, str]] | None = None,
        automation_condition: dg.AutomationCondition[Any] | None = None,
    ) -> None:
        self.key_prefix = (key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix)
        self.owners = owners or {}
        self.tags = tags or {}
        self.automation_condition = automation_condition

    def get_asset_key(self, table: TableProps) -> dg.AssetKey:
        """Return the key: prefix, stage, table."""
        return dg.AssetKey([*self.key_prefix, table.stage, table.name])

    def get_external_key(self, schema: str, table: str) -> dg.AssetKey:
        """Return the key of a table of others that tasks read: prefix, schema, table. Dagster shows it as an external asset, unless there is one."""
        return dg.AssetKey([*self.key_prefix, schema, table])

    def get_group_name(self, table: TableProps) -> str:
        """Return the group: the stage."""
        return safe(table.stage)

    def get_description(self, table: TableProps) -> str | None:
        """Return the first paragraph of the task's docstring."""
        return table.task.description or None

    def get_kinds(self, table: TableProps) -> set[str]:
        """Return what the asset is made with and where it lives, at most three."""
        package = table.task.input_type.partition(".")[0]
        library = _LIBRARIES.get(package, package) or "python"
        if table.kind == "blob":
            return {"python", library}
        return {library, table.store} if library in ("sql", "python") else {"python", library, table.store}

    def get_owners(self, table: TableProps) -> Sequence[str]:
        """Return the owners of the table, else of its stage."""
        return self.owners.get(table.id, self.owners.get(table.stage, ()))

    def get_tags(self, table: TableProps) -> Mapping[str, str]:
        """Return the tags of the stage and of the table, and the tag of its task if it has one."""
        own = {"pipedag/tag": safe(table.task.tag)} if table.task.tag else {}
        return {**own, **self.tags.get(table.stage, {}), **self.tags.get(table.id, {})}

    def get_code_version(self, table: TableProps) -> str | None:
        """Return the task's version; None where it has none, since then only a run can tell what changed."""
        return table.task.version if table.task.version not in ("", "AUTO_VERSION") else None

    def get_metadata(self, table: TableProps) -> Mapping[str, Any]:
        """Return what is known before a run: whose task makes it, and for a table its address, which Dagster shows as its storage."""
        known = {"pipedag/task": f"{table.task.id} of flow {table.flow}, instance {table.instance}"}
        # Dagster goes through what is known under its own keys several times for each asset, which makes up most of what loading takes above its least.
        return {**known, "dagster/uri": table.uri} if table.kind == "table" else known

    def get_automation_condition(self, table: TableProps) -> dg.AutomationCondition[Any] | None:
        """Return when Dagster should materialize the table by itself."""
        return self.automation_condition

    def get_op_tags(self, task: PlanTask) -> Mapping[str, Any]:
        """Return the tags of a task's op, where each task has one: what its container gets, for instance. They win over `op_tags`."""
        return {}

    def get_pool(self, task: PlanTask) -> str | None:
        """Return the pool of a task's op, where each task has one; None for that of all steps."""
        return None

    def get_asset_spec(self, table: TableProps, deps: Iterable[dg.AssetKey | dg.AssetDep]) -> dg.AssetSpec:
        """Return the whole specification, put together from the other methods.

        Args:
            table: The table.
            deps: Keys of the tables that its task reads.
        """
        return dg.AssetSpec(
            self.get_asset_key(table),
            deps=list(deps),
            description=self.get_description(table),
            metadata=self.get_metadata(table),
            group_name=self.get_group_name(table),
            # What a run finds under another name, or not at all, is not materialized.
            skippable=True,
            code_version=self.get_code_version(table),
            owners=list(self.get_owners(table)),
            tags=self.get_tags(table),
            kinds=self.get_kinds(table),
            automation_condition=self.get_automation_condition(table),
        )
