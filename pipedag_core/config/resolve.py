"""From the merged section of an instance to its settings: placeholders expanded, types checked, defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, cast

from pipedag_core.config import load
from pipedag_core.config.expand import Expander
from pipedag_core.config.keys import INSTANCE, Reader, Section
from pipedag_core.config.registry import PARTS
from pipedag_core.config.settings import Attrs, CacheValidation, PartSettings, conceal, is_postgres, mask
from pipedag_core.errors import ConfigError
from pipedag_core.ports.catalogs import Retention

_ID: Final = re.compile(r"[^\W_](?:[\w.+-]*\w)?")
_DEFAULT_CLASS: Final = {"table_store": "parquet", "blob_store": "file", "orchestration": "threads"}
_PARTS: Final = ("table_store", "blob_store", "metadata_store", "orchestration", "observers")


def refuse(faults: Sequence[str], where: str) -> None:
    """Raise what is wrong with a configuration, all at once.

    Raises:
        ConfigError: There is anything wrong.
    """
    if faults:
        unique = list(dict.fromkeys(faults))
        text = f" {unique[0]}" if len(unique) == 1 else "".join(f"\n  * {fault}" for fault in unique)
        raise ConfigError(mask(f"{where}:{text}"), faults=tuple(unique))


def settings(merged: Mapping[str, Any], name: str, instance: str, base_dir: Path, *, per_user: bool, where: str) -> dict[str, Any]:
    """Return the fields of a `ConfigContext` that an instance's merged section decides.

    Args:
        merged: As `merge_sections` returned it.
        name: Name of the pipeline.
        instance: Name of the instance; also its id, unless the section gives one.
        base_dir: Folder that relative paths start from.
        per_user: Whether the instance's id is made from `per_user_template`.
        where: How messages name the configuration and the instance.

    Raises:
        ConfigError: A value is missing or wrong, or the address of a store does not name the instance.
    """
    expander = Expander(load.environment())
    plain = expander.expand({key: value for key, value in merged.items() if key not in _PARTS}, "")
    refuse(expander.faults, where)
    user = load.username() if per_user or _mentions(merged, "{username}") else ""
    instance_id = str(plain.get("instance_id", instance))
    if per_user:
        template = Expander({}, {"id": instance_id, "username": user})
        instance_id = template.expand(str(plain.get("per_user_template", "{id}_{username}")), "per_user_template")
        refuse(template.faults, where)
    if not _ID.fullmatch(instance_id):
        raise ConfigError(
            f"{where}: instance_id is {instance_id!r}, but it becomes part of paths and schema names: use letters, digits and `_`, `-`, `.`, `+` inside.",
            instance=instance,
        )
    names = {"name": name, "instance_id": instance_id, "instance": instance, "username": user}
    raw_parts = {key: merged[key] for key in _PARTS if key in merged}
    _fill_defaults(raw_parts)
    expander = Expander(load.environment(), names)
    parts: dict[str, Any] = {}
    for key, value in raw_parts.items():
        # Secrets stand in a file of their own, so that the configuration can be shown to everybody.
        expander.names = {**names, **_url_attrs(value, expander, base_dir, key, where)}
        parts[key] = expander.expand(value, key)
    refuse(expander.faults, where)
    reader = Reader()
    values: dict[str, Any] = Section(INSTANCE).read({**plain, **parts}, "", reader)
    built = {key: _part(values[key], key, key, reader) for key in _DEFAULT_CLASS}
    observers = tuple(_part(item, "observers", f"observers[{i}]", reader) for i, item in enumerate(values.get("observers", ())))
    hook_args = {**values.get("hook_args", {}), **values["table_store"].get("hook_args", {})}
    _check_types(values.get("auto_table", ()), hook_args, values.get("table_hooks", {}), reader)
    refuse(reader.faults, where)
    for key in ("table_store", "blob_store"):
        entry = PARTS[key].get(built[key].kind)
        _check_address(raw_parts[key]["args"], entry.address if entry else (), f"{key}.args", instance_id, where)
    catalog = raw_parts.get("metadata_store") or {}
    # In a server's database, the catalog's schema is named after the instance.
    if not is_postgres(str(catalog.get("url", ""))):
        _check_address(catalog, ("url",), "metadata_store", instance_id, where)
    return {
        **built,
        **{key: Attrs(values.get(key, {})) for key in ("attrs", "table_hooks", "stage_tags", "visualization", "adapters")},
        **{key: values[key] for key in _PLAIN if key in values},
        "hook_args": Attrs(hook_args),
        "instance_id": instance_id,
        "observers": observers,
        "cache_validation": CacheValidation(**values.get("cache_validation", {})),
        "retention": _retention(values.get("retention", {})),
        "metadata_store": _metadata(values.get("metadata_store", {})),
    }


_PLAIN: Final = (
    "fail_fast",
    "auto_table",
    "auto_blob",
    "content_hash_rows",
    "lease_ttl",
    "lease_wait",
    "tags",
    "strict_result_get_locking",
    "disable_kroki",
    "kroki_url",
)


def _check_types(auto_table: Sequence[str | None], hook_args: Mapping[str, Any], own: Mapping[str, Any], reader: Reader) -> None:
    """Note names of types, and of libraries, for which there is no hook."""
    if not auto_table and not hook_args:
        return
    registry = import_module("pipedag_core.hooks.registry")
    types = [*registry.BUILT_IN, *own, *(entry.name for entry in entry_points(group=registry.ENTRY_POINTS))]
    libraries = [name.partition(".")[0] for name in types]
    for i, name in enumerate(auto_table):
        near = get_close_matches(str(name), types, n=1, cutoff=0.9)
        # A type of another library may descend from one with a hook, which is known only when an object of it is met.
        if name is not None and name not in types and (near or name.partition(".")[0] in libraries):
            near = near or get_close_matches(name, types, n=1, cutoff=0.0)
            reader.faults.append(f"auto_table[{i}] is {name!r}, for which there is no hook. Did you mean {near[0]!r}?")
    for name, args in hook_args.items():
        if name not in types and name not in libraries:
            reader.unknown("hook_args", name, dict.fromkeys([*libraries, *types], ""))
            continue
        meant = [one for one in types if name in (one, one.partition(".")[0])]
        if all(one in registry.BUILT_IN and one not in own for one in meant):
            _check_options(args, f"hook_args.{name}", {k: v for one in meant for k, v in registry.BUILT_IN[one].options.items()}, reader)


def _check_options(args: Mapping[str, Any], path: str, options: Mapping[str, tuple[str, ...]], reader: Reader) -> None:
    """Note options that a hook of this package does not have, and values that they cannot have; hooks of others check their own."""
    for key, value in args.items():
        if key not in options:
            reader.unknown(path, key, options)
        elif value not in options[key]:
            reader.faults.append(f"{path}.{key} must be one of {', '.join(options[key])}, not {value!r}.")


def _mentions(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return text in value
    if isinstance(value, Mapping):
        return any(_mentions(item, text) for item in cast("Mapping[Any, Any]", value).values())
    return isinstance(value, (list, tuple)) and any(_mentions(item, text) for item in cast("list[Any]", value))


def _fill_defaults(parts: dict[str, Any]) -> None:
    """Name each part that the configuration leaves open; blobs are kept beside the tables where these are files."""
    for key, kind in _DEFAULT_CLASS.items():
        parts[key] = {"class": kind, **(parts.get(key) or {})}
        parts[key]["args"] = dict(parts[key].get("args") or {})
    tables, blobs = parts["table_store"], parts["blob_store"]
    if tables["class"] == "parquet":
        tables["args"].setdefault("base_path", ".pipedag/{instance_id}")
    if blobs["class"] == "file":
        beside = str(tables["args"]["base_path"]).rstrip("/") if tables["class"] == "parquet" else ".pipedag/{instance_id}"
        blobs["args"].setdefault("base_path", f"{beside}/blobs")


def _url_attrs(part: Any, expander: Expander, base_dir: Path, key: str, where: str) -> dict[str, str]:
    if not isinstance(part, Mapping):
        return {}
    section = cast("Mapping[str, Any]", part)
    named = section.get("url_attrs_file") or (section.get("args") or {}).get("url_attrs_file")
    if not named:
        return {}
    path = base_dir / Path(str(expander.expand(named, f"{key}.url_attrs_file"))).expanduser()
    refuse(expander.faults, where)
    return {str(name): str(value) for name, value in load.read_file(path).items()}


def _part(section: Mapping[str, Any], key: str, path: str, reader: Reader) -> PartSettings:
    """Return a part's settings; its arguments are checked where its class has a short name."""
    kind = str(section.get("class", _DEFAULT_CLASS.get(key, "")))
    args: dict[str, Any] = {name: value for name, value in section.get("args", {}).items() if name != "url_attrs_file"}
    entry = PARTS[key].get(kind)
    if entry is None and "." not in kind:
        reader.faults.append(
            f"{path}.class is {kind!r}, but must be one of {', '.join(PARTS[key]) or 'none'}, or the dotted path of a class (package.module.Class)."
        )
    elif entry is not None and entry.args is not None:
        args = Section(entry.args).read(args, f"{path}.args", reader)
    return PartSettings(kind, Attrs(conceal(args)))


