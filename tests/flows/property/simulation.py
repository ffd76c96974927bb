"""One run in the eyes of the rules: which functions are called, how each step ends, and what is visible afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.flows.property.contents import Frame
from tests.flows.property.execution import Dies, Execution, Fails, Input, Inputs, shape_of
from tests.flows.property.memory import Generation, Memory, Result
from tests.flows.property.model import Model, Task


@dataclass(frozen=True)
class Options:
    """What the caller of a run chooses.

    Attributes:
        mode: Name of the cache validation mode, in lower case.
        ignore_version, no_cache_function, any_position: `ignore_task_version`, `disable_cache_function`, `ignore_position_hashes`.
        stages, tasks: A selection: stage names, or uids.
        threads: Run by the thread engine.
        point: Where the run is killed, as (name of the point, how often it is passed before); None if it is not.
    """

    mode: str = "normal"
    ignore_version: bool = False
    no_cache_function: bool = False
    any_position: bool = False
    threads: bool = False
    stages: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    point: tuple[str, int] | None = None


@dataclass(frozen=True)
class Seen:
    """What was observed of a run, as far as the rules leave it open: the order of steps, and where it was killed.

    Attributes:
        steps: (id, whether it was started) of the steps that were started or skipped, in order.
        killed: The point at which the run was killed in the last of these, or None.
        calls: How often that step had called its task's function, the last time included.
    """

    steps: tuple[tuple[str, bool], ...]
    killed: str | None
    calls: int = 0


@dataclass
class Expected:
    """What the rules say of a run: step -> outcome, uid -> calls of the task's function, and how often something stored turns out to be lost."""

    outcomes: dict[str, str] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)
    struck: int = 0


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
        self.open: dict[str, Generation] = {}
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
                    outcome = self._do_task(self._tasks[step], killed, seen.calls)
                elif kind == "commit":
                    outcome = self._do_commit(name) if killed != "before_commit" else "killed"
                elif killed != "before_finish":
                    outcome = self._do_finish(killed)
            except Fails:
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
        self.open.update(opened)
        self._own.update(opened)
        return "opened"

    def _do_commit(self, unit: str) -> str:
        opened = [item for item in self.open.values() if item.unit == unit]
        changed = self.memory.commit(opened)
        for item in opened:
            del self.open[item.stage]
            self._own[item.stage] = self.memory.current[item.stage]
        return "committed" if changed else "unchanged"

    def _do_finish(self, killed: str | None) -> str:
        self.memory.fail_run(self.run)
        if killed is None:
            self.memory.clean_up()
        return "finished"

    # --- tasks

    def _do_task(self, task: Task, killed: str | None, calls: int) -> str:
        inputs = self._inputs(task)
        mode = task.kind.mode
        forced = (
            self.options.mode == "force_cache_invalid"
            or (self.options.mode == "force_fresh_input" and task.cached)
            or (self.options.ignore_version and (mode == "version" or (mode == "lazy" and task.versioned)))
        )
        one = Execution(self, task, inputs, mode, forced, killed == "before_record", calls if killed == "call" else 0)
        try:
            return one.lazy() if mode == "lazy" else one.eager()
        except Dies:
            return "killed"

    def _inputs(self, task: Task) -> Inputs:
        found = Inputs(task)
        for source in task.inputs:
            upstream = self.model.task(source.task)
            parts = self._result_of(upstream).parts
            taken = self.model.taken(source)
            if isinstance(parts, int):
                found.values.append(Input(("plain", parts), parts))
            elif not isinstance(parts[0].content, Frame):
                found.values.append(Input(parts[0].identity, parts[0].content, parts[0]))
            elif len(taken) == 1:
                item = parts[taken[0]]
                found.tables.append(Input(item.identity, item.content, item, str(len(found.nests))))
                found.nests.append(item.identity)
            else:
                keys = self.model.keys(source)
                found.tables += [Input(item.identity, item.content, item, key) for key, item in zip(keys, parts, strict=True)]
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
        raise Fails


def fits(memory: Memory, model: Model, task: Task) -> bool:
    """Return whether what is visible under a task's id, if anything, is what its consumers expect: wherever it stands in the wiring."""
    current = memory.current.get(task.stage.casefold())
    result = current.results.get(model.ids[task.uid]) if current is not None else None
    return result is None or result.shape == shape_of(task)
