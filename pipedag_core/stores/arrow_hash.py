"""A hash of what Arrow columns say, whatever memory they lie in.

Two tables with equal column names, types, rows and row order have equal hashes, however their rows are cut into batches, sliced, offset, or
encoded (string, large_string and string_view; list and large_list; the width of dictionary indices), and whatever lies under their nulls.
All else makes a difference, -0.0 and 0.0 included; all NaN are one value. Each column is hashed as it streams by: nulls by their row number,
then only the valid values, so that no padding is ever hashed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.compute as kernels
from blake3 import blake3

from pipedag_core.errors import UnsupportedByStore
from pipedag_core.hashing import digest
from pipedag_core.stores.arrow_views import without_views

#: Name and version of the rules; a change of them gets a new name.
ALGORITHM: Final = "arrow3"

_types = pa.types

#: Rows that are converted and hashed at a time.
_PIECE_ROWS: Final = 65_536

#: The kernels are made when the module is loaded, so type checkers see none of them.
pc: Any = kernels


def _is_text(kind: pa.DataType) -> bool:
    return _types.is_string(kind) or _types.is_large_string(kind) or _types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return _types.is_binary(kind) or _types.is_large_binary(kind) or _types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return _types.is_list(kind) or _types.is_large_list(kind) or _types.is_list_view(kind) or _types.is_large_list_view(kind)


def _is_fixed_width(kind: pa.DataType) -> bool:
    plain = _types.is_integer(kind) or _types.is_temporal(kind) or _types.is_decimal(kind) or _types.is_fixed_size_binary(kind)
    return plain and not _types.is_interval(kind)


def type_token(kind: pa.DataType) -> str:
    """Return the type as text in which only what a reader of the column can tell apart differs.

    Raises:
        UnsupportedByStore: Columns of this type cannot be hashed.
    """
    if isinstance(kind, pa.BaseExtensionType):
        # The parameters of an extension type stand in its text.
        return f"extension({kind.extension_name!r},{str(kind)!r},{type_token(kind.storage_type)})"
    if _types.is_dictionary(kind):
        return f"dictionary({type_token(kind.value_type)},{kind.ordered})"
    if _is_text(kind):
        return "string"
    if _is_bytes(kind):
        return "binary"
    if _is_list(kind):
        return f"list({_field_token(kind.value_field)})"
    if _types.is_fixed_size_list(kind):
        return f"list[{kind.list_size}]({_field_token(kind.value_field)})"
    if _types.is_map(kind):
        return f"map({_field_token(kind.key_field)},{_field_token(kind.item_field)})"
    if _types.is_struct(kind):
        return "struct(" + ",".join(f"{kind.field(at).name!r}:{_field_token(kind.field(at))}" for at in range(kind.num_fields)) + ")"
    if _types.is_null(kind) or _types.is_boolean(kind) or _types.is_floating(kind) or _is_fixed_width(kind):
        return str(kind)
    raise UnsupportedByStore(f"Columns of type {kind} have no content hash.", type=str(kind))


def _field_token(field: pa.Field[Any]) -> str:
    """Return the type of a column, or of a part of one, with its metadata: readers get that, too, and to polars it tells the categories of an Enum."""
    # Whoever reads a Parquet file through Arrow gets numbers of its columns, which say nothing of the rows.
    metadata = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
    return type_token(field.type) + (f"{sorted(metadata.items())!r}" if metadata else "")


def schema_digest(schema: pa.Schema) -> str:
    """Return a hash of names, types and metadata of all columns, in order; nullability is no part of it, nor is metadata of the schema as a whole.

    Raises:
        UnsupportedByStore: A column's type cannot be hashed.
    """
    return digest(ALGORITHM, *(part for field in schema for part in (field.name, _field_token(field))))


@final
class ContentHasher:
    """Hashes the batches of one table as they pass.

    Args:
        schema: A `pyarrow.Schema`; every batch has it.

    Raises:
        UnsupportedByStore: A column's type cannot be hashed.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema_digest(schema)
        self._columns = [_column(field.type) for field in schema]
        self._types = [without_views(field.type) for field in schema]
        self._rows = 0
        self._is_possible = True

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in the next rows."""
        # In pieces: what is converted on the way then stays in the processor's cache, and takes little memory.
        for start in range(0, batch.num_rows, _PIECE_ROWS):
            self._add(batch.slice(start, _PIECE_ROWS))

    def _add(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        try:
            for state, kind, array in zip(self._columns, self._types, batch.columns, strict=True):
                if self._is_possible:
                    state.add(array if array.type == kind else array.cast(kind))
        except pa.ArrowNotImplementedError:
            # Some nesting of types that Arrow cannot filter: no hash is better than a wrong one.
            self._is_possible = False

    def result(self) -> str | None:
        """Return `arrow3:<hex>` for all rows so far, or None if Arrow lacks what it takes to hash them."""
        if not self._is_possible:
            return None
        return f"{ALGORITHM}:{digest(self._schema, str(self._rows), *(column.digest() for column in self._columns))}"


class _Column(ABC):
    """The running hash of one column or of one part of a nested column."""

    def __init__(self) -> None:
        self._rows = 0
        self._nulls = blake3()

    def add(self, array: Any) -> None:
        """Take in the next values."""
        if array.null_count:
            positions = pc.add(pc.indices_nonzero(pc.is_null(array)), pa.scalar(self._rows, pa.uint64()))
            self._nulls.update(_fixed_bytes(positions, 8))
        self._rows += len(array)
        if array.null_count:
            array = array.drop_null()
        if len(array):
            self._add_values(array)

    def digest(self) -> bytes:
        """Return the hash of all values so far."""
        return digest(str(self._rows), self._nulls.digest(), *self._parts()).encode()

    @abstractmethod
    def _add_values(self, array: Any) -> None:
        """Take in at least one value; none of them is null."""

    @abstractmethod
    def _parts(self) -> tuple[bytes, ...]:
        """Return the hashes of the values."""


def _fixed_bytes(array: Any, width: int) -> Any:
    return array.buffers()[1].slice(array.offset * width, len(array) * width)


class _Plain(_Column):
    """Values of equal width, hashed as they lie in memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self._values = blake3()

    def _add_values(self, array: Any) -> None:
        if self._width:
            self._values.update(_fixed_bytes(array, self._width))

    def _parts(self) -> tuple[bytes, ...]:
        return (self._values.digest(),)


