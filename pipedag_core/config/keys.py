"""The keys that a configuration may have, and the type of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, Protocol, cast, final

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.config.settings import parse_duration


@final
@dataclass
class Reader:
    """Collects what is wrong with a configuration while it is read.

    Attributes:
        deferred: Texts that hold a `{placeholder}` stand for values of any type, which are known later.
        faults: One sentence for each thing that is wrong.
    """

    deferred: bool = False
    faults: list[str] = field(default_factory=list[str])

    def unknown(self, path: str, key: object, known: Mapping[str, Any], retired: Mapping[str, str] | None = None) -> None:
        """Note a key that there is not."""
        where = f"{path}.{key}" if path else str(key)
        if retired and key in retired:
            self.faults.append(f"{where}: {retired[str(key)]}")
            return
        near = get_close_matches(str(key), list(known), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys here: {', '.join(sorted(known)) or 'none'}."
        self.faults.append(f"{where} is not a known key. {hint}")


class Kind(Protocol):
    """What a key's value may be."""

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        """Return the value in its final form; what is wrong with it goes to the reader."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Scalar:
    """One value.

    Attributes:
        words: What it must be, for messages.
        types: Types in which YAML gives it.
        parse: From text that came out of a placeholder; raises ValueError.
    """

    words: str
    types: tuple[type, ...]
    parse: Callable[[Any], Any]

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        text = isinstance(value, str)
        if text and reader.deferred and "{" in value:
            return value
        fits = isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))
        # What came out of a placeholder is always text, also where it stands for a number.
        if fits or (text and not reader.deferred):
            try:
                return self.parse(value)
            except (ValueError, TypeError):
                pass
        reader.faults.append(f"{path} must be {self.words}, not {value!r}.")
        return None


@final
@dataclass(frozen=True, slots=True)
class Anything:
    """Any value: the user's own."""

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        return value


@final
@dataclass(frozen=True, slots=True)
class ListOf:
    """A list, or one item without a list around it."""

    item: Kind

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        items = cast("list[Any]", value) if isinstance(value, (list, tuple)) else [value]
        return tuple(self.item.read(item, f"{path}[{i}]", reader) for i, item in enumerate(items))


