"""What differs between two generations of a stage, or between two instances; rows are counted where they lie."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.wire import open_other
from pipedag_core.errors import ConfigError, RunError
from pipedag_core.ports.catalogs import GenerationRow
from pipedag_core.ports.data import BatchData, BatchSource, Form, RowDifference, Selection, StoredTable, StoredView, Target
from pipedag_core.ports.stores import StoreSession, TableStore
from pipedag_core.run.differing import CountRows, Difference, Side, differences
from pipedag_core.run.session import Session

#: What stands behind the task in the database's own list of sessions.
_LABEL = "pipedag diff"


def compare_generations(
    names: Sequence[str] = (),
    *,
    before: int | None = None,
    after: int | None = None,
    rows: bool = True,
    config: PipedagConfig | ConfigContext | None = None,
    instance: str | None = None,
) -> Difference:
    """Say what differs between two generations of stages; nothing is changed.

    Args:
        names: Stages, or tables as `stage.table`; none for all stages that have an earlier generation.
        before: The earlier generation, where one stage is meant; by default the committed one before `after`.
        after: The later one; by default the current one.
        rows: Count how rows differ. Otherwise only what the catalog knows is compared.
        config, instance: As in `run_flow`.

    Raises:
        ConfigError: There is no such stage or table; or generations were named for several stages.
        RunError: There is no such generation (any more).
    """
    context = configuration(config, instance, None)
    with ExitStack() as stack:
        session = _opened(context, stack)
        found = session.catalog.generations()
        wanted = _wanted(names, [session], list(dict.fromkeys(row.stage for row in found)), context.instance_name)
        if (before is not None or after is not None) and len(wanted) != 1:
            raise ConfigError(f"Generations have numbers per stage: name one stage to compare two of them, not {len(wanted) or 'all'}.")
        new = {stage: _number(found, stage, after) for stage in wanted}
        old = {stage: _before(found, stage, new[stage], before) for stage in wanted}
        pairs = {stage: (number, new[stage]) for stage, number in old.items() if number is not None}
        if names and len(pairs) < len(wanted):
            lonely = next(stage for stage in wanted if stage not in pairs)
            raise RunError(
                f"Stage {lonely!r} of instance {context.instance_name!r} has no committed generation before {new[lonely]} (any more). Name another "
                f"one, with --from; {_kept(found, lonely)}",
                stage=lonely,
            )
        sides = [Side(session.catalog, {stage: pair[at] for stage, pair in pairs.items()}) for at in (0, 1)]
        count = _counter(session, session, stack) if rows else None
        return differences(sides[0], sides[1], {stage: wanted[stage] for stage in pairs}, count)


def compare_instances(
    before: ConfigContext,
    after: ConfigContext,
    names: Sequence[str] = (),
    *,
    rows: bool = True,
) -> Difference:
    """Say what differs between what two instances have committed; nothing is changed.

    Rows are compared by queries of the later instance's store where these reach the tables of the other. Elsewhere what is compared is streamed
    into files in a temporary folder, and compared there.

    Args:
        before: The instance that is gone by.
        after: The other one.
        names: Stages, or tables as `stage.table`; none for all stages that either has.
        rows: As in `compare_generations`.

    Raises:
        ConfigError: There is no such stage or table, or one of the instances has never run.
    """
    with ExitStack() as stack:
        sessions = [_opened(context, stack) for context in (before, after)]
        current = [{row.stage: row.number for row in session.catalog.generations() if row.current} for session in sessions]
        stages = list(dict.fromkeys([*current[1], *current[0]]))
        wanted = _wanted(names, sessions, stages, f"{before.instance_name} or {after.instance_name}")
        sides = [Side(session.catalog, numbers) for session, numbers in zip(sessions, current, strict=True)]
        return differences(sides[0], sides[1], wanted, _counter(sessions[0], sessions[1], stack) if rows else None)


def _opened(context: ConfigContext, stack: ExitStack) -> Session:
    session = stack.enter_context(open_other(context, read_only=True))
    if session is None:
        raise ConfigError(f"Nothing has run yet in instance {context.instance_name!r}: it has no catalog.", instance=context.instance_name)
    return session


# --- what is compared -----------------------------------------------------------------------------------------------------------------


def _wanted(names: Sequence[str], sessions: Sequence[Session], stages: Sequence[str], told: str) -> Mapping[str, frozenset[str]]:
    """Return stage -> tables (none for all), by what somebody has named."""
    if not names:
        return {stage: frozenset() for stage in stages}
    wanted: dict[str, set[str]] = {}
    whole: set[str] = set()
    for name in names:
        key = name.casefold()
        stage = next((item for item in stages if item == key), None)
        if stage is not None:
            wanted.setdefault(stage, set())
            whole.add(stage)
            continue
        stage = next((item for item in sorted(stages, key=len, reverse=True) if key.startswith(f"{item}.")), None)
        if stage is None:
            near = get_close_matches(key, list(stages), n=3, cutoff=0.4)
            hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(stages) or 'none'}."
            raise ConfigError(f"Instance {told!r} has no stage {name!r}. {hint}", stage=name)
        table = key.removeprefix(f"{stage}.")
        known = [entry for session in sessions for row in _rows_of(session, stage) for entry in session.catalog.entries(stage, row.number)]
        if table not in known:
            near = get_close_matches(table, known, n=3, cutoff=0.4)
            hint = (
                f"Did you mean {', '.join(dict.fromkeys(near))}?"
                if near
                else f"It has: {', '.join(list(dict.fromkeys(known))[:20]) or 'none'}."
            )
            raise ConfigError(f"Stage {stage!r} of instance {told!r} has no table {table!r}. {hint}", stage=stage, table=table)
        wanted.setdefault(stage, set()).add(table)
    return {stage: frozenset() if stage in whole else frozenset(tables) for stage, tables in wanted.items()}


def _rows_of(session: Session, stage: str) -> Sequence[GenerationRow]:
    return [row for row in session.catalog.generations() if row.stage == stage]


def _number(found: Sequence[GenerationRow], stage: str, wanted: int | None) -> int:
    """Return the number of a generation, or of the current one."""
    own = [row for row in found if row.stage == stage and row.state != "expired"]
    number = next((row.number for row in own if (row.current if wanted is None else row.number == wanted)), None)
    if number is None:
        what = "no committed generation" if wanted is None else f"no generation {wanted}"
        raise RunError(f"Stage {stage!r} has {what} (any more). {_kept(found, stage)}", stage=stage, generation=wanted)
    return number


def _before(found: Sequence[GenerationRow], stage: str, after: int, wanted: int | None) -> int | None:
    if wanted is not None:
        return _number(found, stage, wanted)
    return max((row.number for row in found if row.stage == stage and row.state == "committed" and row.number < after), default=None)


def _kept(found: Sequence[GenerationRow], stage: str) -> str:
    kept = [f"{row.number} ({row.state})" for row in found if row.stage == stage and row.state != "expired"]
    return f"Kept are: {', '.join(kept) or 'none'}."


# --- rows -----------------------------------------------------------------------------------------------------------------------------


def _counter(before: Session, after: Session, stack: ExitStack) -> CountRows:
    """Return what counts how rows of two tables differ; connections are held until `stack` ends, and opened when they are needed."""
    if before.tables.address != after.tables.address:
        return _streamed(before.tables, after.tables)
    access: list[StoreSession] = []

    def count(old: StoredTable, new: StoredTable, columns: Sequence[str], key: Sequence[str]) -> RowDifference:
        if not access:
            access.append(stack.enter_context(after.tables.session(_LABEL)))
        seen = old if before is after else before.tables.seen_by_others(old)
        return access[0].compare_rows(seen, new, columns, key)

    return count


def _streamed(before: TableStore, after: TableStore) -> CountRows:
    """Return what brings the compared columns of two tables into one place first, for stores whose queries do not reach each other."""
    from pipedag_core.stores.parquet import ParquetStore

    def count(old: StoredTable, new: StoredTable, columns: Sequence[str], key: Sequence[str]) -> RowDifference:
        with tempfile.TemporaryDirectory(prefix="pipedag-diff-") as folder, ExitStack() as inner:
            middle = ParquetStore(folder)
            inner.callback(middle.close)
            access = inner.enter_context(middle.session(_LABEL))
            earlier = _copied(inner.enter_context(before.session(_LABEL)), access, old, columns, "before")
            later = _copied(inner.enter_context(after.session(_LABEL)), access, new, columns, "after")
            return access.compare_rows(earlier, later, columns, key)

    return count


def _copied(source: StoreSession, target: StoreSession, table: StoredTable, columns: Sequence[str], side: str) -> StoredTable:
    from pipedag_core.arrow_schema import selected

    chosen = tuple((name, name) for name in columns)
    view = StoredView((table,), Selection(chosen), side, selected([table.schema], chosen))

    def stream() -> Any:
        read = source.read(view, Form.BATCHES)
        assert isinstance(read, BatchSource)
        return read.stream

    written = target.write(BatchData(stream, in_memory=False), Target(side, 1, table.name, _LABEL))
    return StoredTable(side, side, 1, table.name, written.location, written.schema, side, written.rows, written.size, seal=written.seal)
