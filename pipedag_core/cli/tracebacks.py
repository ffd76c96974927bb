"""Tracebacks that show the user's own lines."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Final

from pipedag_core.errors import PipedagError

_OURS: Final = str(Path(__file__).parents[1])
_FOREIGN: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def trimmed(error: BaseException, *, everything: bool = False) -> str:
    """Return the traceback of an error, and of what caused it, as text that ends in the last line of the user's own code.

    Args:
        error: The error.
        everything: Leave out nothing.
    """
    found = traceback.TracebackException.from_exception(error)
    if not everything:
        if isinstance(error, PipedagError) and not any(map(_is_own, found.stack)) and error.__cause__ is None:
            # Its message says it all.
            return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        _trim(found)
    return "".join(found.format()).rstrip()


def _is_own(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith(("<frozen", _OURS, *_FOREIGN))


def _trim(found: traceback.TracebackException | None) -> None:
    if found is None:
        return
    own = [frame for frame in found.stack if _is_own(frame)]
    # Without a line of the user's, the error is ours or a library's, and every line may tell something.
    if own:
        found.stack = traceback.StackSummary.from_list(own)
    _trim(found.__cause__)
    _trim(found.__context__)
    for inner in getattr(found, "exceptions", None) or ():
        _trim(inner)
