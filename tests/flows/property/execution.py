"""One task step in the eyes of the rules: is something found, what is called, and what is kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeGuard

from tests.flows.property.contents import BlobContent, Content, Frame, compute, number_of, seen_world
from tests.flows.property.memory import Result, Stored
from tests.flows.property.model import ITEMS, Failing, Task

if TYPE_CHECKING:
    from tests.flows.property.simulation import Simulation


class Fails(Exception):
    """The step fails."""


class Dies(Exception):
    """The run is killed while the task's function runs."""


@dataclass(frozen=True)
class Input:
    identity: Hashable
    content: Content | int
    stored: Stored | None = None
    alias: str = ""


@dataclass
class Inputs:
    """A task's arguments. `nests` are the tables as they are nested, by their identities."""

    task: Task
    tables: list[Input] = field(default_factory=list)
    values: list[Input] = field(default_factory=list)
    nests: list[Hashable] = field(default_factory=list)

    @property
    def hashed(self) -> Hashable:
        return (tuple(self.nests), tuple(item.identity for item in self.values), repr(self.task.given))


def shape_of(task: Task) -> Hashable:
    """Return how a task's output is nested, with the names declared in it."""
    declared = task.script_name if task.kind.engine == "script" else task.table_name
    return (task.kind.shape, task.kind.engine == "script", None if task.kind.shape == "value" else declared)


