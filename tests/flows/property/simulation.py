"""One run in the eyes of the rules: which functions are called, how each step ends, and what is visible afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from tests.flows.property.contents import BlobContent, Content, Frame, compute, number_of, seen_world
from tests.flows.property.memory import Generation, Memory, Result, Stored
from tests.flows.property.model import ITEMS, Failing, Model, Task


@dataclass(frozen=True)
class Options:
    """What the caller of a run chooses.

    Attributes:
        mode: Name of the cache validation mode, in lower case.
        ignore_version, no_cache_function, any_position: `ignore_task_version`, `disable_cache_function`, `ignore_position_hashes`.
        stages, tasks: A selection: stage names, or uids.
        point: Where the run is killed, as (name of the point, how often it is passed before); None if it is not.
    """

    mode: str = "normal"
    ignore_version: bool = False
    no_cache_function: bool = False
    any_position: bool = False
    stages: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    point: tuple[str, int] | None = None


@dataclass(frozen=True)
class Seen:
    """What was observed of a run, as far as the rules leave it open: the order of steps, and where it was killed.

    Attributes:
        steps: (id, whether it was started) of the steps that were started or skipped, in order.
        killed: The point at which the run was killed in the last of these, or None.
    """

    steps: tuple[tuple[str, bool], ...]
    killed: str | None


@dataclass
class Expected:
    """What the rules say of a run: step -> outcome, and uid -> calls of the task's function."""

    outcomes: dict[str, str] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)


class _Fails(Exception):
    """The step fails."""


@dataclass(frozen=True)
class _Input:
    identity: Hashable
    content: Content | int
    stored: Stored | None = None
    alias: str = ""


@dataclass
class _Inputs:
    """A task's arguments. `nests` are the tables as they are nested, by their identities."""

    task: Task
    tables: list[_Input] = field(default_factory=list)
    values: list[_Input] = field(default_factory=list)
    nests: list[Hashable] = field(default_factory=list)

    @property
    def hashed(self) -> Hashable:
        return (tuple(self.nests), tuple(item.identity for item in self.values), repr(self.task.given))


class Simulation:
    """Replays one run on a memory.

    Args:
        memory: What the instance remembers; it is changed.
        model: The flow.
        options: How it is run.
        run: A number of the run's own.
    """

    def __init__(self, memory: Memory, model: Model, options: Options, run: int) -> None:
        self.memory = memory
        self.model = model
        self.options = options
        self.run = run
        self.expected = Expected()
        self._tasks = {f"task:{model.full_id(task)}": task for task in model.tasks}
        self._selected = {task.uid for task in model.tasks if self._is_selected(task)}
        self._open: dict[str, Generation] = {}
        self._own: dict[str, Generation] = {}
        self._ended: set[str] = set()
        self._steps_of: dict[str, set[str]] = {}
        for task in model.tasks:
            if task.uid in self._selected:
                unit = model.unit(task.stage).casefold()
                self._steps_of.setdefault(unit, {f"open:{unit}", f"commit:{unit}"}).add(f"task:{model.full_id(task)}")

    def _is_selected(self, task: Task) -> bool:
        if self.options.tasks:
            return task.uid in self.options.tasks
        units = {self.model.unit(stage) for stage in self.options.stages}
        return not units or self.model.unit(task.stage) in units

    def replay(self, seen: Seen) -> Expected:
        """Carry out the steps that were started, in their order."""
        for step, started in seen.steps:
            if not started:
                self._note(step)
                continue
            killed = seen.killed if step == seen.steps[-1][0] else None
            kind, _, name = step.partition(":")
            outcome = "killed"
            try:
                if kind == "open":
                    outcome = self._do_open(name)
                elif kind == "task":
                    outcome = self._do_task(self._tasks[step], killed)
                elif kind == "commit":
                    outcome = self._do_commit(name) if killed != "before_commit" else "killed"
                elif killed != "before_finish":
                    outcome = self._do_finish(killed)
            except _Fails:
                outcome = "failed"
            self.expected.outcomes[step] = outcome if killed is None else "killed"
            if killed is None:
                self._note(step)
        return self.expected

    def _note(self, step: str) -> None:
        """A step has ended or was skipped. A unit of which nothing is left to do is given up if it was not committed."""
        self._ended.add(step)
        for unit, steps in self._steps_of.items():
            if step in steps and steps <= self._ended:
                self.memory.fail_run(self.run, unit)

    def _do_open(self, unit: str) -> str:
        stages = next(stages for root, stages in self.model.units().items() if root.casefold() == unit)
        opened = self.memory.open([stage.casefold() for stage in stages], self.run, scratch=bool(self.options.tasks))
        self._open.update(opened)
        self._own.update(opened)
        return "opened"

    def _do_commit(self, unit: str) -> str:
        opened = [item for item in self._open.values() if item.unit == unit]
        changed = self.memory.commit(opened)
        for item in opened:
            del self._open[item.stage]
            self._own[item.stage] = self.memory.current[item.stage]
        return "committed" if changed else "unchanged"

    def _do_finish(self, killed: str | None) -> str:
        self.memory.fail_run(self.run)
        if killed is None:
            self.memory.clean_up()
        return "finished"

    # --- tasks

    def _do_task(self, task: Task, killed: str | None) -> str:
        inputs = self._inputs(task)
        if killed == "call":
            return "killed"
        mode = task.kind.mode
        forced = (
            self.options.mode == "force_cache_invalid"
            or (self.options.mode == "force_fresh_input" and task.cached)
            or (self.options.ignore_version and mode == "version")
        )
        one = _Execution(self, task, inputs, mode, forced, killed == "before_record")
        return one.lazy() if mode == "lazy" else one.eager()

    def _inputs(self, task: Task) -> _Inputs:
        found = _Inputs(task)
        for source in task.inputs:
            upstream = self.model.task(source.task)
            parts = self._result_of(upstream).parts
            taken = self.model.taken(source)
            if isinstance(parts, int):
                found.values.append(_Input(("plain", parts), parts))
            elif not isinstance(parts[0].content, Frame):
                found.values.append(_Input(parts[0].identity, parts[0].content, parts[0]))
            elif len(taken) == 1:
                item = parts[taken[0]]
                found.tables.append(_Input(item.identity, item.content, item, str(len(found.nests))))
                found.nests.append(item.identity)
            else:
                keys = self.model.keys(source)
                found.tables += [_Input(item.identity, item.content, item, key) for key, item in zip(keys, parts, strict=True)]
                found.nests.append((upstream.kind.engine == "script", keys, tuple(item.identity for item in parts)))
        return found

    def _result_of(self, upstream: Task) -> Result:
        stage, id = upstream.stage.casefold(), self.model.ids[upstream.uid]
        own = self._own.get(stage)
        if own is not None and id in own.results:
            return own.results[id]
        pinned = self.memory.current.get(stage)
        if (own is None or own.state == "scratch") and pinned is not None and id in pinned.results:
            inside = upstream.uid in self._selected or self.options.any_position
            if inside or pinned.results[id].position == self.model.positions[upstream.uid]:
                return pinned.results[id]
        raise _Fails


