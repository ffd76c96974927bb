"""Blobs in formats that run nothing when they are read: JSON with NumPy arrays and Arrow tables in files beside it, ONNX, skops. Pickle is the last resort.

An object is kept in a safe format only if it comes back as it was, in type too.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PosixPath, WindowsPath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pipedag_core.cache import codec
from pipedag_core.errors import BundleRefused, PipedagError, UnsupportedValue
from pipedag_core.production.frames import Frames, type_name

#: Takes a kind of file ("npy") and its bytes, and returns where the bundle keeps it.
Put = Callable[[str, bytes], str]
#: Returns the bytes of a file of the bundle.
Get = Callable[[str], bytes]

#: Plain values that the codec gives back in the same type.
_PLAIN: Final = (str, bytes, int, float, bool, type(None), datetime, date, time, timedelta, Decimal, UUID, complex, PosixPath, WindowsPath)

#: What skops does not know by itself, and what is safe: parts of scikit-learn's own models, and `partial`, whose function is looked at by itself.
_SAFE: Final = frozenset(
    {
        "functools.partial",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.utils.validation.check_array",
    }
)

#: Fixed, so that all supported versions of Python write and read the same.
_PROTOCOL: Final = 5

#: The first moment that a ZIP archive can name.
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)


class _NotSafe(Exception):
    """There is no safe format for something; says what."""


def encode(obj: Any, frames: Frames, put: Put, *, may_pickle: bool) -> dict[str, Any]:
    """Return an object as JSON values; what is large goes into files.

    Raises:
        UnsupportedValue: There is no safe format for it, and it may not be pickled; or it cannot be pickled.
    """
    files: list[tuple[str, bytes]] = []
    try:
        found = codec.encode(obj, lambda item, path: _leaf(item, path, frames, files))
    except (_NotSafe, UnsupportedValue, RecursionError, UnicodeEncodeError) as error:
        if not may_pickle:
            raise UnsupportedValue(str(error) if isinstance(error, _NotSafe) else f"a {_named(obj)}") from error
        try:
            return {"$": "pickle", "file": put("pickle", pickle.dumps(obj, protocol=_PROTOCOL))}
        except Exception as cause:  # whatever the object's own methods raise
            raise UnsupportedValue(f"a {_named(obj)}, which cannot be pickled either: {cause}") from cause
    # Only now is it known that all of it is safe.
    places = [put(kind, raw) for kind, raw in files]
    return {"$": "nest", "value": found, "files": places}


def decode(node: Mapping[str, Any], frames: Frames, get: Get, *, trust_pickle: bool, name: str) -> Any:
    """Return the object that `encode` was given.

    Raises:
        BundleRefused: It is a pickle, or of classes that are not known to be safe, and is not trusted.
        Exception: What stands in the files is not what it should be.
    """
    if node["$"] == "pickle":
        if not trust_pickle:
            refuse_pickle(node["file"], name)
        return pickle.loads(get(node["file"]))
    files = node["files"]

    def leaf(item: Mapping[str, Any]) -> Any:
        file = files[item["file"]]
        match item["$"]:
            case "numpy":
                return _read_array(get(file), scalar=item["scalar"])
            case "arrow":
                return _read_frame(get(file), item["type"], frames)
            case "onnx":
                import onnx

                return onnx.load_model_from_string(get(file))
            case "skops":
                return _read_skops(get(file), file, name)
            case other:
                raise ValueError(f"unknown kind {other!r}")

    return codec.decode(node["value"], leaf)


def refuse_pickle(file: str, name: str) -> None:
    """Raise that a pickle is not trusted.

    Raises:
        BundleRefused: Always.
    """
    raise BundleRefused(
        f"{file}: the blob {name} is a pickle, and to read a pickle can run any code. If you trust who made the bundle: "
        "ProductionFlow.load(path, trust_pickle=True).",
        file=file,
    )


def _named(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _leaf(item: Any, path: str, frames: Frames, files: list[tuple[str, bytes]]) -> Mapping[str, Any] | None:
    cls = type(item)
    if getattr(item, "tzinfo", None) is not None and type(item.tzinfo) not in (timezone, ZoneInfo):
        raise _NotSafe(f"a {_named(item)} in a time zone of {_named(item.tzinfo)}")
    if cls in _PLAIN or cls in (list, dict, tuple, set, frozenset) or isinstance(item, Enum):
        return None
    library = cls.__module__.partition(".")[0]
    found: tuple[dict[str, Any], str, bytes] | None = None
    if library == "numpy":
        found = _array(item)
    elif library == "onnx" and cls.__name__ == "ModelProto":
        found = {"$": "onnx"}, "onnx", item.SerializeToString(deterministic=True)
    elif frames.is_frame(item):
        found = _frame(item, frames)
    elif _is_estimator(item):
        found = _skops(item)
    elif _is_whole(item):
        return None
    if found is None:
        at = f" at {path!r}" if path else ""
        raise _NotSafe(f"a {_named(item)}{at}")
    told, kind, raw = found
    files.append((kind, raw))
    return {**told, "file": len(files) - 1}


def _is_whole(item: Any) -> bool:
    """Return whether a named tuple or an instance of a dataclass is no more than its fields."""
    cls = type(item)
    if cls.__module__ == "__main__" or cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return False
    if isinstance(item, tuple):
        return hasattr(cls, "_fields")
    if not dataclasses.is_dataclass(cls):
        return False
    names = {field.name for field in dataclasses.fields(cls)}
    has_own = "__getstate__" in vars(cls) and not cls.__dataclass_params__.frozen
    return not has_own and set(getattr(item, "__dict__", ())) <= names and all(hasattr(item, name) for name in names)


# --- NumPy --------------------------------------------------------------------------------------------------------------------------------


def _array(item: Any) -> tuple[dict[str, Any], str, bytes] | None:
    import numpy as np

    if type(item) is not np.ndarray and not isinstance(item, np.generic):
        return None
    if item.dtype.hasobject:
        return None
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.asarray(item), allow_pickle=False)
    return {"$": "numpy", "scalar": isinstance(item, np.generic)}, "npy", sink.getvalue()


def _read_array(raw: bytes, *, scalar: bool) -> Any:
    import numpy as np

    found = np.load(io.BytesIO(raw), allow_pickle=False)
    return found[()] if scalar else found


# --- Arrow --------------------------------------------------------------------------------------------------------------------------------


def _frame(item: Any, frames: Frames) -> tuple[dict[str, Any], str, bytes] | None:
    import pyarrow as pa

    name = type_name(type(item))
    if name not in ("pyarrow.Table", "polars.DataFrame", "pandas.DataFrame"):
        return None
    with suppress(PipedagError):
        table = frames.to_arrow(item)
        # What is lost on the way (an index, attributes, a type) would be missed.
        if frames.from_arrow(table, type(item)).equals(item) and not getattr(item, "attrs", None):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            return {"$": "arrow", "type": name}, "arrow", sink.getvalue().to_pybytes()
    return None


def _read_frame(raw: bytes, name: str, frames: Frames) -> Any:
    import pyarrow as pa

    return frames.from_arrow(pa.ipc.open_file(pa.py_buffer(raw)).read_all(), frames.type_named(name))


# --- scikit-learn -------------------------------------------------------------------------------------------------------------------------


def _is_estimator(item: Any) -> bool:
    return any(base.__module__ == "sklearn.base" and base.__name__ == "BaseEstimator" for base in type(item).__mro__)


def _skops(item: Any) -> tuple[dict[str, Any], str, bytes] | None:
    try:
        import skops.io as sio
    except ImportError as error:
        raise _NotSafe(f"a {_named(item)}, for which skops is needed: pip install 'pipedag-core[skops]'") from error
    try:
        raw = _same_bytes(sio.dumps(item))
    except Exception as error:  # skops refuses with whatever its parts raise
        raise _NotSafe(f"a {_named(item)}, which skops cannot keep: {error}") from error
    strangers = sorted(set(sio.get_untrusted_types(data=raw)) - _SAFE)
    if strangers:
        raise _NotSafe(f"a {_named(item)} with parts that are not known to be safe ({', '.join(strangers)})")
    return {"$": "skops"}, "skops", raw


def _read_skops(raw: bytes, file: str, name: str) -> Any:
    try:
        import skops.io as sio
    except ImportError as error:
        raise BundleRefused(f"{file}: the blob {name} is read with skops: pip install 'pipedag-core[skops]'.", file=file) from error
    found = sio.get_untrusted_types(data=raw)
    strangers = sorted(set(found) - _SAFE)
    if strangers:
        raise BundleRefused(f"{file}: the blob {name} has parts that are not known to be safe: {', '.join(strangers)}.", file=file)
    return sio.loads(raw, trusted=found)


def _same_bytes(raw: bytes) -> bytes:
    """Return a skops archive with numbers from 0 in place of addresses in memory, and with no dates."""
    numbers: dict[int, int] = {}
    names: dict[str, str] = {}

    def renumbered(node: Any) -> Any:
        if isinstance(node, list):
            return [renumbered(child) for child in node]
        if not isinstance(node, dict):
            return node
        changed = {key: renumbered(child) for key, child in node.items()}
        if isinstance(node.get("__id__"), int):
            changed["__id__"] = numbers.setdefault(node["__id__"], len(numbers))
        if isinstance(node.get("file"), str):
            changed["file"] = names.setdefault(node["file"], f"{len(names)}.{node['file'].rpartition('.')[2]}")
        return changed

    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(sink, "w") as target:
        schema = json.dumps(renumbered(json.loads(source.read("schema.json"))), indent=1)
        members = {"schema.json": schema.encode(), **{new: source.read(old) for old, new in names.items()}}
        for name, content in members.items():
            target.writestr(zipfile.ZipInfo(name, _NO_DATE), content, zipfile.ZIP_DEFLATED, 6)
    return sink.getvalue()
