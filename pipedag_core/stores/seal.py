"""Whether a file is still the one that was written, told without reading all of it.

A seal is made when a table is written and kept in the catalog: the file's time of change, and a hash of its end and of samples of the rest.
A file of the right size and time is taken as whole, which costs a look at the folder. One of another time was copied, or something wrote into it:
its hash decides. Files up to `SMALL` bytes are hashed whole; of larger ones the end, where Parquet says what the file holds, and blocks spread over
the rest. So another file in its place is always noticed, and damage to a large one where it hits a block or is larger than the room between two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, final

#: Bytes up to which all of a file is hashed; also the most that is read of the end of a larger one.
SMALL: Final = 2**19

_BLOCKS: Final = 64
_BLOCK: Final = 4096


def make(path: Path) -> str:
    """Return the seal of a file: `<nanoseconds>-<hash>`.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        return f"{stat.st_mtime_ns}-{_sampled(file, stat.st_size)}"


@final
class Inspector:
    """Compares files with their seals, and remembers those that had to be read. Safe to use from several threads.

    Args:
        opener: Opens a file for reading its bytes.
    """

    def __init__(self, opener: Callable[[Path], BinaryIO] = lambda path: path.open("rb")) -> None:
        self._open = opener
        self._known: dict[tuple[Path, str], int] = {}

    def problem(self, path: Path, size: int | None, seal: str | None, *, thorough: bool = False) -> str | None:
        """Return what is wrong with a file, None if it is whole.

        Args:
            path: The file.
            size: Its bytes, if known.
            seal: What `make` has said of it, if known.
            thorough: Look into it even if its time is right: something could not read it.
        """
        try:
            stat = path.stat()
        except OSError as error:
            return f"its file cannot be reached ({error.strerror})"
        if size is not None and stat.st_size != size:
            return f"its file has {stat.st_size} bytes instead of {size}"
        if seal is None:
            return None
        time, _, expected = seal.partition("-")
        if not thorough and time == str(stat.st_mtime_ns):
            return None
        if not thorough and self._known.get((path, seal)) == stat.st_mtime_ns:
            return None
        try:
            with self._open(path) as file:
                found = _sampled(file, stat.st_size)
        except OSError as error:
            return f"its file cannot be read ({error.strerror})"
        if found != expected:
            return "its file is another one than was written, or was changed in place"
        self._known[path, seal] = stat.st_mtime_ns
        return None


def _sampled(file: BinaryIO, size: int) -> str:
    found = sha256()
    for start, length in _pieces(file, size):
        file.seek(start)
        found.update(file.read(length))
    return found.hexdigest()[:32]


def _pieces(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    if size <= SMALL:
        yield 0, size
        return
    # A Parquet file ends with the length of its description and four letters.
    file.seek(size - 8)
    end = min(int.from_bytes(file.read(4), "little") + 8, SMALL)
    yield size - end, end
    step = (size - end) // _BLOCKS
    for number in range(_BLOCKS):
        yield number * step, _BLOCK
