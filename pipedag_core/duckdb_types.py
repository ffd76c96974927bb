"""Which types of DuckDB a Parquet file does not keep; known to the store that writes queries and to the hook that writes relations."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final

#: Types that come back from Parquet as something else (by DuckDB's id), and what to cast them to.
REFUSED: Final = {
    "hugeint": "BIGINT",
    "uhugeint": "UBIGINT",
    "interval": "a number of microseconds (BIGINT) or VARCHAR",
    "time with time zone": "TIME or VARCHAR",
    "bit": "VARCHAR",
    "enum": "VARCHAR",
    "bignum": "VARCHAR or DECIMAL(38,0)",
    "union": "one of its member types",
    "variant": "JSON",
    "array": "a list (`FLOAT[]` for `FLOAT[3]`)",
    "tuple": "a STRUCT with named fields (struct_pack)",
    "geometry": "BLOB or VARCHAR",
}

#: Types that have others inside and are kept if these are.
NESTED: Final = frozenset({"list", "struct", "map"})


def refused(kind: Any, allowed: AbstractSet[str] = frozenset()) -> tuple[str, str] | None:
    """Return which type, in a type of DuckDB, is not kept, and what to cast it to; None if all of it is kept.

    Args:
        kind: A `duckdb.DuckDBPyType`.
        allowed: Ids of types that whoever asks takes care of.
    """
    if kind.id in REFUSED and kind.id not in allowed:
        return kind.id, REFUSED[kind.id]
    if kind.id in NESTED:
        for _, child in kind.children:
            if (problem := refused(child, allowed)) is not None:
                return problem
    return None
