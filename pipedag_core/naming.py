"""Which names are legal, when two of them clash, and how they are written into SQL and paths."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote, unquote

from pipedag_core.errors import FlowError

#: Suffixes of physical schemas and of schemas in the middle of a commit.
_OURS: Final = re.compile(r"__(g\d+(__s\d+)?|next|old\d*|catalog)$")

#: Bytes of the longest file name that common file systems take, less room for an attempt and an ending.
MAX_FILE_NAME: Final = 255 - 24

#: A trailing `%%` asks for a name that is unique by its place in the wiring.
PLACEHOLDER: Final = "%%"


def normalize(name: str, what: str = "name") -> str:
    """Return the name as the catalog keeps it: NFC, casefolded, without surrounding white space, `/` as `_`.

    Args:
        name: The name as its user wrote it.
        what: What it names, for the error.

    Raises:
        FlowError: The name is empty, holds control characters, or ends in a suffix that is ours (`__g12`, `__next`, `__old`).
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- names come from users
        raise FlowError(f"The {what} must be text, not {type(name).__name__}: {name!r}.", name=name)
    result = unicodedata.normalize("NFC", name.strip()).casefold().replace("/", "_")
    # Casefolding can undo the normal form (U+0345 for one), hence once more.
    result = unicodedata.normalize("NFC", result)
    if not result:
        raise FlowError(f"The {what} is empty. Give it at least one visible character.", name=name)
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in result):
        raise FlowError(f"The {what} {name!r} holds a control character. Use visible characters only.", name=name)
    if _OURS.search(result):
        raise FlowError(
            f"The {what} {name!r} ends in a suffix that pipedag uses for its own schemas (__g<number>, __next, __old, __catalog). Choose another ending.",
            name=name,
        )
    return result


def quote_identifier(name: str) -> str:
    """Return the name as a quoted SQL identifier, by the rule of the SQL standard: `"` is written twice."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return the text as an SQL string literal, by the rule of the SQL standard: `'` is written twice."""
    return "'" + text.replace("'", "''") + "'"


def file_segment(name: str, what: str = "name") -> str:
    """Return the name as one segment of a path: percent-encoded, so that it can neither leave its folder nor be hidden.

    Raises:
        FlowError: The encoded name is longer than file systems take.
    """
    # `*`, `?` and brackets are patterns to readers of Parquet files, so they are encoded too.
    segment = quote(name, safe=" +,@=()!")
    if segment.startswith("."):
        segment = "%2E" + segment[1:]
    if len(segment) > MAX_FILE_NAME:
        raise FlowError(
            f"The {what} {name!r} is {len(segment)} bytes long as a file name; at most {MAX_FILE_NAME} are possible. Shorten it.", name=name
        )
    return segment


def name_of_segment(segment: str) -> str:
    """Return the name of which `file_segment` made this segment."""
    return unquote(segment)


def check_bytes(name: str, limit: int, what: str = "name") -> None:
    """Refuse a name that is longer in UTF-8 than a store can keep.

    Raises:
        FlowError: The name is longer than `limit` bytes.
    """
    size = len(name.encode())
    if size > limit:
        raise FlowError(f"The {what} {name!r} is {size} bytes long; this store keeps at most {limit}. Shorten it.", name=name)