@final
@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names that the user chooses to values of one kind."""

    item: Kind

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            reader.faults.append(f"{path} must be a mapping, not {value!r}.")
            return {}
        items = cast("Mapping[Any, Any]", value)
        return {str(key): self.item.read(item, f"{path}.{key}" if path else str(key), reader) for key, item in items.items()}


@final
@dataclass(frozen=True, slots=True)
class Section:
    """A mapping whose keys are known.

    Attributes:
        keys: Key -> what its value may be.
        retired: Key that is known from elsewhere -> what to do instead.
    """

    keys: Mapping[str, Kind]
    retired: Mapping[str, str] = field(default_factory=dict[str, str])

    def read(self, value: Any, path: str, reader: Reader) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            reader.faults.append(f"{path or 'The configuration'} must be a mapping, not {value!r}.")
            return {}
        result: dict[str, Any] = {}
        for key, item in cast("Mapping[Any, Any]", value).items():
            if key not in self.keys:
                reader.unknown(path, key, self.keys, self.retired)
            elif item is not None:
                result[key] = self.keys[key].read(item, f"{path}.{key}" if path else key, reader)
        return result


_SIZE: Final = re.compile(r"\d+(\.\d+)?\s*(B|bytes|[KMGT](i?B)?|%)", re.IGNORECASE)
_TYPE: Final = re.compile(r"[^\W\d]\w*\.[^\W\d]\w*")


def _flag(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).casefold() not in words:
        raise ValueError(value)
    return words[str(value).casefold()]


def _count(value: Any) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(value)
    return number


def _number_from_zero(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(value)
    return number


def _size(value: Any) -> str:
    if not _SIZE.fullmatch(value.strip()):
        raise ValueError(value)
    return value


def _template(value: Any) -> str:
    if "{username}" not in value:
        raise ValueError(value)
    return value


def _type(value: Any) -> str:
    if not _TYPE.fullmatch(value):
        raise ValueError(value)
    return value


def _duration(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise ValueError(value)
    return seconds


def _positive_duration(value: Any) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise ValueError(value)
    return seconds


def parse_mode(value: str) -> CacheValidationMode:
    """Return the mode with this name; `force_caches_invalid` is another spelling of `force_cache_invalid`.

    Raises:
        ValueError: There is none.
    """
    text = value.strip().casefold().replace("-", "_")
    return CacheValidationMode("force_cache_invalid" if text == "force_caches_invalid" else text)


TEXT: Final = Scalar("text", (str,), str)
#: Names and ids may look like numbers to YAML.
WORD: Final = Scalar("text", (str, int), str)
#: Relative ones start from the folder of the configuration.
PATH: Final = Scalar("a path", (str,), str)
FLAG: Final = Scalar("true or false", (bool,), _flag)
COUNT: Final = Scalar("a whole number from 1", (int,), _count)
FROM_ZERO: Final = Scalar("a whole number from 0", (int,), _number_from_zero)
DURATION: Final = Scalar("a duration (30s, 45m, 1h, 2d, or a number of seconds)", (str, int, float), _duration)
LEASE: Final = Scalar("a duration above zero (30s, 1h, or a number of seconds)", (str, int, float), _positive_duration)
#: As DuckDB reads it.
SIZE: Final = Scalar("a size (512MB, 4GB, 2GiB)", (str,), _size)
TEMPLATE: Final = Scalar("text with {username} in it", (str,), _template)
TYPE: Final = Scalar("a type by its top package and class, such as pandas.DataFrame", (str,), _type)
MODE: Final = Scalar(f"one of {', '.join(mode.value for mode in CacheValidationMode)}", (str,), parse_mode)
DICT: Final = Named(Anything())

_PART: Final[Mapping[str, Kind]] = {"class": TEXT, "args": DICT}
_TABLE_STORE: Final = Section(
    {**_PART, "table_store_connection": TEXT, "hook_args": Named(DICT)},
    {"local_table_cache": "There is no local table cache. Remove it: tables are read as Parquet, or through Arrow, already."},
)
_BLOB_STORE: Final = Section({**_PART, "blob_store_connection": TEXT})

#: Keys of an instance, wherever its sections stand.
INSTANCE: Final[Mapping[str, Kind]] = {
    "instance_id": WORD,
    "technical_setup": TEXT,
    "auto_table": ListOf(TYPE),
    "auto_blob": ListOf(TYPE),
    "fail_fast": FLAG,
    "strict_result_get_locking": FLAG,
    "per_user_template": TEMPLATE,
    "attrs": DICT,
    "tags": Anything(),
    "stage_tags": Named(ListOf(TEXT)),
    "cache_validation": Section({"mode": MODE, "disable_cache_function": FLAG, "ignore_task_version": FLAG}),
    "table_store": _TABLE_STORE,
    "blob_store": _BLOB_STORE,
    "metadata_store": Section({"url": TEXT, "url_attrs_file": PATH}),
    "lock_manager": Section(_PART),
    "orchestration": Section(_PART),
    "observers": ListOf(Section(_PART)),
    "hook_args": Named(DICT),
    "table_hooks": Named(TEXT),
    "retention": Section({"committed": COUNT, "failed": FROM_ZERO, "minimum_age": DURATION}),
    "content_hash_rows": FROM_ZERO,
    "lease_ttl": LEASE,
    "lease_wait": DURATION,
    "visualization": DICT,
    "adapters": Named(DICT),
    "disable_kroki": FLAG,
    "kroki_url": TEXT,
}

#: Keys that other libraries, or other versions, know.
RETIRED: Final[Mapping[str, str]] = {
    "network_interface": "No server runs beside a flow, so there is nothing to bind. Remove it.",
    "metadata_table_store": "It is called metadata_store.",
    "per_user_templace": "It is called per_user_template.",
    "ignore_task_version": "It belongs under cache_validation.",
    "disable_cache_function": "It belongs under cache_validation.",
    "ignore_fresh_input": "Write cache_validation: {mode: ignore_fresh_input}.",
    "stage_commit_technique": "How a stage is committed follows from its store. Remove it.",
}

_INSTANCE_SECTION: Final = Section(INSTANCE, RETIRED)
FILE: Final = Section(
    {
        "name": WORD,
        "strict_instance_lookup": FLAG,
        "table_store_connections": Named(_TABLE_STORE),
        "blob_store_connections": Named(_BLOB_STORE),
        "technical_setups": Named(_INSTANCE_SECTION),
        "instances": Named(_INSTANCE_SECTION),
        "flows": Named(Section({**INSTANCE, "instances": Named(_INSTANCE_SECTION)}, RETIRED)),
    },
    dict.fromkeys(INSTANCE, "It belongs to an instance. Write it under instances.__any__.") | dict(RETIRED),
)
