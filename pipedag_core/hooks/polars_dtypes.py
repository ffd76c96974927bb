"""Types of polars to which SQL can cast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl


def to_cast(dtypes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some columns' types that every store can cast to: column -> type."""
    return {name: dtype for name, dtype in dtypes.items() if _is_plain(dtype)}


def _is_plain(dtype: Any) -> bool:
    if isinstance(dtype, pl.Datetime):
        return dtype.time_zone is None and dtype.time_unit != "ns"
    return dtype.is_integer() or dtype.is_float() or dtype.is_decimal() or dtype in (pl.String, pl.Boolean, pl.Date)
