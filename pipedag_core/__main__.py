"""`python -m pipedag_core`, for interpreters whose scripts are not on the path."""

from __future__ import annotations

from pipedag_core.cli import main

if __name__ == "__main__":
    main()
