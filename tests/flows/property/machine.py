"""Edits a flow at random, runs it after each edit, and compares what is visible with what must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.flows.property.contents import Content, Frame, Lost, evaluate
from tests.flows.property.edits import COMMON, EDITS, Drawn, apply, mended
from tests.flows.property.instance import POINTS, Instance
from tests.flows.property.memory import Memory, Retention
from tests.flows.property.model import Failing, Model
from tests.flows.property.simulation import Options, Seen, Simulation, fits
from tests.flows.property.telling import told

RETENTIONS = (Retention(), Retention(2, 1, young=False), Retention(1, 0, young=False))

#: How a flow is run after an edit, common ways more often.
WAYS = (
    *["normal"] * 10,
    "not yet",
    "not yet",
    *["threads"] * 4,
    "twice",
    "killed",
    "killed",
    "stage",
    "stage",
    "stage",
    "stage, any position",
    "task",
    "task",
    "ignore_fresh_input",
    "ignore_fresh_input",
    "force_fresh_input",
    "force_cache_invalid",
    "assert_no_fresh_input",
    "ignore version",
    "ignore_fresh_input, no cache function",
    "force_fresh_input, no cache function",
    "clean up",
)

#: What happens to the instance rather than to the flow.
HAPPENINGS = ("lose", "roll_back")

NUMBERS = st.integers(0, 23)


class EditedFlow(RuleBasedStateMachine):
    """One flow, one instance, and the memory that the instance ought to have.

    Args:
        new_folder: Returns the path of a folder that is not there yet.
    """

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        super().__init__()
        self.new_folder = new_folder
        self.model = Model()
        self.history: list[Model] = []
        self.runs = 0
        self.uid = 0
        self.instance: Instance | None = None
        self.shown: Mapping[str, Mapping[str, Content]] = {}
        self.is_sound = True

    @initialize(retention=st.sampled_from(RETENTIONS), adds=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=4, max_size=10))
    def begin(self, retention: Retention, adds: Sequence[tuple[int, int]]) -> None:
        for number, (at, value) in enumerate(adds):
            if number % 2 == 1:
                self._edit("add_stage", at, value)
            self._edit("add_task", at, value)
        self.start(retention, self.model)

    def open_instance(self, retention: Retention) -> Instance:
        """Return a new, empty instance."""
        return Instance(self.new_folder(), retention)

    def start(self, retention: Retention, model: Model) -> None:
        """Make the instance, and run a first model."""
        self.instance = self.open_instance(retention)
        self.memory = Memory(retention)
        self.model = model
        self.uid = max([self.uid, *(task.uid for task in model.tasks)])
        self._run("normal", 0)

    @rule(
        kind=st.sampled_from([*COMMON, *EDITS, *HAPPENINGS, "roll_back"]),
        at=NUMBERS,
        value=NUMBERS,
        way=st.sampled_from(WAYS),
        when=NUMBERS,
    )
    def edit(self, kind: str, at: int, value: int, way: str, when: int) -> None:
        if kind in HAPPENINGS:
            self.happen(kind, at, value)
        else:
            self._edit(kind, at, value)
        self._run(way, when)

    def teardown(self) -> None:
        """At the end all tasks are mended, and an empty instance shows the same after one run."""
        if self.instance is None:
            return
        try:
            if self.is_sound:
                self.model = mended(self.model)
                tell("at last all tasks are mended")
                self._run("normal", 0)
                self._compare_with_scratch()
        finally:
            self.instance.close()

    def _compare_with_scratch(self) -> None:
        assert self.instance is not None
        fresh = self.open_instance(Retention())
        try:
            result, watcher = fresh.run(self.model, Options())
            assert result is not None
            assert result.successful, watcher.errors
            scratch = fresh.visible()
        finally:
            fresh.close()
        compare("a run from scratch", scratch, {stage: self.shown[stage] for stage in scratch}, self.model)
        if any(isinstance(item, Lost) for names in self.shown.values() for item in names.values()):
            # In a stage that has left the flow; DuckDB cannot make a view of what is not there.
            return
        tables = {
            stage: {name: list(item.rows) for name, item in names.items() if isinstance(item, Frame)} for stage, names in self.shown.items()
        }
        explored = self.instance.explored()
        compare("explore.duckdb", {stage: names for stage, names in tables.items() if names}, explored, self.model)

    # --- inside

    def _edit(self, kind: str, at: int, value: int) -> None:
        self.uid += 1
        self.model = apply(kind, self.model, Drawn(at, value, self.uid, self.history))

    def happen(self, kind: str, at: int, value: int) -> None:
        assert self.instance is not None
        kept = [item for one in self.memory.generations.values() for item in one if item.state in ("committed", "failed")]
        self.is_sound = False
        if kind == "lose":
            choices = [(item, name) for item in reversed(kept) for name in item.entries if not item.entries[name].is_lost]
            if choices:
                item, name = choices[at % len(choices)]
                tell(f"(the edit in the line below takes {item.stage}.{name} of generation {item.number} away)")
                self.instance.lose(item.stage, item.number, name, whole=value % 3 > 0)
                item.entries[name].is_lost = True
        elif kept:
            item = kept[at % len(kept)]
            number = None if value % 2 else item.number
            tell(f"(the edit in the line below rolls {item.stage} back to {number or 'the generation before'})")
            self.runs += 1
            wanted = self.memory.roll_back(item.stage, number, self.runs)
            compare("how a rollback ends", wanted, self.instance.roll_back(item.stage, number), self.model)
        self.shown = self.instance.visible()
        compare("what is visible, by the rules", self.memory.visible(), self.shown, self.model)
        self.is_sound = True

    def _run(self, way: str, when: int) -> None:
        if way == "not yet":
            return
        self.history.append(self.model)
        if way == "clean up":
            assert self.instance is not None
            self.instance.clean_up()
            self.memory.clean_up()
            return
        self.is_sound = False
        for options in self.options(way, when):
            self.run_once(options)
        self.is_sound = True

    def options(self, way: str, when: int) -> Sequence[Options]:
        """Return how the model is run: once, twice, or not at all where it has nothing to choose."""
        model = self.model
        match way:
            case "normal":
                return [Options()]
            case "threads":
                return [Options(threads=not self._order_matters())]
            case "twice":
                return [Options(), Options()]
            case "killed":
                return [Options(point=(POINTS[when % len(POINTS)], when // len(POINTS)))]
            case "ignore version":
                return [Options(ignore_version=True)]
            case "stage" | "stage, any position" | "task" if self.memory.lacks or not all(
                fits(self.memory, model, task) for task in model.tasks
            ):
                return [Options()]
            case "task":
                return [Options(mode="force_cache_invalid", tasks=(model.tasks[when % len(model.tasks)].uid,))] if model.tasks else []
            case "stage" | "stage, any position":
                any_position = way != "stage"
                stages = model.stages
                return [Options(stages=(stages[when % len(stages)].name,), any_position=any_position)] if stages else []
            case _:
                mode, _, more = way.partition(", ")
                return [Options(mode=mode, no_cache_function=bool(more))]

    def _order_matters(self) -> bool:
        """Return whether a task finds what another one has just made, so that more than one outcome is right where they run at the same time."""
        thought = self.memory.copy()
        steps: list[str] = []
        if any(part.is_lost for one in self.memory.generations.values() for item in one for part in item.entries.values()):
            return True
        for unit in self.model.unit_order:
            tasks = [task for task in self.model.in_wiring_order if self.model.unit(task.stage) == unit]
            steps += [f"open:{unit.casefold()}", *(f"task:{self.model.full_id(task)}" for task in tasks), f"commit:{unit.casefold()}"]
        Simulation(thought, self.model, Options(), self.runs + 1).replay(Seen(tuple((step, True) for step in steps), None))
        return thought.order_matters

    def run_once(self, options: Options) -> None:
        model = self.model
        tell(f"(the edit in the line below gives this flow, which is run {how(options)})\n{told(model)}")
        assert self.instance is not None
        before = self.shown
        result, watcher = self.instance.run(model, options)
        self.runs += 1
        expected = Simulation(self.memory, model, options, self.runs).replay(watcher.seen)
        shown = self.shown = self.instance.visible()
        self.compare_with_oracle(before, shown, watcher, options)
        outcomes = {step: outcome for step, outcome in expected.outcomes.items() if outcome != "killed"}
        ended = {step: outcome for step, outcome in watcher.outcomes.items() if outcome != "skipped"}
        compare("how steps end", outcomes, ended, model, watcher.errors)
        calls = {uid: count for uid, count in watcher.calls.items() if not (watcher.killed and _is_last(model, uid, watcher.steps))}
        wanted = {uid: count for uid, count in expected.calls.items() if not (watcher.killed and _is_last(model, uid, watcher.steps))}
        compare("calls of tasks by uid", wanted, calls, model)
        compare("what is visible, by the rules", self.memory.visible(), shown, model)
        warned = any("gone or damaged" in text for text in watcher.warnings)
        if watcher.killed is None:
            compare("a warning of what is lost", expected.struck > 0, warned, model, watcher.warnings)
        if result is not None:
            compare("success", "failed" not in expected.outcomes.values(), result.successful, model, watcher.errors)

    def compare_with_oracle(self, before: Mapping[str, Any], shown: Mapping[str, Any], watcher: Any, options: Options) -> None:
        """Committed stages show what the flow says, all others what they showed before."""
        steps = [step for step, _ in watcher.steps if watcher.outcomes.get(step) in ("committed", "unchanged")]
        if watcher.killed == "after_commit":
            steps.append(watcher.steps[-1][0])
        units = {f"commit:{unit.casefold()}": stages for unit, stages in self.model.units().items()}
        committed = {stage.casefold() for step in steps for stage in units.get(step, ())}
        wanted: dict[str, Mapping[str, Content]] = {stage: names for stage, names in before.items() if stage not in committed}
        if options.mode == "ignore_fresh_input" or options.stages:
            wanted.update({stage: names for stage, names in shown.items() if stage in committed})
        else:
            truth = evaluate(self.model)
            wanted.update({stage: truth[stage] for stage in committed})
        compare("what is visible, computed", wanted, shown, self.model, watcher.errors)
        if watcher.killed is None and not options.stages and not options.tasks and options.mode != "assert_no_fresh_input":
            well = all(task.failing is Failing.NO for task in self.model.tasks)
            assert not well or {stage.name.casefold() for stage in self.model.stages} <= committed, watcher.errors


def _is_last(model: Model, uid: int, steps: Sequence[tuple[str, bool]]) -> bool:
    return steps[-1][0] == f"task:{model.full_id(model.task(uid))}"


def tell(text: str) -> None:
    if currently_in_test_context():
        note(text)


def how(options: Options) -> str:
    chosen = {name: value for name, value in vars(options).items() if value != getattr(Options, name)}
    return ", ".join(f"{name}={value!r}" for name, value in chosen.items()) or "whole, in mode normal"


def compare(what: str, wanted: Any, found: Any, model: Model, errors: Sequence[str] = ()) -> None:
    if wanted == found:
        return
    lines = [f"{what} differs.", *errors]
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        keys = [key for key in dict.fromkeys([*wanted, *found]) if wanted.get(key) != found.get(key)]
        lines += [f"  {key}: must be {wanted.get(key)}\n  {' ' * len(str(key))}      but is {found.get(key)}" for key in keys]
    else:
        lines.append(f"  must be {wanted}, but is {found}")
    raise AssertionError("\n".join([*lines, "The flow:", told(model)]))
