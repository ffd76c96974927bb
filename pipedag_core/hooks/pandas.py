"""Data frames of pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipedag_core.errors import ConfigError
from pipedag_core.hooks.arrow import batches, read_table
from pipedag_core.hooks.forms import refused
from pipedag_core.ports.data import TableData, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext

_NULLABLE: Final[Mapping[Any, Any]] = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.float32(): pd.Float32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
    pa.string_view(): pd.StringDtype(),
}

#: `dtype_backend` -> Arrow type -> pandas type.
_BACKENDS: Final[Mapping[str, Callable[[Any], Any] | None]] = {
    "numpy": None,
    "numpy_nullable": _NULLABLE.get,
    "pyarrow": pd.ArrowDtype,
}

#: Integers up to here are exact in a float64, to which pandas turns integers with gaps.
_EXACT: Final = 2**53


@final
class PandasHook:
    """pandas data frames, through Arrow.

    Options: `dtype_backend`, one of `numpy` (default: the types that pandas chooses), `numpy_nullable`, `pyarrow`.
    """

    by_reference = False

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return a data frame with a `RangeIndex`.

        With the numpy back end, integers with nulls become float64, as is usual in pandas; where that would round, the column becomes a
        nullable integer instead.

        Raises:
            ConfigError: `dtype_backend` names no back end.
        """
        name = context.args.get("dtype_backend", "numpy")
        if name not in _BACKENDS:
            raise ConfigError(f"hook_args: pandas has no dtype_backend {name!r}. Use one of {', '.join(_BACKENDS)}.", dtype_backend=name)
        return _to_pandas(read_table(table, context), _BACKENDS[name])

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the frame over; it is never changed. Row numbers (an index of integers without a name) are not kept.

        Raises:
            MaterializationError: An index that means something, a column label that is not text or not unique, or a column whose objects
                have no common Arrow type.
        """
        _check_labels(obj, context)
        return batches(cache(lambda: _to_arrow(obj, context)), context, in_memory=True, rows=len(obj))

    def share(self, obj: Any) -> Any:
        """Return a shallow copy where pandas copies columns when they are changed, else a deep one."""
        return obj.copy(deep=not _copies_on_write())

    def storing(self, context: WriteContext) -> Callable[[Any], Any]:
        """Return what gives a frame row numbers from 0 and the types that reading gives: those of objects, for one, depend on their values."""
        name = context.args.get("dtype_backend", "numpy")
        known = cache(_AS_READ[name])

        def stored(frame: Any) -> Any:
            # This runs after every task in pandas, whose frames may be of one row: each look costs a part of what the task does.
            try:
                # The lines of `_dtypes` and of the properties of an index, without the calls.
                for block in frame._mgr.blocks:
                    if not known(block.dtype):
                        break
                else:
                    index = frame._mgr.axes[1]
                    if type(index) is pd.RangeIndex and index._name is None and index._range.start == 0 and index._range.step == 1:
                        return frame
            except AttributeError:
                pass
            as_read = all(known(kind) for kind in _dtypes(frame))
            index = frame.index
            if as_read and type(index) is pd.RangeIndex and index.start == 0 and index.step == 1 and index.name is None:
                return frame
            _check_labels(frame, context)
            return frame.reset_index(drop=True) if as_read else _to_pandas(_to_arrow(frame, context), _BACKENDS[name])

        return stored


def _is_as_read(kind: Any) -> bool:
    if not isinstance(kind, pd.api.extensions.ExtensionDtype):
        return kind.kind in "biufMm"
    return isinstance(kind, pd.DatetimeTZDtype) or kind == _TEXT


#: What text is by default: a type of its own from release 3 on, before that objects, which have to be looked at.
_TEXT: Final = pd.Series(["text"]).dtype

#: `dtype_backend` -> whether a column of a type would come back as it is.
_AS_READ: Final[Mapping[str, Callable[[Any], bool]]] = {
    "numpy": _is_as_read,
    "numpy_nullable": frozenset(_NULLABLE.values()).__contains__,
    "pyarrow": lambda kind: isinstance(kind, pd.ArrowDtype),
}


def _dtypes(frame: Any) -> Iterable[Any]:
    # `dtypes` makes a series of them, which takes longer than most of what is done with small frames.
    try:
        return [block.dtype for block in frame._mgr.blocks]
    except AttributeError:
        return frame.dtypes


#: From release 3 on, and before where it is switched on, pandas copies a column when it is changed.
_ALWAYS_ON_WRITE: Final = int(pd.__version__.partition(".")[0]) >= 3


def _copies_on_write() -> bool:
    return _ALWAYS_ON_WRITE or pd.get_option("mode.copy_on_write") is True


def arrow_type(kind: Any) -> Any:
    """Return the Arrow type that columns of a pandas or numpy type are stored as."""
    return pa.Array.from_pandas(pd.Series([], dtype=kind)).type


def _to_pandas(table: Any, backend: Callable[[Any], Any] | None) -> Any:
    frame = table.to_pandas(types_mapper=backend)
    if backend is None:
        for index, column in enumerate(table.columns):
            if _would_round(column):
                frame.isetitem(index, column.to_pandas(types_mapper=_NULLABLE.get))
    return frame


def _would_round(column: Any) -> bool:
    if not column.null_count or column.type not in (pa.int64(), pa.uint64()):
        return False
    limits = pc.call_function("min_max", [column]).as_py()
    return limits["min"] is not None and (limits["min"] < -_EXACT or limits["max"] > _EXACT)


def _check_labels(frame: Any, context: WriteContext) -> None:
    index = frame.index
    if any(name is not None for name in index.names) or not pd.api.types.is_integer_dtype(index.dtype):
        what = f"named {', '.join(map(repr, index.names))}" if any(name is not None for name in index.names) else f"of {index.dtype}"
        raise refused(
            context,
            f"the data frame has an index {what}, which a table cannot keep. Call reset_index() to make columns of it, or reset_index(drop=True).",
        )
    wrong = [label for label in frame.columns if not isinstance(label, str)]
    if wrong:
        raise refused(context, f"column labels {wrong!r} are not text. Rename them, for one with df.rename(columns=str).")
    double = sorted(set(frame.columns[frame.columns.duplicated()]))
    if double:
        raise refused(context, f"column labels {double!r} occur more than once. Give each column its own name.")


def _to_arrow(frame: Any, context: WriteContext) -> Any:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise refused(context, _which_column(frame, error)) from error


def _which_column(frame: Any, error: Exception) -> str:
    for name in frame.columns:
        try:
            pa.Array.from_pandas(frame[name])
        except (pa.ArrowException, TypeError, OverflowError) as cause:
            return f"column {name!r} ({frame[name].dtype}) cannot be kept: {cause}. Give its values one type, for one with astype()."
    return f"the data frame cannot be turned into an Arrow table: {error}."
