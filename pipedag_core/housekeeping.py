"""What changes an instance without running a flow: removing what is not kept or not wanted any more, and going back."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from pipedag_core.catalogs.owner import lives, this_process
from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.wire import open_session
from pipedag_core.errors import ConfigError
from pipedag_core.naming import normalize
from pipedag_core.ports.catalogs import CommitResult
from pipedag_core.run import removing, rolling_back, steps
from pipedag_core.run.doctor import remove_strays
from pipedag_core.run.removing import Kept
from pipedag_core.run.showing import refresh_names


def clean_up(config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> int:
    """Remove from an instance what retention does not keep, and what late or dead processes left behind; return how many tables and blobs went."""
    with open_session(configuration(config, instance, None)) as session:
        gone = steps.clean_up(session)
        # What a name still shows that the catalog has forgotten is a stray too.
        refresh_names(session)
        return gone + remove_strays(session, lives)


def roll_back(
    stage: str, generation: int | None = None, config: PipedagConfig | ConfigContext | None = None, instance: str | None = None
) -> CommitResult:
    """Make an earlier generation of a stage current again, at once, with all stages that were committed together with it.

    Args:
        stage: The stage's name.
        generation: Its number, as `pipedag status --all` shows it; by default the one before the current one.
        config, instance: As in `run_flow`.

    Returns:
        Stage -> generation that is current now, and whether anything changed.

    Raises:
        LeaseHeld: A run is writing the stage.
        RunError: There is no such generation (any more); the error says which ones there are.
        StoredDataMissing: Data that it points to is gone.
    """
    context = configuration(config, instance, None)
    with open_session(context) as session:
        owner = this_process("pipedag rollback")
        return rolling_back.roll_back(session, normalize(stage, "stage name"), generation, context.instance_name, owner)


def kept(config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> Sequence[Kept]:
    """Return what an instance keeps of each stage; changes nothing."""
    with open_session(configuration(config, instance, None)) as session:
        return removing.kept(session)


def delete_stages(stages: Sequence[str] = (), config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> int:
    """Remove stages of an instance for good: their readable names, all of their generations, and the tables and blobs that no other stage points to.

    The log of runs stays. A flow that has such a stage makes it anew with its next run.

    Args:
        stages: Their names; none for all.
        config, instance: As in `run_flow`.

    Returns:
        How many tables and blobs went.

    Raises:
        ConfigError: There is no such stage.
        LeaseHeld: A run at work uses one of them; nothing was changed.
        RunError: Another stage is current by the same commit, as nested stages are; nothing was changed.
    """
    context = configuration(config, instance, None)
    with open_session(context) as session:
        there = [item.stage for item in removing.kept(session)]
        return removing.delete_stages(session, [known_stage(stage, there, context.instance_name) for stage in stages] or there)


def known_stage(stage: str, there: Sequence[str], instance: str) -> str:
    """Return a stage's normalised name.

    Raises:
        ConfigError: It is not among those that are there.
    """
    name = normalize(stage, "stage name")
    if name not in there:
        near = get_close_matches(name, there, n=3, cutoff=0.4)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(there) or 'none'}."
        raise ConfigError(f"Instance {instance!r} keeps nothing of a stage {stage!r}. {hint}", stage=stage)
    return name


def clear_catalog(config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> None:
    """Let an instance's catalog forget all runs, generations and results. Tables are not touched; they can be read until the next run commits their stage.

    Raises:
        LeaseHeld: A run is at work; nothing was changed.
    """
    with open_session(configuration(config, instance, None)) as session:
        removing.clear_catalog(session)
