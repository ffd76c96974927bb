"""What an input looks like: learned from training, and held against what is supplied."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, final

from pipedag_core.arrow_schema import from_arrow, to_arrow
from pipedag_core.define.hints import nearest
from pipedag_core.define.values import Blob
from pipedag_core.define.walk import Kind, build, children, is_plain, join, kind_of, map_leaves, segment
from pipedag_core.errors import PipedagError
from pipedag_core.ports.data import StoredBlob, StoredTable, TableSchema, TableSource
from pipedag_core.production.frames import Frames, type_name
from pipedag_core.run.inputs import RawTables

#: Problems that are listed of one input before the rest is only counted.
_MOST: Final = 20

#: Classes of frames by the names under which hooks know them.
_POLARS: Final = "polars.DataFrame"
_PANDAS: Final = "pandas.DataFrame"
_ARROW: Final = "pyarrow.Table"


@final
@dataclass(frozen=True, eq=False)
class TableShape:
    """The columns of a table, as training had them.

    Attributes:
        schema: Names and types, in order.
        required: Columns without nulls.
    """

    schema: TableSchema
    required: tuple[str, ...] = ()
    _native: dict[type, Callable[[Any], bool]] = field(default_factory=dict[type, Callable[[Any], bool]], repr=False)

    @property
    def arrow(self) -> Any:
        """The `pyarrow.Schema`."""
        return to_arrow(self.schema)

    def check(self, obj: Any, frames: Frames, path: str, problems: list[str]) -> Any:
        """Return the frame with training's columns, in their order and of their types; what is wrong with it goes into `problems`.

        A frame that has them already is returned as it is.
        """
        cls = type(obj)
        fits = self._native.get(cls)
        if fits is None:
            if not frames.is_frame(obj):
                problems.append(f"{path}: expected a table, got {_told(obj)}")
                return obj
            if frames.is_lazy(cls):
                return self.check(frames.settled(obj), frames, path, problems)
            fits = self._native[cls] = self._fits(cls, frames)
        if fits(obj):
            return self._without_nulls(obj, frames, path, problems) if self.required else obj
        try:
            table = frames.to_arrow(obj, "the production flow", path)
        except PipedagError as error:
            problems.append(f"{path}: {error}")
            return obj
        before = len(problems)
        from_pandas = type_name(cls) == _PANDAS
        table = self._cast(table, path, problems, from_pandas=from_pandas)
        return obj if len(problems) > before else self._without_nulls(table, frames, path, problems)

    def _fits(self, cls: type, frames: Frames) -> Callable[[Any], bool]:
        """Return what says whether a frame of this class is as training had it; it is called at every run, and as fast as can be."""
        name = type_name(cls)
        if name == _POLARS:
            known = frames.from_arrow(self.arrow.empty_table(), cls).schema
            names = list(known)

            def polars_fits(frame: Any) -> bool:
                schema = frame.schema
                return schema == known and list(schema) == names

            return polars_fits
        if name == _PANDAS:
            empty = frames.from_arrow(self.arrow.empty_table(), cls)
            columns, dtypes, numbers = empty.columns, _dtypes(empty), type(empty.index)
            if any(str(kind) == "object" for kind in dtypes):
                # Objects can be anything, so they have to be looked at.
                return _never

            def pandas_fits(frame: Any) -> bool:
                index = frame.index
                return type(index) is numbers and index.name is None and _dtypes(frame) == dtypes and bool(frame.columns.equals(columns))

            return pandas_fits
        if name == _ARROW:
            expected = self.arrow
            return lambda frame: bool(expected.equals(frame.schema))
        return _never

    def _without_nulls(self, frame: Any, frames: Frames, path: str, problems: list[str]) -> Any:
        for column in self.required:
            values = frame[column]
            count = values.null_count if type_name(type(frame)) == "pyarrow.Table" else _nulls(values)
            if count:
                problems.append(f"{path}: column {column!r} has {count} null{'s' if count > 1 else ''}; expected none, as in training")
        return frame

    def _cast(self, table: Any, path: str, problems: list[str], *, from_pandas: bool) -> Any:
        pa = import_module("pyarrow")
        expected = self.arrow
        names = table.schema.names
        double = sorted({name for name in names if names.count(name) > 1})
        missing = [name for name in expected.names if name not in names]
        extra = [name for name in names if name not in expected.names]
        if double:
            problems.append(f"{path}: columns {', '.join(map(repr, double))} occur more than once")
        if missing:
            shown = ", ".join(f"{name!r} ({expected.field(name).type})" for name in missing)
            problems.append(f"{path}: missing column{'s' if len(missing) > 1 else ''} {shown}; got: {', '.join(names) or 'no columns'}")
        if extra:
            shown = ", ".join(map(repr, extra))
            problems.append(f"{path}: extra column{'s' if len(extra) > 1 else ''} {shown}; expected: {', '.join(expected.names)}")
        if missing or extra or double:
            return table
        columns: list[Any] = []
        for item in expected:
            column = table.column(item.name)
            if column.type != item.type:
                if not _allowed(pa, column.type, item.type, from_pandas=from_pandas):
                    problems.append(f"{path}: column {item.name!r}: expected {item.type}, got {column.type}")
                    continue
                try:
                    column = column.cast(item.type, safe=True)
                except pa.ArrowException as error:
                    problems.append(f"{path}: column {item.name!r}: expected {item.type}, got {column.type} that does not fit ({error})")
                    continue
            columns.append(column)
        if len(columns) < len(expected):
            return table
        return pa.Table.from_arrays(columns, schema=pa.schema([pa.field(item.name, item.type) for item in expected]))


def _never(frame: Any) -> bool:
    return False


def _dtypes(frame: Any) -> list[Any]:
    """Return the types of a pandas frame's columns; `dtypes` makes a series of them, which takes longer than scoring a row with small tasks."""
    try:
        blocks, numbers = frame._mgr.blocks, frame._mgr.blknos
        return [blocks[number].dtype for number in numbers.tolist()]
    except AttributeError:
        return list(frame.dtypes)


