"""Tracebacks that show the user's own lines."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import Final

from pipedag_core.errors import PipedagError

_OURS: Final = f"{Path(__file__).parents[1]}{os.sep}"
_FOREIGN: Final = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def trimmed(error: BaseException, *, everything: bool = False) -> str:
    """Return the traceback of an error, and of what caused it, as text that ends in the last line of the user's own code.

    An error of ours is its message: what it was raised from is shown only where that went through the user's code.

    Args:
        error: The error.
        everything: Leave out nothing.
    """
    found = traceback.TracebackException.from_exception(error)
    if everything:
        return "".join(found.format()).rstrip()
    if isinstance(error, PipedagError):
        _drop_foreign(found)
        if not found.stack and found.__cause__ is None and found.__context__ is None:
            return message(error)
    _trim(found)
    return "".join(found.format() if found.stack or found.__cause__ or found.__context__ else found.format_exception_only()).rstrip()


def message(error: BaseException) -> str:
    """Return an error as its class, its message and its notes."""
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def _is_own(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith(("<frozen", _OURS, *_FOREIGN))


def _drop_foreign(found: traceback.TracebackException) -> None:
    """Leave out all frames that are not the user's, and what was raised before without touching the user's code."""
    found.stack = traceback.StackSummary.from_list([frame for frame in found.stack if _is_own(frame)])
    for name in ("__cause__", "__context__"):
        below: traceback.TracebackException | None = getattr(found, name)
        if below is not None:
            _drop_foreign(below)
            if not below.stack and below.__cause__ is None and below.__context__ is None:
                setattr(found, name, None)


def _trim(found: traceback.TracebackException | None) -> None:
    if found is None:
        return
    own = [frame for frame in found.stack if _is_own(frame)]
    # Without a line of the user's, the error is a library's, and every line may tell something. A SyntaxError names the user's line itself.
    if own or (found.exc_type is not None and issubclass(found.exc_type, SyntaxError)):
        found.stack = traceback.StackSummary.from_list(own)
    _trim(found.__cause__)
    _trim(found.__context__)
    for inner in getattr(found, "exceptions", None) or ():
        _trim(inner)
