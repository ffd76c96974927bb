"""A command that does the work of an operator: in a process group of its own, its words in the task's log, gone when the operator is killed."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from airflow.sdk.exceptions import AirflowFailException

log = logging.getLogger(__name__)

#: Seconds that a command gets to end by itself.
_GRACE_S: Final = 10.0
#: Lines of a failing command that its error shows.
_TAIL: Final = 30
#: Exit code of `pipedag` for wrong usage or configuration, where trying again cannot help.
MISUSE: Final = 2


@final
class Command:
    """A command, to be run once.

    Args:
        words: The command.
        project: Folder in which it runs, and from which Python imports first; None for the present one.
        variables: Environment variables beside those of this process.

    Attributes:
        words: The command.
        code: Its exit code, after `run`.
        out: The lines of its standard output.
        tail: The last lines that people want to see.
    """

    def __init__(self, words: Sequence[str], project: Path | None, variables: Mapping[str, str]) -> None:
        self.words = list(words)
        self.code = 0
        self.out: list[str] = []
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._project = project
        self._environment = {**os.environ, **variables}
        if project is not None:
            path = self._environment.get("PYTHONPATH")
            self._environment["PYTHONPATH"] = os.pathsep.join([str(project), *([path] if path else [])])
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Run it; what it says goes to the log line by line, but for lines of JSON on standard output.

        Raises:
            AirflowFailException: There is no such command or folder.
        """
        log.info("$ %s", shlex.join(self.words))
        try:
            process = self._process = subprocess.Popen(  # noqa: S603 -- the words are those of whoever wrote the DAG
                self.words,
                cwd=self._project,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise AirflowFailException(
                f"The command cannot be run: {error}. Look at python=, command= and project= of the task."
            ) from error

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self._hear(line)

        listener = threading.Thread(target=listen, name="pipedag-stderr", daemon=True)
        listener.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                self.out.append(line)
                if not line.startswith("{"):
                    self._hear(line)
            self.code = process.wait()
        except BaseException:
            # An interruption or a timeout of Airflow's: the work must not go on alone.
            self.stop()
            raise
        finally:
            listener.join(_GRACE_S)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def stop(self) -> None:
        """End it, with all its children."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def report(self) -> dict[str, Any] | None:
        """Return the last report on its standard output: a line of JSON with an outcome."""
        for line in reversed(self.out):
            if line.startswith("{"):
                with suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict) and "outcome" in found:
                        return found
        return None

    def told(self) -> str:
        """Return what to say of its failure."""
        how = f"was ended by signal {-self.code}" if self.code < 0 else f"ended with {self.code}"
        return "\n".join([f"{shlex.join(self.words)} {how}:", *self.tail])

    def _hear(self, line: str) -> None:
        self.tail.append(line.rstrip())
        log.info("%s", line.rstrip())


def first_words(command: str | Sequence[str] | None, python: str | None) -> list[str]:
    """Return the words that stand for `pipedag`."""
    if command:
        return shlex.split(command) if isinstance(command, str) else list(command)
    return [python, "-m", "pipedag_core"] if python else ["pipedag"]


def uri_of(connection: str) -> str:
    """Return the URI of an Airflow connection."""
    from airflow.sdk import BaseHook

    return BaseHook.get_connection(connection).get_uri()


def project_of(operator: Any) -> Path | None:
    """Return the folder of the code. A relative one stands beside the DAG file, wherever that is on this worker."""
    if not operator.project:
        return None
    return (Path(operator.dag.fileloc).parent / operator.project).resolve()
