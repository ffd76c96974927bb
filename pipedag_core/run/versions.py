"""Two versions of tables for a task that compares them: what this run has written, and what was current before it, or is in another instance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, final

from pipedag_core.define.compared import Versions, is_config
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.errors import CatalogError, DuplicateName, FlowError, OtherVersionMissing, UnsupportedByStore
from pipedag_core.hashing import digest
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import FoundResult
from pipedag_core.ports.data import ExternalTable, StoredBlob, StoredObject, StoredTable, StoredView
from pipedag_core.run.inputs import Elsewhere, TaskInputs, arguments, decode_output, label, leaves, upstream_results
from pipedag_core.run.keeping import hold
from pipedag_core.run.pointing import renamed
from pipedag_core.run.session import Run, Session
from pipedag_core.run.slots import missing

log = logging.getLogger(__name__)

#: Stage and readable name.
_Name = tuple[str, str]


def resolve_versions(session: Session, run: Run, plan: Plan, task: Task, stack: ExitStack) -> TaskInputs:
    """Look up everything that the arguments of a task of `input_stage_versions` refer to, in both versions.

    Args:
        session, run, plan: As for `inputs.resolve`.
        task: The task.
        stack: Takes what is opened for it, and kept for it elsewhere, until the task ends.

    Raises:
        As `inputs.resolve`.
        FlowError: Something among the arguments has no other version.
        UnsupportedByStore: Another instance's tables cannot be had in the task's `input_type`.
    """
    versions, taken, given = _own_side(session, run, plan, task)
    if taken.config and not _is_same(taken.config[0], session.config):
        other = _of_instance(session, run, task, versions, taken, stack)
    else:
        numbers = session.catalog.before(run.id, taken.stages)
        other = _Other(
            "that was committed before this run", numbers, session, lambda objects: missing(session, run, objects), lambda stored: stored
        )
    return label({versions.now: _keyed(task, taken.objects), versions.other: _keyed(task, _in_other(task, taken, other)), **given})


def resolve_own_side(session: Session, run: Run, plan: Plan, task: Task) -> TaskInputs:
    """Look up what such a task gets of this run, and by keywords, without the other version.

    Raises:
        As `inputs.resolve`.
    """
    versions, taken, given = _own_side(session, run, plan, task)
    return label({versions.now: _keyed(task, taken.objects), **given})


def _own_side(session: Session, run: Run, plan: Plan, task: Task) -> tuple[Versions, _Taken, Mapping[str, Any]]:
    """Return how the task takes two versions, what of this run it compares, and what else it gets."""
    versions = task.options.versions
    assert versions is not None
    results = upstream_results(session, run, plan, task.upstream, _who(task))
    given = dict(arguments(task, {item: decode_output(found) for item, found in results.items()}))
    return versions, _collected(task, given.pop(versions.label), results), given


@final
@dataclass(frozen=True, slots=True)
class _Taken:
    """What is compared.

    Attributes:
        objects: Name -> what this run has.
        whole: Stages of which all tables are taken.
        config: The other instance, if there is one.
    """

    objects: dict[_Name, StoredObject] = field(default_factory=dict[_Name, StoredObject])
    whole: list[Stage] = field(default_factory=list[Stage])
    config: list[Any] = field(default_factory=list[Any])

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages that something is taken of."""
        return tuple(dict.fromkeys([*(stage for stage, _ in self.objects), *(stage.name for stage in self.whole)]))


@final
@dataclass(frozen=True, slots=True)
class _Other:
    """The other version.

    Attributes:
        told: What messages call it.
        numbers: Stage -> generation.
        session: Where it is.
        gone: Returns the ids of those objects whose data is gone.
        given: Returns what the task gets for an object.
    """

    told: str
    numbers: Mapping[str, int]
    session: Session
    gone: Callable[[Sequence[StoredObject]], set[str]]
    given: Callable[[StoredObject], Any]


def _collected(task: Task, nest: Any, results: Mapping[Task, FoundResult]) -> _Taken:
    taken = _Taken()
    for path, leaf in leaves(nest, ""):
        if isinstance(leaf, (StoredTable, StoredBlob)):
            taken.objects[leaf.stage, leaf.name] = leaf
        elif isinstance(leaf, (StoredView, ExternalTable)):
            raise FlowError(
                f"{_who(task)} gets, as argument {path!r}, {leaf.told}, which has no name in a stage and so no other version. Pass the single tables that "
                "it shall compare, or pass this one by a keyword that pass_args names.",
                stage=task.stage.name,
                task=task.id,
            )
        elif is_config(leaf):
            taken.config.append(leaf)
    for stage in task.whole:
        taken.whole.append(stage)
        for item, result in results.items():
            if item.stage is stage:
                for name, object_id in result.result.entries.items():
                    stored = result.objects[object_id]
                    if isinstance(stored, StoredTable):
                        taken.objects[stage.name, name] = renamed(stored, stage.name, name)
    return taken


def _in_other(task: Task, taken: _Taken, other: _Other) -> dict[_Name, Any]:
    wanted: dict[_Name, StoredObject | None] = {}
    for stage in taken.stages:
        number = other.numbers.get(stage)
        entries: Mapping[str, StoredObject] = {} if number is None else other.session.catalog.entries(stage, number)
        names = dict.fromkeys(name for where, name in taken.objects if where == stage)
        if number is not None and any(item.name == stage for item in taken.whole):
            # What today's tasks will make later is not to be compared yet; what tasks made that are no more has vanished.
            later = {item.id for item in task.flow.tasks if item.stage.name == stage} - {
                item.id for item in task.upstream if item.stage.name == stage
            }
            for result in other.session.catalog.results(stage, number):
                if result.task not in later:
                    names.update(dict.fromkeys(name for name in result.entries if isinstance(entries.get(name), StoredTable)))
        wanted.update({(stage, name): entries.get(name) for name in names})
    gone = other.gone([stored for stored in wanted.values() if stored is not None])
    found: dict[_Name, Any] = {}
    for (stage, name), stored in wanted.items():
        number = other.numbers.get(stage)
        if stored is None or stored.id in gone:
            found[stage, name] = _absent(stage, name, number, other.told, gone=stored is not None)
        else:
            # Under its own schema's name, so that text that says `stage.table` means what this run has.
            found[stage, name] = other.given(renamed(stored, f"{stage}__g{number}", name))
    return found


