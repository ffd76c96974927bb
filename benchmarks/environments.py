"""Environments of their own for what is measured beside this package: other libraries, whose pins would not go together with ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from timing import Unavailable


def environment(folder: Path, constraints: Path, base: Callable[[], str], what: str) -> Path:
    """Return an environment's Python; make the environment if it is not there or has other versions.

    Args:
        folder: Where it is.
        constraints: What is in it, as pip reads it.
        base: Finds the Python to make it from.
        what: What is in it, for people.

    Raises:
        Unavailable: It could not be made.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = folder / "made-from.txt", constraints.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    python_to_use = base()
    print(f"Making {folder.relative_to(folder.parents[1])} with {what}; this takes a few minutes, once.", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run((python_to_use, "-m", "venv", str(folder)), check=True)
        subprocess.run(
            (str(python), "-m", "pip", "install", "--quiet", "--requirement", str(constraints)), check=True, stderr=subprocess.PIPE
        )
        # As after an installation that compiles: what is not compiled now is compiled by every process that imports it.
        compiler = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run((str(python), "-m", "compileall", "-q", str(folder)), check=False, env=compiler, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"The environment could not be made: {error}. {' '.join(last)}") from error
    stamp.write_text(wanted, encoding="utf-8")
    return python
