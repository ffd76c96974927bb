"""Canonical text of a serialized polars plan, and what in a plan cannot be seen into.

polars writes a plan as MessagePack: a list of plan nodes and a list of in-memory frames, which point to each other by place. (Its JSON
form writes NaN and both infinities as null, so that it would give one text to plans of different meaning.) A node's text is a hash of
its own content and its children's texts, so shared and repeated parts count the same, and places do not count. What is not known to
be harmless is refused: a plan that is wrongly taken for another one would bring wrong data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgpack

from pipedag_core.errors import TracingRefused
from pipedag_core.hashing import digest

_HEADER: Final = re.compile(rb"DSL_VERSION.{4}[0-9a-f]{64}", re.DOTALL)

#: Plan nodes that say all that they do.
_PLAIN: Final = frozenset(
    {
        "Cache", "DataFrameScan", "Distinct", "ExtContext", "Filter", "Gather", "GroupBy", "HConcat", "HStack", "Join", "MapFunction",
        "MatchToSchema", "MergeSorted", "Pivot", "Select", "Slice", "Sort", "Union",
    }
)  # fmt: skip

#: Node or expression -> what it is, in the words of those who wrote it.
_OPAQUE: Final[Mapping[str, str]] = {
    "AnonymousAgg": "a Python function (map_groups, agg)",
    "AnonymousFunction": "a Python function (map_elements, map_batches)",
    "AnonymousStreamingAgg": "a Python function",
    "FfiPlugin": "a function of a compiled plugin",
    "OpaquePython": "a Python function (map_batches, inspect)",
    "PipeWithSchema": "a Python function (pipe_with_schema)",
    "PythonScan": "a source that is read by a Python function",
    "PythonUdf": "a Python function",
    "Scan": "a file outside the pipeline (scan_parquet, scan_csv ...)",
    "Sink": "a file that is written (sink_parquet ...)",
    "SinkMultiple": "a file that is written (sink_parquet ...)",
}

_READS_FILES: Final = re.compile(r"\b(read|scan)_\w+\s*\(", re.IGNORECASE)


def canonical(raw: bytes, origin: Any) -> str:
    """Return the plan as `origins=<columns of inputs> plan=<hash>`.

    Args:
        raw: The plan as `LazyFrame.serialize()` writes it.
        origin: The function of a source that stands for an input, from `source_function`.

    Raises:
        TracingRefused: The plan holds what cannot be seen into.
    """
    return _Plan(raw, origin).text()


def source_function(raw: bytes) -> Any:
    """Return the function of a serialized plan that is one Python source."""
    plans, _, root = _unpack(raw)
    return plans[root]["PythonScan"]["options"]["scan_fn"]


def _unpack(raw: bytes) -> tuple[list[Any], list[Any], int]:
    try:
        header = _HEADER.match(raw)
        document = msgpack.unpackb(raw[header.end() if header else 0 :], strict_map_key=False)
        if set(document) != {"root", "dataframes", "dsl_plans"}:
            raise ValueError(f"it has the parts {sorted(document)}")
        plans = [slot["value"] for slot in document["dsl_plans"]]
        return plans, [slot["value"] for slot in document["dataframes"]], document["root"]["idx"]
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise TracingRefused(
            f"AUTO_VERSION cannot read how this release of polars writes plans down ({error}). Give the task a version='...' instead."
        ) from error


class _Plan:
    def __init__(self, raw: bytes, origin: Any) -> None:
        self._nodes, self._frames, self._root = _unpack(raw)
        self._origin = origin
        self._done: dict[int, str] = {}
        self._caches: dict[bytes, int] = {}
        self._origins: set[str] = set()

    def text(self) -> str:
        # Children stand before their parents, so no plan is too deep for a loop over the list.
        for index, node in enumerate(self._nodes):
            if node is not None:
                self._done[index] = self._node(node)
        return f"origins={','.join(sorted(self._origins))} plan={self._done[self._root]}"

    def _node(self, node: Any) -> str:
        if not isinstance(node, dict) or len(node) != 1:
            raise _refusal("a plan node of unknown form")
        ((kind, content),) = cast("dict[str, Any]", node).items()
        if kind == "PythonScan" and content["options"]["scan_fn"] == self._origin:
            fields = content["options"]["schema_fn"]["Right"]["fields"]
            self._origins.update(fields)
            return digest("origin", *_tokens(fields))
        if kind == "SQL":
            if content["catalog_tables"] or _READS_FILES.search(content["query"]):
                raise _refusal("SQL text that reads files outside the pipeline")
        elif kind not in _PLAIN:
            raise _refusal(_OPAQUE.get(kind, f"a plan node that is not known ({kind})"))
        if kind == "Cache":
            content = {**content, "id": self._caches.setdefault(bytes(content["id"]), len(self._caches))}
        return digest(kind, *_tokens(self._resolved(content)))

    def _resolved(self, value: Any, key: str = "") -> Any:
        """Return the value with pointers replaced by the texts of what they point to."""
        if isinstance(value, dict):
            entries = cast("dict[str, Any]", value)
            if set(entries) == {"idx", "version"} and isinstance(entries["idx"], int) and isinstance(entries["version"], int):
                return self._frame(entries["idx"]) if key == "df" else self._done[entries["idx"]]
            # Below `fields` the names are those of columns.
            for name in _OPAQUE.keys() & entries.keys() if key != "fields" else ():
                raise _refusal(_OPAQUE[name])
            return {name: self._resolved(item, name) for name, item in entries.items()}
        if isinstance(value, bytes):
            return _visible(value)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            if items and all(type(item) is int and 0 <= item < 256 for item in items):
                return _visible(bytes(items))
            return [self._resolved(item) for item in items]
        return value

    def _frame(self, index: int) -> str:
        parts = self._frames[index]
        return digest("frame", *(part if isinstance(part, bytes) else bytes(part) for part in parts))


def _visible(raw: bytes) -> bytes:
    # A pickled function is preceded by a flag and the version of Python, in expressions by a mark of polars as well.
    if raw.startswith((b"PLPY", b"\x80\x04\x95", b"\x80\x05\x95")) or raw[3:6] in (b"\x80\x04\x95", b"\x80\x05\x95"):
        raise _refusal("a Python function")
    return raw


def _tokens(value: Any) -> Iterator[str | bytes]:
    """Write a tree of plain values as a flat list that tells apart types, nesting and every float."""
    if isinstance(value, dict):
        yield f"{{{len(cast('dict[str, Any]', value))}"
        for name, item in cast("dict[str, Any]", value).items():
            yield str(name)
            yield from _tokens(item)
    elif isinstance(value, list):
        yield f"[{len(cast('list[Any]', value))}"
        for item in cast("list[Any]", value):
            yield from _tokens(item)
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, float):
        yield f"f{value.hex()}"
    else:
        yield f"{type(value).__name__} {value}"


def _refusal(what: str) -> TracingRefused:
    return TracingRefused(
        f"AUTO_VERSION cannot see everything that the task does: its plan holds {what}. "
        f"Write it with expressions, pass it as an input, or give the task a version='...'.",
        reason=what,
    )
