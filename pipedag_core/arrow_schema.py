"""The one way between an Arrow schema and the `TableSchema` that catalog and ports carry.

Hooks and stores both need it and do not know each other, hence its place below them. pyarrow is loaded when a function is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from pipedag_core.ports.data import Column, TableSchema

#: Parquet readers number the fields; the numbers say nothing about the column.
_NOISE: Final = b"PARQUET:"


def from_arrow(schema: Any) -> TableSchema:
    """Describe an Arrow schema.

    Types are kept exactly (dictionaries, time zones, extension types and nested fields included). Metadata of the schema as a whole (pandas
    writes some) and field numbers of Parquet readers are dropped, so that equal columns give equal bytes.

    Args:
        schema: A `pyarrow.Schema`, or any object with `__arrow_c_schema__`.
    """
    pa = import_module("pyarrow")
    fields = [_cleaned(field) for field in pa.schema(schema)]
    raw: bytes = pa.schema(fields).serialize().to_pybytes()
    return TableSchema(tuple(Column(field.name, str(field.type), field.nullable) for field in fields), raw)


def selected(sources: Sequence[TableSchema], columns: Sequence[tuple[str, str]]) -> TableSchema:
    """Return the columns of a view.

    Args:
        sources: What it selects from; columns of one name are of one type in all of them.
        columns: (name in the view, name in the sources), in order.
    """
    pa = import_module("pyarrow")
    schemas = [to_arrow(source) for source in sources]
    nullable = {old: any(schema.field(old).nullable for schema in schemas) for _, old in columns}
    return from_arrow(pa.schema([schemas[0].field(old).with_name(new).with_nullable(nullable[old]) for new, old in columns]))


def to_arrow(schema: TableSchema) -> Any:
    """Return the `pyarrow.Schema` that `from_arrow` was given, without what it dropped."""
    pa = import_module("pyarrow")
    return pa.ipc.read_schema(pa.py_buffer(schema.arrow))


def _cleaned(field: Any) -> Any:
    pa = sys.modules["pyarrow"]
    noted: dict[bytes, bytes] | None = field.metadata
    if not noted and not pa.types.is_nested(field.type):
        return field
    metadata = {key: noted[key] for key in sorted(noted) if not key.startswith(_NOISE)} if noted else None
    return pa.field(field.name, _cleaned_type(field.type), nullable=field.nullable, metadata=metadata or None)


def _cleaned_type(kind: Any) -> Any:
    pa = sys.modules["pyarrow"]
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([_cleaned(field) for field in kind])
    if types.is_map(kind):
        return pa.map_(_cleaned(kind.key_field), _cleaned(kind.item_field), keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_cleaned(kind.value_field), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_cleaned(kind.value_field))
    if types.is_list(kind):
        return pa.list_(_cleaned(kind.value_field))
    return kind
