"""`explore.duckdb`: a DuckDB file beside the tables, with one view per table under its readable name, for people and their tools.

It is a convenience and never read by pipedag. A copy of it is brought up to date under another name and moved into place, so that whoever has the
old one open keeps it; but never beside a write-ahead log, which DuckDB would replay into the new file.

The copy is made in memory where the system offers that as a folder: DuckDB waits for the disk at every commit, and with some file systems that means
until all tables just written are on it, too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from pipedag_core.errors import StoreError

log = logging.getLogger(__name__)

_NAME: Final = "explore.duckdb"

#: Says what the file shows, and which file it means, so that only what differs is made again.
_STAMP: Final = ".explore"

#: Times that the file is made, where another process makes its own between our file and its stamp.
_TRIES: Final = 5

#: A folder in memory, on Linux, and the room that must be free in it beside the file.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the file gets a folder of its own there, for this user only
_ROOM: Final = 16 * 2**20

#: Lends a connection to a DuckDB database that is open already.
Lend = Callable[[], AbstractContextManager[Any]]

#: Stage -> (readable name -> path of the Parquet file), as JSON keeps it.
_Tables = dict[str, dict[str, str]]


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
            stamp = _stamp(base)
            if stamp is not None and stamp.stages == _wanted(stages):
                return
            if target.with_name(_NAME + ".wal").exists():
                log.warning(
                    "%s was not refreshed: a program has written to it (there is a .wal file beside it). Close that program, and open the file read-only.",
                    target,
                )
                return
            # What cannot be brought up to date is made from nothing.
            if not (stamp is not None and _replace(base, stages, stamp, lend)) and not _replace(base, stages, None, lend):
                return
    except PermissionError as error:
        log.warning("%s was not refreshed, a program may have it open: %s", target, error)
    except OSError as error:
        raise StoreError(f"{target} could not be written: {error}. Check room and rights there.", path=str(target)) from error


def is_fresh(base: Path, stages: Mapping[str, Mapping[str, Path]]) -> bool:
    """Return whether the file is there and shows these tables and no others.

    Args:
        base, stages: As for `refresh`.
    """
    stamp = _stamp(base)
    return stamp is not None and stamp.stages == _wanted(stages)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What the file was made to show, and which stages (one name) and tables (two) of that DuckDB could not show."""

    stages: _Tables
    skipped: Sequence[Sequence[str]]

    @property
    def views(self) -> _Tables:
        """What it has schemas and views for."""
        left_out = {tuple(item) for item in self.skipped}
        return {
            stage: {name: path for name, path in tables.items() if (stage, name) not in left_out}
            for stage, tables in self.stages.items()
            if (stage,) not in left_out
        }


def _stamp(base: Path) -> _Stamp | None:
    """Return what is known of the file in place; None if nothing is."""
    try:
        version, stages, skipped = json.loads((base / _STAMP).read_text(encoding="utf-8"))
        return _Stamp(stages, skipped) if version == _version(base / _NAME) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _wanted(stages: Mapping[str, Mapping[str, Path]]) -> _Tables:
    return {stage: {name: str(path) for name, path in tables.items()} for stage, tables in stages.items()}


def _version(path: Path) -> str:
    # Survives the move into place, and another process's file has another one.
    stat = path.stat()
    return f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"


def _replace(base: Path, stages: Mapping[str, Mapping[str, Path]], stamp: _Stamp | None, lend: Lend) -> bool:
    # DuckDB is loaded only when there is something to write.
    from pipedag_core.stores import explore_views

    base.mkdir(parents=True, exist_ok=True)
    fresh = base / f".{uuid4().hex}.duckdb"
    with TemporaryDirectory(prefix="pipedag-", dir=_workshop(base)) as workshop:
        made = Path(workshop) / fresh.name
        if stamp is not None:
            shutil.copyfile(base / _NAME, made)
        with lend() as connection:
            problem, skipped = explore_views.write(connection, made, {} if stamp is None else stamp.views, stages)
        if problem is not None:
            if stamp is None:
                log.warning("%s could not be made: %s", _NAME, problem)
            return False
        for item, why in skipped.items():
            log.warning("%s is not shown in %s: %s", ".".join(item), _NAME, why)
        try:
            shutil.copyfile(made, fresh)
            version = _version(fresh)
            fresh.replace(base / _NAME)
            (base / _STAMP).write_text(json.dumps([version, _wanted(stages), list(skipped)]), encoding="utf-8")
        finally:
            fresh.unlink(missing_ok=True)
    return True


def _workshop(base: Path) -> Path:
    """Return the folder in which the file is made."""
    try:
        there = (base / _NAME).stat().st_size if (base / _NAME).exists() else 0
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * there + _ROOM:
            return _MEMORY
    except OSError:
        log.debug("%s cannot be used", _MEMORY, exc_info=True)
    return base
