"""Blobs as files in folders of their stages and generations."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

from pipedag_core import naming
from pipedag_core.errors import MaterializationError, StoredDataMissing, StoreError
from pipedag_core.ports.stores import Deposit

_FORMAT: Final = "pickle"

#: How a pickle names the module of a script.
_MAIN: Final = b"__main__"

#: `<stage>/g<generation>/<name>.<format>`
_LOCATION: Final = re.compile(rf"([^/]+)/g(\d+)/[^/]+\.{_FORMAT}")

#: Fixed, so that all supported versions of Python write and read the same.
_PROTOCOL: Final = 5


@final
class FileBlobStore:
    """A `BlobStore` that pickles objects into files below a folder.

    A blob lies at `<stage>/g<generation>/<name>.pickle`, a second attempt at `<name>.a2.pickle`; no file is ever written twice. Blobs are
    unpickled only after their bytes were compared with the hash in the catalog, so trust in them is trust in the catalog's writers.

    Args:
        base_path: The folder; made when the first blob is written.
    """

    def __init__(self, base_path: str | Path) -> None:
        self._base = Path(base_path).absolute()

    def __repr__(self) -> str:
        return f"FileBlobStore({str(self._base)!r})"

    def encode(self, obj: Any) -> tuple[bytes, str]:
        """Return the pickled object, and the name of this format.

        Raises:
            MaterializationError: The object cannot be pickled.
        """
        try:
            return pickle.dumps(obj, protocol=_PROTOCOL), _FORMAT
        except Exception as error:  # whatever the object's own methods raise
            kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
            raise MaterializationError(
                f"A blob of type {kind} cannot be pickled: {error}. Return an object without open files, locks, connections or local functions.",
                type=kind,
            ) from error

    def write(self, raw: bytes, format: str, stage: str, generation: int, name: str) -> str:
        """Write bytes into a new file and return its path below the base folder.

        Raises:
            FlowError: The name is too long for a file.
            StoreError: No space, or no right to write.
        """
        folder = PurePosixPath(naming.file_segment(stage, "stage name"), f"g{generation}")
        segment = naming.file_segment(name, "blob name")
        attempt = 1
        while True:
            location = folder / (f"{segment}.{format}" if attempt == 1 else f"{segment}.a{attempt}.{format}")
            path = self._base / location
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    self._fill(file, raw, path)
            except FileExistsError:
                attempt += 1
            except FileNotFoundError:
                continue  # clean-up removed the empty folder in between
            except OSError as error:
                raise StoreError(
                    f"Blob {name!r} of stage {stage!r} ({len(raw)} bytes) could not be written to {path}: {error}. "
                    "Check the disk's space and the folder's permissions.",
                    stage=stage,
                    name=name,
                    path=str(path),
                ) from error
            else:
                return str(location)

    @staticmethod
    def _fill(file: Any, raw: bytes, path: Path) -> None:
        try:
            file.write(raw)
            file.flush()
        except BaseException:
            path.unlink()
            raise

    def read(self, location: str, format: str, sha256: str) -> Any:
        """Return the object, after its bytes have been checked.

        Raises:
            StoredDataMissing: The file is gone or its bytes are others.
            StoreError: The format is not known, or the bytes are right but cannot be unpickled here.
        """
        if format != _FORMAT:
            raise StoreError(
                f"Blob {location} has the format {format!r}; this store reads {_FORMAT!r} only. It was written by a newer version of pipedag.",
                location=location,
                format=format,
            )
        path = self._path(location)
        try:
            raw = path.read_bytes()
        except FileNotFoundError as error:
            raise StoredDataMissing(f"Blob {path} is gone. Run the task that made it again.", location=location) from error
        except OSError as error:
            raise StoreError(f"Blob {path} could not be read: {error}. Check its permissions.", location=location) from error
        found = hashlib.sha256(raw).hexdigest()
        if found != sha256:
            raise StoredDataMissing(
                f"Blob {path} is not what the catalog says it is: its SHA-256 is {found}, {sha256} was recorded. It was cut short or changed, and "
                "is not unpickled. Delete it and run the task that made it again.",
                location=location,
                found=found,
                recorded=sha256,
            )
        try:
            return pickle.loads(raw)
        except Exception as error:  # whatever the object's own methods raise
            script = (
                " Classes of a script that was run by itself are not found by others: define them in a module that it imports."
                if _MAIN in raw
                else ""
            )
            raise StoreError(
                f"Blob {path} cannot be unpickled: {error}. Its bytes are as written, so a class that it needs has moved or changed; "
                f"give the task that made it a new version.{script}",
                location=location,
            ) from error

    def missing(self, locations: Mapping[str, int]) -> Sequence[str]:
        """Return those of the locations (-> bytes) that are gone or have another size."""
        return [location for location, size in locations.items() if self._size(location) != size]

    def deposits(self) -> Sequence[Deposit]:
        """Return all blobs in folders of generations."""
        found: list[Deposit] = []
        for path in self._base.glob(f"*/g*/*.{_FORMAT}"):
            location = path.relative_to(self._base).as_posix()
            parts = _LOCATION.fullmatch(location)
            # Whoever made it may remove it in between.
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if parts is not None:
                    found.append(Deposit(location, naming.name_of_segment(parts[1]), int(parts[2]), stat.st_mtime, stat.st_size))
        return found

    def drop(self, locations: Sequence[str]) -> None:
        """Remove files, and the folders of generations that are empty then.

        Raises:
            StoreError: A file is there but cannot be removed.
        """
        folders: set[Path] = set()
        for location in locations:
            path = self._path(location)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(
                    f"Blob {path} could not be removed: {error}. Check the folder's permissions.", location=location
                ) from error
            folders.add(path.parent)
        for folder in folders:
            # Not empty, or removed by somebody else: both are fine.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _size(self, location: str) -> int | None:
        try:
            return self._path(location).stat().st_size
        except OSError:
            return None

    def _path(self, location: str) -> Path:
        parts = PurePosixPath(location).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise StoreError(
                f"Blob location {location!r} lies outside of {self._base}. The catalog was changed by hand.", location=location
            )
        return self._base.joinpath(*parts)
