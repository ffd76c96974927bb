"""Types on their way into PostgreSQL and back: what a column becomes there, and in which Arrow type its rows come back.

Nothing is rounded or cut off: where PostgreSQL has no type that keeps all values, a column goes as text or JSON, or it is refused with its name.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc
from psycopg.postgres import types as builtin_types

from pipedag_core.errors import MaterializationError
from pipedag_core.naming import quote_identifier
from pipedag_core.stores.arrow_views import decoded

_t: Final = pa.types

#: Arrow type of a column that holds JSON: its text.
JSON: Final = pa.string()


# --- from Arrow ---------------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """How a column of Arrow values is kept.

    Attributes:
        sql: Type of the column.
        sent: Arrow type in which the values are sent.
        back: Arrow type in which they come back.
        convert: Makes an array of values to send; None where a cast does.
    """

    sql: str
    sent: Any
    back: Any
    convert: Callable[[Any], Any] | None = None


def kept(field: Any, where: str) -> Kept:
    """Return how a column of a table that is written is kept.

    Args:
        field: A `pyarrow.Field`.
        where: Task and table, for the message.

    Raises:
        MaterializationError: PostgreSQL cannot keep its values.
    """
    found = _kept(field.type)
    if _t.is_list_view(field.type) or _t.is_large_list_view(field.type):
        # Arrow makes invalid lists of some of them.
        raise MaterializationError(
            f"{where}: column {field.name!r} has type {field.type}, which PostgreSQL cannot keep. Make it a list in the task.",
            column=field.name,
        )
    if found is None:
        raise MaterializationError(
            f"{where}: column {field.name!r} has type {field.type}, which PostgreSQL cannot keep. Cast it to text, bytes or a number.",
            column=field.name,
        )
    return found


_PLAIN: Final[tuple[tuple[Callable[[Any], bool], str, Any], ...]] = (
    (_t.is_boolean, "boolean", pa.bool_()),
    (_t.is_int8, "smallint", pa.int16()),
    (_t.is_uint8, "smallint", pa.int16()),
    (_t.is_int16, "smallint", pa.int16()),
    (_t.is_uint16, "integer", pa.int32()),
    (_t.is_int32, "integer", pa.int32()),
    (_t.is_uint32, "bigint", pa.int64()),
    (_t.is_int64, "bigint", pa.int64()),
    (_t.is_uint64, "numeric(20,0)", pa.decimal128(20, 0)),
    (_t.is_float16, "real", pa.float32()),
    (_t.is_float32, "real", pa.float32()),
    (_t.is_float64, "double precision", pa.float64()),
    (_t.is_date32, "date", pa.date32()),
    (_t.is_date64, "date", pa.date32()),
    (_t.is_time, "time", pa.time64("us")),
)


def _kept(kind: Any) -> Kept | None:
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return Kept("uuid", kind, kind)
        if kind.extension_name == "arrow.json":
            return Kept("json", kind, JSON)
        inner = _kept(kind.storage_type)
        return inner and Kept(inner.sql, inner.sent, inner.back, lambda array: _sent(array.storage, inner))
    for test, sql, sent in _PLAIN:
        if test(kind):
            return Kept(sql, sent, kind)
    if _t.is_null(kind):
        return Kept("text", pa.string(), kind)
    if _t.is_string(kind) or _t.is_large_string(kind) or _t.is_string_view(kind):
        return Kept("text", kind, pa.string(), lambda array: array)
    if _t.is_binary(kind) or _t.is_large_binary(kind) or _t.is_binary_view(kind) or _t.is_fixed_size_binary(kind):
        return Kept("bytea", kind, pa.binary(), lambda array: array)
    if _t.is_decimal(kind):
        scale = max(kind.scale, 0)
        precision = kind.precision + (scale - kind.scale)
        wide = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale) if precision <= 76 else None
        return None if wide is None else Kept(f"numeric({precision},{scale})", wide, wide)
    if _t.is_timestamp(kind):
        zone = "timestamp" if kind.tz is None else "timestamp with time zone"
        return Kept(zone, pa.timestamp("us", kind.tz), kind)
    if _t.is_duration(kind):
        return Kept("interval", pa.duration("us"), kind)
    if _t.is_interval(kind):
        return Kept("interval", kind, kind, _whole_microseconds)
    if _t.is_dictionary(kind):
        return _through(kind.value_type, decoded)
    if _t.is_run_end_encoded(kind):
        return _through(kind.value_type, lambda array: pc.call_function("run_end_decode", [array]))
    if _t.is_list(kind) or _t.is_large_list(kind) or _t.is_fixed_size_list(kind):
        return _kept_list(kind)
    if _t.is_struct(kind) or _t.is_map(kind):
        return Kept("jsonb", pa.json_(), JSON, _as_json)
    return None


def _through(kind: Any, decode: Callable[[Any], Any]) -> Kept | None:
    inner = _kept(kind)
    return inner and Kept(inner.sql, inner.sent, inner.back, lambda array: _sent(decode(array), inner))


def _kept_list(kind: Any) -> Kept | None:
    inner = _kept(kind.value_type)
    if inner is None:
        return None
    # Arrays of PostgreSQL are rectangular, and JSON, numerics and intervals inside them do not come back as they are.
    simple = (
        _t.is_integer(inner.sent),
        _t.is_floating(inner.sent),
        _t.is_boolean(inner.sent),
        _t.is_date(inner.sent),
        _t.is_timestamp(inner.sent),
    )
    if inner.sql == "text" and not _t.is_null(inner.back):
        return Kept("text[]", pa.list_(pa.string()), pa.list_(pa.string()))
    if any(simple):
        return Kept(f"{inner.sql}[]", pa.list_(inner.sent), pa.list_(inner.back))
    return Kept("jsonb", pa.json_(), JSON, _as_json)


def sent(array: Any, how: Kept, name: str, where: str) -> Any:
    """Return values as they are sent.

    Raises:
        MaterializationError: A value would lose digits.
    """
    try:
        return _sent(array, how)
    except (pa.ArrowInvalid, ValueError) as error:
        raise MaterializationError(
            f"{where}: column {name!r} cannot be kept exactly: {error}. Round or cast it in the task.", column=name
        ) from error


def _sent(array: Any, how: Kept) -> Any:
    if how.convert is not None:
        return how.convert(array)
    return array if array.type == how.sent else pc.cast(array, how.sent, safe=True)


def _whole_microseconds(array: Any) -> Any:
    if any(value is not None and value.nanoseconds % 1000 for value in array.to_pylist()):
        raise ValueError("it holds nanoseconds, and PostgreSQL keeps microseconds")
    return array


def _as_json(array: Any) -> Any:
    texts = [None if value is None else json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) for value in array.to_pylist()]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        # A map comes as pairs.
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return {str(key): _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no {value}")
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# --- from SQL -----------------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class SqlColumn:
    """A column of a table as the server describes it.

    Attributes:
        name: Its name.
        kind: Name of its base type in the catalogue (`int4`, `_int4` for an array, `numeric`).
        typtype: `b` base, `e` enum, `d` domain, `c` composite, and others.
        typmod: Precision and length as the catalogue keeps them, -1 for none.
        not_null: Whether it was declared so.
    """

    name: str
    kind: str
    typtype: str
    typmod: int
    not_null: bool


#: Base types whose values cannot be compared, or are compared by less than all that they are.
_WITHOUT_EQUALITY: Final = frozenset({"json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle"})

#: Base types that are compared with each other as numbers.
_NUMBERS: Final = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric", "oid"})


def compares(one: SqlColumn, other: SqlColumn) -> bool:
    """Return whether values of two columns can be compared as they are; else their texts can."""
    if one.kind in _NUMBERS and other.kind in _NUMBERS:
        return True
    # Parts of a composite type may be without equality.
    return one.kind == other.kind and one.typtype != "c" and one.kind.removeprefix("_") not in _WITHOUT_EQUALITY


COLUMNS: Final = """
    SELECT a.attname, CASE WHEN t.typtype = 'd' THEN b.typname ELSE t.typname END, CASE WHEN t.typtype = 'd' THEN b.typtype ELSE t.typtype END,
           CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END, a.attnotnull
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
    WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""

