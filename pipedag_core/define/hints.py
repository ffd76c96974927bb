"""Small parts of messages: what a name may have meant, and where in the user's code something happened."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the names nearest to a wrong one, or else with those that there are."""
    names = list(dict.fromkeys(known))
    if not names:
        return "There are none."
    near = get_close_matches(name, names, n=3)
    if near:
        return f"Did you mean {' or '.join(repr(item) for item in near)}?"
    shown = ", ".join(repr(item) for item in names[:20])
    return f"There is {shown}" + (f" and {len(names) - 20} more." if len(names) > 20 else ".")


def caller() -> str:
    """Return `file:line` of the innermost call that does not come from this package."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] -- the documented way to see one's caller
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("pipedag_core."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
