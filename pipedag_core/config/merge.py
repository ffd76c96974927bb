"""Merges the sections of a configuration into the settings of one instance; later sections win."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, cast

from pipedag_core.errors import ConfigError

#: Name of the section that holds for all instances, or all flows.
ANY: Final = "__any__"
#: The technical setup that holds where no section names one.
DEFAULT_SETUP: Final = "default"


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any], *, user_data: bool = False) -> dict[str, Any]:
    """Return both, merged deeply; `upper` wins.

    A value of None takes back what `lower` says (but is a value like any other in the user's own data, `attrs`). A part with another `class`
    starts afresh: arguments of one class are never given to another.
    """
    if not user_data and "class" in upper and "class" in lower and upper["class"] != lower["class"]:
        lower = {}
    result = dict(lower)
    for key, value in upper.items():
        inside = user_data or key == "attrs"
        below = result.get(key)
        if value is None and not user_data:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            start = cast("Mapping[str, Any]", below) if isinstance(below, Mapping) else {}
            result[key] = merge(start, cast("Mapping[str, Any]", value), user_data=inside)
        else:
            result[key] = value
    return result


def sections(raw: Mapping[str, Any], instance: str | None, flow: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (path in the file, section) of all sections that hold for an instance and a flow, the weakest first."""
    found: list[tuple[str, Mapping[str, Any]]] = []

    def take(*path: str) -> None:
        here: Any = raw
        for key in path:
            # YAML reads a name such as 2024 as a number.
            here = next((value for name, value in (here or {}).items() if str(name) == key), None)
        if here:
            found.append((".".join(path), here))

    take("instances", ANY)
    if instance is not None:
        take("instances", instance)
    for name in (ANY,) if flow is None else (ANY, flow):
        take("flows", name)
        if instance is not None:
            take("flows", name, "instances", instance)
    return found


def instance_names(raw: Mapping[str, Any]) -> list[str]:
    """Return the names of all instances that have a section, in the order in which they stand in the file."""
    names = [*(raw.get("instances") or {})]
    for section in (raw.get("flows") or {}).values():
        names += [*((section or {}).get("instances") or {})]
    return [name for name in dict.fromkeys(map(str, names)) if name != ANY]


def merge_sections(raw: Mapping[str, Any], instance: str | None, flow: str | None, where: str) -> dict[str, Any]:
    """Return the merged section of an instance and a flow, without the references to other sections.

    The technical setups that sections name come first, in the order in which they are named, so that every section beats them. A connection that
    a section names comes just before what the section itself says about that store.

    Raises:
        ConfigError: A technical setup or a connection is named that there is not.
    """
    found = sections(raw, instance, flow)
    setups: dict[str, str] = {}
    for path, section in found:
        if section.get("technical_setup"):
            setups.setdefault(str(section["technical_setup"]), path)
    known: Mapping[str, Any] = raw.get("technical_setups") or {}
    if not setups and DEFAULT_SETUP in known:
        setups[DEFAULT_SETUP] = ""
    for name, path in setups.items():
        if name not in known:
            raise ConfigError(f"{where}: {path}.technical_setup names {name!r}, which technical_setups does not have.{_near(name, known)}")
    merged: dict[str, Any] = {}
    for path, section in [*((f"technical_setups.{name}", known[name] or {}) for name in setups), *found]:
        own = {key: value for key, value in section.items() if key not in ("technical_setup", "instances")}
        for store in ("table_store", "blob_store"):
            if isinstance(own.get(store), Mapping):
                own[store] = _with_connection(raw, own[store], store, f"{where}: {path}")
        merged = merge(merged, own)
    return merged


def _with_connection(raw: Mapping[str, Any], section: Mapping[str, Any], store: str, where: str) -> dict[str, Any]:
    key = f"{store}_connection"
    own = {name: value for name, value in section.items() if name != key}
    name = section.get(key)
    if name is None:
        return own
    known: Mapping[str, Any] = raw.get(f"{key}s") or {}
    if name not in known:
        raise ConfigError(f"{where}.{store}.{key} names {name!r}, which {key}s does not have.{_near(str(name), known)}")
    return merge(known[name] or {}, own)


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, [str(item) for item in known], n=1)
    return f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(map(str, known)) or 'none'}."
