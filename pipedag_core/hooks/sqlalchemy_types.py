"""Arrow types as SQLAlchemy types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa

_t: Final = pa.types


def _array(kind: Any) -> Any:
    inner, dimensions = kind.value_type, 1
    while hasattr(inner, "value_type") and not _t.is_dictionary(inner):
        inner, dimensions = inner.value_type, dimensions + 1
    # SQLAlchemy writes nested lists as one array of several dimensions.
    return sa.ARRAY(from_arrow(inner), dimensions=dimensions)


#: In order: the first test that holds decides.
_TYPES: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...]] = (
    (_t.is_boolean, lambda _: sa.Boolean()),
    (_t.is_int8, lambda _: sa.SmallInteger()),
    (_t.is_int16, lambda _: sa.SmallInteger()),
    (_t.is_uint8, lambda _: sa.SmallInteger()),
    (_t.is_int32, lambda _: sa.Integer()),
    (_t.is_uint16, lambda _: sa.Integer()),
    (_t.is_int64, lambda _: sa.BigInteger()),
    (_t.is_uint32, lambda _: sa.BigInteger()),
    (_t.is_uint64, lambda _: sa.Numeric(20, 0)),
    (_t.is_float16, lambda _: sa.REAL()),
    (_t.is_float32, lambda _: sa.REAL()),
    (_t.is_float64, lambda _: sa.Double()),
    (_t.is_decimal, lambda kind: sa.Numeric(kind.precision, kind.scale)),
    (_t.is_string, lambda _: sa.String()),
    (_t.is_large_string, lambda _: sa.String()),
    (_t.is_string_view, lambda _: sa.String()),
    (_t.is_binary, lambda _: sa.LargeBinary()),
    (_t.is_large_binary, lambda _: sa.LargeBinary()),
    (_t.is_binary_view, lambda _: sa.LargeBinary()),
    (_t.is_fixed_size_binary, lambda _: sa.LargeBinary()),
    (_t.is_date, lambda _: sa.Date()),
    (_t.is_time, lambda _: sa.Time()),
    (_t.is_timestamp, lambda kind: sa.DateTime(timezone=kind.tz is not None)),
    (_t.is_duration, lambda _: sa.Interval()),
    (_t.is_interval, lambda _: sa.Interval()),
    (_t.is_dictionary, lambda kind: from_arrow(kind.value_type)),
    (_t.is_run_end_encoded, lambda kind: from_arrow(kind.value_type)),
    (_t.is_list, _array),
    (_t.is_large_list, _array),
    (_t.is_fixed_size_list, _array),
    (_t.is_list_view, _array),
    (_t.is_large_list_view, _array),
    (_t.is_struct, lambda _: sa.JSON()),
    (_t.is_map, lambda _: sa.JSON()),
    (_t.is_union, lambda _: sa.JSON()),
)

#: Extension types that databases know; others count as what they are stored as.
_EXTENSIONS: Final[dict[str, Callable[[], Any]]] = {"arrow.uuid": sa.Uuid, "arrow.json": sa.JSON}


def from_arrow(kind: Any) -> Any:
    """Return the SQLAlchemy type whose operators and Python values fit columns of this Arrow type.

    The type guides expressions only; the stored column keeps its own type. Columns of nothing but nulls get `NullType`.
    """
    if isinstance(kind, pa.BaseExtensionType):
        known = _EXTENSIONS.get(kind.extension_name)
        return known() if known else from_arrow(kind.storage_type)
    for test, make in _TYPES:
        if test(kind):
            return make(kind)
    return sa.types.NullType()
