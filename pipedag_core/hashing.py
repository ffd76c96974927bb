"""The one way in which this project turns facts into a short name for them."""

from __future__ import annotations

import hashlib

#: Hexadecimal digits kept of a SHA-256: 160 bits, so that a chance collision needs about 2**80 results.
LENGTH = 40


def digest(*fields: str | bytes) -> str:
    """Return a hash of the fields that depends on where one field ends and the next begins.

    Each field is preceded by its kind and its length in bytes, so `("ab", "c")` differs from `("a", "bc")`, and `"a"` from `b"a"`.

    Args:
        fields: Text (hashed as UTF-8) or bytes, in an order that matters.

    Returns:
        40 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for field in fields:
        raw, kind = (field, b"b") if isinstance(field, bytes) else (field.encode("utf-8", "surrogatepass"), b"s")
        sha.update(kind + len(raw).to_bytes(8, "little"))
        sha.update(raw)
    return sha.hexdigest()[:LENGTH]
