"""Where the Parquet store puts its files, how an address from the catalog becomes a path again, and how SQL reads from a path."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from pipedag_core.errors import StoreError
from pipedag_core.naming import file_segment, name_of_segment, quote_literal
from pipedag_core.ports.stores import Deposit

#: `<stage>/g<generation>/<table>.parquet`; an encoded segment holds no separator and never starts with a dot.
_LOCATION: Final = re.compile(r"([^/\\.:][^/\\:]*)/g(\d+)/[^/\\.:][^/\\:]*\.parquet")

#: Folder, below the base folder, in which DuckDB puts rows that do not fit into memory: one folder per process.
OVERFLOW: Final = ".overflow"

#: What processes use on the way to a table or to `explore.duckdb` and remove at their end, if they come to it.
_WORK: Final = re.compile(rf"{re.escape(OVERFLOW)}/\d+|\.[0-9a-f]{{32}}\.duckdb(\.wal)?")


def place(path: Path) -> str:
    """Return what stands behind FROM to read a Parquet file at this absolute path."""
    # Folders named `a=b` would add a column `a`.
    return f"read_parquet({quote_literal(pattern(path))}, hive_partitioning = false)"


def pattern(path: Path) -> str:
    """Return the pattern that stands for just this path."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path.as_posix())


@final
class Layout:
    """Names files below one base folder and gives each name out once.

    Args:
        base: The base folder; made absolute at once, so that a later change of the working directory moves nothing.
    """

    def __init__(self, base: str | Path) -> None:
        self.base = Path(base).resolve()

    def claim(self, stage: str, generation: int, name: str) -> str:
        """Take a place that nobody has, by creating an empty file there; a later attempt gets `.a2`, `.a3` and so on.

        Args:
            stage, generation, name: The readable address.

        Returns:
            The location: a POSIX path relative to the base folder.

        Raises:
            FlowError: A name is too long for a file.
            OSError: The folder cannot be written.
        """
        folder = f"{file_segment(stage, 'stage name')}/g{generation}"
        table = file_segment(name, "table name")
        attempt = 1
        while True:
            location = f"{folder}/{table}.parquet" if attempt == 1 else f"{folder}/{table}.a{attempt}.parquet"
            path = self.base / location
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                attempt += 1
            except FileNotFoundError:
                # The folder is made by the first write, and clean-up may have just removed it again.
                path.parent.mkdir(parents=True, exist_ok=True)
            else:
                return location

    def path(self, location: str) -> Path:
        """Return the absolute path of a location.

        Raises:
            StoreError: It is not an address that `claim` gives, so that it might lead out of the base folder.
        """
        if not _LOCATION.fullmatch(location):
            raise StoreError(
                f"The catalog names {location!r} as the place of a table, which is no place of the Parquet store at {self.base}. "
                "Nothing was touched. The catalog is damaged or belongs to another store: check `metadata_store` in the configuration.",
                location=location,
            )
        return self.base / location

    def remove(self, location: str) -> None:
        """Delete a table's file and, when they are empty then, its generation's and its stage's folder; or a work file. A missing one is no error.

        Raises:
            StoreError: The location may lead out of the base folder.
            OSError: The file cannot be deleted.
        """
        if _WORK.fullmatch(location):
            path = self.base / location
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        path = self.path(location)
        path.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):
            try:
                folder.rmdir()
            except OSError:
                # Something else is in it, or it is gone: both are fine.
                return

    def deposits(self) -> Iterator[Deposit]:
        """Yield all tables' files, recorded or not, and all work files; what is no file of ours is passed over."""
        for pattern in ("*/g*/*.parquet", f"{OVERFLOW}/*", ".*.duckdb", ".*.duckdb.wal"):
            for path in self.base.glob(pattern):
                location = path.relative_to(self.base).as_posix()
                table = _LOCATION.fullmatch(location)
                if table is None and not _WORK.fullmatch(location):
                    continue
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # whoever made it has removed it in between
                stage, generation = (name_of_segment(table[1]), int(table[2])) if table else (None, None)
                yield Deposit(location, stage, generation, stat.st_mtime, stat.st_size if path.is_file() else None)
