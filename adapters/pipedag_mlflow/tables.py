"""Stored tables as datasets of MLflow: name, schema, digest, source and size from the catalog, without reading a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pipedag_core.config.settings import mask
from pipedag_core.ports.data import StoredTable
from pipedag_mlflow import library, names

#: Type of the source by which MLflow finds `PipedagTableSource` again.
SOURCE_TYPE: Final = "pipedag"

#: Beginning of an Arrow type as text -> type of MLflow.
_TYPES: Final = (
    ("int8", "integer"),
    ("int16", "integer"),
    ("int32", "integer"),
    ("uint8", "integer"),
    ("uint16", "integer"),
    ("int64", "long"),
    ("uint32", "long"),
    ("float", "float"),
    ("double", "double"),
    ("string", "string"),
    ("large_string", "string"),
    ("string_view", "string"),
    ("bool", "boolean"),
    ("binary", "binary"),
    ("large_binary", "binary"),
    ("timestamp", "datetime"),
    ("date", "datetime"),
)


def column_type(arrow: str) -> str:
    """Return MLflow's word for an Arrow type as text; "any" where it has none."""
    name = "string" if arrow.startswith("dictionary<values=string") else arrow.partition("[")[0].partition("<")[0]
    return next((word for start, word in _TYPES if name == start or (start in ("timestamp", "date") and name.startswith(start))), "any")


def source_of(table: StoredTable, flow: str, instance: str) -> dict[str, Any]:
    """Return where a stored table is, as JSON values; enough to read it again with `PipedagTableSource`."""
    return {
        "flow": flow,
        "instance": instance,
        "stage": table.stage,
        "generation": table.generation,
        "table": table.name,
        "location": mask(table.location),
        "uri": f"pipedag://{instance}/{table.stage}/{table.name}?generation={table.generation}",
    }


def dataset(table: StoredTable, name: str, flow: str, instance: str) -> Any:
    """Return a stored table as a dataset entity."""
    schema = [{"type": column_type(column.type), "name": column.name, "required": not column.nullable} for column in table.schema.columns]
    profile = {key: value for key, value in (("num_rows", table.rows), ("bytes", table.size)) if value is not None}
    return library.entities().Dataset(
        name=names.cut(name, 500),
        digest=names.digest_of(table.content_hash, table.identity),
        source_type=SOURCE_TYPE,
        source=json.dumps(source_of(table, flow, instance)),
        schema=json.dumps({"mlflow_colspec": schema}),
        profile=json.dumps(profile),
    )


def inputs(tables: Sequence[tuple[str, StoredTable, str]], flow: str, instance: str) -> list[Any]:
    """Return datasets for one call of `log_inputs`.

    Args:
        tables: Name, table, and its context: `input` for what the flow takes from outside, `output` for what it makes.
        flow, instance: Whose tables they are.
    """
    entities = library.entities()
    return [
        entities.DatasetInput(dataset(table, name, flow, instance), [entities.InputTag("mlflow.data.context", context)])
        for name, table, context in tables
    ]