def names_instance(address: str, instance_id: str) -> bool:
    """Return whether an address ends in the instance's id: its last segment, without an ending, is the id."""
    last = address.rstrip("/").rpartition("/")[2]
    return instance_id in (last, last.partition("?")[0], last.rpartition(".")[0])


def _check_address(raw: Mapping[str, Any], keys: Sequence[str], path: str, instance_id: str, where: str) -> None:
    """Refuse a store whose address would be the same for another instance."""
    given = {key: str(raw[key]) for key in keys if raw.get(key) is not None}
    if given and not any("{instance_id}" in text or names_instance(text.removesuffix("/blobs"), instance_id) for text in given.values()):
        shown = ", ".join(f"{key}: {mask(text)!r}" for key, text in given.items())
        raise ConfigError(
            f"{where}: {path} ({shown}) is the same address for every instance, so instances would overwrite each other. "
            f"Put {{instance_id}} into {' or '.join(f'{path}.{key}' for key in keys)}.",
            instance_id=instance_id,
        )


def _retention(section: Mapping[str, Any]) -> Retention:
    changes = {("minimum_age_s" if key == "minimum_age" else key): value for key, value in section.items()}
    return Retention(**changes)


def _metadata(section: Mapping[str, Any]) -> PartSettings | None:
    return PartSettings("sql", Attrs(conceal({"url": section["url"]}))) if section.get("url") else None
