"""A bundle's scores as a Dagster component: all of it stands in YAML, so there is no state to be kept, and loading it opens no bundle.

Without postponed annotations, since pydantic reads those of its models as they are.
"""

from collections.abc import Mapping
from typing import Any, Literal

import dagster as dg
from dagster.components import ComponentLoadContext
from dagster.components.component_scaffolding import scaffold_component
from dagster.components.scaffold.scaffold import ScaffoldRequest, scaffold_with
from pydantic import Field

from pipedag_core import PipedagConfig
from pipedag_core.errors import ConfigError
from pipedag_dagster.automation import eager_when_changed
from pipedag_dagster.scoring_runs import build_scoring_definitions

_BY_TIME: Mapping[str, Any] = {
    "hourly": dg.HourlyPartitionsDefinition,
    "daily": dg.DailyPartitionsDefinition,
    "weekly": dg.WeeklyPartitionsDefinition,
    "monthly": dg.MonthlyPartitionsDefinition,
}


class ScoringPartitions(dg.Model, dg.Resolvable):
    """What is scored on its own: hours, days, weeks or months from a first one on, or named parts."""

    type: Literal["hourly", "daily", "weekly", "monthly", "static"] = Field(description="hourly, daily, weekly, monthly or static.")
    start_date: str | None = Field(default=None, description="The first one, of those by time.")
    end_date: str | None = Field(default=None, description="After the last one, of those by time; none for those that go on.")
    timezone: str | None = Field(default=None, description="In which these begin; UTC by default.")
    keys: list[str] = Field(default_factory=list, description="The names of static ones.")

    def definition(self) -> dg.PartitionsDefinition[Any]:
        """Return them as Dagster has them.

        Raises:
            ConfigError: What their type needs is not given.
        """
        if self.type == "static":
            if not self.keys:
                raise ConfigError("Partitions of type static need `keys`: their names.")
            return dg.StaticPartitionsDefinition(self.keys)
        if self.start_date is None:
            raise ConfigError(f"Partitions of type {self.type} need `start_date`: where the first one begins.")
        return _BY_TIME[self.type](start_date=self.start_date, end_date=self.end_date, timezone=self.timezone)


class ScoringScaffolder(dg.Scaffolder[Any]):
    """Writes a `defs.yaml` to be filled in: `dg scaffold defs pipedag_dagster.PipedagScoringComponent NAME`."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the file."""
        places = {"inputs": {"input": "requests/{partition}.parquet"}, "outputs": {"output": "scores/{partition}.parquet"}}
        scaffold_component(request, {"bundle": "bundle", "instance": "full", **places, "on_arrival": True})


@scaffold_with(ScoringScaffolder)
class PipedagScoringComponent(dg.Component, dg.Model, dg.Resolvable):
    """A production flow, scored in batches; see `pipedag_dagster.build_scoring_definitions` for what the attributes mean.

    The bundle is loaded when the step runs, and need not be there before.
    """

    bundle: str = Field(description="Folder of the bundle, relative to the configuration.")
    inputs: dict[str, str] = Field(default_factory=dict, description="Name of an input -> its file, or table:STAGE.TABLE.")
    outputs: dict[str, str] = Field(description="Name of an output -> its file, or table:STAGE.TABLE.")
    instance: str | None = Field(default=None, description="Name of the instance whose tables are read and written.")
    config_file: str | None = Field(
        default=None, description="The pipedag.yaml, relative to the project; by default the one that is found."
    )
    name: str | None = Field(default=None, description="Name of the step; by default the bundle's name and _scoring.")
    key_prefix: list[str] = Field(default_factory=list, description="What the asset keys begin with, as of the flow.")
    group_name: str | None = Field(default=None, description="The group; by default the step's name.")
    deps: list[str] = Field(
        default_factory=list, description="Assets that the scores depend on beside the tables read: a/b for the key [a, b]."
    )
    owners: list[str] = Field(default_factory=list, description="Owners of the scores.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the scores.")
    partitions: ScoringPartitions | None = Field(default=None, description="What is scored on its own; {partition} in files stands for it.")
    partition_column: str | None = Field(
        default=None, description="Column that tables get with the partition; a run replaces its own rows."
    )
    on_arrival: bool = Field(default=False, description="Score each file that comes; {partition} in inputs stands for what tells it apart.")
    schedule: str | None = Field(
        default=None, description="Cron expression; with partitions by time the newest one that is over is scored."
    )
    timezone: str | None = Field(default=None, description="In which the schedule is read; UTC by default.")
    eager: bool = Field(default=False, description="Score when a table that is read has other rows.")
    trust_pickle: bool = Field(default=False, description="Read pickles in the bundle, which can run any code.")

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the definitions.

        Raises:
            ConfigError: There is no such instance, or a place or partitions cannot be.
        """
        config = None if self.config_file is None else PipedagConfig(context.project_root / self.config_file)
        return build_scoring_definitions(
            self.bundle,
            inputs=self.inputs,
            outputs=self.outputs,
            instance=self.instance,
            config=config,
            name=self.name,
            key_prefix=self.key_prefix,
            group_name=self.group_name,
            deps=[dg.AssetKey.from_user_string(key) for key in self.deps],
            owners=self.owners,
            tags=self.tags,
            partitions_def=None if self.partitions is None else self.partitions.definition(),
            partition_column=self.partition_column,
            on_arrival=self.on_arrival,
            schedule=self.schedule,
            timezone=self.timezone,
            automation_condition=eager_when_changed() if self.eager else None,
            trust_pickle=self.trust_pickle,
        )
