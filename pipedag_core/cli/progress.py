"""Shows a run while it goes on: with a live line on a terminal, with plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, final

import typer

from pipedag_core.cli.tables import count, span
from pipedag_core.ports.events import Event, Outcome, RunStarted, StepEnded, StepReport, StepStarted

_COLOURS: Final = {
    Outcome.RAN: "green",
    Outcome.CACHED: "cyan",
    Outcome.COMMITTED: "green",
    Outcome.UNCHANGED: "cyan",
    Outcome.FAILED: "red",
    Outcome.SKIPPED: "yellow",
    Outcome.WAITING: "yellow",
}
#: Outcomes that are the course of things, and not worth a line.
_SILENT: Final = {Outcome.OPENED, Outcome.FINISHED}


def name_of(report: StepReport) -> str:
    """Return what a step is about: `features.joined` for a task, `stage features`, or the step's id."""
    if report.task is not None:
        return f"{report.stage}.{report.task}"
    return f"stage {report.stage}" if report.stage is not None else report.step


def line(report: StepReport) -> str:
    """Return a report as one line: outcome, name, and what is known of reason, rows and seconds."""
    details = [
        report.reason,
        count(report.rows, "row"),
        span(report.seconds) if report.outcome not in (Outcome.SKIPPED, Outcome.WAITING) else "",
    ]
    if report.outcome is Outcome.FAILED and not report.reason:
        details[0] = report.message.partition("\n")[0]
    told = "  ".join(detail for detail in details if detail)
    # A longer name pushes the rest by as much as it needs, and keeps one space.
    return f"{report.outcome.value:<9}  {name_of(report):<33} {told}".rstrip()


def say(text: str) -> None:
    """Write a line to standard output, and go quiet once nobody reads it any more (`pipedag run ... | head`)."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        # From here on everything goes nowhere, also what tasks print and what Python writes when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def summary(flow: str, instance: str, run_id: str, reports: Sequence[StepReport], seconds: float) -> str:
    """Return a run in one line."""
    failed = any(not report.outcome.is_good for report in reports)
    parts: list[str] = []
    for what, chosen in (
        ("task", [r for r in reports if r.task is not None]),
        ("stage", [r for r in reports if r.step.startswith("commit:")]),
    ):
        outcomes = [report.outcome.value for report in chosen]
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
        if outcomes:
            parts.append(f"{count(len(outcomes), what)} ({counts})")
    state = "failed" if failed else "succeeded"
    return f"flow {flow}, instance {instance}: {state} in {span(seconds)}; {'; '.join(parts) or 'nothing to do'}; run {run_id}"


class Recorder:
    """Keeps all reports of a run, and hands each line to a function.

    Attributes:
        run_id: The run, once it has started.
        reports: One per step, in the order in which they ended.
        at_work: Ids of the steps that have begun and not ended.
    """

    def __init__(self, write: Callable[[StepReport], None]) -> None:
        self.run_id = ""
        self.reports: list[StepReport] = []
        self.at_work: dict[str, None] = {}
        self._write = write
        self._waiting: set[str] = set()
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, RunStarted):
            self.run_id = event.run_id
        elif isinstance(event, StepStarted):
            with self._lock:
                self.at_work[event.step] = None
        elif isinstance(event, StepEnded):
            with self._lock:
                self.at_work.pop(event.report.step, None)
                self._note(event.report)

    def _note(self, report: StepReport) -> None:
        if report.outcome is Outcome.WAITING:
            if report.step in self._waiting:
                return
            self._waiting.add(report.step)
        else:
            self.reports.append(report)
        if report.outcome not in _SILENT and not (report.outcome is Outcome.SKIPPED and report.step.startswith("open:")):
            self._write(report)


@final
class PlainProgress:
    """One plain line per task and commit; a context manager, as `LiveProgress` is."""

    def __init__(self) -> None:
        self.recorder = Recorder(lambda report: say(line(report)))

    def on_event(self, event: Event) -> None:
        """Show an event."""
        self.recorder.on_event(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        return None


@final
class LiveProgress:
    """The same lines, coloured, above a line that shows how far the run is and what is at work."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console()
        self._progress = Progress(
            SpinnerColumn(),
            *([BarColumn(bar_width=24)] if console.width >= 80 else []),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._bar = self._progress.add_task("", total=None, visible=False)
        self._lock = threading.Lock()
        self.recorder = Recorder(self._write)

    def on_event(self, event: Event) -> None:
        """Show an event."""
        self.recorder.on_event(event)
        with self._lock:
            if isinstance(event, RunStarted):
                self._progress.update(self._bar, total=len(event.steps), visible=True)
            elif isinstance(event, StepEnded) and event.report.outcome is not Outcome.WAITING:
                self._progress.advance(self._bar)
            self._progress.update(self._bar, description=", ".join(name.removeprefix("task:") for name in list(self.recorder.at_work)))

    def _write(self, report: StepReport) -> None:
        from rich.text import Text

        outcome = report.outcome.value
        text = Text(line(report))
        text.stylize(_COLOURS.get(report.outcome, ""), 0, len(outcome))
        self._progress.console.print(text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._progress.stop()


def choose_progress() -> Any:
    """Return the display that fits where the output goes."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
