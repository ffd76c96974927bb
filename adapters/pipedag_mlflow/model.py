"""A production flow as MLflow calls it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from pipedag_core import ProductionFlow
from pipedag_core.define.walk import map_leaves
from pipedag_mlflow.asked import TableReader, inputs_of, is_table, nested
from pipedag_mlflow.fixed import read_fixed

#: Column of the signature that names the outputs to compute, where several tables come in.
OUTPUTS: Final = "outputs"

_PythonModel: Any = import_module("mlflow.pyfunc").PythonModel


class ProductionModel(_PythonModel):
    """A production flow that `mlflow.pyfunc.load_model` gives and `mlflow models serve` serves.

    Where it takes one table, `predict` is given that as a frame, and plain values among its inputs as `params`. Where it takes several, it is given a dict
    name -> table; a table is a frame of any library, a list of records, or a dict of columns. One table comes out as a pandas frame; of several outputs
    a dict name -> table comes out: frames where frames went in, else lists of records.

    It may be called from many threads at once, and touches neither store nor network.
    """

    production_flow: ProductionFlow

    def load_context(self, context: Any) -> None:
        """Read the bundle; called once by MLflow."""
        config = context.model_config or {}
        fixed = context.artifacts.get("fixed")
        self.bind(
            ProductionFlow.load(context.artifacts["bundle"], trust_pickle=bool(config.get("trust_pickle"))),
            {} if fixed is None else read_fixed(Path(fixed)),
        )

    def bind(self, prod: ProductionFlow, fixed: dict[str, Any]) -> None:
        """Take a production flow.

        Args:
            prod: The production flow.
            fixed: Name -> value of inputs that are the same for all who ask.
        """
        self.production_flow, self._fixed = prod, fixed
        asked = {name: shape for name, shape in inputs_of(prod).items() if name not in fixed}
        self._readers = {name: TableReader(prod, shape) for name, shape in asked.items() if is_table(shape)}
        self._only = next(iter(self._readers)) if len(self._readers) == 1 else None

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Compute the outputs for what a caller gives; see the class.

        A frame as type is what keeps MLflow from making a signature out of types; other things come in, too.
        """
        if self._only is not None and not _is_by_name(model_input, self._only):
            values: dict[str, Any] = {self._only: self._readers[self._only](model_input)}
            frames, outputs = False, None
        else:
            given = _given(model_input)
            outputs = _names(given.pop(OUTPUTS, None)) if OUTPUTS not in self._readers else None
            frames = not all(_is_json(given.get(name)) for name in self._readers)
            values = {name: self._readers[name](value) if name in self._readers else value for name, value in given.items()}
        if params:
            values.update(params)
        return answered(self.production_flow, nested(self.production_flow, self._fixed | values), outputs, frames=frames)


def _is_json(table: Any) -> bool:
    return isinstance(table, (list, dict)) or type(table).__module__ == "numpy"


def _is_by_name(given: Any, name: str) -> bool:
    return isinstance(given, dict) and name in given


def _given(given: Any) -> dict[str, Any]:
    """Return a dict of tables; MLflow makes one row of it, with a table in each cell."""
    if isinstance(given, pd.DataFrame):
        return {} if given.empty else dict(zip(map(str, given.columns), given.to_numpy(dtype=object)[0], strict=True))
    return dict(given)


def _names(given: Any) -> list[str] | None:
    return None if given is None or len(given) == 0 else [str(name) for name in given]


class Answer(pd.DataFrame):
    """A frame whose records say None where there are gaps: that is what JSON is made of, and it has no word for NaT and NaN."""

    def to_dict(self, orient: Any = "dict", **options: Any) -> Any:
        """Return the rows as pandas does, but for gaps in records."""
        rows: Any = super().to_dict(orient, **options)
        if orient == "records":
            missing = self.isna()
            for name in self.columns[missing.any()]:
                for row, gap in zip(rows, missing[name], strict=True):
                    if gap:
                        row[name] = None
        return rows


def answered(prod: ProductionFlow, inputs: dict[str, Any], outputs: list[str] | None = None, *, frames: bool) -> Any:
    """Return what a caller of the model gets.

    Args:
        prod: The production flow.
        inputs: As it takes them.
        outputs: Names of those to compute; None: all.
        frames: Whether several tables come out as frames, or as lists of records. A single one is a frame always: MLflow makes records of that.
    """
    if outputs is None and _is_table(prod.parts.program.output, prod):
        return Answer(prod.run(inputs, as_type=pd.DataFrame), copy=False)
    answer = prod.run(inputs, outputs, as_type=pd.DataFrame if frames else pa.Table)
    found: dict[str, Any] = {}

    def leaf(value: Any, path: str) -> Any:
        found[path] = value.to_pylist() if isinstance(value, pa.Table) else value
        return value

    map_leaves(answer, leaf)
    return found if list(found) != [""] else found[""]


def _is_table(output: Any, prod: ProductionFlow) -> bool:
    """Return whether all that comes out is one table, as far as training has told."""
    shapes = list(prod.parts.outputs.values())
    return len(shapes) == 1 and is_table(shapes[0]) and list(prod.parts.program.outputs.values()) == [output]
