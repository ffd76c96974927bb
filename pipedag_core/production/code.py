"""The code of a production flow: named, so that it is imported where the flow is loaded; or carried along as source files."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final, final

from pipedag_core.errors import BundleRefused

#: What comes with this package, so it is there wherever a bundle is loaded.
_OURS: Final = frozenset({"pipedag_core", "pipedag_airflow", "pipedag_dagster", "pipedag_mlflow"})

#: What every production flow runs on.
ALWAYS: Final = ("pipedag_core", "pyarrow")


def source_of(module: str) -> Path | None:
    """Return the source file of a loaded module; None if it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") and Path(file).is_file() else None


def sha256(raw: bytes) -> str:
    """Return a hash as the manifest has it."""
    return hashlib.sha256(raw).hexdigest()


def gather(modules: Iterable[str]) -> dict[str, Path]:
    """Return the source files that modules need: their own, and those of all that they import from the same place.

    The same place is the folder that is importable; what is installed, and Python's own, is not carried along.

    Args:
        modules: Names of loaded modules.
    """
    found: dict[str, Path] = {}
    todo = [*modules]
    while todo:
        name = todo.pop()
        file = source_of(name)
        if name in found or file is None or _is_installed(file) or name.partition(".")[0] in _OURS:
            continue
        found[name] = file
        todo += _imported(name, file)
        # A package is imported before what is in it.
        todo += [name.rpartition(".")[0]] if "." in name else []
    return dict(sorted(found.items()))


def _is_installed(file: Path) -> bool:
    places = {Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    resolved = file.resolve()
    return bool({"site-packages", "dist-packages"} & {*resolved.parts}) or any(resolved.is_relative_to(place) for place in places)


def _imported(name: str, file: Path) -> Iterator[str]:
    """Yield the names of loaded modules that a source file imports, at its top or anywhere inside."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            wanted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in wanted:
            if module not in sys.modules and importlib.util.find_spec(module.partition(".")[0]) is not None:
                # Imported inside a function that was not called yet; only what is not installed is looked for.
                _load_quietly(module)
            if module in sys.modules:
                yield module


def _load_quietly(module: str) -> None:
    top = importlib.util.find_spec(module.partition(".")[0])
    if top is None or top.origin is None or not top.origin.endswith(".py") or _is_installed(Path(top.origin)):
        return
    try:
        importlib.import_module(module)
    except ImportError:
        # `from package import name`: a name in a module is no module.
        return


def libraries(modules: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that modules import, and of those that every production flow needs: name -> version."""
    tops = {*ALWAYS}
    for name in modules:
        file = source_of(name)
        tops.add(name.partition(".")[0])
        if file is not None and not _is_installed(file):
            tops |= {module.partition(".")[0] for module in _imported(name, file)}
    known = packages_distributions()
    found: dict[str, str] = {}
    for distribution in {item for top in tops for item in known.get(top, ())}:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def differing(packages: Mapping[str, str]) -> list[str]:
    """Return what is installed here in another version, or not at all."""
    told: list[str] = []
    for name, wanted in packages.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            told.append(f"{name} {wanted} is not installed here")
            continue
        if here != wanted:
            told.append(f"{name} {wanted} is {here} here")
    return told


# --- modules out of a bundle --------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Carried:
    """The source of one module of a bundle."""

    raw: bytes
    path: str
    is_package: bool


@final
class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of bundles. It stays, since functions may import when they are called."""

    def __init__(self) -> None:
        self.modules: dict[str, _Carried] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        carried = self.modules.get(fullname)
        if carried is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=carried.path, is_package=carried.is_package)
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        carried = self.modules[module.__name__]
        exec(compile(carried.raw, carried.path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- that is what a module is


@final
class _Parents(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages without a file around modules of bundles, if nobody else does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(name.startswith(f"{fullname}.") for name in _finder.modules):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is nothing in it."""


_finder, _parents = _Finder(), _Parents()


def serve(sources: Mapping[str, tuple[bytes, str, bool]]) -> None:
    """Make modules importable from here on.

    Args:
        sources: Name -> (source, path, whether it is a package).

    Raises:
        BundleRefused: A module of this name, but with another source, is loaded already.
    """
    for name, (raw, path, _) in sources.items():
        known = _finder.modules.get(name)
        if known is not None:
            same = known.raw == raw
        elif name in sys.modules:
            file = source_of(name)
            same = file is not None and file.read_bytes() == raw
        else:
            same = True
        if not same:
            raise BundleRefused(
                f"{path}: another module {name!r} is loaded in this process already, and Python can have one of each name. Load the bundle in a "
                "process of its own.",
                file=path,
            )
    for name, (raw, path, is_package) in sources.items():
        if name not in sys.modules:
            _finder.modules[name] = _Carried(raw, path, is_package)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        sys.meta_path.append(_parents)


def load_module(name: str) -> Any:
    """Import a module.

    Raises:
        BundleRefused: There is none.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is missing further inside is told as it is.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise BundleRefused(
            f"manifest.json: there is no module {error.name!r} here, which holds code of the flow. Install it, run from the folder that holds it, or "
            "save the bundle with its code: prod.save(path, code='package').",
            file="manifest.json",
        ) from error
