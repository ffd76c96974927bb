"""Where scores go that are kept as tables of an instance: into one stage, which changes at once, and into the slice of a table that is a run's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc

from pipedag_core.config.context import ConfigContext
from pipedag_core.config.wire import open_catalog
from pipedag_core.errors import ConfigError, InputMismatch, RunError
from pipedag_core.looking import stored_value
from pipedag_core.naming import normalize
from pipedag_core.runner import PUT, put_tables

#: What a place begins with that is a table of an instance: `table:stage.name`.
TABLE: Final = "table:"
#: More runs than any catalog keeps.
_ALL: Final = 1_000_000


@final
@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one run in a table that many runs write, such as those of a day.

    Attributes:
        column: A column that tables get in addition.
        value: What the rows of this run have there, as text. A run that is repeated replaces the rows that have the same.
    """

    column: str
    value: str


def places_of(outputs: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the stage, and output -> table, of those outputs that go into tables; "" and none if none do.

    Raises:
        ConfigError: A place names no table, two outputs go into one table, or tables are in several stages, which cannot change at once.
    """
    found: dict[str, str] = {}
    stages: dict[str, None] = {}
    for output, place in outputs.items():
        if not place.startswith(TABLE):
            continue
        stage, name = stage_and_table(place)
        stages[stage] = None
        if name in found.values():
            raise ConfigError(f"Two outputs go into table {name!r} of stage {stage!r}. Give each a table of its own.", place=place)
        found[output] = name
    if len(stages) > 1:
        raise ConfigError(
            f"Outputs go into tables of stages {', '.join(stages)}, which cannot change at once. Put all of them into one stage.",
            stages=tuple(stages),
        )
    return next(iter(stages), ""), found


def stage_and_table(place: str) -> tuple[str, str]:
    """Return the stage and the table that a place names.

    Raises:
        ConfigError: It names none.
    """
    stage, dot, table = place.removeprefix(TABLE).partition(".")
    if not dot or not stage or not table:
        raise ConfigError(f"{place!r} names no table: write {TABLE}STAGE.TABLE.", place=place)
    return normalize(stage, "stage name"), normalize(table, "table name")


def write(
    tables: Mapping[str, pa.Table],
    stage: str,
    names: Mapping[str, str],
    part: Slice | None,
    context: ConfigContext,
    *,
    note: str = "pipedag score",
    external_id: str = "",
) -> dict[str, str]:
    """Write outputs into tables of a stage and commit it; what else the stage holds stays.

    Args:
        tables: Output -> its rows.
        stage, names: As `places_of` returns them.
        part: The rows of this run; others that are in a table stay. None: the output is all of its table.
        context: The instance.
        note, external_id: Who writes, and under which id of an orchestrator, as for `put_tables`.

    Returns:
        Output -> identity of its table: equal for equal rows.

    Raises:
        ConfigError: A flow writes this stage, and would remove the tables with its next commit.
        InputMismatch: An output does not fit to the rows that stay.
        Exception: What else kept the stage from being committed.
    """
    _refuse_stage_of_a_flow(stage, context)

    outputs = {name: output for output, name in names.items()}

    def adjust(name: str, new: Any) -> pa.Table:
        return new if part is None else with_slice(new, _committed(stage, name, context), part, outputs[name])

    values = {name: tables[output] for output, name in names.items()}
    report = put_tables(stage, values, config=context, note=note, external_id=external_id, adjust=adjust)
    if not report.is_committed:
        error = next((failure.error for failure in report.failures if failure.error is not None), None)
        raise error or RunError(f"Stage {stage} was not committed: {'; '.join(item.message for item in report.reports if item.message)}")
    return {output: report.entries[stage][name].identity for output, name in names.items()}


def with_slice(new: pa.Table, old: pa.Table | None, part: Slice, output: str = "") -> pa.Table:
    """Return the rows of a table that stay, and behind them the new ones.

    Args:
        new: Rows of this run, without the slice's column.
        old: What the table holds; None if there is none. Its types win.
        part: The slice.
        output: Name of the output, for messages.

    Raises:
        InputMismatch: The new rows have the slice's column already, or other columns or types than the table.
    """
    if part.column in new.column_names:
        raise InputMismatch(
            f"Output {output!r} has a column {part.column!r} already, so it cannot be the one that tells slices apart. Name another one.",
            problems=(output,),
        )
    own = new.append_column(part.column, pa.array([part.value] * new.num_rows, pa.string()))
    if old is None:
        return own
    if set(old.column_names) != set(own.column_names):
        more, less = sorted(set(own.column_names) - set(old.column_names)), sorted(set(old.column_names) - set(own.column_names))
        raise InputMismatch(
            f"Output {output!r} does not fit to the rows that stay in its table: new columns {', '.join(more) or 'none'}, missing columns "
            f"{', '.join(less) or 'none'}. Write into another table, or without --slice, which replaces all of it.",
            problems=(output,),
        )
    kept = old.filter((pc.field(part.column) != part.value) | pc.field(part.column).is_null())
    try:
        return pa.concat_tables([kept, own.select(old.column_names).cast(old.schema)])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputMismatch(f"Output {output!r} does not fit to the rows that stay in its table: {error}", problems=(output,)) from error


def _committed(stage: str, name: str, context: ConfigContext) -> pa.Table | None:
    catalog = open_catalog(context)
    try:
        is_there = name in catalog.shown().get(stage, {})
    finally:
        catalog.close()
    return stored_value(stage, name, pa.Table, config=context) if is_there else None


def _refuse_stage_of_a_flow(stage: str, context: ConfigContext) -> None:
    catalog = open_catalog(context)
    try:
        made = {row.run_id for row in catalog.generations() if row.stage == stage and row.current}
        flows = [row.info.flow for row in catalog.runs(_ALL) if row.info.run_id in made and row.info.flow != PUT]
    finally:
        catalog.close()
    if flows:
        raise ConfigError(
            f"Stage {stage!r} of instance {context.instance_name!r} is written by flow {flows[0]!r}, whose next commit would remove the scores. "
            "Choose a stage that no flow has.",
            stage=stage,
        )
