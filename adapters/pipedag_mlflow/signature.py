"""The signature of a model, made from what a production flow takes and gives; and an example to ask it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, Final, final

import pyarrow as pa

from pipedag_core import ProductionFlow
from pipedag_core.define.walk import map_leaves
from pipedag_core.errors import ProductionError
from pipedag_mlflow.asked import TableReader, flat, inputs_of, is_blob, is_table, is_value
from pipedag_mlflow.model import OUTPUTS

#: Rows of each table that an example has.
_EXAMPLE_ROWS: Final = 2

#: Type of a plain value -> MLflow's word for it.
_PARAMS: Final[dict[type, str]] = {bool: "boolean", int: "long", float: "double", str: "string", datetime: "datetime"}


def column_type(kind: pa.DataType, *, gaps: bool) -> str | None:
    """Return MLflow's word for the type of a column; None where it has none that all values fit.

    Integers are `long` whatever their width, since frames have them so. With gaps they have no word: MLflow would refuse them as floats.
    """
    types = pa.types
    if types.is_uint64(kind) or (types.is_integer(kind) and gaps):
        return None
    for is_it, word in (
        (types.is_boolean, "boolean"),
        (types.is_integer, "long"),
        (types.is_floating, "double"),
        (types.is_string, "string"),
        (types.is_large_string, "string"),
        (types.is_string_view, "string"),
        (types.is_binary, "binary"),
        (types.is_large_binary, "binary"),
    ):
        if is_it(kind):
            return word
    return "datetime" if types.is_timestamp(kind) and kind.tz is None else None


def signature_of(prod: ProductionFlow, fixed: Mapping[str, Any], training: Mapping[str, Any] | None) -> Any:
    """Return the signature of a model.

    Args:
        prod: The production flow.
        fixed: Inputs that nobody gives.
        training: What training had as inputs, by name, if that is known: says which integers have gaps, and what parameters are by default.

    Raises:
        ProductionError: MLflow has no way to hand over some input; all of them are named.
    """
    models, schema = import_module("mlflow.models"), import_module("mlflow.types.schema")
    asked = {name: shape for name, shape in inputs_of(prod).items() if name not in fixed}
    _refuse(asked, training or {})
    tables = {name: shape for name, shape in asked.items() if is_table(shape)}
    params = [
        schema.ParamSpec(name, _PARAMS[type(training[name])], training[name])
        for name, shape in asked.items()
        if is_value(shape) and training is not None
    ]
    if len(tables) == 1:
        ((name, shape),) = tables.items()
        columns = [_column(schema, item, _has_gaps(shape, item, (training or {}).get(name))) for item in shape.arrow]
    else:
        columns = [schema.ColSpec(schema.AnyType(), name) for name in tables]
        if OUTPUTS not in tables:
            # MLflow hands a dict of frames over as it is only if some column is an array.
            columns.append(schema.ColSpec(schema.Array(schema.DataType.string), OUTPUTS, required=False))
    return models.ModelSignature(
        inputs=schema.Schema(columns),
        outputs=_outputs(prod, schema),
        params=schema.ParamSchema(params) if params else None,
    )


def _column(schema: Any, item: Any, gaps: bool) -> Any:
    word = column_type(item.type, gaps=gaps)
    return schema.ColSpec(schema.AnyType() if word is None else word, item.name)


def _has_gaps(shape: Any, item: Any, table: Any) -> bool:
    if table is not None:
        return table.column(item.name).null_count > 0
    return item.name not in shape.required


def _outputs(prod: ProductionFlow, schema: Any) -> Any:
    shapes = prod.parts.outputs
    if {*prod.parts.program.outputs} - {*shapes}:
        # Training has committed no value for some, so nobody knows what it looks like.
        return None
    found: dict[str, Any] = {}

    def leaf(shape: Any, path: str) -> Any:
        found[path] = shape
        return shape

    for name, shape in shapes.items():
        map_leaves(shape, leaf, name)
    tables = [shape for shape in found.values() if is_table(shape)]
    if len(found) == 1 and tables:
        return schema.Schema([_column(schema, item, gaps=False) for item in tables[0].arrow])
    return schema.Schema([schema.ColSpec(schema.AnyType(), name) for name in found])


def _refuse(asked: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    problems: list[str] = []
    for name, shape in asked.items():
        if is_blob(shape):
            problems.append(f"{name} is a blob")
        elif is_value(shape) and type(training.get(name)) not in _PARAMS:
            told = type(training[name]).__name__ if name in training else "a value that is not known here"
            problems.append(f"{name} is {told}, and a parameter of a model needs a default that is a number, text or a time")
    if not any(is_table(shape) for shape in asked.values()):
        problems.append("no table comes in")
    if problems:
        raise ProductionError(
            "MLflow has no way to hand these inputs to a model:\n"
            + "\n".join(f"* {problem}" for problem in problems)
            + "\nGive them as fixed_inputs, or make them const in the specification.",
            problems=tuple(problems),
        )


@final
@dataclass(frozen=True, slots=True)
class Example:
    """A question to a model.

    Attributes:
        asked: As MLflow keeps it and as a caller would ask: a frame, or name -> records.
        params: Plain values beside it; None without any.
        inputs: The same as the production flow takes it, flat.
    """

    asked: Any
    params: dict[str, Any] | None
    inputs: dict[str, Any]


def example_of(prod: ProductionFlow, fixed: Mapping[str, Any], given: Mapping[str, Any]) -> Example:
    """Return an example: the first rows of each table.

    Args:
        prod: The production flow.
        fixed: Inputs that nobody gives.
        given: Inputs, as `run` takes them or flat.
    """
    shapes = inputs_of(prod)
    inputs = {name: value for name, value in flat(prod, given).items() if name not in fixed}
    for name, value in inputs.items():
        if name in shapes and is_table(shapes[name]):
            inputs[name] = prod.to_arrow(TableReader(prod, shapes[name])(value)).slice(0, _EXAMPLE_ROWS)
    tables = {name: value for name, value in inputs.items() if isinstance(value, pa.Table)}
    params = {name: value for name, value in inputs.items() if name not in tables} or None
    if len(tables) == 1:
        (table,) = tables.values()
        return Example(_frame(prod, table), params, inputs)
    return Example({name: [_plain(row) for row in table.to_pylist()] for name, table in tables.items()}, params, inputs)


def _frame(prod: ProductionFlow, table: pa.Table) -> Any:
    """Return a table as a pandas frame that MLflow can write as JSON: what has no type in its signature, and is no number, as text."""
    frame = prod.frames.from_arrow(table, import_module("pandas").DataFrame)
    for item in table.schema:
        if column_type(item.type, gaps=False) is None and not pa.types.is_integer(item.type):
            frame[item.name] = [row[item.name] for row in map(_plain, table.select([item.name]).to_pylist())]
    return frame


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as JSON has it."""
    return {
        name: value if value is None or isinstance(value, (bool, int, float, str, list, dict)) else _text(value)
        for name, value in row.items()
    }


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
