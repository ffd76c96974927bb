"""InOutSpecification: which part of a flow runs in production, and where it is cut from the rest."""

from __future__ import annotations

from typing import Any, final

from pipedag_core.define.refs import settle_all


@final
class InOutSpecification:
    """Says how the production flow is carved out of a flow: the tasks on the paths to `output`, cut at the other three.

    Each of the four is a task's output, one item of it, a stage (or its name, or `stage.task`), or any nesting of lists, dicts, LazyDicts or dataclasses
    of them. An item beats its task, a task beats its stage, an inner stage beats an outer one. A reference stands for what a consumer that is wired at
    this moment would get, so updates that are recorded later do not count; a LazyDict is taken as it is at the end of the wiring.

    Args:
        input: What the caller supplies; the tasks that make it in training are not part of the production flow.
        output: What is computed and returned.
        const: What training has left behind; frozen at extraction.
        ignore: What there is not in production; consumers get None.
        force: Allow an input that is also computable from tasks that run in production (the same fact, supplied and computed).
    """

    __slots__ = ("const", "force", "ignore", "input", "output")

    def __init__(self, input: Any, output: Any, const: Any = (), ignore: Any = (), *, force: bool = False) -> None:
        self.input = settle_all(input)
        self.output = settle_all(output)
        self.const = settle_all(const)
        self.ignore = settle_all(ignore)
        self.force = force

    def __repr__(self) -> str:
        return f"InOutSpecification(input={self.input!r:.200}, output={self.output!r:.200}, const={self.const!r:.200}, ignore={self.ignore!r:.200})"