def _nulls(values: Any) -> int:
    if hasattr(values, "null_count"):
        return int(values.null_count())
    return int(values.isna().sum())


def _allowed(pa: Any, got: Any, wanted: Any, *, from_pandas: bool) -> bool:
    """Return whether a column may be cast: to another width or way of keeping the same, never to something else."""
    types = pa.types
    if types.is_null(got):
        return True
    if types.is_dictionary(got):
        return got.value_type == wanted or _allowed(pa, got.value_type, wanted, from_pandas=from_pandas)
    if types.is_dictionary(wanted):
        return _allowed(pa, got, wanted.value_type, from_pandas=from_pandas) or got == wanted.value_type
    is_text = [types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) for kind in (got, wanted)]
    is_bytes = [types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) for kind in (got, wanted)]
    is_list = [types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) for kind in (got, wanted)]
    if all(is_text) or all(is_bytes):
        return True
    if all(is_list):
        inner = got.value_type, wanted.value_type
        return inner[0] == inner[1] or _allowed(pa, *inner, from_pandas=from_pandas)
    if types.is_integer(got):
        return types.is_integer(wanted) or types.is_floating(wanted)
    if types.is_floating(got):
        # pandas keeps integers with gaps, and what it makes of empty columns, as floats; the cast refuses fractions.
        return types.is_floating(wanted) or (from_pandas and types.is_integer(wanted))
    if types.is_timestamp(got) and types.is_timestamp(wanted):
        return (got.tz is None) == (wanted.tz is None)
    if types.is_decimal(got) and types.is_decimal(wanted):
        return True
    return (types.is_time(got) and types.is_time(wanted)) or (types.is_duration(got) and types.is_duration(wanted))


@final
@dataclass(frozen=True, slots=True)
class ValueShape:
    """A value that is no table: the name of its type; "" if anything will do."""

    type: str

    def check(self, value: Any, path: str, problems: list[str]) -> Any:
        """Return the value; what is wrong with it goes into `problems`."""
        got: str = type(value).__name__
        fits = not self.type or got == self.type or (self.type == "float" and type(value) is int) or got.partition("_")[0] == self.type
        # Scalars of array libraries are plain numbers to everybody but their type.
        item = getattr(value, "item", None)
        if not fits and item is not None and getattr(value, "shape", None) == ():
            return self.check(item(), path, problems)
        if not fits:
            problems.append(f"{path}: expected {self.type}, got {_told(value)}")
        return value


@final
@dataclass(frozen=True, slots=True)
class BlobShape:
    """A blob: the name of its class, for people."""

    type: str


def shape_of(value: Any) -> Any:
    """Return what a value of training looks like: a nest with a shape for every leaf.

    Args:
        value: As decoded from the catalog, with loaded table sources and `StoredBlob` for what is stored.
    """

    def leaf(item: Any, path: str) -> Any:
        if isinstance(item, RawTables):
            return {name: leaf(table, path) for name, table in item.items()}
        if isinstance(item, TableSource):
            return TableShape(item.schema, _required(item))
        if isinstance(item, StoredBlob):
            return BlobShape(item.name)
        return ValueShape("" if item is None else type(item).__name__)

    return map_leaves(value, leaf)


def _required(table: TableSource) -> tuple[str, ...]:
    if not isinstance(table, StoredTable):
        return tuple(column.name for column in table.schema.columns if not column.nullable)
    options = table.options
    declared = {*options.primary_key, *(options.non_nullable or ())}
    if options.nullable is not None and options.non_nullable is None:
        declared |= {column.name for column in table.schema.columns if column.name not in options.nullable}
    folded = {name.casefold() for name in declared}
    return tuple(column.name for column in table.schema.columns if not column.nullable or column.name.casefold() in folded)


