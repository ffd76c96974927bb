"""Bundles: a production flow as a folder, which holds all that is needed to run elsewhere.

    manifest.json     format, hashes of all files, schemas, program, values, provenance, versions
    tables/           frozen tables as Parquet, the stored bytes where the store has files
    blobs/            frozen objects
    code/             source files, with `code="package"`

A file that the manifest does not list is never looked at. Hashes tell a bundle that was damaged or changed by accident; who can write a bundle can also
write its hashes, and a bundle with code is a program: load those of people whose programs you would run.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from pipedag_core.cache import codec
from pipedag_core.config.settings import Secret
from pipedag_core.define.task import TaskFunction
from pipedag_core.errors import BundleRefused, BundleWarning, PipedagError, ProductionError, UnsupportedValue
from pipedag_core.naming import file_segment
from pipedag_core.production import blobs, code, shapes
from pipedag_core.production.coding import class_modules, decode_program, encode_program, function_name
from pipedag_core.production.flow import Parts, ProductionFlow
from pipedag_core.production.frozen import FrozenBlob, FrozenTable
from pipedag_core.run.inputs import RawTables

MANIFEST: Final = "manifest.json"
_FORMAT: Final = "pipedag production bundle"
_VERSION: Final = 1


# --- saving -------------------------------------------------------------------------------------------------------------------------------


@final
@dataclass
class _Writer:
    """Collects what goes into a bundle, and all that cannot."""

    prod: ProductionFlow
    may_pickle: bool
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    problems: list[str] = field(default_factory=list[str])

    def put(self, folder: str, name: str, kind: str, raw: bytes) -> str:
        """Keep a file and return its path; equal ones of one name are kept once."""
        stem = file_segment(name, "name of a file in the bundle")
        number = 1
        while True:
            path = f"{folder}/{stem}.{kind}" if number == 1 else f"{folder}/{stem}-{number}.{kind}"
            if self.files.setdefault(path, raw) == raw:
                return path
            number += 1

    def leaf(self, item: Any, path: str) -> Mapping[str, Any] | None:
        """Return a frozen value as JSON."""
        if isinstance(item, FrozenTable):
            return {"$": "table", "name": item.name, "file": self.put("tables", item.name, "parquet", item.parquet)}
        if isinstance(item, FrozenBlob):
            return self.blob(item)
        if isinstance(item, Secret):
            raise UnsupportedValue("a secret is never written.")
        if isinstance(item, RawTables):
            return {"$": "raw", "tables": {name: self.leaf(table, path) for name, table in item.items()}}
        return None

    def blob(self, item: FrozenBlob) -> Mapping[str, Any]:
        """Return a blob as JSON."""
        try:
            value = blobs.encode(
                item.obj, self.prod.frames, lambda kind, raw: self.put("blobs", item.name, kind, raw), may_pickle=self.may_pickle
            )
        except UnsupportedValue as error:
            advice = "" if self.may_pickle else " Pass pickle=True to pickle it; whoever loads the bundle has to trust it then."
            self.problems.append(f"the blob {item.name} is {error}, for which there is no safe format.{advice}")
            value = {}
        return {"$": "blob", "name": item.name, "value": value}

    def encoded(self, value: Any, what: str) -> Any:
        """Return a value as JSON; what is in the way is collected."""
        try:
            return codec.encode(value, self.leaf)
        except UnsupportedValue as error:
            self.problems.append(f"{what}: {error}")
            return None


def save(prod: ProductionFlow, path: Path, code_as: str, may_pickle: bool) -> Path:
    """Write a bundle; see `ProductionFlow.save`. Equal production flows give equal bytes.

    Raises:
        ProductionError: Something cannot be kept, with all that is in the way; or there is something at the path that is no bundle.
    """
    if code_as not in ("reference", "package"):
        raise ProductionError(f"code is 'reference' or 'package', not {code_as!r}.")
    _refuse_target(path)
    parts, writer = prod.parts, _Writer(prod, may_pickle)
    _check_code(parts, code_as, writer.problems)
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "flow": parts.program.flow,
        "provenance": parts.provenance,
        "program": _program(parts, writer),
        "consts": [[slot, writer.encoded(value, parts.program.consts[slot])] for slot, value in sorted(parts.consts.items())],
        "inputs": {name: codec.encode(shape, shapes.encode_leaf) for name, shape in parts.inputs.items()},
        "outputs": {name: codec.encode(shape, shapes.encode_leaf) for name, shape in parts.outputs.items()},
        "dialect": parts.dialect,
        "hook_args": writer.encoded({key: dict(value) for key, value in parts.hook_args.items()}, "hook_args"),
        "table_hooks": dict(parts.table_hooks),
        "python": platform.python_version(),
    }
    if writer.problems:
        found = tuple(dict.fromkeys(writer.problems))
        raise ProductionError(f"The production flow of {parts.program.flow!r} cannot be saved:\n{shapes.listed(found)}", problems=found)
    modules = sorted({name.partition(":")[0] for name in _functions(parts)} | {*class_modules(manifest)})
    manifest["modules"] = modules
    manifest["code"] = _code(modules, code_as, writer)
    manifest["packages"] = code.libraries([*manifest["code"]["modules"], *modules, *_frames_used(parts), *_blob_modules(parts)])
    manifest["files"] = {name: {"sha256": code.sha256(raw), "bytes": len(raw)} for name, raw in sorted(writer.files.items())}
    manifest["digest"] = _digest(manifest)
    writer.files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")
    _write(path, writer.files)
    return path


def _refuse_target(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if (path / MANIFEST).is_file() or not any(path.iterdir()):
            return
        raise ProductionError(f"{path} is a folder with something else in it than a bundle. Name a new folder.", path=str(path))
    if path.exists() or path.is_symlink():
        raise ProductionError(f"{path} is there already, and is no folder. Name a new folder.", path=str(path))


def _functions(parts: Parts) -> list[str]:
    return [function_name(node.function) for node in parts.program.nodes]


def _check_code(parts: Parts, code_as: str, problems: list[str]) -> None:
    for node in parts.program.nodes:
        module, _, qualname = function_name(node.function).partition(":")
        if module == "__main__":
            problems.append(
                f"the function of {node.full_id} is defined in the script or notebook that runs now, so nobody can import it. Put it into a module."
            )
            continue
        found: Any = sys.modules.get(module)
        for name in qualname.split("."):
            found = getattr(found, name, None)
        if found is not node.function:
            problems.append(
                f"the function of {node.full_id} is not what stands at {module}:{qualname}. Define it at the top of a module, under its own name."
            )
        elif module.startswith(codec.BY_PATH) and code_as == "reference":
            problems.append(
                f"the function of {node.full_id} is in a file that is no part of a package, and was loaded by its path. Pass code='package', or name "
                "the flow by its module (package.module:flow)."
            )


def _program(parts: Parts, writer: _Writer) -> Any:
    try:
        return encode_program(parts.program)
    except UnsupportedValue as error:
        writer.problems.append(str(error))
        return None


def _code(modules: list[str], code_as: str, writer: _Writer) -> dict[str, Any]:
    """Return where each module's code is, with its hash, and put it into the bundle if it is to be carried along."""
    kept: dict[str, Any] = {}
    for name, file in code.gather(modules).items():
        raw = file.read_bytes()
        kept[name] = {"sha256": code.sha256(raw), "package": file.name == "__init__.py"}
        if code_as == "package":
            inside = f"{name.replace('.', '/')}/__init__.py" if file.name == "__init__.py" else f"{name.replace('.', '/')}.py"
            writer.files[f"code/{inside}"] = raw
            kept[name]["file"] = f"code/{inside}"
    return {"kind": code_as, "modules": kept}


