"""A program as JSON, and back. Functions are named; what they are called with is written by the value codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipedag_core.cache import codec
from pipedag_core.define.task import TaskFunction
from pipedag_core.production.program import Merge, Node, Picked, Program, Selected, Use
from pipedag_core.run.views import selection_from, selection_text


def encode_program(program: Program) -> dict[str, Any]:
    """Return a program as JSON values.

    Raises:
        UnsupportedValue: An argument is no plain value.
    """
    return {
        "flow": program.flow,
        "stages": list(program.stages),
        "inputs": dict(program.inputs),
        "consts": [[slot, name] for slot, name in program.consts.items()],
        "nodes": [_encode_node(node) for node in program.nodes],
        "output": codec.encode(program.output, _encode_leaf),
        "outputs": {name: codec.encode(value, _encode_leaf) for name, value in program.outputs.items()},
        "ignored": list(program.ignored),
        "cut": [[slot, name] for slot, name in program.cut.items()],
        "size": program.size,
    }


def decode_program(node: Mapping[str, Any], find: Callable[[str], TaskFunction]) -> Program:
    """Return the program that `encode_program` was given.

    Args:
        node: What it returned.
        find: Returns the task function with a name (`module:function`).

    Raises:
        UnsupportedValue, KeyError, TypeError, ValueError: It is none.
    """
    return Program(
        flow=node["flow"],
        stages=tuple(node["stages"]),
        inputs=dict(node["inputs"]),
        consts={slot: name for slot, name in node["consts"]},  # noqa: C416 -- says what is in it
        nodes=tuple(_decode_node(item, find) for item in node["nodes"]),
        output=codec.decode(node["output"], _decode_leaf),
        outputs={name: codec.decode(value, _decode_leaf) for name, value in node["outputs"].items()},
        ignored=tuple(node["ignored"]),
        cut={slot: name for slot, name in node["cut"]},  # noqa: C416 -- says what is in it
        size=node["size"],
    )


def function_name(function: TaskFunction) -> str:
    """Return the name under which a task function can be imported: `module:function`."""
    return f"{function.fn.__module__}:{function.fn.__qualname__}"


def class_modules(encoded: Any) -> Iterator[str]:
    """Yield the modules of all classes that encoded values name."""
    if isinstance(encoded, Mapping):
        if encoded.get("$") in ("enum", "flag", "namedtuple", "dataclass") and isinstance(encoded.get("type"), str):
            yield encoded["type"].partition(":")[0]
        for child in encoded.values():
            yield from class_modules(child)
    elif isinstance(encoded, list):
        for child in encoded:
            yield from class_modules(child)


def _encode_node(node: Node) -> dict[str, Any]:
    return {
        "slot": node.slot,
        "stage": node.stage,
        "id": node.id,
        "function": function_name(node.function),
        "parameters": {label: codec.encode(value, _encode_leaf, label) for label, value in node.parameters.items()},
        "names": {path: list(pair) for path, pair in node.names.items()},
    }


def _decode_node(node: Mapping[str, Any], find: Callable[[str], TaskFunction]) -> Node:
    return Node(
        slot=node["slot"],
        stage=node["stage"],
        id=node["id"],
        function=find(node["function"]),
        parameters={label: codec.decode(value, _decode_leaf) for label, value in node["parameters"].items()},
        names={path: (stage, name) for path, (stage, name) in node["names"].items()},
    )


def _encode_path(path: tuple[tuple[str, Any], ...]) -> list[Any]:
    return [[kind, codec.encode(key, _encode_leaf)] for kind, key in path]


def _decode_path(path: list[Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((kind, codec.decode(key, _decode_leaf)) for kind, key in path)


def _encode_leaf(item: Any, path: str) -> Mapping[str, Any] | None:
    if isinstance(item, Use):
        over = [[[codec.encode(key, _encode_leaf) for key in where], _encode_leaf(use, path)] for where, use in item.over]
        return {"$": "use", "slot": item.slot, "path": _encode_path(item.path), "over": over}
    if isinstance(item, Merge):
        others = [codec.encode(other, _encode_leaf, path) for other in item.others]
        return {"$": "merge", "base": codec.encode(item.base, _encode_leaf, path), "others": others}
    if isinstance(item, Picked):
        return {"$": "picked", "value": codec.encode(item.value, _encode_leaf, path), "path": _encode_path(item.path)}
    if isinstance(item, Selected):
        source = codec.encode(item.source, _encode_leaf, path)
        return {"$": "view", "source": source, "selection": selection_text(item.selection), "where": item.where}
    return None


def _decode_leaf(node: Mapping[str, Any]) -> Any:
    match node["$"]:
        case "use":
            over = tuple((tuple(codec.decode(key, _decode_leaf) for key in where), _decode_leaf(use)) for where, use in node["over"])
            return Use(node["slot"], _decode_path(node["path"]), over)
        case "merge":
            others = tuple(codec.decode(other, _decode_leaf) for other in node["others"])
            return Merge(codec.decode(node["base"], _decode_leaf), others)
        case "picked":
            return Picked(codec.decode(node["value"], _decode_leaf), _decode_path(node["path"]))
        case "view":
            return Selected(codec.decode(node["source"], _decode_leaf), selection_from(node["selection"]), node["where"])
        case other:
            raise ValueError(f"unknown kind {other!r}")
