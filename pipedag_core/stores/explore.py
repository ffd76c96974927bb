"""`explore.duckdb`: a DuckDB file beside the tables, with one view per table under its readable name, for people and their tools.

It is a convenience and never read by pipedag. It is made under another name and moved into place, so that whoever has the old one open keeps
it; but never beside a write-ahead log, which DuckDB would replay into the new file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pipedag_core.errors import StoreError
from pipedag_core.hashing import digest

log = logging.getLogger(__name__)

_NAME: Final = "explore.duckdb"

#: Holds a hash of what the file shows, and which file it means, so that it is not made again for nothing.
_STAMP: Final = ".explore"

#: Times that the file is made, where another process makes its own between our file and its stamp.
_TRIES: Final = 5


#: Lends a connection to a DuckDB database that is open already.
Lend = Callable[[], AbstractContextManager[Any]]


def refresh(base: Path, stages: Mapping[str, Mapping[str, Path]], lend: Lend) -> None:
    """Make the file show these tables and no others; nothing is done if it does already, and a warning is logged if it cannot be.

    Args:
        base: The store's folder.
        lend: Lends the connection that makes the file.
        stages: Stage -> (readable name -> absolute path of the Parquet file). A stage without tables is an empty schema.

    Raises:
        StoreError: The folder cannot be written.
    """
    target = base / _NAME
    try:
        for _ in range(_TRIES):
            if is_fresh(base, stages):
                return
            if target.with_name(_NAME + ".wal").exists():
                log.warning(
                    "%s was not refreshed: a program has written to it (there is a .wal file beside it). Close that program, and open the file read-only.",
                    target,
                )
                return
            if not _replace(base, stages, lend):
                return
    except PermissionError as error:
        log.warning("%s was not refreshed, a program may have it open: %s", target, error)
    except OSError as error:
        raise StoreError(f"{target} could not be written: {error}. Check room and rights there.", path=str(target)) from error


def _replace(base: Path, stages: Mapping[str, Mapping[str, Path]], lend: Lend) -> bool:
    base.mkdir(parents=True, exist_ok=True)
    fresh = base / f".{uuid4().hex}.duckdb"
    try:
        if not _write(fresh, stages, lend):
            return False
        version = _version(fresh)
        fresh.replace(base / _NAME)
        (base / _STAMP).write_text(f"{_content(stages)} {version}")
    finally:
        for leftover in (fresh, fresh.with_name(fresh.name + ".wal")):
            leftover.unlink(missing_ok=True)
    return True


def is_fresh(base: Path, stages: Mapping[str, Mapping[str, Path]]) -> bool:
    """Return whether the file is there and shows these tables and no others.

    Args:
        base, stages: As for `refresh`.
    """
    try:
        return (base / _STAMP).read_text() == f"{_content(stages)} {_version(base / _NAME)}"
    except FileNotFoundError:
        return False


def _content(stages: Mapping[str, Mapping[str, Path]]) -> str:
    return digest(*(part for stage in sorted(stages) for part in (stage, *_parts(stages[stage]), "")))


def _version(path: Path) -> str:
    # Survives the move into place, and another process's file has another one.
    stat = path.stat()
    return f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"


def _parts(tables: Mapping[str, Path]) -> list[str]:
    return [part for name in sorted(tables) for part in (name, str(tables[name]))]


def _write(path: Path, stages: Mapping[str, Mapping[str, Path]], lend: Lend) -> bool:
    # DuckDB is loaded only when there is something to write.
    from pipedag_core.stores import explore_views

    with lend() as connection:
        problem = explore_views.write(
            connection, path, stages, skipped=lambda item, why: log.warning("%s is not shown in %s: %s", item, _NAME, why)
        )
    if problem is not None:
        log.warning("%s could not be made: %s", _NAME, problem)
    return problem is None
