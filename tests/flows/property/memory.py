"""What an instance remembers, in plain Python: generations, results, stored objects and retention, by the words of docs/caching.md."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.flows.property.contents import Content, Frame, Lost


@dataclass(frozen=True)
class Retention:
    """What clean-up keeps; `young` keeps everything, since all of it is younger than the minimum age."""

    committed: int = 2
    failed: int = 1
    young: bool = True


@dataclass(eq=False)
class Stored:
    """A stored table or blob: one of its kind, like a row of the catalog.

    Attributes:
        identity: What it is, for its consumers.
        key, base_key: What made it, with and without the cache function's value.
        content: What it holds.
        generation: Where it was written.
        is_lost: Its file was taken away by hand.
        is_struck: That was found out, so that it stands in for nothing any more.
    """

    identity: Hashable
    key: Hashable
    base_key: Hashable
    content: Content
    generation: int
    is_lost: bool = False
    is_struck: bool = False

    @property
    def shown(self) -> Content:
        """What readers see of it."""
        if self.is_lost:
            return Lost()
        return self.content.unordered if isinstance(self.content, Frame) else self.content


@dataclass(frozen=True)
class Result:
    """What a task gave in one generation.

    Attributes:
        fingerprint, base: Of what it did; None for what is never looked up.
        position: Its place in the wiring.
        shape: How the output is nested, with declared names.
        parts: The stored objects in it, in order; or its plain value.
        entries: Readable name -> stored object.
        number: Grows with every recording.
    """

    fingerprint: Hashable
    base: Hashable
    position: Hashable
    shape: Hashable
    parts: tuple[Stored, ...] | int
    entries: Mapping[str, Stored]
    number: int = 0

    @property
    def is_struck(self) -> bool:
        return not isinstance(self.parts, int) and any(item.is_struck for item in self.parts)


@dataclass(eq=False)
class Generation:
    """One generation of one stage. `state` is open, committed, failed, expired or scratch; `commit` is the same for all that were committed at once."""

    stage: str
    number: int
    unit: str
    run: int
    state: str
    commit: int = 0
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Stored]:
        return {name: item for result in self.results.values() for name, item in result.entries.items()}


class Memory:
    """All generations of an instance."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.generations: dict[str, list[Generation]] = {}
        self.current: dict[str, Generation] = {}
        self._next: dict[str, int] = {}
        self._recorded = 0
        self._commits = 0
        self.order_matters = False

    def copy(self) -> Memory:
        """Return a memory of the same, for a run that is only thought of."""
        other = Memory(self.retention)
        for stage, generations in self.generations.items():
            other.generations[stage] = [replace(item, results=dict(item.results)) for item in generations]
            for old, new in zip(generations, other.generations[stage], strict=True):
                if self.current.get(stage) is old:
                    other.current[stage] = new
        other._next, other._recorded, other._commits = dict(self._next), self._recorded, self._commits
        return other

    # --- writing

    def open(self, unit: Sequence[str], run: int, *, scratch: bool) -> dict[str, Generation]:
        """Open a generation of each stage of a unit. What a dead run has left open there has failed."""
        if not scratch:
            units = {item.unit for stage in unit for item in self.generations.get(stage, ()) if item.state == "open"} | {unit[0]}
            for item in self._all():
                if item.state == "open" and item.unit in units:
                    item.state = "failed"
        opened: dict[str, Generation] = {}
        for stage in unit:
            number = self._next[stage] = self._next.get(stage, 0) + 1
            opened[stage] = Generation(stage, number, unit[0], run, "scratch" if scratch else "open")
            self.generations.setdefault(stage, []).append(opened[stage])
        return opened

    def record(self, generation: Generation, task: str, result: Result) -> Result:
        """Record a task's result."""
        self.order_matters |= any(_competes(result, other) for name, other in generation.results.items() if name != task)
        self._recorded += 1
        generation.results[task] = replace(result, number=self._recorded)
        return generation.results[task]

    def commit(self, opened: Sequence[Generation]) -> bool:
        """Make generations current; return whether anything changed."""
        changed = any(self._differs(item) for item in opened)
        self._commits += 1
        for item in opened:
            if changed:
                item.commit = self._commits
                item.state = "committed"
                self.current[item.stage] = item
            else:
                current = self.current[item.stage]
                for task, result in item.results.items():
                    current.results[task] = replace(current.results[task], position=result.position)
                self.generations[item.stage].remove(item)
        return changed

    def _differs(self, new: Generation) -> bool:
        old = self.current.get(new.stage)
        if old is None or old.entries.keys() != new.entries.keys() or old.results.keys() != new.results.keys():
            return True
        if any(old.entries[name] is not item for name, item in new.entries.items()):
            return True
        return any(not _equal(old.results[task], result) for task, result in new.results.items())

    def roll_back(self, stage: str, number: int | None, run: int) -> str:
        """Make an earlier generation current again; return how that ends: "changed", "unchanged", "missing", or "refused"."""
        current = self.current.get(stage)
        if current is None:
            return "refused"
        known = [item for item in self.generations[stage] if item.state == "committed"]
        older = [item for item in known if item.number < current.number]
        wanted = max(older, key=lambda item: item.number, default=None) if number is None else None
        wanted = wanted or next((item for item in known if item.number == number), None)
        if wanted is None:
            return "refused"
        target = {item.stage: item for item in self._all() if item.state == "committed" and item.commit == wanted.commit}
        present = {item.stage for item in self._all() if item.commit == current.commit and item is self.current.get(item.stage)}
        if target.keys() != present or wanted.unit != current.unit:
            return "refused"
        if not any(self._differs(item) for item in target.values()):
            return "unchanged"
        lost = [part for item in target.values() for part in item.entries.values() if part.is_lost]
        if lost:
            struck = any(part.is_struck for part in lost)
            for part in [] if struck else lost:
                part.is_struck = True
            return "missing"
        # What a dead run has left open there has failed.
        opened = self.open([wanted.unit, *(name for name in target if name != wanted.unit)], run, scratch=False)
        for name, item in opened.items():
            for task, result in target[name].results.items():
                self.record(item, task, result)
        self.commit(list(opened.values()))
        return "changed"

    def fail_run(self, run: int, unit: str | None = None) -> None:
        """A run has ended, or has given up a unit: what it has open there has failed."""
        for item in self._all():
            if item.state == "open" and item.run == run and unit in (None, item.unit):
                item.state = "failed"

    def clean_up(self) -> None:
        """Forget what retention does not keep."""
        if self.retention.young:
            return
        for stage, generations in self.generations.items():
            left = {"committed": self.retention.committed, "failed": self.retention.failed, "scratch": 0}
            for item in reversed(list(generations)):
                if item.state == "open":
                    continue
                left[item.state] -= 1
                if left[item.state] < 0 and item is not self.current.get(stage):
                    generations.remove(item)

    # --- finding

    def find_result(self, run: int, stage: str, fingerprint: Hashable, *, base: bool) -> Result | None:
        """Return the newest result with a fingerprint."""

        def newest(generations: Iterator[Generation]) -> Result | None:
            found = [
                result
                for item in generations
                for result in item.results.values()
                if fingerprint is not None and not result.is_struck and (result.base if base else result.fingerprint) == fingerprint
            ]
            return max(found, key=lambda result: result.number, default=None)

        found, before = newest(self._eligible(run, stage)), newest(self._eligible(None, stage))
        self.order_matters |= (found and found.parts) != (before and before.parts)
        return found

    def find_object(self, run: int, stage: str, key: Hashable, *, base: bool = False) -> Stored | None:
        """Return the newest stored object with a key: that in the newest generation."""

        def newest(generations: Iterator[Generation]) -> Stored | None:
            best: tuple[int, int] = (0, 0)
            found: Stored | None = None
            for item in generations:
                for result in item.results.values():
                    for stored in result.parts if isinstance(result.parts, tuple) else ():
                        if (
                            not stored.is_struck
                            and (stored.base_key if base else stored.key) == key
                            and (item.number, stored.generation) > best
                        ):
                            best, found = (item.number, stored.generation), stored
            return found

        found = newest(self._eligible(run, stage))
        self.order_matters |= found is not newest(self._eligible(None, stage))
        return found

    def _eligible(self, run: int | None, stage: str) -> Iterator[Generation]:
        for item in self.generations.get(stage, ()):
            if item.state in ("committed", "failed") or (item.state == "open" and item.run == run):
                yield item

    def _all(self) -> Iterator[Generation]:
        for generations in self.generations.values():
            yield from generations

    @property
    def lacks(self) -> bool:
        """Whether readers see something that is lost."""
        return any(part.is_lost for item in self.current.values() for part in item.entries.values())

    def visible(self) -> dict[str, dict[str, Content]]:
        """Return stage -> readable name -> content, of what readers see."""
        return {stage: {name: item.shown for name, item in one.entries.items()} for stage, one in self.current.items()}


def _competes(new: Result, old: Result) -> bool:
    """Return whether a later run that asks for neither's fresh input could find both, and takes the one that was recorded last."""
    if new.base is not None and new.base == old.base and new.parts != old.parts:
        return True
    ours, theirs = (item.parts if isinstance(item.parts, tuple) else () for item in (new, old))
    return any(a is not b and a.base_key == b.base_key for a in ours for b in theirs)


def _equal(old: Result, new: Result) -> bool:
    if old.fingerprint != new.fingerprint or old.shape != new.shape:
        return False
    if isinstance(old.parts, int) or isinstance(new.parts, int):
        return old.parts == new.parts
    return len(old.parts) == len(new.parts) and all(a is b for a, b in zip(old.parts, new.parts, strict=True))
