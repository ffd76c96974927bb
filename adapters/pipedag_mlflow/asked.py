"""What a model is asked with: the inputs of a production flow, flat, by name; and how what comes over the wire becomes a table again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast, final

import pyarrow as pa
import pyarrow.compute as pc

from pipedag_core import ProductionFlow
from pipedag_core.define.walk import join, map_leaves, segment
from pipedag_core.errors import InputMismatch
from pipedag_core.production.shapes import BlobShape, TableShape, ValueShape

#: Stands for an input that nobody gives.
_ABSENT: Final = object()

#: Types of columns that JSON, CSV or MLflow's own types do not have, so that their values may come in another form.
_SPECIAL: Final[tuple[Callable[[Any], bool], ...]] = (
    pa.types.is_temporal,
    pa.types.is_decimal,
    pa.types.is_dictionary,
    pa.types.is_nested,
    pa.types.is_integer,
)


def inputs_of(prod: ProductionFlow) -> dict[str, Any]:
    """Return name -> shape of all that a production flow takes, nests taken apart: `clean.flights`."""
    found: dict[str, Any] = {}

    def leaf(shape: Any, path: str) -> Any:
        found[path] = shape
        return shape

    for name, shape in prod.parts.inputs.items():
        map_leaves(shape, leaf, name)
    return found


def flat(prod: ProductionFlow, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs by these names; as `run` takes them, or flat already."""
    wanted = inputs_of(prod)
    found: dict[str, Any] = {}

    def put(value: Any, path: str) -> None:
        if path in wanted:
            found[path] = value
        elif isinstance(value, Mapping):
            for key, item in cast("Mapping[str, Any]", value).items():
                put(item, join(path, segment(key)) if path else str(key))
        elif isinstance(value, (list, tuple)):
            for place, item in enumerate(cast("Sequence[Any]", value)):
                put(item, join(path, segment(place)))
        else:
            # Unknown here; the production flow says so, and what it has.
            found[path] = value

    put(inputs, "")
    return found


def nested(prod: ProductionFlow, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat inputs as `run` takes them.

    Raises:
        InputMismatch: Some are missing.
    """
    missing: list[str] = []

    def leaf(_: Any, path: str) -> Any:
        value = values.get(path, _ABSENT)
        if value is _ABSENT:
            missing.append(path)
        return value

    inputs = {name: map_leaves(shape, leaf, name) for name, shape in prod.parts.inputs.items()}
    if missing:
        raise InputMismatch(
            f"The production flow of {prod.parts.program.flow!r} cannot run on these inputs:\n* missing {', '.join(missing)}; got: "
            f"{', '.join(values) or 'nothing'}",
            problems=(f"missing {', '.join(missing)}",),
        )
    return inputs


def is_table(shape: Any) -> bool:
    """Return whether an input is a table."""
    return isinstance(shape, TableShape)


def is_value(shape: Any) -> bool:
    """Return whether an input is a plain value."""
    return isinstance(shape, ValueShape)


def is_blob(shape: Any) -> bool:
    """Return whether an input is a blob, which no request can carry."""
    return isinstance(shape, BlobShape)


@final
class TableReader:
    """Makes a table of whatever a caller gives for one: a frame, records, columns, or columns and rows.

    Times, dates, decimals and the like may come as text; all else is left to the production flow's own look at its inputs.

    Args:
        prod: The production flow.
        shape: What the table looked like in training.
    """

    def __init__(self, prod: ProductionFlow, shape: Any) -> None:
        self._prod = prod
        self._types: dict[str, pa.DataType] = {item.name: item.type for item in shape.arrow}
        self._special = {name: kind for name, kind in self._types.items() if any(is_it(kind) for is_it in _SPECIAL)}

    def __call__(self, value: Any) -> Any:
        """Return a frame that a production flow takes."""
        if type(value).__module__.startswith("numpy"):
            value = value.item() if value.ndim == 0 else value.tolist()
        if isinstance(value, list):
            return self._of_records(value)
        if isinstance(value, dict):
            if value.keys() <= {"columns", "data", "index"} and not value.keys() <= self._types.keys():
                names = value.get("columns") or list(self._types)
                return self._of_columns({name: [row[place] for row in value["data"]] for place, name in enumerate(names)})
            return self._of_columns(value)
        return self._of_frame(value) if self._special else value

    def _of_frame(self, frame: Any) -> Any:
        dtypes = getattr(frame, "dtypes", None)
        if not type(frame).__module__.startswith("pandas") or dtypes is None:
            return frame
        # What pandas has a type of its own for needs no second look.
        given = [name for name in self._special if name in frame.columns]
        if all(_is_native(frame[name].dtype, self._types[name]) for name in given):
            return frame
        return self._cast(self._prod.to_arrow(frame), given)

    def _of_records(self, rows: list[Any]) -> Any:
        names = list(dict.fromkeys(name for row in rows for name in row)) if rows else list(self._types)
        return self._of_columns({name: [row.get(name) for row in rows] for name in names})

    def _of_columns(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        names = list(columns)
        return self._cast(pa.table([_array(columns[name], self._types.get(name)) for name in names], names=names), names)

    def _cast(self, table: Any, names: Sequence[str]) -> Any:
        for name in names:
            wanted, column = self._types.get(name), table.column(name)
            if wanted is not None and column.type != wanted:
                table = table.set_column(table.column_names.index(name), name, _cast(column, wanted))
        return table


def _is_native(dtype: Any, kind: Any) -> bool:
    if pa.types.is_timestamp(kind):
        return dtype.kind == "M"
    if pa.types.is_integer(kind):
        # As objects integers come where there are gaps.
        return dtype.kind in "iuf"
    return False


def _array(values: Sequence[Any], wanted: Any) -> Any:
    items = list(values)
    try:
        return pa.array(items, type=wanted)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # As it comes; a cast follows, and if that cannot be the production flow says what is wrong.
        return pa.array(items)


def _cast(column: Any, wanted: Any) -> Any:
    """Return a column in the type that training had, if its values can be read as such, else as it is."""
    types = pa.types
    readable = types.is_temporal(wanted) or types.is_decimal(wanted) or types.is_dictionary(wanted) or types.is_nested(wanted)
    whole = types.is_integer(wanted) and types.is_floating(column.type)
    if not (readable or whole or types.is_null(column.type)):
        return column
    # A date may come as a moment: midnight.
    for way in ((wanted,), (pa.timestamp("us"), wanted)) if types.is_date(wanted) else ((wanted,),):
        try:
            made = column
            for kind in way:
                made = pc.cast(made, kind, safe=True)
        except pa.ArrowException:
            continue
        return made
    return column