class Execution:
    """One task step. It dies before it records, or in a call of the task's function (0: in none)."""

    def __init__(
        self,
        simulation: Simulation,
        task: Task,
        inputs: Inputs,
        mode: str,
        forced: bool,
        dies: bool,
        dies_in_call: int,
    ) -> None:
        self.simulation = simulation
        self.memory = simulation.memory
        self.options = simulation.options
        self.run = simulation.run
        self.task = task
        self.stage = task.stage.casefold()
        self.id = simulation.model.ids[task.uid]
        self.generation = simulation.open[self.stage]
        self.tables, self.values, self.inputs = inputs.tables, inputs.values, inputs.hashed
        self.mode = mode
        self.forced = forced
        self.dies = dies
        self.dies_in_call = dies_in_call
        self.calls = 0
        self.made = 0
        self.by_base = self.options.mode == "ignore_fresh_input" and task.cached

    def eager(self) -> str:
        fingerprint = base = None
        if self.mode != "never":
            if self.mode == "auto":
                self._call()
            token = self.task.version if self.mode == "version" else self._expression()
            base = ("task", self.stage, self.task.name, self.mode, token, self.inputs)
            fingerprint = self._with_world(base)
            if not self.forced:
                hit = self.memory.find_result(self.run, self.stage, base if self.by_base else fingerprint, base=self.by_base)
                if self._is_whole(hit):
                    return self._point_to(hit)
                self._refuse_fresh()
        self._call()
        contents = self._contents()
        if isinstance(contents, int):
            return self._record(fingerprint, base, contents, "ran")
        parts = [self._keep(path, content, fingerprint) for path, content in contents]
        return self._record(fingerprint, base, parts, "ran")

    def _keep(self, path: str, content: Content, fingerprint: Hashable) -> Stored:
        """Return the stored object for something that was computed: one that is there with equal content, or a new one."""
        hash_always = self.forced or self.mode in ("never", "lazy")
        if isinstance(content, BlobContent):
            identity: Hashable = ("blob", content)
        elif self.task.kind.in_memory:
            identity = ("memory", content)
        elif hash_always:
            identity = ("file", content.unordered)
        elif self.mode == "auto":
            return self._new(("result", fingerprint, path, content.key, content.options), None, None, content)
        else:
            # What a version's code reads outside may be other than before, so these rows are like no others.
            return self._new(object(), None, None, content)
        known = self._found(identity)
        # Equal rows in another order are as good for consumers, but are kept as they are.
        return known if known is not None and known.content == content else self._new(identity, None, None, content)

    def lazy(self) -> str:
        self._call()
        if self.task.kind.engine == "pass":
            stored = self.tables[0].stored
            assert stored is not None
            return self._record(None, None, [stored], "cached")
        contents = self._contents()
        if isinstance(contents, int):
            return self._record(None, None, contents, "ran")
        if self.task.kind.in_memory:
            identities = [("memory", content) for _, content in contents]
            found = self._all_found(identities)
            if None in found:
                self._refuse_fresh(lazy=True)
            parts = [
                item if item is not None else self._new(identity, None, None, content)
                for item, identity, (_, content) in zip(found, identities, contents, strict=True)
            ]
            return self._record(None, None, parts, "ran" if None in found else "cached")
        if self.task.kind.engine == "scan":
            # What a lazy frame holds is known only when it has been written.
            parts = [self._keep(path, content, None) for path, content in contents]
            if self.forced or self.made:
                self._refuse_fresh(lazy=True)
                return self._record(None, None, parts, "ran")
            return self._record(None, None, parts, "cached")
        return self._script(contents) if self.task.kind.engine == "script" else self._queries(contents)

    def _queries(self, contents: Sequence[tuple[str, Content]]) -> str:
        bases = [self._query(path, content) for path, content in contents]
        keys = [base if self.by_base else self._with_world(base) for base in bases]
        found = [None] * len(bases) if self.forced else self._all_found(keys, base=self.by_base)
        if None in found:
            self._refuse_fresh(lazy=True)
        parts = [
            item if item is not None else self._new_query(self._with_world(base), base, content)
            for item, base, (_, content) in zip(found, bases, contents, strict=True)
        ]
        return self._record(None, None, parts, "ran" if None in found else "cached")

    def _script(self, contents: Sequence[tuple[str, Content]]) -> str:
        base = ("script", self.stage, self.task.name, self._query("", contents[0][1]), self.inputs)
        fingerprint = self._with_world(base)
        if not self.forced:
            hit = self.memory.find_result(self.run, self.stage, base if self.by_base else fingerprint, base=self.by_base)
            if self._is_whole(hit):
                return self._point_to(hit)
        self._refuse_fresh(lazy=True)
        parts = [self._new_query((fingerprint, name), (base, name), content) for name, (_, content) in enumerate(contents)]
        return self._record(fingerprint, base, parts, "ran")

    # --- parts of these

    def _is_whole(self, hit: Result | None) -> TypeGuard[Result]:
        """Return whether a result can stand in. What of it is lost is struck, and the task runs, even if there is an older result."""
        if hit is None:
            return False
        lost = [] if isinstance(hit.parts, int) else [item for item in hit.parts if item.is_lost]
        self._strike(lost)
        return not lost

    def _found(self, key: Hashable) -> Stored | None:
        return self._all_found([key])[0]

    def _all_found(self, keys: Sequence[Hashable], *, base: bool = False) -> list[Stored | None]:
        found = [self.memory.find_object(self.run, self.stage, key, base=base) for key in keys]
        self._strike([item for item in found if item is not None and item.is_lost])
        return [None if item is not None and item.is_lost else item for item in found]

    def _strike(self, lost: Sequence[Stored]) -> None:
        for item in lost:
            item.is_struck = True
            self.simulation.expected.struck += 1

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.dies_in_call:
            raise Dies
        self.simulation.expected.calls[self.task.uid] += 1
        if self.task.failing is not Failing.NO:
            raise Fails

    def _with_world(self, base: Hashable) -> Hashable:
        if not self.task.cached:
            return base
        return ("cache", base, object() if self.options.no_cache_function else self.task.world)

    def _expression(self) -> Hashable:
        task = self.task
        rows = () if self.tables else (task.rows,)
        return (task.kind, task.constant, task.letter, task.column, rows, task.key, task.options, task.table_name)

    def _query(self, path: str, content: Content) -> Hashable:
        """What tells a query from all others, inputs by their identities."""
        task = self.task
        # The second query of a pair, or of a script, knows nothing of the task's constant but where its rows start, if there are any.
        start = None if self.tables else (task.constant if task.rows else None, task.rows)
        declared = (content.key, content.options) if isinstance(content, Frame) else ()
        own: Hashable = ("second",) if path == ITEMS[1] else (task.constant, task.column, declared)
        version = task.version if task.versioned else None
        outside = task.uid if task.cached else None
        script = task.script_name if task.kind.engine == "script" else None
        # SQLAlchemy writes the names of arguments into its queries.
        tables = tuple((item.identity, item.alias if task.kind.engine == "select" else "") for item in self.tables)
        return (
            "query",
            self.stage,
            task.name,
            version,
            task.kind.engine,
            own,
            start,
            task.letter,
            outside,
            script,
            tables,
            self._numbers(),
        )

    def _numbers(self) -> tuple[int, ...]:
        values = [number_of(item.content) for item in self.values if not isinstance(item.content, Frame)]
        return (self.task.amount, *values)

    def _contents(self) -> list[tuple[str, Content]] | int:
        tables = [item.content for item in self.tables if isinstance(item.content, Frame)]
        output = compute(self.task, tables, self._numbers()[1:], seen_world(self.task))
        if isinstance(output, tuple):
            return list(zip(ITEMS if len(output) == 2 else ("",), output, strict=True))
        return [("", output)] if isinstance(output, BlobContent) else output

    def _refuse_fresh(self, *, lazy: bool = False) -> None:
        if self.options.mode == "assert_no_fresh_input" and not self.task.fresh_allowed and (lazy or self.task.cached):
            raise Fails

    def _new(self, identity: Hashable, key: Hashable, base_key: Hashable, content: Content) -> Stored:
        self.made += 1
        return Stored(
            identity, identity if key is None else key, identity if base_key is None else base_key, content, self.generation.number
        )

    def _new_query(self, key: Hashable, base: Hashable, content: Content) -> Stored:
        assert isinstance(content, Frame)
        return self._new(("file", content.unordered) if self.forced else key, key, base, content)

    def _point_to(self, hit: Result) -> str:
        return self._save(replace(hit, position=self._position, entries=self._entries(hit.parts)), "cached")

    def _record(self, fingerprint: Hashable, base: Hashable, parts: Sequence[Stored] | int, outcome: str) -> str:
        kept = parts if isinstance(parts, int) else tuple(parts)
        return self._save(Result(fingerprint, base, self._position, shape_of(self.task), kept, self._entries(kept)), outcome)

    def _save(self, result: Result, outcome: str) -> str:
        if self.dies:
            return "killed"
        self.memory.record(self.generation, self.id, result)
        return outcome

    def _entries(self, parts: tuple[Stored, ...] | int) -> dict[str, Stored]:
        return {} if isinstance(parts, int) else dict(zip(self.simulation.model.names(self.task), parts, strict=True))

    @property
    def _position(self) -> Hashable:
        return self.simulation.model.positions[self.task.uid]
