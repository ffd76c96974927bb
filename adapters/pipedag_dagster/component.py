"""A flow as a Dagster component: described in YAML, its plan kept as state, so that loading it never imports the flow.

Without postponed annotations, since pydantic reads those of its models as they are.
"""

import logging
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components import ComponentLoadContext, DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig, StateBackedComponent
from dagster.components.component_scaffolding import scaffold_component
from dagster.components.scaffold.scaffold import ScaffoldRequest, scaffold_with
from pydantic import Field, PrivateAttr

from pipedag_core import PipedagConfig
from pipedag_core.config.choice import configuration
from pipedag_dagster.definitions import definitions_of, job_of
from pipedag_dagster.options import StepOptions
from pipedag_dagster.states import from_json, make_state, to_json
from pipedag_dagster.translator import PipedagTranslator

log = logging.getLogger(__name__)


class FlowScaffolder(dg.Scaffolder[Any]):
    """Writes a `defs.yaml` to be filled in: `dg scaffold defs pipedag_dagster.PipedagFlowComponent NAME`."""

    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        """Write the file."""
        scaffold_component(request, {"flow": "package.module:flow", "instance": "full"})


@scaffold_with(FlowScaffolder)
class PipedagFlowComponent(StateBackedComponent, dg.Model, dg.Resolvable):
    """A flow, with all of its tables as assets; see `pipedag_dagster.build_definitions` for what the attributes mean.

    Its plan is the component's state: `dg utils refresh-defs-state` makes it, in a process of its own that imports the flow; `dagster dev` does so
    when it loads. Override `get_translator` to change what assets look like.
    """

    flow: str = Field(description="Import reference of the flow: package.module:flow_or_factory, or path/file.py:flow_or_factory.")
    instance: str | None = Field(default=None, description="Name of the instance.")
    config_file: str | None = Field(
        default=None, description="The pipedag.yaml, relative to the project; by default the one that is found."
    )
    learn: str | None = Field(default=None, description="Name of an instance whose stored tables teach names that a plan cannot know.")
    key_prefix: list[str] = Field(default_factory=list, description="What all asset keys begin with.")
    owners: dict[str, list[str]] = Field(default_factory=dict, description="Stage, or stage.table -> owners.")
    tags: dict[str, dict[str, str]] = Field(default_factory=dict, description="Stage, or stage.table -> tags.")
    preview_rows: int = Field(default=0, description="Show so many rows of each table.")
    granularity: str | dict[str, str] = Field(
        default="stage", description="How much one step does: stage or task; or stage of the flow -> one of these."
    )
    jobs: list[str] = Field(default_factory=list, description="Stages or tags of tasks that get a job of their own.")
    schedules: dict[str, str] = Field(default_factory=dict, description="Stage or tag, or * for all of the flow -> cron expression.")
    timezone: str | None = Field(default=None, description="In which schedules are read; UTC by default.")
    report_outside_runs: bool = Field(
        default=False, description="Switch on from the start the sensor that reports tables committed by others."
    )
    defs_state: ResolvedDefsStateConfig = Field(default_factory=DefsStateConfigArgs.local_filesystem)

    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def defs_state_config(self) -> DefsStateConfig:
        """Where the plan is kept."""
        return DefsStateConfig.from_args(self.defs_state, default_key=f"PipedagFlowComponent[{self.flow} {self.instance or 'default'}]")

    def get_translator(self) -> PipedagTranslator:
        """Return what says which asset a table becomes."""
        return PipedagTranslator(self.key_prefix, owners=self.owners, tags=self.tags)

    def _config(self, root: Path) -> PipedagConfig | None:
        return None if self.config_file is None else PipedagConfig(root / self.config_file)

    async def refresh_state(self, project_root: Path) -> str:
        """Make the plan anew, and keep it."""
        self._root = project_root
        return await super().refresh_state(project_root)

    def write_state_to_path(self, state_path: Path) -> None:
        """Write the plan, made by a process of its own.

        Raises:
            ConfigError: The flow cannot be imported, or there is no such instance.
        """
        config = self._config(self._root)
        state = make_state(self.flow, config, configuration(config, self.instance, None), self.learn)
        state_path.write_text(to_json(state), encoding="utf-8")

    def build_defs_from_state(self, context: ComponentLoadContext, state_path: Path | None) -> dg.Definitions:
        """Return the definitions that the kept plan gives; none before it was made for the first time.

        Raises:
            PlanMismatch: What is kept was written by another version.
            ConfigError: There is no such instance, stage or tag.
        """
        if state_path is None:
            log.warning("There is no plan of flow %s yet, so it has no assets. Make it: dg utils refresh-defs-state", self.flow)
            return dg.Definitions()
        state = from_json(state_path.read_text(encoding="utf-8"), str(state_path))
        settings = configuration(self._config(context.project_root), self.instance, state.plan.flow)
        job = job_of(state, settings, self.get_translator(), preview_rows=self.preview_rows)
        return definitions_of(
            job,
            options=StepOptions(self.granularity),
            jobs=self.jobs,
            schedules=self.schedules,
            timezone=self.timezone,
            report_outside_runs=self.report_outside_runs,
        )
