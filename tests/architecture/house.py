"""The house as its source shows it: modules, floors, and what each module imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DOTTED = re.compile(r"pipedag_core(\.\w+)+(:\w+)?")
OURS = ("pipedag_core", "pipedag_airflow", "pipedag_dagster", "pipedag_mlflow")


@dataclass(frozen=True)
class Source:
    """One module.

    Attributes:
        path: Below the root, with forward slashes, without `adapters/`.
        tree: Its syntax tree.
    """

    path: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def imports(self) -> Iterator[str]:
        """Yield the absolute names of all modules that it imports when it runs, also inside functions and by literal name."""
        for node in _running(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: write imports absolutely"
                yield node.module or ""
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ("import_module", "__import__"):
                    yield str(node.args[0].value)

    def named_modules(self) -> Iterator[str]:
        """Yield our own modules that stand in texts, as in tables of what is loaded by name."""
        for node in _running(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
                module = node.value.partition(":")[0]
                path = ROOT / module.replace(".", "/")
                if path.is_dir() or path.with_suffix(".py").is_file():
                    yield module


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            continue
        yield node
        yield from _running(node)


def sources() -> list[Source]:
    """Return all modules of the packages."""
    files = [(file, base) for base in (ROOT, ROOT / "adapters") for name in OURS for file in sorted((base / name).rglob("*.py"))]
    return [Source(file.relative_to(base).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file, base in files]


def floors() -> dict[str, int]:
    """Return the floor of every room and module of the core: 0 for the ground; from the contract in pyproject.toml."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "floors")
    return {room.strip(" ()"): floor for floor, layer in enumerate(reversed(layers)) for room in layer.split("|")}


def room(module: str) -> str:
    """Return the room of a module of the core: the second part of its name."""
    return module.split(".")[1] if "." in module else ""


def is_foreign(module: str) -> bool:
    """Return whether a module belongs to neither the standard library nor this project."""
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in OURS