def fits(memory: Memory, model: Model, task: Task) -> bool:
    """Return whether what is visible under a task's id, if anything, is what its consumers expect: wherever it stands in the wiring."""
    current = memory.current.get(task.stage.casefold())
    result = current.results.get(model.ids[task.uid]) if current is not None else None
    return result is None or result.shape == _shape(task)


def _shape(task: Task) -> Hashable:
    declared = task.script_name if task.kind.engine == "script" else task.table_name
    return (task.kind.shape, task.kind.engine == "script", None if task.kind.shape == "value" else declared)


class _Execution:
    """One task step."""

    def __init__(
        self,
        simulation: Simulation,
        task: Task,
        inputs: _Inputs,
        mode: str,
        forced: bool,
        dies: bool,
    ) -> None:
        self.simulation = simulation
        self.memory = simulation.memory
        self.options = simulation.options
        self.run = simulation.run
        self.task = task
        self.stage = task.stage.casefold()
        self.id = simulation.model.ids[task.uid]
        self.generation = simulation._open[self.stage]
        self.tables, self.values, self.inputs = inputs.tables, inputs.values, inputs.hashed
        self.mode = mode
        self.forced = forced
        self.dies = dies
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
                if hit is not None:
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
            return self._new(("result", fingerprint, path, content.key), None, None, content)
        else:
            # What a version's code reads outside may be other than before, so these rows are like no others.
            return self._new(object(), None, None, content)
        known = self.memory.find_object(self.run, self.stage, identity)
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
            found = [self.memory.find_object(self.run, self.stage, identity) for identity in identities]
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
        found = [
            None
            if self.forced
            else self.memory.find_object(self.run, self.stage, base if self.by_base else self._with_world(base), base=self.by_base)
            for base in bases
        ]
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
            if hit is not None:
                return self._point_to(hit)
        self._refuse_fresh(lazy=True)
        parts = [self._new_query((fingerprint, name), (base, name), content) for name, (_, content) in enumerate(contents)]
        return self._record(fingerprint, base, parts, "ran")

    # --- parts of these

    def _call(self) -> None:
        self.simulation.expected.calls[self.task.uid] += 1
        if self.task.failing is not Failing.NO:
            raise _Fails

    def _with_world(self, base: Hashable) -> Hashable:
        if not self.task.cached:
            return base
        return ("cache", base, self if self.options.no_cache_function else self.task.world)

    def _expression(self) -> Hashable:
        task = self.task
        return (task.kind, task.constant, task.letter, task.column, () if self.tables else (task.rows,), task.key, task.table_name)

    def _query(self, path: str, content: Content) -> Hashable:
        """What tells a query from all others, inputs by their identities."""
        task = self.task
        start = None if self.tables else (task.constant, task.rows)
        # The second query of a pair, or of a script, knows nothing of the task's constant but where its rows start.
        own: Hashable = ("second",) if path == ITEMS[1] else (task.constant, task.column, isinstance(content, Frame) and content.key)
        outside = task.uid if task.cached else None
        script = task.script_name if task.kind.engine == "script" else None
        # SQLAlchemy writes the names of arguments into its queries.
        tables = tuple((item.identity, item.alias if task.kind.engine == "select" else "") for item in self.tables)
        return ("query", self.stage, task.name, task.kind.engine, own, start, task.letter, outside, script, tables, self._numbers())

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
            raise _Fails

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
        return self._save(Result(fingerprint, base, self._position, _shape(self.task), kept, self._entries(kept)), outcome)

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
