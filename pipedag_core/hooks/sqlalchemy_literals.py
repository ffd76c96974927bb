"""Python values inside queries, as literals that carry their type.

SQLAlchemy writes dates as plain text, NaN as a column's name, and refuses bytes and JSON; and it leaves decimals and floats to look alike.
A query whose values stand in it as literals must mean what the same query with parameters means.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import numbers
import uuid
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from pipedag_core.naming import quote_literal


@cache
def compiler(base: type, dialect: str) -> type:
    """Return a subclass of a dialect's statement compiler that writes values by `literal`."""

    def render_literal_value(self: Any, value: Any, type_: Any) -> str:
        if isinstance(type_, sa.types.TypeDecorator | sa.Enum) and not isinstance(type_, sa.Interval):
            # Only the type knows what such a value is in the database.
            return base.render_literal_value(self, value, type_)
        if isinstance(type_, sa.JSON):
            return f"CAST({quote_literal(json.dumps(value))} AS JSON)"
        return literal(_of_type(value, type_), dialect)

    return type(f"{base.__name__}WithLiterals", (base,), {"render_literal_value": render_literal_value})


def _of_type(value: Any, type_: Any) -> Any:
    """Return a number as the kind of number that the expression says it is."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if isinstance(type_, sa.Boolean):
            return bool(value)
        if isinstance(type_, sa.Float):
            return float(value)
        if isinstance(type_, sa.Numeric) and isinstance(value, float) and math.isfinite(value):
            return decimal.Decimal(repr(float(value)))
    return value


def literal(value: Any, dialect: str) -> str:
    """Return the value as a literal of the dialect.

    Args:
        value: None, bool, int, float, Decimal, str, bytes, date, time, datetime, timedelta, UUID, a list of these, or a dict (as JSON).
        dialect: `duckdb`, or any other, which is taken to understand what PostgreSQL does.

    Raises:
        sqlalchemy.exc.CompileError: The value is of another type.
    """
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= 2**127:
            raise exc.CompileError(f"the integer {value} has more than 128 bits, so a database would round it")
        return _signed(str(int(value)))
    if isinstance(value, float):
        return _float(float(value), dialect)
    if isinstance(value, decimal.Decimal):
        text = format(value, "f")
        if not value.is_finite() or sum(map(str.isdigit, text)) > 38:
            raise exc.CompileError(f"the decimal {value} has no exact literal of at most 38 digits")
        return _signed(text)
    if isinstance(value, str):
        return quote_literal(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"from_hex('{bytes(value).hex()}')" if dialect == "duckdb" else f"decode('{bytes(value).hex()}', 'hex')"
    if isinstance(value, dt.datetime):
        if getattr(value, "nanosecond", 0):
            raise exc.CompileError(f"the time {value} has nanoseconds, which a timestamp literal would lose")
        return f"TIMESTAMP{' WITH TIME ZONE' if value.tzinfo else ''} '{value.isoformat(sep=' ')}'"
    if isinstance(value, dt.date):
        return f"DATE '{value.isoformat()}'"
    if isinstance(value, dt.time):
        return f"TIME{' WITH TIME ZONE' if value.tzinfo else ''} '{value.isoformat()}'"
    if isinstance(value, dt.timedelta):
        return _interval(value)
    if isinstance(value, uuid.UUID):
        return f"CAST('{value}' AS UUID)"
    if isinstance(value, list | tuple):
        return f"ARRAY[{', '.join(literal(item, dialect) for item in value)}]"
    if isinstance(value, dict):
        return f"CAST({quote_literal(json.dumps(value))} AS JSON)"
    raise exc.CompileError(f"a value of type {type(value).__name__} has no literal; cast it to a plain Python value")


def _float(value: float, dialect: str) -> str:
    if not math.isfinite(value):
        return f"CAST('{value}' AS DOUBLE PRECISION)"
    text = repr(value)
    if dialect != "duckdb":
        return f"CAST({text} AS DOUBLE PRECISION)"
    # Without an exponent it would be a decimal.
    return _signed(text if "e" in text else f"{text}e0")


def _signed(text: str) -> str:
    # Behind a minus sign, a second one would begin a comment.
    return f"({text})" if text.startswith("-") else text


def _interval(value: dt.timedelta) -> str:
    microseconds = (value.seconds * 1_000_000) + value.microseconds
    return f"(INTERVAL '{value.days} days' + INTERVAL '{microseconds} microseconds')"
