"""Arrow's views of text and bytes: much of Arrow cannot work on them yet, so they are turned into the plain forms where it has to."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

_types: Final[Any] = pa.types


def without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type whose text and bytes are kept in the plain way, at any depth.

    Arrow can neither filter nor take views of text yet; categories are left as they are, since only their indices are filtered.
    """
    if _types.is_string_view(kind):
        return pa.large_string()
    if _types.is_binary_view(kind):
        return pa.large_binary()
    if _types.is_list(kind):
        return pa.list_(kind.value_field.with_type(without_views(kind.value_type)))
    if _types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(without_views(kind.value_type)))
    if _types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(without_views(kind.value_type)), kind.list_size)
    if _types.is_map(kind):
        key, item = kind.key_field, kind.item_field
        return pa.map_(key.with_type(without_views(key.type)), item.with_type(without_views(item.type)), keys_sorted=kind.keys_sorted)
    if _types.is_struct(kind):
        return pa.struct([kind.field(at).with_type(without_views(kind.field(at).type)) for at in range(kind.num_fields)])
    return kind


def decoded(array: Any) -> Any:
    """Return the values that a dictionary array stands for."""
    plain = without_views(array.type.value_type)
    if plain != array.type.value_type:
        array = pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(plain))
    return array.dictionary_decode()