#: Base type -> (Arrow type in which it comes back, expression that gives it; `{}` is the column).
_SQL: Final[dict[str, tuple[Any, str]]] = {
    "bool": (pa.bool_(), "{}"),
    "int2": (pa.int16(), "{}"),
    "int4": (pa.int32(), "{}"),
    "int8": (pa.int64(), "{}"),
    "oid": (pa.int64(), "{}::bigint"),
    "float4": (pa.float32(), "{}"),
    "float8": (pa.float64(), "{}"),
    "text": (pa.string(), "{}"),
    "varchar": (pa.string(), "{}"),
    "bpchar": (pa.string(), "{}"),
    "bytea": (pa.binary(), "{}"),
    "date": (pa.date32(), "{}"),
    "time": (pa.time64("us"), "{}"),
    "timestamp": (pa.timestamp("us"), "{}"),
    "timestamptz": (pa.timestamp("us", "UTC"), "{}"),
    "interval": (pa.month_day_nano_interval(), "{}"),
    "uuid": (pa.uuid(), "{}"),
    "json": (JSON, "{}::text"),
    "jsonb": (JSON, "{}::text"),
    "_bool": (pa.list_(pa.bool_()), "{}"),
    "_int2": (pa.list_(pa.int16()), "{}"),
    "_int4": (pa.list_(pa.int32()), "{}"),
    "_int8": (pa.list_(pa.int64()), "{}"),
    "_float4": (pa.list_(pa.float32()), "{}"),
    "_float8": (pa.list_(pa.float64()), "{}"),
    "_text": (pa.list_(pa.string()), "{}"),
    "_varchar": (pa.list_(pa.string()), "{}::text[]"),
    "_date": (pa.list_(pa.date32()), "{}"),
    "_timestamp": (pa.list_(pa.timestamp("us")), "{}"),
    "_timestamptz": (pa.list_(pa.timestamp("us", "UTC")), "{}"),
}

