"""Opening and committing stages: leases, fences, and the one moment in which a new map becomes current."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipedag_core.catalogs import looking, owner, rows, runs
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Row, Transaction, first, rows_for
from pipedag_core.errors import CatalogError, LeaseLost
from pipedag_core.ports.catalogs import CommitResult, GenerationKey, Held, Opened, Publication


def open_stages(
    tx: Transaction, now: float, run_id: str, stages: Sequence[str], reads: Sequence[str], *, scratch: bool, take_over: bool
) -> Opened | Held:
    """Open a unit for a run and pin what it reads; see `Catalog.open_stages`.

    Raises:
        RunError: The run was not begun, or has ended.
    """
    runs.require_running(tx, run_id)
    tx.run(sql.TOUCH_RUN, {"run_id": run_id, "now": now})
    tx.run_many(sql.ADD_STAGE, [{"stage": stage} for stage in stages])
    fence = 0 if scratch else claim(tx, now, run_id, stages, take_over=take_over)
    if isinstance(fence, Held):
        return fence
    state = "scratch" if scratch else "open"
    found = tx.rows(sql.OPEN_OF, {"run_id": run_id, "role": state})
    opened = {stage: GenerationKey(stage, number, known) for stage, number, known in found if known == fence}
    made: Mapping[str, int] = {} if scratch else _made_before(tx, run_id)
    for stage in stages:
        if stage not in opened:
            number = stage_row(tx, stage)[0]
            values = {"run_id": run_id, "stage": stage, "generation": number, "role": state}
            tx.run(sql.TAKE_NUMBER, values)
            # Another run may have committed since this one had the stage open.
            tx.run(sql.DROP_BEFORE, values)
            tx.run(sql.ADD_GENERATION, {**values, "unit": stages[0], "state": state, "fence": fence, "now": now})
            if stage in made:
                for statement in sql.COPY_CONTENT:
                    tx.run(statement, {**values, "old": made[stage]})
            tx.run(sql.SET_ROLE, values)
            opened[stage] = GenerationKey(stage, number, fence)
    _pin_missing(tx, run_id, reads)
    return Opened({stage: opened[stage] for stage in stages})


def _made_before(tx: Transaction, run_id: str) -> Mapping[str, int]:
    """Return stage -> the generation in which this run has left it, committed or failed."""
    made: dict[str, dict[str, int]] = {}
    for stage, role, generation in tx.rows(sql.VIEW, {"run_id": run_id}):
        made.setdefault(stage, {})[role] = generation
    # An open one was lost to another run. What failed was opened after what was committed.
    order = ("open", "failed", "written", "unchanged")
    return {stage: next(roles[role] for role in order if role in roles) for stage, roles in made.items() if roles.keys() & set(order)}


def _pin_missing(tx: Transaction, run_id: str, reads: Sequence[str]) -> None:
    sees = {stage for stage, role, _ in tx.rows(sql.VIEW, {"run_id": run_id}) if role not in ("scratch", "before")}
    looking.pin(tx, run_id, looking.current_of(tx, [stage for stage in reads if stage not in sees]))


def stage_row(tx: Transaction, stage: str) -> Row:
    """Return (next number, current number, fence) of a stage.

    Raises:
        CatalogError: It has no row.
    """
    row = first(tx, sql.STAGE, {"stage": stage})
    if row is None:
        raise CatalogError(f"The catalog has lost the row of stage {stage!r}. It was changed by hand; restore it from a copy.", stage=stage)
    return row


def claim(tx: Transaction, now: float, run_id: str, stages: Sequence[str], *, take_over: bool) -> int | Held:
    """Return the fencing number under which the run may write the unit, or who holds it."""
    unit = stages[0]
    # A stage may have been opened as part of another unit, by a flow that was wired differently.
    units = {unit, *(row[0] for row in rows_for(tx, sql.UNITS_OPEN_IN, [(stage,) for stage in stages], {}))}
    own: int | None = None
    ended: list[str] = []
    for name in sorted(units):
        row = first(tx, sql.LEASE, {"unit": name})
        if row is None:
            continue
        holder, expires = rows.run_row(row[1:]), row[17]
        if holder.info.run_id == run_id and name == unit:
            own = row[0]
        elif holder.info.run_id != run_id and not take_over and expires > now and not owner.is_gone(holder.info.owner):
            return Held(name, holder.info.run_id, holder.info.owner, expires - now)
        else:
            ended.append(name)
    for name in ended:
        tx.run(sql.FAIL_UNIT, {"unit": name, "now": now})
        tx.run(sql.DROP_LEASE, {"unit": name})
    if own is None:
        tx.run(sql.RAISE_FENCE, {"stage": unit})
        own = int(stage_row(tx, unit)[2])
        tx.run(sql.ADD_LEASE, {"unit": unit, "run_id": run_id, "fence": own})
    return own


def prepare(tx: Transaction, run_id: str, stages: Sequence[str], publication: Publication) -> None:
    """Let a publication prepare itself for a commit that will probably succeed and change something.

    Only this run writes what it has open, and only who holds the lease moves the current generation: what is seen here holds until the commit.
    """
    opened = {row[0]: row[2] for row in tx.rows(sql.WRITABLE, {"run_id": run_id}) if row[1] == "open"}
    if not set(stages) <= opened.keys():
        return
    if any(_differs(tx, stage, stage_row(tx, stage)[1], opened[stage]) for stage in stages):
        publication.prepare(tx.native, {stage: looking.entries(tx, stage, opened[stage]) for stage in stages})


def commit(tx: Transaction, now: float, run_id: str, stages: Sequence[str], publication: Publication | None) -> CommitResult:
    """Make the open generations of a unit current; see `Catalog.commit`.

    Raises:
        LeaseLost: The lease has passed to another run, or the stages are not open.
    """
    opened: dict[str, Row] = {}
    done: dict[str, tuple[str, int]] = {}
    for row in tx.rows(sql.WRITABLE, {"run_id": run_id}):
        if row[1] == "open":
            opened[row[0]] = row
        else:
            done[row[0]] = (row[1], row[2])
    if all(stage in done and stage not in opened for stage in stages):
        return CommitResult({stage: done[stage][1] for stage in stages}, any(done[stage][0] == "written" for stage in stages))
    for stage in stages:
        _check_writable(run_id, stage, opened.get(stage))
    old = {stage: stage_row(tx, stage)[1] for stage in stages}
    new: dict[str, int] = {stage: opened[stage][2] for stage in stages}
    changed = any(_differs(tx, stage, old[stage], new[stage]) for stage in stages)
    for stage in stages:
        both = {"run_id": run_id, "stage": stage, "old": old[stage], "new": new[stage]}
        tx.run(sql.DROP_OWN_ROLES, both)
        if changed:
            place = {"run_id": run_id, "stage": stage, "generation": new[stage], "now": now}
            tx.run(sql.COMMIT_GENERATION, place)
            tx.run(sql.SET_CURRENT, place)
            tx.run(sql.SET_ROLE, {**place, "role": "written"})
        else:
            # Consumers outside this run look results up by their place in the wiring as it is now.
            tx.run(sql.MOVE_PLACES, both)
            for statement in (*sql.DROP_CONTENT, sql.DROP_GENERATION):
                tx.run(statement, {"stage": stage, "generation": new[stage]})
            tx.run(sql.SET_ROLE, {"run_id": run_id, "stage": stage, "generation": old[stage], "role": "unchanged"})
    tx.run(sql.DROP_LEASE, {"unit": opened[stages[0]][4]})
    if changed and publication is not None:
        publication.publish(tx.native, {stage: looking.entries(tx, stage, new[stage]) for stage in stages})
    return CommitResult(new if changed else old, changed)


def give_up(tx: Transaction, now: float, run_id: str, stages: Sequence[str]) -> None:
    """End what a run has open of a unit; see `Catalog.give_up`."""
    for stage in stages:
        values = {"run_id": run_id, "stage": stage, "now": now}
        if tx.rows(sql.OPEN_ROLE, values):
            for statement in sql.FAIL_STAGE:
                tx.run(statement, values)
    tx.run(sql.DROP_OWN_LEASE, {"unit": stages[0], "run_id": run_id})


def _differs(tx: Transaction, stage: str, old: int | None, new: int) -> bool:
    return old is None or bool(tx.rows(sql.DIFFERS, {"stage": stage, "old": old, "new": new}))


def _check_writable(run_id: str, stage: str, row: Row | None) -> None:
    if row is None:
        raise LeaseLost(
            f"Run {run_id!r} cannot commit stage {stage!r}: it has not opened it. Execute the stage's open step and its tasks first.",
            run_id=run_id,
            stage=stage,
        )
    _, _, number, state, _, fence, lease_fence, holder = row
    if state != "open" or holder != run_id or fence != lease_fence:
        raise lost(run_id, stage, number, state, None if holder == run_id else holder)


def lost(run_id: str, stage: str, number: int, state: str | None, holder: str | None) -> LeaseLost:
    """Return the error of a run that wants to write a generation that is not its own any more."""
    by = f"; run {holder!r} holds the lease now" if holder else ""
    return LeaseLost(
        f"Run {run_id!r} may not write generation {number} of stage {stage!r} any more: the generation is {state or 'gone'}{by}. "
        "What it has written stays out of sight. Execute the stage's open step and its tasks again, or start a new run.",
        run_id=run_id,
        stage=stage,
        generation=number,
        holder=holder,
    )
