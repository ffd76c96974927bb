"""Inputs that are the same for all who ask, kept with a model: tables as Parquet files, plain values as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from pipedag_core import ProductionFlow
from pipedag_core.errors import ProductionError
from pipedag_mlflow.asked import TableReader, inputs_of, is_table

_INDEX: Final = "inputs.json"
_PLAIN: Final = (bool, int, float, str, type(None))


def write_fixed(prod: ProductionFlow, values: Mapping[str, Any], folder: Path) -> None:
    """Write inputs into a folder.

    Args:
        prod: The production flow.
        values: Name -> value.
        folder: A new folder.

    Raises:
        ProductionError: There is no such input, or its value can not be kept.
    """
    shapes = inputs_of(prod)
    folder.mkdir()
    index: dict[str, Any] = {}
    for number, (name, value) in enumerate(values.items()):
        if name not in shapes:
            raise ProductionError(f"fixed_inputs names {name!r}, which is no input. Inputs are: {', '.join(shapes)}.", input=name)
        if is_table(shapes[name]):
            index[name] = {"file": f"{number}.parquet"}
            pq.write_table(prod.to_arrow(TableReader(prod, shapes[name])(value)), folder / f"{number}.parquet")
        elif isinstance(value, _PLAIN):
            index[name] = {"value": value}
        else:
            raise ProductionError(
                f"fixed_inputs gives a {type(value).__name__} for {name!r}; tables, numbers, and text can be kept.", input=name
            )
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def read_fixed(folder: Path) -> dict[str, Any]:
    """Return what `write_fixed` has written: name -> value, tables as `pyarrow.Table`."""
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return {name: pq.read_table(folder / item["file"]) if "file" in item else item["value"] for name, item in index.items()}