def _frames_used(parts: Parts) -> list[str]:
    types = [node.options.input_type for node in parts.program.nodes]
    return [kind.__module__.lstrip("_") for kind in types if isinstance(kind, type)]


def _blob_modules(parts: Parts) -> list[str]:
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, FrozenBlob):
            found.append(type(value.obj).__module__)

    for value in parts.consts.values():
        shapes.each_leaf(value, look)
    return found


def _digest(manifest: Mapping[str, Any]) -> str:
    return code.sha256(json.dumps({key: value for key, value in manifest.items() if key != "digest"}, sort_keys=True).encode())


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write all files beside the place, then put the folder there: nobody sees half a bundle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".{path.name}.{uuid.uuid4().hex}.new"
    try:
        for name, raw in files.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(raw)
        old = None
        if path.exists():
            old = path.parent / f".{path.name}.{uuid.uuid4().hex}.old"
            path.replace(old)
        new.replace(path)
        if old is not None:
            shutil.rmtree(old)
    except OSError as error:
        raise ProductionError(f"The bundle cannot be written to {path}: {error}. Check space and permissions.", path=str(path)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


# --- loading ------------------------------------------------------------------------------------------------------------------------------


def load(path: Path, trust_pickle: bool) -> ProductionFlow:
    """Read a bundle; see `ProductionFlow.load`."""
    manifest = _manifest(path)
    files = {name: _checked(path, name, told) for name, told in manifest["files"].items()}
    try:
        return _loaded(manifest, files, trust_pickle)
    except PipedagError as error:
        if isinstance(error, BundleRefused):
            raise
        raise BundleRefused(f"{MANIFEST}: {error}", file=MANIFEST) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BundleRefused(
            f"{MANIFEST}: it cannot be read ({type(error).__name__}: {error}). The bundle was made by another version, or changed.",
            file=MANIFEST,
        ) from error


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleRefused(f"{path} is no folder, so it is no bundle. Name the folder that prod.save(...) has written.", file=str(path))
    raw = _read(path, MANIFEST, "it is not there, so this is no bundle, or an incomplete one")
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise BundleRefused(f"{MANIFEST}: it is no JSON ({error}), so it was changed or cut short.", file=MANIFEST) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise BundleRefused(f"{MANIFEST}: this is not the manifest of a {_FORMAT}.", file=MANIFEST)
    found = manifest.get("version")
    if type(found) is not int or found > _VERSION:
        raise BundleRefused(
            f"{MANIFEST}: the bundle has format version {found}; this pipedag-core reads up to {_VERSION}. Install a newer pipedag-core.",
            file=MANIFEST,
        )
    if manifest.get("digest") != _digest(manifest):
        raise BundleRefused(f"{MANIFEST}: its content is not what was written. It was changed.", file=MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise BundleRefused(f"{MANIFEST}: it lists no files.", file=MANIFEST)
    return manifest


def _read(folder: Path, name: str, absent: str) -> bytes:
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleRefused(f"{name}: {'it is a link' if path.is_symlink() else absent}.", file=name)
        return path.read_bytes()
    except OSError as error:
        raise BundleRefused(f"{name}: it cannot be read: {error}.", file=name) from error


def _checked(folder: Path, name: str, told: Any) -> bytes:
    """Return the bytes of a listed file that are those that were written."""
    parts = name.split("/")
    unsafe = any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts)
    if unsafe or any((folder / Path(*parts[:end])).is_symlink() for end in range(1, len(parts))):
        raise BundleRefused(f"{name}: this path leads out of the bundle.", file=name)
    raw = _read(folder, name, "it is missing from the bundle")
    if not isinstance(told, dict) or len(raw) != told.get("bytes"):
        wanted = told.get("bytes") if isinstance(told, dict) else None
        raise BundleRefused(f"{name}: it has {len(raw)} bytes, {wanted} were written. It was cut short or changed.", file=name)
    if code.sha256(raw) != told.get("sha256"):
        raise BundleRefused(f"{name}: its content is not what was written. It was changed.", file=name)
    return raw


def _loaded(manifest: dict[str, Any], files: Mapping[str, bytes], trust_pickle: bool) -> ProductionFlow:
    _refuse_pickles(manifest["consts"], trust_pickle=trust_pickle)
    kept = manifest["code"]["modules"]
    if manifest["code"]["kind"] == "package":
        code.serve({name: (files[told["file"]], told["file"], bool(told["package"])) for name, told in kept.items()})
    for name in manifest["modules"]:
        code.load_module(name)
    _warn(manifest, kept)
    program = decode_program(manifest["program"], _find)
    if {*manifest["inputs"]} != {*program.inputs} or not {*manifest["outputs"]} <= {*program.outputs}:
        raise ValueError("inputs and outputs are not those of the program")
    if type(manifest["dialect"]) is not str:
        raise ValueError("there is no dialect")
    hook_args = codec.decode(manifest["hook_args"], _no_leaf)
    base = Parts(
        program=program,
        consts={},
        inputs={name: codec.decode(value, shapes.decode_leaf) for name, value in manifest["inputs"].items()},
        outputs={name: codec.decode(value, shapes.decode_leaf) for name, value in manifest["outputs"].items()},
        dialect=manifest["dialect"],
        hook_args=hook_args,
        table_hooks=manifest["table_hooks"],
        provenance=manifest["provenance"],
    )
    frames = base.frames()

    def leaf(node: Mapping[str, Any]) -> Any:
        match node["$"]:
            case "table":
                return FrozenTable(files[node["file"]], node["name"])
            case "raw":
                return RawTables({name: leaf(inner) for name, inner in node["tables"].items()})
            case "blob":
                return _blob(node, frames, files, trust_pickle=trust_pickle)
            case other:
                raise ValueError(f"unknown kind {other!r}")

    return ProductionFlow(replace(base, consts={slot: codec.decode(value, leaf) for slot, value in manifest["consts"]}))


def _blob(node: Mapping[str, Any], frames: Any, files: Mapping[str, bytes], *, trust_pickle: bool) -> FrozenBlob:
    try:
        obj = blobs.decode(node["value"], frames, files.__getitem__, trust_pickle=trust_pickle, name=node["name"])
    except BundleRefused:
        raise
    except Exception as error:  # whatever a format's library raises
        value = node["value"]
        names = [value["file"]] if value.get("$") == "pickle" else value.get("files", ())
        where = ", ".join(names) or MANIFEST
        raise BundleRefused(f"{where}: the blob {node['name']} cannot be read: {type(error).__name__}: {error}.", file=where) from error
    return FrozenBlob(obj, node["name"])


def _no_leaf(node: Mapping[str, Any]) -> Any:
    raise ValueError(f"unknown kind {node['$']!r}")


def _refuse_pickles(node: Any, *, trust_pickle: bool) -> None:
    """Refuse before any code is imported."""
    if trust_pickle:
        return
    if isinstance(node, list):
        for child in node:
            _refuse_pickles(child, trust_pickle=False)
    elif isinstance(node, dict):
        value = node.get("value")
        if node.get("$") == "blob" and isinstance(value, dict) and value.get("$") == "pickle":
            blobs.refuse_pickle(value["file"], node["name"])
        for child in node.values():
            _refuse_pickles(child, trust_pickle=False)


def _find(name: str) -> TaskFunction:
    module, _, qualname = name.partition(":")
    found: Any = code.load_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, TaskFunction):
        raise BundleRefused(
            f"{MANIFEST}: there is no task function {name!r} here. The code is another than the flow was made with; use that one, or extract again.",
            file=MANIFEST,
        )
    return found


def _warn(manifest: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    packages = {name: str.__str__(wanted) for name, wanted in manifest["packages"].items()}
    told = code.differing(packages)
    made, here = manifest["python"], platform.python_version()
    if made.split(".")[:2] != here.split(".")[:2]:
        told.insert(0, f"Python {made} is {here} here")
    if manifest["code"]["kind"] == "reference":
        for name, facts in kept.items():
            file = code.source_of(name)
            if name in sys.modules and (file is None or code.sha256(file.read_bytes()) != facts["sha256"]):
                told.append(f"the code of module {name} is another here")
    if told:
        warnings.warn(
            f"The bundle of flow {manifest['flow']!r} was made with other versions: {'; '.join(told)}. Verify it here before you rely on it.",
            BundleWarning,
            stacklevel=5,
        )
