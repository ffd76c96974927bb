"""Processes that run the pipeline and die on the way: by their own hand at a given place, or at any moment from outside."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

from pipedag_core.ports.events import PointReached, RunFinished
from tests.flows.crash import pipeline
from tests.flows.crash.processes import fork_context

#: What Python tells about files before it touches them; opening is told for each file that is read, too.
_FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Executioner:
    """Counts named points and file operations of a run, and ends the process at the chosen one.

    Attributes:
        folder: Files elsewhere do not count.
        points, files: Dies at this point, or before this file operation, counted from 0; None for not at all.
        passed: The names of all points that were passed.
        touched: How many file operations there were.
    """

    folder: str
    points: int | None = None
    files: int | None = None
    passed: tuple = ()
    touched: int = 0

    def on_event(self, event):
        if isinstance(event, PointReached | RunFinished):
            if self.points == len(self.passed):
                _die()
            self.passed += (event.point if isinstance(event, PointReached) else "finished",)

    def watch_files(self):
        sys.addaudithook(self._on_audit)

    def _on_audit(self, name, args):
        if name not in _FILE_EVENTS or not str(args[0]).startswith(self.folder):
            return
        if name == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if self.files == self.touched:
            _die()
        self.touched += 1


def _live(pipe, place, marker, points, files, threads):
    executioner = Executioner(place.folder, points, files)
    executioner.watch_files()
    pipe.send("born")
    result = pipeline.run(place, marker, threads=threads, observers=[executioner])
    pipe.send((result.successful, executioner.passed, executioner.touched))


class Life:
    """One process that runs the pipeline once.

    Args:
        place, marker: Where, and with which marker.
        points, files: Where it dies by its own hand; see `Executioner`.
        threads: Whether steps run at the same time.
    """

    def __init__(self, place, marker, *, points=None, files=None, threads=False):
        self._place = place
        context = fork_context()
        self._here, there = context.Pipe()
        self._process = context.Process(target=_live, args=(there, place, marker, points, files, threads))
        self._process.start()
        there.close()
        assert self._here.recv() == "born"

    def ended_within(self, seconds):
        """Wait for at most so many seconds, and return whether it has ended."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    def kill(self):
        """Kill it now, if it still lives, and return whether it did."""
        self._process.kill()
        self._process.join()
        self._place.settle()
        return self._process.exitcode == -signal.SIGKILL

    def end(self):
        """Wait for its end and return (successful, names of points, number of file operations); None if it was killed."""
        try:
            told = self._here.recv()
        except EOFError:
            told = None
        self._process.join()
        self._place.settle()
        assert (told is None) == (self._process.exitcode == -signal.SIGKILL), self._process.exitcode
        return told
