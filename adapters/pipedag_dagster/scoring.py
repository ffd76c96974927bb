"""A production flow as assets: its bundle, run from files and tables to files and tables, one asset per output, all in one step.

Without postponed annotations, since Dagster reads those of an op's function as they are.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import dagster as dg

from pipedag_core import ConfigContext, PipedagConfig
from pipedag_core.config.choice import configuration
from pipedag_core.config.flows import make_importable
from pipedag_core.errors import ConfigError, PipedagError
from pipedag_dagster.execution import lasting
from pipedag_dagster.places import address, schema_of
from pipedag_dagster.telling import schema_of_columns
from pipedag_dagster.translator import safe

#: Stands in the place of a file for the key of the partition.
PARTITION: Final = "{partition}"
#: What a place begins with that is a table of the instance.
TABLE: Final = "table:"


@final
@dataclass(frozen=True)
class Scoring:
    """What the op needs to know.

    Attributes:
        bundle: The bundle's folder.
        inputs, outputs: Name -> place.
        keys: Name of an output -> its asset.
        context: The instance whose tables are read and written, and at whose configuration relative places begin.
        trust_pickle: Read pickles in the bundle.
        column: Tells the rows of partitions apart in tables.
    """

    bundle: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    keys: Mapping[str, dg.AssetKey]
    context: ConfigContext
    trust_pickle: bool
    column: str | None

    def place(self, text: str, partition: str | None) -> str:
        """Return a place with the partition filled in, as an absolute path if it is a file.

        Raises:
            ConfigError: The partition's key would lead to another folder.
        """
        if text.startswith(TABLE):
            return text if partition is None else text.replace(PARTITION, partition)
        if partition is not None and PARTITION in text:
            if {"..", "."} & set(Path(partition).parts) or "/" in partition or "\0" in partition:
                raise ConfigError(f"Partition {partition!r} cannot stand in the name of a file: {text}.", place=text)
            text = text.replace(PARTITION, partition)
        return str(self.context.base_dir / text)

    def uri(self, place: str) -> str:
        """Return the address of a place, without secrets."""
        if not place.startswith(TABLE):
            return Path(place).as_uri()
        stage, name = _split(place)
        return f"{address(self.context)}/{schema_of(self.context, stage)}/{name}"


def build_scoring_assets(
    bundle: str | Path,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    instance: str | None = None,
    config: str | Path | PipedagConfig | ConfigContext | None = None,
    name: str | None = None,
    key_prefix: Sequence[str] | str = (),
    group_name: str | None = None,
    deps: Sequence[Any] = (),
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    partition_column: str | None = None,
    trust_pickle: bool = False,
    owners: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    automation_condition: dg.AutomationCondition[Any] | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
) -> dg.AssetsDefinition:
    """Return a production flow as assets, one for each output, that one step materializes.

    The bundle is loaded when the step runs, not before, so a new bundle needs no new definitions. All outputs are computed before any is written; then
    each file is replaced at once, and the tables of a stage are committed together.

    Args:
        bundle: Folder that `pipedag extract` wrote. It need not be there yet. This and other relative paths begin where the configuration is.
        inputs: Name of an input -> its file (Parquet, CSV, Arrow), or `table:STAGE.TABLE` of the instance: a dependency on that table's asset.
        outputs: Name of an output -> its file, or `table:STAGE.TABLE`. With partitions files have `{partition}` in them.
        instance, config: Whose tables are read and written; as for `build_assets`.
        name: Of the step; by default the bundle's name and `_scoring`.
        key_prefix: What the keys of tables begin with, as in the translator of the flow. An output in a table has the key `[stage, table]`, one in a
            file `[name, output]`.
        group_name: The group; by default the step's name.
        deps: What the assets depend on beside the tables that are read, as for `dagster.AssetSpec`.
        partitions_def: Score for each partition on its own: a day, for instance.
        partition_column: Column that tables get with the key of the partition; a partition replaces its own rows in them.
        trust_pickle: Read pickles in the bundle, which can run any code.
        owners, tags, automation_condition: Of each asset.
        retry_policy, op_tags, pool: Of the step, as in `dagster.multi_asset`.

    Raises:
        ConfigError: There is no such instance; there are no outputs; or a place cannot be, such as one file for all partitions.
    """
    given = PipedagConfig(config) if isinstance(config, (str, Path)) else config
    context = configuration(given, instance, None)
    folder = context.base_dir / bundle
    step = scoring_step(context, bundle, name)
    _check(step, inputs, outputs, partition_column, partitioned=partitions_def is not None)
    prefix = (key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix)

    def of_table(place: str) -> dg.AssetKey:
        return dg.AssetKey([*prefix, *_split(place)])

    keys = {out: of_table(place) if place.startswith(TABLE) else dg.AssetKey([*prefix, step, safe(out)]) for out, place in outputs.items()}
    read = list(dict.fromkeys(of_table(place) for place in inputs.values() if place.startswith(TABLE)))
    specs = [
        dg.AssetSpec(
            keys[out],
            deps=[*read, *deps],
            description=f"Output {out} of the production flow in {folder.name}.",
            metadata={"pipedag/bundle": str(bundle), "pipedag/place": place, "pipedag/inputs": dict(inputs)},
            group_name=group_name or step,
            code_version=_digest(folder),
            skippable=True,
            owners=list(owners),
            tags=tags,
            partitions_def=partitions_def,
            automation_condition=automation_condition,
        )
        for out, place in outputs.items()
    ]
    scoring = Scoring(folder, inputs, outputs, keys, context, trust_pickle, partition_column)

    @dg.multi_asset(name=step, specs=specs, can_subset=True, retry_policy=retry_policy, op_tags=dict(op_tags or {}), pool=pool)
    def scores(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from _carry_out(context, scoring)

    return scores


def scoring_step(context: ConfigContext, bundle: str | Path, name: str | None) -> str:
    """Return the name of the step that scores with a bundle."""
    return safe(name or f"{(context.base_dir / bundle).name}_scoring")


def _carry_out(context: dg.AssetExecutionContext, scoring: Scoring) -> Iterator[dg.MaterializeResult[Any]]:
    # Loaded here: both bring data frame libraries with them.
    from pipedag_core.production.flow import ProductionFlow
    from pipedag_core.production.into_tables import Slice
    from pipedag_core.production.places import score

    partition = context.partition_key if context.has_partition_key else None
    make_importable(scoring.context.base_dir)
    try:
        wanted = {
            out: scoring.place(place, partition)
            for out, place in scoring.outputs.items()
            if scoring.keys[out] in context.selected_asset_keys
        }
        read = {item: scoring.place(place, partition) for item, place in scoring.inputs.items()}
        prod = ProductionFlow.load(scoring.bundle, trust_pickle=scoring.trust_pickle)
        note = f"dagster run {context.run.run_id}"
        into_tables = any(place.startswith(TABLE) for place in wanted.values())
        part = Slice(scoring.column, partition) if partition is not None and scoring.column is not None and into_tables else None
        done = score(prod, read, wanted, lambda: scoring.context, part=part, note=note, external_id=context.run.run_id)
    except PipedagError as error:
        raise lasting(error) from error
    digest = _digest(scoring.bundle)
    for out, told in done.items():
        facts: dict[str, Any] = {
            "dagster/row_count": told.rows,
            "dagster/column_schema": schema_of_columns(told.columns),
            "dagster/uri": scoring.uri(told.place),
            "pipedag/flow": prod.parts.program.flow,
            "bundle": digest or str(scoring.bundle),
        }
        if told.place.startswith(TABLE):
            stage, table = _split(told.place)
            facts["dagster/table_name"] = f"{schema_of(scoring.context, stage)}.{table}"
        version = dg.DataVersion(told.version) if told.version else None
        yield dg.MaterializeResult(asset_key=scoring.keys[out], metadata=facts, data_version=version)


def _split(place: str) -> tuple[str, str]:
    stage, _, table = place.removeprefix(TABLE).casefold().partition(".")
    if not stage or not table:
        raise ConfigError(f"{place!r} names no table: write {TABLE}STAGE.TABLE.", place=place)
    return stage, table


def _check(step: str, inputs: Mapping[str, str], outputs: Mapping[str, str], column: str | None, *, partitioned: bool) -> None:
    if not outputs:
        raise ConfigError(f"Say where the outputs of {step} go: outputs={{'NAME': 'FILE or table:STAGE.TABLE'}}.")
    for out, place in outputs.items():
        if partitioned and place.startswith(TABLE) and column is None:
            raise ConfigError(
                f"Output {out!r} of {step} goes to {place}, which each partition would replace. Pass partition_column=, the name of a column that tells "
                f"partitions apart, or name a file with {PARTITION} in it.",
                place=place,
            )
        if partitioned and not place.startswith(TABLE) and PARTITION not in place:
            raise ConfigError(
                f"Output {out!r} of {step} goes to {place!r} for every partition. Put {PARTITION} into the name of the file.", place=place
            )
    for place in (*inputs.values(), *outputs.values()):
        if not partitioned and PARTITION in place:
            raise ConfigError(f"{place!r} of {step} has {PARTITION} in it, but there is no partitions_def.", place=place)


def _digest(bundle: Path) -> str | None:
    """Return the digest of a bundle's content; None if it is not there, or no bundle, which is told when it runs."""
    try:
        found = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        return str(found["digest"])[:16]
    except (OSError, ValueError, KeyError, TypeError):
        return None
