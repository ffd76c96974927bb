"""The life of a run: registered by its first step, renewed by every other, ended by its last."""

from __future__ import annotations

from collections.abc import Mapping

from pipedag_core.catalogs import rows
from pipedag_core.catalogs import statements as sql
from pipedag_core.catalogs.transaction import Row, Transaction, first
from pipedag_core.errors import RunError
from pipedag_core.ports.catalogs import RunInfo, RunRow

#: A run is renewed once this share of its time to live has passed, so that not every step has to write.
RENEW_AFTER = 0.1

ENDS = frozenset({"succeeded", "failed", "aborted"})


def is_fresh(tx: Transaction, now: float, run: RunInfo) -> RunRow | None:
    """Return the run if it is registered as it is and was renewed a short time ago, so that nothing needs to be written.

    Raises:
        RunError: The id belongs to a run of another flow, instance or plan.
    """
    row = first(tx, sql.RUN, {"run_id": run.run_id})
    if row is None:
        return None
    known = rows.run_row(row)
    _check_same(known, run)
    left_s = row[16] - now
    unchanged = known.state == "running" and (known.info.owner, known.info.ttl_s) == (run.owner, run.ttl_s)
    return known if unchanged and run.ttl_s * (1 - RENEW_AFTER) < left_s <= run.ttl_s else None


def begin(tx: Transaction, now: float, run: RunInfo) -> RunRow:
    """Register a run, renew it, or open it again as a new attempt.

    Raises:
        RunError: The id belongs to a run of another flow, instance or plan.
    """
    owner = {
        "run_id": run.run_id,
        "host": run.owner.host,
        "boot": run.owner.boot,
        "pid": run.owner.pid,
        "process_started": run.owner.started,
        "note": run.owner.note,
        "ttl_s": run.ttl_s,
        "expires": now + run.ttl_s,
    }
    row = first(tx, sql.RUN, owner)
    if row is None:
        facts = {
            "flow": run.flow,
            "instance": run.instance,
            "plan_digest": run.plan_digest,
            "options": run.options,
            "external_id": run.external_id,
        }
        tx.run(sql.ADD_RUN, {**owner, **facts, "now": now})
    else:
        known = rows.run_row(row)
        _check_same(known, run)
        if known.state != "running":
            tx.run(sql.FORGET_VIEW, owner)
            tx.run(sql.REOPEN_RUN, {"run_id": run.run_id, "now": now})
        tx.run(sql.RENEW_RUN, owner)
    return rows.run_row(known_row(tx, run.run_id))


def _check_same(known: RunRow, run: RunInfo) -> None:
    for what, then, today in (
        ("flow", known.info.flow, run.flow),
        ("instance", known.info.instance, run.instance),
        ("plan", known.info.plan_digest, run.plan_digest),
    ):
        if then != today:
            raise RunError(
                f"Run {run.run_id!r} of flow {run.flow!r} was begun with {what} {then!r} and is now continued with {what} {today!r}. "
                "Start a new run; a run keeps its flow, its instance and its wiring to the end.",
                run_id=run.run_id,
                flow=run.flow,
                what=what,
                then=then,
                now=today,
            )


def known_row(tx: Transaction, run_id: str) -> Row:
    """Return the run's row.

    Raises:
        RunError: No such run was begun.
    """
    row = first(tx, sql.RUN, {"run_id": run_id})
    if row is None:
        raise RunError(f"Run {run_id!r} is not known to the catalog. Begin it first; its instance may be another one.", run_id=run_id)
    return row


def require_running(tx: Transaction, run_id: str) -> RunRow:
    """Return the run.

    Raises:
        RunError: The run was not begun, or has ended.
    """
    run = rows.run_row(known_row(tx, run_id))
    if run.state != "running":
        raise RunError(
            f"Run {run_id!r} of flow {run.info.flow!r} has ended ({run.state}). Begin it again, which opens a new attempt, before a step is executed.",
            run_id=run_id,
            flow=run.info.flow,
            state=run.state,
        )
    return run


def finish(tx: Transaction, now: float, run_id: str, state: str) -> Mapping[str, int]:
    """End a run and return its snapshot; a run that has ended already keeps the state that it ended with.

    Raises:
        RunError: There is no such run, or no such state.
    """
    if state not in ENDS:
        raise RunError(f"Run {run_id!r} cannot end as {state!r}. It ends as one of: {', '.join(sorted(ENDS))}.", run_id=run_id, state=state)
    if rows.run_row(known_row(tx, run_id)).state == "running":
        ended = {"run_id": run_id, "state": state, "now": now}
        for statement in (sql.FAIL_RUN, *sql.FAIL_ROLES, sql.DROP_LEASES_OF_RUN, sql.END_RUN):
            tx.run(statement, ended)
    return snapshot(tx, run_id)


def note(tx: Transaction, run_id: str, name: str, value: str) -> str:
    """Keep a text with a run unless there is one under this name; return the one that stands.

    Raises:
        RunError: No such run was begun.
    """
    known_row(tx, run_id)
    tx.run(sql.ADD_NOTE, {"run_id": run_id, "name": name, "value": value})
    return notes(tx, run_id)[name]


def notes(tx: Transaction, run_id: str) -> Mapping[str, str]:
    """Return the texts that are kept with a run, by name."""
    return dict(tx.rows(sql.NOTES, {"run_id": run_id}))


def snapshot(tx: Transaction, run_id: str) -> Mapping[str, int]:
    """Return stage -> the generation that the run committed or read."""
    seen: dict[str, int] = {}
    own: dict[str, int] = {}
    for stage, role, generation in tx.rows(sql.VIEW, {"run_id": run_id}):
        if role in ("written", "unchanged"):
            own[stage] = generation
        elif role == "pinned":
            seen[stage] = generation
    return dict(sorted({**seen, **own}.items()))