class _Nothing(_Column):
    """A column of type null: its length says all."""

    def add(self, array: Any) -> None:
        self._rows += len(array)

    def _add_values(self, array: Any) -> None:
        raise AssertionError("a column of type null has no values")

    def _parts(self) -> tuple[bytes, ...]:
        return ()


class _Boolean(_Plain):
    """One byte per value, since packed bits begin at any offset."""

    def __init__(self) -> None:
        super().__init__(1)

    def _add_values(self, array: Any) -> None:
        super()._add_values(array.cast(pa.uint8()))


class _Float(_Plain):
    """Floats, with one bit pattern for all NaN."""

    def __init__(self, kind: pa.DataType) -> None:
        # Every half float is also a float, and that has all the kernels.
        self._kind = pa.float32() if _types.is_float16(kind) else kind
        super().__init__(self._kind.bit_width // 8)
        self._nan = pa.scalar(float("nan"), self._kind)

    def _add_values(self, array: Any) -> None:
        array = array.cast(self._kind)
        is_nan = pc.is_nan(array)
        if pc.any(is_nan).as_py():
            array = pc.if_else(is_nan, self._nan, array)
        super()._add_values(array)


class _Binary(_Column):
    """Strings and bytes: their lengths, and all bytes one after another."""

    def __init__(self) -> None:
        super().__init__()
        self._lengths = blake3()
        self._bytes = blake3()

    def _add_values(self, array: Any) -> None:
        self._lengths.update(_fixed_bytes(pc.binary_length(array).cast(pa.int64()), 8))
        wide = _types.is_large_string(array.type) or _types.is_large_binary(array.type)
        _, offsets, data = array.buffers()
        ends = pa.Array.from_buffers(pa.int64() if wide else pa.int32(), len(array) + 1, [None, offsets], offset=array.offset)
        first, last = ends[0].as_py(), ends[-1].as_py()
        if last > first:
            self._bytes.update(data.slice(first, last - first))

    def _parts(self) -> tuple[bytes, ...]:
        return self._lengths.digest(), self._bytes.digest()


class _List(_Column):
    """Lists: their lengths, and their items as one column."""

    def __init__(self, items: pa.DataType) -> None:
        super().__init__()
        self._lengths = blake3()
        self._items = _column(items)

    def _add_values(self, array: Any) -> None:
        self._lengths.update(_fixed_bytes(pc.list_value_length(array).cast(pa.int64()), 8))
        self._items.add(array.flatten())

    def _parts(self) -> tuple[bytes, ...]:
        return self._lengths.digest(), self._items.digest()


class _Map(_Column):
    """Maps: their lengths, and keys and values as columns, in the order in which they stand."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._lengths = blake3()
        self._keys = _column(kind.key_type)
        self._items = _column(kind.item_type)

    def _add_values(self, array: Any) -> None:
        offsets = array.offsets
        self._lengths.update(_fixed_bytes(pc.subtract(offsets[1:], offsets[:-1]).cast(pa.int64()), 8))
        first, last = offsets[0].as_py(), offsets[-1].as_py()
        self._keys.add(array.keys.slice(first, last - first))
        self._items.add(array.items.slice(first, last - first))

    def _parts(self) -> tuple[bytes, ...]:
        return self._lengths.digest(), self._keys.digest(), self._items.digest()


class _Struct(_Column):
    """Structs: each field as a column."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._fields = [_column(kind.field(at).type) for at in range(kind.num_fields)]

    def _add_values(self, array: Any) -> None:
        for state, values in zip(self._fields, array.flatten(), strict=True):
            state.add(values)

    def _parts(self) -> tuple[bytes, ...]:
        return tuple(field.digest() for field in self._fields)


class _Dictionary(_Column):
    """Categories: the values, and the list of categories, because a reader can see their order and those that do not occur."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._values = _column(kind.value_type)
        self._categories = _column(kind.value_type)
        self._last: Any = None

    def add(self, array: Any) -> None:
        if not len(array):
            return
        categories = array.dictionary.cast(without_views(array.type.value_type))
        if self._last is None or not categories.equals(self._last):
            self._categories.add(categories)
            self._last = categories
        self._values.add(categories.take(array.indices))

    def _add_values(self, array: Any) -> None:
        raise AssertionError("categories are decoded before")

    def _parts(self) -> tuple[bytes, ...]:
        return self._values.digest(), self._categories.digest()


class _Extension(_Column):
    """Extension types, by what they are stored as."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._storage = _column(kind.storage_type)

    def add(self, array: Any) -> None:
        self._storage.add(array.storage.cast(without_views(array.type.storage_type)))

    def _add_values(self, array: Any) -> None:
        raise AssertionError("the storage is hashed instead")

    def _parts(self) -> tuple[bytes, ...]:
        return (self._storage.digest(),)


def _column(kind: Any) -> _Column:
    if isinstance(kind, pa.BaseExtensionType):
        return _Extension(kind)
    if _types.is_dictionary(kind):
        return _Dictionary(kind)
    if _is_text(kind) or _is_bytes(kind):
        return _Binary()
    if _is_list(kind):
        return _List(kind.value_type)
    if _types.is_fixed_size_list(kind):
        return _List(kind.value_type)
    if _types.is_map(kind):
        return _Map(kind)
    if _types.is_struct(kind):
        return _Struct(kind)
    if _types.is_null(kind):
        return _Nothing()
    if _types.is_boolean(kind):
        return _Boolean()
    if _types.is_floating(kind):
        return _Float(kind)
    return _Plain(kind.bit_width // 8)
