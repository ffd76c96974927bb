"""The `pipedag` command."""

from __future__ import annotations


def main() -> None:
    """Run the command with the arguments of this process, and leave it with an exit code.

    0: success. 1: the flow failed, or something that it needs is broken. 2: wrong usage, configuration or declaration.
    75: `pipedag step` found another run at work; call it again later.
    """
    from pipedag_core.cli.app import app

    app(prog_name="pipedag")