def check(shape: Any, value: Any, frames: Frames, path: str, problems: list[str]) -> Any:
    """Hold a supplied value against a shape, and return it with its frames as training had them."""
    if type(shape) is TableShape:
        return shape.check(value, frames, path, problems)
    if type(shape) is ValueShape:
        if is_plain(value) or hasattr(value, "dtype"):
            return shape.check(value, path, problems)
        if not shape.type:
            return value
        problems.append(f"{path}: expected {shape.type}, got {_told(value)}")
        return value
    if type(shape) is BlobShape:
        return value if type(value) is Blob else Blob(value)
    kind = kind_of(shape)
    got = kind_of(value)
    is_mapping = got in (Kind.DICT, Kind.BAG)
    if kind is Kind.DICT and not is_mapping and type(value) is RawTables:
        value, is_mapping = dict(value.items()), True
    if kind in (Kind.DICT, Kind.DATACLASS) and is_mapping:
        return _check_dict(shape, kind, value, frames, path, problems)
    if kind is not got and not {kind, got} <= {Kind.LIST, Kind.TUPLE}:
        problems.append(f"{path}: expected {_kind(shape)}, got {_told(value)}")
        return value
    wanted, given = children(shape, kind), children(value, got)
    if len(wanted) != len(given):
        problems.append(f"{path}: expected {len(wanted)} items, got {len(given)}")
        return value
    pairs = [
        (key, check(inner, child, frames, join(path, segment(key)), problems))
        for (key, inner), (_, child) in zip(wanted, given, strict=True)
    ]
    return build(value if kind is Kind.DATACLASS else shape, kind, pairs)


def _check_dict(shape: Any, kind: Kind, value: Any, frames: Frames, path: str, problems: list[str]) -> Any:
    wanted: dict[Any, Any] = dict(children(shape, kind))
    missing = [key for key in wanted if key not in value]
    extra = [key for key in value if key not in wanted]
    if missing:
        problems.append(f"{path}: missing {', '.join(map(repr, missing))}; expected: {', '.join(map(str, wanted))}")
    problems.extend(f"{path}: extra {key!r}. {nearest(str(key), map(str, wanted))}" for key in extra)
    pairs = [(key, check(inner, value[key], frames, join(path, segment(key)), problems)) for key, inner in wanted.items() if key in value]
    return build(shape, kind, pairs) if not missing else value


def _kind(shape: Any) -> str:
    kind = kind_of(shape)
    keys = ", ".join(str(key) for key, _ in children(shape, kind)) if kind in (Kind.DICT, Kind.DATACLASS, Kind.NAMED_TUPLE) else ""
    return f"a {kind.value}{f' with {keys}' if keys else ''}"


def _told(value: Any) -> str:
    return (
        f"{value!r:.60} ({type(value).__name__})"
        if is_plain(value)
        else f"a {type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    )


def listed(problems: Sequence[str]) -> str:
    """Return problems as lines."""
    lines = [f"* {problem}" for problem in problems[:_MOST]]
    if len(problems) > _MOST:
        lines.append(f"* and {len(problems) - _MOST} more")
    return "\n".join(lines)


def tables_in(shape: Any, path: str = "") -> Iterator[tuple[str, TableShape]]:
    """Yield (path, shape) of every table in a shape."""
    found: list[tuple[str, TableShape]] = []

    def leaf(item: Any, where: str) -> Any:
        if isinstance(item, TableShape):
            found.append((where, item))
        return item

    map_leaves(shape, leaf, path)
    return iter(found)


def each_leaf(value: Any, look: Callable[[Any], None]) -> None:
    """Call `look` with every leaf of a nest."""

    def leaf(item: Any, path: str) -> Any:
        look(item)
        return item

    map_leaves(value, leaf)


def readable(shape: Any) -> Any:
    """Return a shape for people: nests of Arrow schemas and names of types."""

    def leaf(item: Any, path: str) -> Any:
        return item.arrow if isinstance(item, TableShape) else item.type or "any"

    return map_leaves(shape, leaf)


# --- as JSON ------------------------------------------------------------------------------------------------------------------------------


def encode_leaf(item: Any, path: str) -> Mapping[str, Any] | None:
    """Return a shape as JSON, for the value codec."""
    if isinstance(item, TableShape):
        columns = [{"name": column.name, "type": column.type} for column in item.schema.columns]
        return {"$": "table", "arrow": base64.b64encode(item.schema.arrow).decode(), "columns": columns, "required": list(item.required)}
    if isinstance(item, ValueShape):
        return {"$": "value", "type": item.type}
    if isinstance(item, BlobShape):
        return {"$": "blob", "type": item.type}
    return None


def decode_leaf(node: Mapping[str, Any]) -> Any:
    """Return the shape that `encode_leaf` was given."""
    if node["$"] == "table":
        pa = import_module("pyarrow")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(node["arrow"])))
        return TableShape(from_arrow(schema), tuple(node["required"]))
    return ValueShape(node["type"]) if node["$"] == "value" else BlobShape(node["type"])
