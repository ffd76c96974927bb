"""How everything here is timed: in turns, several times, and the median counts. Standard library only, as both environments use it."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class Unavailable(Exception):
    """Something cannot be measured here; the message says why and what would help."""


@dataclass(frozen=True)
class Timing:
    """Several measurements of one thing, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        what: What was measured.
        value: The median, in `unit`.
        unit: Unit of `value` and `raw`, `ms` for one.
        raw_what, raw: What nobody can be faster than, and its median in the same run; None where there is no such thing.
        compared: How value and raw compare: "above" (value - raw, in `unit`), "times" (value / raw), or "" (value counts as it is).
        limit: What `compared` may come to at most; None if it is shown for comparison only.
        holds: Whether all that was to be true besides the limit is true.
        samples: All measurements behind `value`, in `unit`.
        raw_samples: All measurements behind `raw`, in `unit`.
        note: What else there is to know.
    """

    what: str
    value: float
    unit: str
    raw_what: str = ""
    raw: float | None = None
    compared: str = ""
    limit: float | None = None
    holds: bool = True
    samples: tuple[float, ...] = ()
    raw_samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def figure(self) -> float:
        """The number that `limit` is about."""
        if self.raw is None or not self.compared:
            return self.value
        return self.value - self.raw if self.compared == "above" else self.value / self.raw

    @property
    def within(self) -> bool | None:
        """Whether the limit is kept, and all else that was to be true; None if there is no limit."""
        return None if self.limit is None else self.holds and self.figure <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the row with what follows from it, for the JSON file."""
        return asdict(self) | {"figure": self.figure, "within": self.within}


def row(what: str, timing: Timing, *, per: int = 1, raw: Timing | None = None, **options: Any) -> Row:
    """Return the row for a timing, in milliseconds per one of `per` things."""
    scale = 1000 / per
    return Row(
        what,
        timing.median * scale,
        "ms",
        raw=None if raw is None else raw.median * scale,
        samples=tuple(second * scale for second in timing.seconds),
        raw_samples=() if raw is None else tuple(second * scale for second in raw.seconds),
        **options,
    )


@dataclass
class Stopwatch:
    """Measures one run: what stands in `with watch:` counts, what stands around it does not."""

    seconds: float = 0.0
    _since: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def in_turns(runs: Mapping[str, Callable[[Stopwatch], object]], repeats: int, *, warmups: int = 1) -> dict[str, Timing]:
    """Time several things in turns, so that a slow moment of the machine hits all of them, and every second turn backwards.

    What runs second finds memory that the first has just let go of, and what runs after a large file was written shares the disk with
    its last pages. With both orders neither side has that for itself. An even number of `repeats` gives each order as often.

    Args:
        runs: Name -> function that does the thing once, with what counts inside `with watch:`.
        repeats: Measurements of each.
        warmups: Rounds before that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmups + repeats):
        for name, run in reversed(runs.items()) if turn % 2 else runs.items():
            watch = Stopwatch()
            # Garbage of one must not be paid for by the next.
            gc.collect()
            run(watch)
            if turn >= warmups:
                seconds[name].append(watch.seconds)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def interpreter(code: str, *, python: str = sys.executable, environment: Mapping[str, str] | None = None) -> Callable[[Stopwatch], object]:
    """Return a run that starts a Python process for this code and waits for its end."""
    command: Sequence[str] = (python, "-c", code)

    def run(watch: Stopwatch) -> None:
        with watch:
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    return run