#: The server's number of a type, the same on all servers -> its name in the catalogue, for the types that are known here.
BY_OID: Final[dict[int, str]] = {
    number: kind
    for info in builtin_types
    for number, kind in ((info.oid, info.name), (info.array_oid, f"_{info.name}"))
    if kind in _SQL or kind == "numeric"
}


def from_sql(column: SqlColumn) -> Any:
    """Return the Arrow type in which a column that a query made comes back; None where its values have to be looked at."""
    if column.kind == "numeric":
        return None if column.typmod < 0 else _decimal(((column.typmod - 4) >> 16) & 0xFFFF, _scale(column.typmod))
    if column.kind.startswith("_"):
        # Arrays of several dimensions do not show that in their type.
        return None
    return _SQL[column.kind][0] if column.kind in _SQL else pa.string()


def _scale(typmod: int) -> int:
    # Eleven bits with a sign.
    return (((typmod - 4) & 0x7FF) ^ 1024) - 1024


def _decimal(precision: int, scale: int) -> Any:
    if scale < 0:
        precision, scale = precision - scale, 0
    precision = max(precision, scale, 1)
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale) if precision <= 76 else pa.string()


def measures(column: SqlColumn) -> list[str]:
    """Return aggregates over a column whose type alone does not say how its values come back."""
    name = quote_identifier(column.name)
    if column.kind == "numeric":
        # NaN and the infinities have no scale.
        return [
            f"max(pg_catalog.scale({name}))",
            f"max(pg_catalog.length(pg_catalog.trunc(pg_catalog.abs({name}))::text))",
            f"coalesce(bool_or({name}::text IN ('NaN', 'Infinity', '-Infinity')), false)::int",
        ]
    return [f"max(pg_catalog.array_ndims({name}))"]


def measured(column: SqlColumn, found: Sequence[int | None]) -> Any:
    """Return the Arrow type in which a column comes back, by what `measures` gave."""
    if column.kind == "numeric":
        scale, digits, strange = found[0] or 0, found[1] or 1, found[2]
        if strange:
            return pa.string()
        wide = _decimal(digits + scale, scale)
        return wide if _t.is_string(wide) else _decimal(38 if digits + scale <= 38 else 76, scale)
    if (found[0] or 1) > 1 or column.kind not in _SQL:
        return JSON
    return _SQL[column.kind][0]


def expression(column: SqlColumn, back: Any) -> str:
    """Return the SQL that gives a column's values in a form from which `received` makes the Arrow type that is wanted."""
    name = quote_identifier(column.name)
    if _t.is_duration(back):
        return f"(extract(epoch FROM {name}) * 1000000)::bigint AS {name}"
    if column.kind.startswith("_") and _t.is_string(back):
        return f"pg_catalog.to_jsonb({name})::text AS {name}"
    if column.kind == "numeric" and _t.is_string(back):
        return f"{name}::text AS {name}"
    if column.kind == "numeric":
        return name
    if column.kind not in _SQL:
        return f"pg_catalog.to_jsonb({name})::text AS {name}" if column.typtype == "c" else f"{name}::text AS {name}"
    text = _SQL[column.kind][1].format(name)
    return text if text == name else f"{text} AS {name}"


def received(array: Any, back: Any) -> Any:
    """Return values as they came from the server in the Arrow type that is wanted."""
    kind = array.type
    if kind == back:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        # Numerics come as text.
        array, kind = array.storage, array.type.storage_type
    if _t.is_null(back):
        return pa.nulls(len(array))
    if isinstance(back, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(back, pc.cast(array, back.storage_type))
    if _t.is_uint64(back):
        array = pc.cast(array, pa.decimal128(20, 0))
    if _t.is_duration(back):
        array = pc.cast(array, pa.duration("us"))
    return array if array.type == back else pc.cast(array, back)
