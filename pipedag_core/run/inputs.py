"""From the references among a task's arguments to what they stand for: stored tables, blobs and plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from pipedag_core.cache import codec, fingerprint
from pipedag_core.define.evaluate import evaluate
from pipedag_core.define.late import LateValue
from pipedag_core.define.stage import Stage
from pipedag_core.define.task import Task
from pipedag_core.define.walk import is_plain, iter_leaves, map_leaves, segment
from pipedag_core.errors import OtherVersionMissing, RunError, UnknownItem, UnsupportedValue
from pipedag_core.plan.model import Plan
from pipedag_core.ports.catalogs import FoundResult, TaskKey
from pipedag_core.ports.data import ExternalTable, Placeholder, StoredBlob, StoredTable, StoredView, TableSource
from pipedag_core.ports.stores import StoreSession
from pipedag_core.run import outside
from pipedag_core.run.lookup import plan_lookup
from pipedag_core.run.pointing import renamed, shown_objects
from pipedag_core.run.session import Run, Session
from pipedag_core.run.views import Wired, make, selection_from


@final
@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A table or blob of another instance, which is read through the stores of that one.

    Attributes:
        stored: What it is there.
        identity: What it counts as here.
        session, access: The other instance, opened.
    """

    stored: StoredTable | StoredBlob
    identity: str
    session: Session
    access: StoreSession


#: What stands among arguments for something whose identity is known.
INPUTS: Final = (StoredTable, StoredView, ExternalTable, StoredBlob, Elsewhere)

#: With the number that may stand behind it, a label is a name for every database.
_LONGEST_LABEL: Final = 56

_UNSAFE = re.compile(r"[^a-z0-9_]+")


