"""A flow's instance as a resource of native Dagster assets, and its store as their IO manager.

Without postponed annotations, since pydantic reads those of its models as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from pipedag_core import ConfigContext, Flow, PipedagConfig
from pipedag_core.config.choice import configuration
from pipedag_core.config.flows import load_flow
from pipedag_core.errors import ConfigError, UnsupportedByStore
from pipedag_core.looking import stored_value
from pipedag_core.ports.data import StoredTable
from pipedag_core.runner import put_table
from pipedag_dagster.places import address, schema_of
from pipedag_dagster.telling import column_schema


class PipedagResource(dg.ConfigurableResource[Any]):
    """An instance of a pipeline, to run flows on and to read tables from.

    Attributes:
        config_file: The configuration; by default the `pipedag.yaml` that is found.
        instance: Name of the instance.
        overrides: Settings to be changed, as in `ConfigContext.evolve`, such as `{"fail_fast": True}`.
    """

    config_file: str | None = Field(default=None, description="The pipedag.yaml; by default the one that is found.")
    instance: str | None = Field(default=None, description="Name of the instance.")
    overrides: dict[str, Any] = Field(default_factory=dict, description="Settings to be changed, such as fail_fast.")

    def settings(self, flow: str | None = None) -> ConfigContext:
        """Return the settings of the instance, for a flow of this name.

        Raises:
            ConfigError: There is no such instance or setting.
        """
        given = None if self.config_file is None else PipedagConfig(Path(self.config_file))
        found = configuration(given, self.instance, flow)
        return found.evolve(**self.overrides) if self.overrides else found

    def run(self, flow: Flow | str, *components: Any, **options: Any) -> Any:
        """Run a flow, or parts of it; see `Flow.run`.

        Args:
            flow: The flow, or its import reference.
            components, options: As in `Flow.run`.
        """
        code = load_flow(flow, self.settings().attrs)[0] if isinstance(flow, str) else flow
        return code.run(*components, config=self.settings(code.name), **options)

    def read(self, stage: str, table: str, as_type: Any = None) -> Any:
        """Return a committed table, as the type asked for (by default `pyarrow.Table`), or what a committed blob holds.

        Raises:
            ConfigError: There is no such table.
        """
        return stored_value(stage, table, as_type, config=self.settings())


class PipedagIOManager(dg.ConfigurableIOManager):
    """Keeps what native Dagster assets return in the store of an instance, and gives them the tables of its flows.

    An asset key ends in stage and table; what stands before is a prefix. Inputs come in the type that the argument is annotated with. What is no
    frame is kept as a blob. Native assets need stages of their own: the commit of a flow replaces all of a stage.

    Attributes:
        config_file, instance: As for `PipedagResource`.
        stage: Stage of assets whose key has one part only.
    """

    config_file: str | None = Field(default=None, description="The pipedag.yaml; by default the one that is found.")
    instance: str | None = Field(default=None, description="Name of the instance.")
    stage: str = Field(default="dagster", description="Stage of assets whose key has one part only.")

    def _settings(self) -> ConfigContext:
        return PipedagResource(config_file=self.config_file, instance=self.instance).settings()

    def _place(self, context: dg.InputContext | dg.OutputContext) -> tuple[str, str]:
        if not context.has_asset_key:
            raise UnsupportedByStore(f"The IO manager of pipedag keeps assets only; {context.name!r} is an output of an op without one.")
        if context.has_asset_partitions:
            raise UnsupportedByStore(
                f"Asset {context.asset_key.to_user_string()} is partitioned, which tables of pipedag are not. Give it another IO manager."
            )
        path = context.asset_key.path
        return (path[-2] if len(path) > 1 else self.stage), path[-1]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write what an asset returned, and commit its stage with it."""
        if obj is None:
            return
        stage, name = self._place(context)
        settings = self._settings()
        report = put_table(stage, name, obj, config=settings, note=f"dagster run {context.run_id}", external_id=context.run_id)
        if not report.is_committed:
            error = next((failure.error for failure in report.failures if failure.error is not None), None)
            raise error or ConfigError(f"Table {stage}.{name} was not committed: {report.reports[0].message}")
        [written] = [result for result in report.results.values() if result.task == name.casefold()]
        stored = next(iter(report.entries.values()))[next(iter(written.entries))]
        context.add_output_metadata(_facts(settings, stored, stage, name))
        context.step_context.set_data_version(context.asset_key, dg.DataVersion(stored.identity))

    def load_input(self, context: dg.InputContext) -> Any:
        """Return a committed table in the type that the argument is annotated with."""
        stage, name = self._place(context)
        kind = context.dagster_type.typing_type
        return stored_value(stage, name, None if kind in (Any, type(None)) else kind, config=self._settings())


def _facts(settings: ConfigContext, stored: Any, stage: str, name: str) -> Mapping[str, Any]:
    schema = schema_of(settings, stage)
    facts: dict[str, Any] = {"dagster/uri": f"{address(settings)}/{schema}/{name}"}
    if isinstance(stored, StoredTable):
        facts |= {"dagster/table_name": f"{schema}.{name}", "dagster/column_schema": column_schema(stored)}
        if stored.rows is not None:
            facts["dagster/row_count"] = stored.rows
    return facts