def _absent(stage: str, name: str, number: int | None, told: str, *, gone: bool) -> OtherVersionMissing:
    if number is None:
        text = f"Table {stage}.{name} has no other version: there is no version of stage {stage} {told}."
    elif gone:
        text = f"The data of table {stage}.{name} is gone from the version of stage {stage} (generation {number}) {told}."
    else:
        text = f"Table {stage}.{name} is not in the version of stage {stage} (generation {number}) {told}."
    return OtherVersionMissing(text, stage=stage, table=name, generation=number)


def _keyed(task: Task, objects: Mapping[_Name, Any]) -> dict[str, Any]:
    """Return objects by the keys under which the task gets them."""
    own = task.stage.name
    keys: dict[str, _Name] = {}
    for stage, name in objects:
        key = name if stage == own else f"{stage}.{name}"
        other = keys.setdefault(key, (stage, name))
        if other != (stage, name):
            raise DuplicateName(
                f"{_who(task)} compares two tables that it would get under the key {key!r}: {other[1]!r} of stage {other[0]!r} and {name!r} of stage "
                f"{stage!r}. Rename one of them, without a dot.",
                stage=own,
                task=task.id,
                name=key,
            )
    return {key: objects[name] for key, name in keys.items()}


def _who(task: Task) -> str:
    return f"Task {task.stage.name}.{task.id}"


# --- another instance ---------------------------------------------------------------------------------------------------------------


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two configurations lead to the same data."""
    parts = ("instance_id", "table_store", "blob_store", "metadata_store")
    return all(getattr(one, part) == getattr(other, part) for part in parts)


def _of_instance(session: Session, run: Run, task: Task, versions: Versions, taken: _Taken, stack: ExitStack) -> _Other:
    config = taken.config[0]
    told = f"that instance {config.instance_name!r} has committed"
    other = _opened(session, task, versions, config, stack)
    if other is None:
        return _Other(told, {}, session, lambda _: set(), lambda stored: stored)
    numbers = _held(run, task, versions, taken.stages, config, other, stack)
    access = stack.enter_context(other.tables.session(f"{_who(task)} of another instance"))

    def gone(objects: Sequence[StoredObject]) -> set[str]:
        tables = other.tables.missing([item for item in objects if isinstance(item, StoredTable)])
        blobs = {item.location: item for item in objects if isinstance(item, StoredBlob)}
        lost = other.blobs.missing({location: blob.size for location, blob in blobs.items()}) if blobs else ()
        return {table.id for table in tables} | {blobs[location].id for location in lost}

    def given(stored: StoredObject) -> Any:
        if isinstance(stored, StoredTable):
            # Two instances may call different rows by one identity, where these come from outside of both; in one place there are always the same.
            seen = other.tables.seen_by_others(stored)
            identity = digest("elsewhere", other.tables.address, seen.owner, seen.name, stored.identity)
            if other.tables.address == session.tables.address:
                return replace(seen, identity=identity)
            _refuse_references(session, task, config.instance_name, other)
            return Elsewhere(stored, identity, other, access)
        return Elsewhere(stored, stored.identity, other, access) if isinstance(stored, StoredBlob) else stored

    return _Other(told, numbers, other, gone, given)


def _opened(session: Session, task: Task, versions: Versions, config: Any, stack: ExitStack) -> Session | None:
    try:
        return stack.enter_context(session.open_other(config, read_only=not versions.hold))
    except CatalogError as error:
        if not versions.hold:
            raise
        _warn_of_unheld(task, config, error)
        return stack.enter_context(session.open_other(config, read_only=True))


def _held(
    run: Run, task: Task, versions: Versions, stages: Sequence[str], config: Any, other: Session, stack: ExitStack
) -> Mapping[str, int]:
    """Return the current generations of another instance, kept from clean-up there as far as that can be."""
    if versions.hold:
        try:
            return stack.enter_context(hold(other, replace(run.info, instance=config.instance_name), stages, f"{_who(task)}, run {run.id}"))
        except CatalogError as error:
            _warn_of_unheld(task, config, error)
    found = {stage: other.catalog.current(stage) for stage in stages}
    return {stage: number for stage, number in found.items() if number is not None}


def _warn_of_unheld(task: Task, config: Any, error: Exception) -> None:
    log.warning(
        "%s reads instance %r without keeping clean-up away from it, since its catalog cannot be written: %s",
        _who(task),
        config.instance_name,
        error,
    )


def _refuse_references(session: Session, task: Task, instance: str, other: Session) -> None:
    as_type = task.options.input_type
    if as_type is not None and session.hooks.for_type(as_type).by_reference:
        raise UnsupportedByStore(
            f"{_who(task)} asks for references (input_type={getattr(as_type, '__name__', as_type)!s}) to tables of instance {instance!r}, but queries of this "
            f"instance ({session.tables.address}) do not reach that one's ({other.tables.address}). Take rows instead: input_type=pl.DataFrame, "
            "pl.LazyFrame, pd.DataFrame or pa.Table.",
            stage=task.stage.name,
            task=task.id,
        )