@final
class RawTables(Mapping[str, Any]):
    """The tables that a RawSql script made: `raw["name"]`, iteration and `in`, by readable name."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self._tables = dict(tables)

    def __getitem__(self, name: str) -> Any:
        """Return a table; case does not matter.

        Raises:
            UnknownItem: The script made no such table; the message lists those that it made.
        """
        if name.casefold() not in self._tables:
            raise UnknownItem(f"The script made no table {name!r}. It made: {', '.join(map(repr, self._tables)) or 'none'}.", item=name)
        return self._tables[name.casefold()]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a table, or the default."""
        return self._tables.get(key.casefold(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._tables

    def map(self, function: Callable[[Any, str], Any]) -> RawTables:
        """Return the same names with other objects."""
        return RawTables({name: function(table, name) for name, table in self._tables.items()})


@final
@dataclass(frozen=True, slots=True)
class TaskInputs:
    """A task's arguments with everything looked up and nothing loaded.

    Attributes:
        parameters: As in `Task.parameters`, with tables, views, blobs and `RawTables` where references stood.
        placeholders: Label -> table or view, for every one among them.
        labels: Path -> label.
    """

    parameters: Mapping[str, Any]
    placeholders: Mapping[str, Placeholder]
    labels: Mapping[str, str]

    @property
    def tables(self) -> Sequence[StoredTable]:
        """All stored tables among the arguments, those of views left out."""
        return [placeholder.table for placeholder in self.placeholders.values() if isinstance(placeholder.table, StoredTable)]

    def hashed(self) -> str:
        """Return the arguments as canonical JSON with inputs as their identities."""
        return codec.dumps(codec.encode(dict(self.parameters), _identity_leaf))

    def parts(self) -> dict[str, str]:
        """Return what goes into a fingerprint, part by part, for saying what changed."""
        parts: dict[str, str] = {}
        for name, value in self.parameters.items():
            for path, leaf in leaves(value, segment(name)):
                if isinstance(leaf, INPUTS):
                    parts[f"input {path}"] = leaf.identity
                elif isinstance(leaf, OtherVersionMissing):
                    parts[f"input {path}"] = "missing"
            frame = codec.dumps(codec.encode(value, _frame_leaf))
            if frame != '{"$":"input"}':
                parts[f"argument {name}"] = fingerprint.short(frame)
        return parts


def resolve(session: Session, run: Run, plan: Plan, task: Task) -> TaskInputs:
    """Look up everything that a task's arguments refer to, as this run sees it.

    Raises:
        RunError: A task whose result is needed has none; the message says which stage to run.
        UnknownItem: A result has no such item.
        MaterializationError: A View selects from something that is no table.
    """
    return label(arguments(task, upstream_values(session, run, plan, task.upstream, f"Task {task.stage.name}.{task.id}")))


def arguments(task: Task, values: Mapping[Task, Any]) -> Mapping[str, Any]:
    """Return a task's arguments with the results of other tasks in place of references, and tables of others and views as what can be read.

    Raises:
        UnknownItem: A result has no such item.
        MaterializationError: A View selects from something that is no table.
    """
    # What nobody can see into is known by the task's cache function, whose value is in the fingerprint, or not at all.
    wired = Wired(f"Task {task.stage.name}.{task.id}", fingerprint.nonce if task.options.cache is None else lambda: "")

    def leaf(item: Any, path: str) -> Any:
        return wired.leaf(item, path, lambda nest: list(leaves(nest, "")))

    return {name: map_leaves(evaluate(value, values.__getitem__), leaf, segment(name)) for name, value in task.parameters.items()}


def upstream_values(session: Session, run: Run, plan: Plan, tasks: Sequence[Task], who: str) -> Mapping[Task, Any]:
    """Return the decoded results of tasks; see `upstream_results`."""
    return {item: decode_output(found) for item, found in upstream_results(session, run, plan, tasks, who).items()}


def upstream_results(session: Session, run: Run, plan: Plan, tasks: Sequence[Task], who: str) -> Mapping[Task, FoundResult]:
    """Return the results of tasks, as this run sees them.

    Raises:
        RunError: Some have no result, or one that does not fit the task as it is declared now; the message says which stages to run.
    """
    if not tasks:
        return {}
    lookup = plan_lookup(run, plan)
    keys: dict[Task, TaskKey] = {}
    for item in tasks:
        place = (item.stage.name, item.id)
        from_outside = place not in lookup.running and not run.options.ignore_position_hashes
        position = lookup.tasks[place].position if from_outside else ""
        keys[item] = TaskKey(item.stage.name, item.id, position)
    found = run.catalog(session).inputs(tuple(keys.values()))
    absent = [item for item, key in keys.items() if key not in found]
    if absent:
        names = ", ".join(f"{item.stage.name}.{item.id}" for item in absent)
        raise RunError(
            f"{who} of flow {plan.flow!r} needs the result of {names}, which is not there for the flow as it is wired now. "
            f"{outside.committed_instead(session, plan, absent)}{outside.advice(absent)}",
            flow=plan.flow,
            tasks=tuple(names.split(", ")),
        )
    for item, key in keys.items():
        if (item.options.nout is not None or item.options.outputs is not None) and outside.is_outside(run, plan, item):
            outside.refuse_unfit(plan, item, found[key], decode_output(found[key]), who)
    return {item: found[key] for item, key in keys.items()}


def decode_output(found: FoundResult) -> Any:
    """Return a task's result with tables, views, blobs and `RawTables` in place of what is stored, by the names that it has there."""
    output = json.loads(found.result.output)
    shown = shown_objects(found, output)

    def leaf(node: Mapping[str, Any]) -> Any:
        match node["$"]:
            case "object":
                return shown[node["path"], node["id"]]
            case "source":
                return found.objects[node["id"]]
            case "view":
                return make(selection_from(node["selection"]), [leaf(source) for source in node["sources"]])
            case "raw":
                return RawTables({name: renamed(found.objects[inner["id"]], found.stage, name) for name, inner in node["tables"].items()})
            case "beside":
                return codec.decode(node["value"], leaf)
            case "late":
                return LateValue(node["maker"], f"{found.stage}.{found.result.task}", node.get("about", ""))
            case other:
                raise UnsupportedValue(
                    f"The catalog holds a value of the unknown kind {other!r} for task {found.stage}.{found.result.task}. It was written by another "
                    "version of pipedag; use that one, or run with cache_validation_mode=FORCE_CACHE_INVALID."
                )

    return codec.decode(output, leaf)


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of a nest, going into `RawTables` too."""
    for inner, leaf in iter_leaves(value):
        where = codec.join(path, inner) if inner else path
        if isinstance(leaf, RawTables):
            for name, table in leaf.items():
                yield codec.join(where, name), table
        else:
            yield where, leaf


def map_inputs(value: Any, function: Callable[[Any, str], Any], path: str) -> Any:
    """Rebuild a nest with `function(leaf, path)` for every leaf, going into `RawTables` too."""

    def leaf(item: Any, where: str) -> Any:
        if isinstance(item, RawTables):
            return item.map(lambda table, name: function(table, codec.join(where, name)))
        return function(item, where)

    return map_leaves(value, leaf, path)


def label(parameters: Mapping[str, Any]) -> TaskInputs:
    """Give every table among the arguments a label that is safe as an SQL identifier and depends on its place alone."""
    placeholders: dict[str, Placeholder] = {}
    labels: dict[str, str] = {}
    for name, value in parameters.items():
        for path, leaf in leaves(value, segment(name)):
            if isinstance(leaf, TableSource):
                base = _UNSAFE.sub("_", path.casefold()) or "t"
                if len(base) > _LONGEST_LABEL:
                    base = f"{base[: _LONGEST_LABEL - 9]}_{fingerprint.short(path)[:8]}"
                text, count = base, 1
                while text in placeholders:
                    count += 1
                    text = f"{base}_{count}"
                placeholders[text] = Placeholder(text, leaf)
                labels[path] = text
    return TaskInputs(parameters, placeholders, labels)


def _identity_leaf(value: Any, path: str) -> Mapping[str, Any] | None:
    if isinstance(value, INPUTS):
        return {"$": "input", "identity": value.identity}
    if isinstance(value, RawTables):
        return {"$": "raw", "tables": {name: _identity_leaf(table, path) for name, table in value.items()}}
    return _opaque_leaf(value)


def _frame_leaf(value: Any, path: str) -> Mapping[str, Any] | None:
    return {"$": "input"} if isinstance(value, (*INPUTS, RawTables)) else _opaque_leaf(value)


def _opaque_leaf(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Stage):
        return {"$": "stage", "name": value.name}
    if isinstance(value, OtherVersionMissing):
        return {"$": "missing"}
    if isinstance(value, LateValue):
        # Neither where it comes from nor what is made of it has a say in anything.
        return {"$": "late", "maker": value.maker}
    if getattr(value, "__pipedag_config__", False):
        return {"$": "config", "instance": str(getattr(value, "instance_id", "")), "content": _config_text(value)}
    return None


def _config_text(value: Any) -> str:
    """Return a hash of what a task may read in a configuration: the user's own data of an instance, or all of a file."""
    content: Any = getattr(value, "attrs", None)
    plain = map_leaves(vars(value) if content is None else content, lambda item, _: item if is_plain(item) else repr(item))
    return fingerprint.short(codec.dumps(codec.encode(plain, lambda _item, _path: None)))
