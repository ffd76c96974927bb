"""Finds a flow by its import reference: `package.module:flow_or_factory`, or `path/file.py:flow_or_factory`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from pipedag_core.cache.codec import BY_PATH
from pipedag_core.config.context import ConfigContext, PipedagConfig
from pipedag_core.define.flow import Flow
from pipedag_core.errors import ConfigError, FlowError


def load_flow(reference: str, attrs: Mapping[str, Any] | None = None) -> tuple[Flow, Any]:
    """Import a flow, or call the factory that makes it.

    The working directory is importable. A file that belongs to a package is imported under its own name; any other under a name made from its
    stem, the same in every process, so that what it defines can be pickled. Its folder is importable too.

    Args:
        reference: Module or file, a colon, and the name of a flow or of a function that makes one.
        attrs: The instance's attributes, for a factory that takes them.

    Returns:
        The flow, with its `source` set to the reference, and the specification that the factory returned with it (else None).

    Raises:
        ConfigError: There is no such module, file or name.
        FlowError: The name is neither a flow nor a factory of one.
        Exception: Whatever the user's code raises while it is imported or called.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{reference!r} does not name a flow. Write package.module:flow, or path/file.py:flow.", reference=reference)
    make_importable(Path.cwd())
    module = _load_file(Path(place), reference) if _is_file(place) else _load_module(place, reference)
    flow, spec = _unpack(_attribute(module, name, reference), attrs or {}, reference)
    flow.source = reference
    return flow, spec


def find_flow(
    reference: str, config: PipedagConfig | None = None, instance: str | None = None, *, per_user: bool = False
) -> tuple[Flow, Any, ConfigContext]:
    """Import a flow together with the settings of one instance of it.

    Args:
        reference: As for `load_flow`.
        config: The configuration; by default the one that is found.
        instance: Name of the instance.
        per_user: As for `PipedagConfig.get`.

    Returns:
        The flow, its specification or None, and the settings that hold for it.

    Raises:
        ConfigError, FlowError, Exception: As `load_flow` and `PipedagConfig.get`.
    """
    found = config or PipedagConfig.default
    general = found.get(instance, per_user=per_user)
    flow, spec = load_flow(reference, general.attrs)
    context = found.get(instance, flow.name, per_user=per_user)
    if context.attrs != general.attrs:
        # Only now is it known which sections under `flows` hold, and they say something else.
        flow, spec = load_flow(reference, context.attrs)
    return flow, spec, context


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def make_importable(folder: Path) -> None:
    """Let modules of a folder be imported, before others of the same names."""
    text = str(folder)
    if text not in sys.path and not ("" in sys.path and folder == Path.cwd()):
        sys.path.insert(0, text)


def _load_module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is missing further inside is the user's own matter and passes through.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{reference!r}: there is no module {error.name!r}. Run from the folder that holds it, install its package, or name the file (path/file.py:flow).",
            reference=reference,
        ) from None


def _load_file(path: Path, reference: str) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        near = get_close_matches(file.name, [item.name for item in file.parent.glob("*.py")], n=1) if file.parent.is_dir() else []
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{reference!r}: there is no file {str(path)!r} (looked for {file}).{hint}", reference=reference)
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        parts.insert(0, root.name)
        root = root.parent
    make_importable(root)
    if len(parts) > 1:
        return _load_module(".".join(parts), reference)
    return _load_alone(file)


def _load_alone(file: Path) -> ModuleType:
    name = BY_PATH + re.sub(r"\W", "_", file.stem)
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ != str(file):
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be imported as Python code.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, name: str, reference: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            usable = [
                key
                for key, value in vars(module).items()
                if not key.startswith("_") and (isinstance(value, Flow) or inspect.isfunction(value))
            ]
            near = get_close_matches(part, usable, n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"It has: {', '.join(usable) or 'no flows or functions'}."
            raise ConfigError(f"{reference!r}: {module.__file__ or module.__name__} has no {name!r}. {hint}", reference=reference)
        found = getattr(found, part)
    return found


def _unpack(found: Any, attrs: Mapping[str, Any], reference: str) -> tuple[Flow, Any]:
    made = found
    if not isinstance(found, Flow) and inspect.isroutine(found):
        made = _call(found, attrs, reference)
    if isinstance(made, Flow):
        return made, None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Flow):
        return made
    what = "returns" if made is not found else "is"
    raise FlowError(
        f"{reference!r} {what} {type(made).__name__}, not a flow. Name a Flow, or a function that returns a Flow or (Flow, InOutSpecification).",
        reference=reference,
    )


def _call(factory: Any, attrs: Mapping[str, Any], reference: str) -> Any:
    parameters = list(inspect.signature(factory).parameters.values())
    required = [item for item in parameters if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    if any(item.name == "attrs" and item.kind is not item.POSITIONAL_ONLY for item in parameters) and len(required) <= 1:
        return factory(attrs=attrs)
    if not required:
        return factory()
    if len(required) == 1 and required[0].kind is not required[0].KEYWORD_ONLY:
        return factory(attrs)
    raise FlowError(
        f"{reference!r} takes {', '.join(item.name for item in required)}. A function that makes a flow takes nothing, or `attrs`: the instance's attributes.",
        reference=reference,
    )
