"""What the command does with the log: nothing, unless it is asked to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Root of all our loggers.
LOG: Final = logging.getLogger("pipedag_core")
#: Gets one line per step; the command shows steps in its own way.
_STEPS: Final = logging.getLogger("pipedag_core.run")


def switch_on(verbose: int) -> None:
    """Write the log to standard error: steps with 1, everything with 2."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    LOG.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


def is_detailed() -> bool:
    """Return whether the log is asked for, and with it all lines of tracebacks."""
    return LOG.isEnabledFor(logging.INFO)


@contextmanager
def steps_told_once() -> Iterator[None]:
    """Keep the log's lines about steps back, since failures are shown anyway; not if the log was asked for."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    if is_detailed():
        yield
        return
    _STEPS.addFilter(refuse)
    try:
        yield
    finally:
        _STEPS.removeFilter(refuse)
