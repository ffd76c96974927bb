"""What changes an instance without running a flow: removing what is not kept, and going back."""

from __future__ import annotations

from pipedag_core.catalogs.owner import lives, this_process
from pipedag_core.config.choice import configuration
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.config.wire import open_session
from pipedag_core.naming import normalize
from pipedag_core.ports.catalogs import CommitResult
from pipedag_core.run import rolling_back, steps
from pipedag_core.run.doctor import remove_strays


def clean_up(config: PipedagConfig | ConfigContext | None = None, instance: str | None = None) -> int:
    """Remove from an instance what retention does not keep, and what late or dead processes left behind; return how many tables and blobs went."""
    with open_session(configuration(config, instance, None)) as session:
        return steps.clean_up(session) + remove_strays(session, lives)


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
