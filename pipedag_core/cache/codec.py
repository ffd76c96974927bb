"""Values as canonical JSON, and back.

The same text serves for hashing arguments and for keeping what a task returned. Plain JSON stands for itself; everything else is an object
with the key `$`, which names its kind. Order of dicts is kept and counts, since a task can see it; sets are sorted by their encoding.
Classes are named, never stored: reading finds them among the modules that are loaded, and only dataclasses, named tuples and enums, so that
text from a catalog cannot make anything run.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePath
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from pipedag_core.define.late import LateValue
from pipedag_core.errors import UnsupportedValue

#: Under these names Python runs a script, in the first process and in those that it starts.
_SCRIPTS: Final = ("__main__", "__mp_main__")

#: What stands before the stem of a file that is not part of a package, in the name of its module, where it was loaded by its path.
BY_PATH: Final = "pipedag_flow_"

#: Turns a leaf that is not a plain value into a JSON object with a `$` key of its own, or returns None.
EncodeLeaf = Callable[[Any, str], Mapping[str, Any] | None]
#: Turns such an object back.
DecodeLeaf = Callable[[Mapping[str, Any]], Any]

_TEXTUAL: Final[Mapping[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    Decimal: ("decimal", str, Decimal),
    UUID: ("uuid", str, UUID),
    complex: ("complex", str, complex),
}
_FROM_TEXT: Final = {tag: decode for tag, _, decode in _TEXTUAL.values()}


def join(path: str, part: object) -> str:
    """Return the path one level down, as messages and labels write it: `tbls.flights`."""
    return f"{path}.{part}" if path else str(part)


def dumps(encoded: Any) -> str:
    """Return encoded values as text: equal values, equal text."""
    text = json.dumps(encoded, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair can be in a Python string, but in no database.
            return json.dumps(encoded, allow_nan=False, separators=(",", ":"))
    return text


def encode(value: Any, leaf: EncodeLeaf, path: str = "") -> Any:
    """Return a value as JSON values.

    Args:
        value: Any nest of dict, list, tuple, set, dataclass, enum and plain values.
        leaf: Asked for every value that is none of these.
        path: Where the value stands, for messages.

    Raises:
        UnsupportedValue: A value inside can neither be encoded here nor by `leaf`; the message names its path.
    """
    if value is None or value is True or value is False:
        return value
    kind = cast("type[Any]", type(value))
    if kind is int or kind is str:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": "float", "value": repr(value)}
    special = leaf(value, path)
    if special is not None:
        return special
    if kind is LateValue:
        # Where it comes from is known by whoever reads it again.
        return {"$": "late", "maker": value.maker, **({"about": value.about} if value.about else {})}
    if isinstance(value, Flag) and value.name not in kind.__members__:
        return {"$": "flag", "type": _type_name(kind, path), "value": value.value}
    if isinstance(value, Enum):
        return {"$": "enum", "type": _type_name(kind, path), "name": value.name}
    if kind is list:
        return [encode(item, leaf, join(path, i)) for i, item in enumerate(cast("list[Any]", value))]
    if kind is dict:
        return _encode_dict(cast("dict[Any, Any]", value), leaf, path)
    if isinstance(value, tuple):
        items = [encode(item, leaf, join(path, i)) for i, item in enumerate(cast("tuple[Any, ...]", value))]
        if kind is tuple:
            return {"$": "tuple", "items": items}
        if hasattr(kind, "_fields"):
            return {"$": "namedtuple", "type": _type_name(kind, path), "items": items}
    if isinstance(value, (set, frozenset)):
        encoded = [encode(item, leaf, join(path, "{}")) for item in cast("set[Any]", value)]
        return {"$": "set" if isinstance(value, set) else "frozenset", "items": sorted(encoded, key=dumps)}
    if dataclasses.is_dataclass(kind):
        fields = {f.name: encode(getattr(cast("Any", value), f.name), leaf, join(path, f.name)) for f in dataclasses.fields(kind)}
        return {"$": "dataclass", "type": _type_name(kind, path), "fields": fields}
    return _encode_scalar(value, leaf, path)


def _encode_dict(value: dict[Any, Any], leaf: EncodeLeaf, path: str) -> Any:
    if all(type(key) is str for key in value) and "$" not in value:
        return {key: encode(item, leaf, join(path, key)) for key, item in value.items()}
    return {
        "$": "dict",
        "items": [[encode(key, leaf, join(path, key)), encode(item, leaf, join(path, key))] for key, item in value.items()],
    }


def _encode_scalar(value: Any, leaf: EncodeLeaf, path: str) -> Any:
    if isinstance(value, PurePath):
        return {"$": "path", "value": str(value)}
    if isinstance(value, timedelta):
        plain = timedelta(value.days, value.seconds, value.microseconds)
        if plain == value:
            return {"$": "timedelta", "value": [value.days, value.seconds, value.microseconds]}
        raise _unsupported(value, path, "Round it to microseconds.")
    for kind, (tag, to_text, from_text) in _TEXTUAL.items():
        if isinstance(value, kind):
            text = to_text(value)
            # A subclass may hold more than its text says (nanoseconds), or be no such value at all (NaT).
            if type(value) is not kind and not _is_text_of(value, text, from_text):
                raise _unsupported(value, path, "Round it to microseconds, or return None where there is no time.")
            return {"$": tag, "value": text, **_zone(value)}
    # Scalars of array libraries (a mean, a count) are plain numbers to everybody but their type.
    if getattr(value, "shape", None) == () and hasattr(value, "dtype") and callable(getattr(value, "item", None)):
        plain = value.item()
        if type(plain) is not type(value):
            return encode(plain, leaf, path)
    for plain_type in (int, float, str):
        if isinstance(value, plain_type):
            return encode(plain_type(value), leaf, path)
    raise _unsupported(
        value,
        path,
        "Return tables, Blob(...) for any other object, or plain values in dicts, lists, tuples, sets and dataclasses; or list the type under "
        "auto_blob in the configuration.",
    )


def _unsupported(value: Any, path: str, advice: str) -> UnsupportedValue:
    where = f" at {path!r}" if path else ""
    return UnsupportedValue(
        f"A value of type {type(value).__module__}.{type(value).__qualname__}{where} cannot be kept. {advice}",
        path=path,
        type=type(value).__qualname__,
    )


def _is_text_of(value: Any, text: str, from_text: Callable[[str], Any]) -> bool:
    try:
        return bool(from_text(text) == value)
    except ValueError:
        return False


def _zone(value: Any) -> dict[str, Any]:
    """Return what the text of a time does not say: the name of its time zone, and which of two equal hours is meant."""
    if not isinstance(value, (datetime, time)):
        return {}
    zone = {"zone": value.tzinfo.key} if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key else {}
    return {**zone, **({"fold": 1} if value.fold else {})}


def _with_zone(value: Any, node: Mapping[str, Any]) -> Any:
    if "zone" in node:
        value = value.replace(tzinfo=ZoneInfo(node["zone"]))
    return value.replace(fold=1) if "fold" in node else value


def decode(encoded: Any, leaf: DecodeLeaf) -> Any:
    """Return the value that `encode` was given.

    Raises:
        UnsupportedValue: A class is not among the loaded modules, or is no dataclass, named tuple or enum.
    """
    if isinstance(encoded, list):
        return [decode(item, leaf) for item in cast("list[Any]", encoded)]
    if not isinstance(encoded, dict):
        return encoded
    node = cast("dict[str, Any]", encoded)
    kind = node.get("$")
    if kind is None:
        return {key: decode(item, leaf) for key, item in node.items()}
    if kind in _FROM_TEXT:
        value = _FROM_TEXT[kind](node["value"])
        return _with_zone(value, node) if "zone" in node or "fold" in node else value
    if kind == "float":
        return float(node["value"])
    if kind == "path":
        return Path(node["value"])
    if kind == "timedelta":
        return timedelta(*node["value"])
    if kind == "enum":
        cls = _find_type(node["type"], Enum)
        if node["name"] not in cls.__members__:
            raise _changed(node["type"], f"has no member {node['name']!r}")
        return cls[node["name"]]
    if kind == "flag":
        return _find_type(node["type"], Flag)(node["value"])
    if kind == "dict":
        return {decode(key, leaf): decode(item, leaf) for key, item in node["items"]}
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item, leaf) for item in node["items"])
    if kind == "namedtuple":
        cls = _find_type(node["type"], tuple)
        if len(cls._fields) != len(node["items"]):
            raise _changed(node["type"], f"has {len(cls._fields)} fields and not {len(node['items'])}")
        return cls._make(decode(item, leaf) for item in node["items"])
    if kind == "dataclass":
        return _restore_dataclass(node, leaf)
    return leaf(node)


def _changed(name: str, how: str) -> UnsupportedValue:
    return UnsupportedValue(
        f"A stored value is of class {name!r}, which was changed since: it {how}. Change the version of the task that returns it, so that it runs again.",
        type=name,
    )


def _restore_dataclass(node: Mapping[str, Any], leaf: DecodeLeaf) -> Any:
    cls = _find_type(node["type"], None)
    if {field.name for field in dataclasses.fields(cls)} != node["fields"].keys():
        raise _changed(node["type"], f"has other fields than {', '.join(node['fields']) or 'none'}")
    # Fields are set as they were, without __init__ and __post_init__: the value has been through these already.
    value = object.__new__(cls)
    for name, item in node["fields"].items():
        object.__setattr__(value, name, decode(item, leaf))
    return value


def _type_name(kind: type, path: str) -> str:
    if "<locals>" in kind.__qualname__:
        where = f" at {path!r}" if path else ""
        raise UnsupportedValue(
            f"The class {kind.__qualname__!r}{where} is defined inside a function, so a stored value of it could not be read back. "
            "Define it at the top of a module.",
            path=path,
        )
    return f"{_importable(kind.__module__)}:{kind.__qualname__}"


def _importable(module: str) -> str:
    """Return the name under which other processes import a module; that of a script that is run says nothing to them."""
    if module not in _SCRIPTS:
        return module
    script = sys.modules.get(module)
    spec = getattr(script, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(script, "__file__", None)
    if not file:
        return module
    path = Path(file).absolute()
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def _loaded(module: str) -> list[Any]:
    """Return the loaded modules that may be the one of this name: it may have been run as a script, or be loaded by the path of its file."""
    stem = module.removeprefix(BY_PATH)
    scripts = [name for name in _SCRIPTS if name in sys.modules and _importable(name) == stem]
    names = dict.fromkeys([module, stem, *scripts, f"{BY_PATH}{stem}"])
    return [sys.modules[name] for name in names if name in sys.modules]


def _find_type(name: str, base: type | None) -> Any:
    module, _, qualname = name.partition(":")
    for place in _loaded(module):
        found: Any = place
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and (dataclasses.is_dataclass(found) if base is None else issubclass(found, base)):
            return found
    raise UnsupportedValue(
        f"A stored value is of class {name!r}, which is not there: either its module is not loaded (import it where the flow is declared), "
        "or the class was renamed (change the version of the task that returns it).",
        type=name,
    )
