"""What is chosen for the steps of a flow: how much one of them does, and what Dagster is told about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from typing import Any, final

import dagster as dg

from pipedag_core import Plan
from pipedag_core.errors import ConfigError


class Granularity(Enum):
    """How much one step of Dagster does."""

    STAGE = "stage"
    TASK = "task"


@final
@dataclass(frozen=True)
class StepOptions:
    """What is chosen for the steps.

    Attributes:
        granularity: "stage" or "task"; or stage -> one of these, "stage" where none is named.
        retry_policy, op_tags, pool: Of each step, as in `dagster.multi_asset`.
    """

    granularity: str | Mapping[str, str] = Granularity.STAGE.value
    retry_policy: dg.RetryPolicy | None = None
    op_tags: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pool: str | None = None

    def granularity_of(self, plan: Plan) -> Mapping[str, Granularity]:
        """Return unit of stages -> how much one step of it does.

        Raises:
            ConfigError: There is no such granularity, or stage; or two stages that are committed together want different ones.
        """
        units = {stage.name: stage.unit for stage in plan.stages}
        if isinstance(self.granularity, str):
            return dict.fromkeys(units.values(), _granularity(self.granularity, plan))
        chosen: dict[str, tuple[str, Granularity]] = {}
        for stage, text in self.granularity.items():
            if stage not in units:
                near = get_close_matches(stage, list(units), n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(units)}."
                raise ConfigError(f"Flow {plan.flow!r} has no stage {stage!r} to choose a granularity for. {hint}", flow=plan.flow)
            found = _granularity(text, plan)
            other, before = chosen.setdefault(units[stage], (stage, found))
            if before is not found:
                raise ConfigError(
                    f"Stages {other!r} and {stage!r} of flow {plan.flow!r} are committed together, so they have one granularity, and not "
                    f"{before.value!r} and {found.value!r}. Name stage {units[stage]!r} only.",
                    flow=plan.flow,
                )
        return {unit: chosen[unit][1] if unit in chosen else Granularity.STAGE for unit in units.values()}


def _granularity(text: str, plan: Plan) -> Granularity:
    try:
        return Granularity(text)
    except ValueError:
        known = ", ".join(repr(item.value) for item in Granularity)
        raise ConfigError(
            f"There is no granularity {text!r} for the steps of flow {plan.flow!r}. There are: {known}.", flow=plan.flow
        ) from None
