"""Values that are made only when a task that takes them really runs, such as the id of a record that is opened for work that is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from pipedag_core.errors import RunError


@final
@dataclass(frozen=True, slots=True)
class LateValue:
    """Returned by a task in place of a text that is not to be made before it is needed.

    When a function that takes it is about to be called, the maker is called first, and the function gets the text. The value never decides on whether
    a task runs; the text is remembered with the result of the task that got it, for as long as that result stands in.

    Attributes:
        maker: Name under which the maker is registered, see `late_maker`. Looked up in this process only, so a text from a catalog makes nothing run
            that the flow's code has not loaded.
        source: Full id of the task that returned it; "" before it was kept.
        about: What the maker is to know beside; like all else here, without a say in whether a task runs.
    """

    maker: str
    source: str = ""
    about: str = ""


Maker = Callable[[LateValue, Any], str]

_MAKERS: Final[dict[str, Maker]] = {}


def late_maker(name: str) -> Callable[[Maker], Maker]:
    """Register a function as maker of late values: it gets the value and the `TaskContext` of the task that takes it, and returns the text."""

    def register(function: Maker) -> Maker:
        _MAKERS[name] = function
        return function

    return register


def make_late(value: LateValue, context: Any) -> str:
    """Return the text of a late value for the task that is about to run.

    Raises:
        RunError: Nothing is registered under its name.
    """
    maker = _MAKERS.get(value.maker)
    if maker is None:
        raise RunError(
            f"Task {context.stage}.{context.task} of flow {context.flow!r} takes a value of {value.source} that is to be made by {value.maker!r}, which is not "
            "loaded. Import the module that offers it where the flow is declared.",
            flow=context.flow,
            stage=context.stage,
            task=context.task,
        )
    return maker(value, context)
