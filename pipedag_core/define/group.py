"""What holds tasks and stages: the common part of flows, stages and groups; and groups themselves."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

from pipedag_core.define.context import declaring
from pipedag_core.errors import FlowError


class Container:
    """Something that tasks, stages and groups are wired in.

    Attributes:
        nodes: What is wired directly in it (tasks, stages, groups), in wiring order.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []


@final
@dataclass(frozen=True, slots=True)
class VisualizationStyle:
    """How a group looks in pictures. None leaves the choice to the picture.

    Attributes:
        hide_box, hide_content, hide_label: Draw no frame; draw the group as one node; draw no label.
        box_color_always: Colour of the box, whatever happened.
        box_color_any_failure, box_color_none_cache_valid, box_color_any_cache_valid, box_color_all_cache_valid, box_color_all_skipped: Colour of the
            box in pictures of a run, by the outcome of its tasks.
    """

    hide_box: bool | None = None
    hide_content: bool | None = None
    hide_label: bool | None = None
    box_color_always: str | None = None
    box_color_any_failure: str | None = None
    box_color_none_cache_valid: str | None = None
    box_color_any_cache_valid: str | None = None
    box_color_all_cache_valid: str | None = None
    box_color_all_skipped: str | None = None


@final
class GroupNode(Container):
    """Groups tasks inside a stage, or whole stages, for ordering and for pictures.

    Args:
        label: What pictures call it.
        style: How it looks.
        ordering_barrier: All that is wired before it in the same container ends before it starts, and all that is wired there later starts
            after it has ended.
        style_tag: Label of a style from the configuration.
    """

    def __init__(
        self,
        label: str | None = None,
        style: VisualizationStyle | None = None,
        ordering_barrier: bool = False,
        style_tag: str | None = None,
    ) -> None:
        super().__init__()
        if style is not None and style_tag is not None:
            raise FlowError(f"The group {label!r} has both a style and a style_tag. Give it one of them.", group=label)
        self.label = label
        self.style = style
        self.ordering_barrier = ordering_barrier
        self.style_tag = style_tag
        self._used = False

    def __enter__(self) -> Self:
        declaration = declaring.get()
        if declaration is None:
            raise FlowError(f"The group {self.label!r} is used outside a flow. Put it inside `with Flow(...):`.", group=self.label)
        if self._used:
            raise FlowError(f"The group {self.label!r} is used twice. Make a new GroupNode for each `with`.", group=self.label)
        self._used = True
        declaration.enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        declaring.get().leave(self)

    def __repr__(self) -> str:
        return f"<group {self.label or '(no label)'}>"
