"""When a bundle scores: by a schedule, or whenever files come; each such run has a partition, so that repeating it replaces what it wrote, and no more."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import dagster as dg

from pipedag_core import ConfigContext, PipedagConfig
from pipedag_core.config.choice import configuration
from pipedag_core.errors import ConfigError
from pipedag_dagster.scoring import PARTITION, TABLE, build_scoring_assets, scoring_step

#: Runs that one look asks for; the next look goes on from there.
_AT_ONCE: Final = 100


def build_scoring_definitions(
    bundle: str | Path,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    instance: str | None = None,
    config: str | Path | PipedagConfig | ConfigContext | None = None,
    name: str | None = None,
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    on_arrival: bool = False,
    schedule: str | None = None,
    timezone: str | None = None,
    **options: Any,
) -> dg.Definitions:
    """Return a production flow as definitions: its assets, a job that materializes them (`<step>_job`), and what starts it.

    Args:
        bundle, inputs, outputs, instance, config, name, partitions_def: As for `build_scoring_assets`.
        on_arrival: Score the files that come: each key for which all inputs with `{partition}` in their place have a file is a partition, and gets a
            run, and another one when one of its files has changed. Files should appear whole, by being moved to their place.
        schedule: Cron expression. With partitions by time a run scores the newest one that is over, once; with static ones there is a run for each.
        timezone: In which the expression is read; None for UTC.
        options: Others of `build_scoring_assets`.

    Raises:
        ConfigError: As `build_scoring_assets`; or what starts runs does not go together.
    """
    given = PipedagConfig(config) if isinstance(config, (str, Path)) else config
    context = configuration(given, instance, None)
    step = scoring_step(context, bundle, name)
    if on_arrival and (partitions_def is not None or schedule is not None):
        raise ConfigError(
            f"{step} scores files as they come (on_arrival), so it has partitions of its own, and no schedule. Leave these out."
        )
    arriving = dg.DynamicPartitionsDefinition(name=step) if on_arrival else None
    partitions = arriving if arriving is not None else partitions_def
    scores = build_scoring_assets(bundle, inputs=inputs, outputs=outputs, config=context, name=name, partitions_def=partitions, **options)
    job = dg.define_asset_job(
        f"{step}_job", selection=dg.AssetSelection.assets(*scores.keys), description=f"Score with {Path(bundle).name}."
    )
    sensors = [] if arriving is None else [_arrivals(step, job, arriving, _awaited(step, context, inputs))]
    schedules = [] if schedule is None else [_schedule(step, job, partitions_def, schedule, timezone)]
    return dg.Definitions(assets=[scores], jobs=[job], sensors=sensors, schedules=schedules)


# --- by the clock -------------------------------------------------------------------------------------------------------------------


def _schedule(
    step: str, job: Any, partitions: dg.PartitionsDefinition[Any] | None, cron: str, timezone: str | None
) -> dg.ScheduleDefinition:
    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.SkipReason | dg.RunRequest]:
        if partitions is None:
            yield dg.RunRequest()
        elif isinstance(partitions, dg.TimeWindowPartitionsDefinition):
            with dg.partition_loading_context(context.scheduled_execution_time):
                newest = partitions.get_last_partition_key()
            # The same key again starts nothing.
            yield dg.SkipReason("No partition is over yet.") if newest is None else dg.RunRequest(newest, partition_key=newest)
        else:
            moment = context.scheduled_execution_time.isoformat()
            for key in partitions.get_partition_keys(dynamic_partitions_store=context.instance):
                yield dg.RunRequest(f"{moment} {key}", partition_key=key)

    return dg.ScheduleDefinition(name=f"{step}_schedule", job=job, cron_schedule=cron, execution_timezone=timezone, execution_fn=requests)


# --- by what comes ------------------------------------------------------------------------------------------------------------------


def _awaited(step: str, context: ConfigContext, inputs: Mapping[str, str]) -> list[str]:
    """Return the places of files that come, as absolute paths.

    Raises:
        ConfigError: No input is such a file.
    """
    places = [str(context.base_dir / place) for place in inputs.values() if PARTITION in place and not place.startswith(TABLE)]
    if not places:
        raise ConfigError(f"{step} is to score files as they come (on_arrival), but no input has {PARTITION} in the name of its file.")
    return places


def arrived(places: Sequence[str]) -> dict[str, str]:
    """Return the keys for which all places have a file -> what changes when one of these does."""
    stamps = [_stamps(place) for place in places]
    keys = set.intersection(*(set(found) for found in stamps))
    return {key: " ".join(found[key] for found in stamps) for key in sorted(keys)}


def _stamps(place: str) -> dict[str, str]:
    first, *others = place.split(PARTITION)
    pattern = re.compile(re.escape(first) + r"(?P<key>[^/]+)" + r"(?P=key)".join(re.escape(part) for part in others))
    found: dict[str, str] = {}
    for path in glob.iglob("*".join(glob.escape(part) for part in (first, *others)), include_hidden=True):  # noqa: PTH207 -- absolute
        match = pattern.fullmatch(path)
        # A file may be gone again.
        with suppress(OSError):
            if match is not None:
                status = Path(path).stat()
                found[match["key"]] = f"{status.st_mtime_ns}-{status.st_size}"
    return found


def _arrivals(step: str, job: Any, partitions: dg.DynamicPartitionsDefinition, places: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{step}_on_arrival",
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Scores files that come: {', '.join(places)}.",
    )
    def on_arrival(context):  # noqa: ANN001, ANN202 -- Dagster resolves annotations itself, and knows no postponed ones
        seen: dict[str, str] = json.loads(context.cursor or "{}")
        now = arrived(places)
        fresh = [key for key, stamp in now.items() if seen.get(key) != stamp][:_AT_ONCE]
        left = {key: stamp for key, stamp in now.items() if key in seen or key in fresh}
        cursor = {key: stamp if key in fresh else seen[key] for key, stamp in left.items()}
        known = set(context.instance.get_dynamic_partitions(str(partitions.name)))
        new = [key for key in fresh if key not in known]
        return dg.SensorResult(
            run_requests=[dg.RunRequest(f"{key} {now[key]}", partition_key=key) for key in fresh],
            dynamic_partitions_requests=[partitions.build_add_request(new)] if new else [],
            cursor=json.dumps(cursor),
        )

    return on_arrival
