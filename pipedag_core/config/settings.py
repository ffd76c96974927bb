"""The types that settings are made of: frozen, picklable, and silent about secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, NoReturn, cast, final

from pipedag_core.cache.modes import CacheValidationMode

_HIDDEN: Final = "***"
_URL_PASSWORD: Final = re.compile(r"(\w://[^:/?#\s]*:)(\S+)(@)")
_URL_OPTION: Final = re.compile(r"([?&;][^=&\s]*(?:password|passwd|secret|token|sig|key)[^=&\s]*=)([^&\s]+)", re.IGNORECASE)
_SECRET_KEY: Final = re.compile(r"password|passwd|passphrase|secret|token|credential|(api|access|private)_?key", re.IGNORECASE)


def mask(text: str) -> str:
    """Return the text with the passwords of URLs in it replaced by `***`."""
    return _URL_OPTION.sub(rf"\g<1>{_HIDDEN}", _URL_PASSWORD.sub(rf"\g<1>{_HIDDEN}\g<3>", text))


@final
@dataclass(frozen=True, slots=True)
class Secret:
    """A text that does not print. `reveal` is called where it is handed to the library that needs it, and nowhere else."""

    _text: str = field(repr=False)

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({mask(self._text)!r})" if "://" in self._text else f"Secret({_HIDDEN!r})"

    __str__ = __repr__


def conceal(value: Any, key: str = "") -> Any:
    """Return the value with each text that is a secret, by its key or as a URL with a password, as a `Secret`."""
    if isinstance(value, str):
        return Secret(value) if _SECRET_KEY.search(key) or mask(value) != value else value
    if isinstance(value, Mapping):
        return {name: conceal(item, str(name)) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [conceal(item, key) for item in cast("list[Any]", value)]
    return value


def reveal(value: Any) -> Any:
    """Return the value, as plain dicts and lists, with the texts of all secrets in it."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {name: reveal(item) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [reveal(item) for item in cast("list[Any]", value)]
    return value


def _printable(value: Any, key: str) -> Any:
    concealed = conceal(value, key)
    return value if concealed == value else concealed


@final
class Attrs(dict[str, Any]):
    """A frozen dict whose items are attributes too: `attrs["x"]` or `attrs.x`. Dicts inside are `Attrs`, lists are tuples.

    What can be a secret by its key, or is a URL with a password, does not print.
    """

    def __init__(self, items: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        super().__init__({key: _frozen(value) for key, value in {**(items or {}), **more}.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            near = get_close_matches(name, [str(key) for key in self], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(map(str, self)) or 'none'}."
            raise AttributeError(f"The configuration has no attribute {name!r} here; {hint}", name=name, obj=self) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self)]

    def __repr__(self) -> str:
        return f"Attrs({ {key: _printable(value, str(key)) for key, value in self.items()}!r})"

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] -- dict is unhashable because it can change; this cannot
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Attrs, (dict(self),)

    def __copy__(self) -> Attrs:
        return self

    def __deepcopy__(self, memo: Any) -> Attrs:
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "The configuration cannot be changed while it is used. Make another one with `config.evolve(...)`, or copy it with `dict(...)`."
        )

    __setitem__ = __delitem__ = __ior__ = __setattr__ = __delattr__ = clear = pop = popitem = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType] -- these are overloaded in dict


def _frozen(value: Any) -> Any:
    if isinstance(value, Attrs):
        return value
    if isinstance(value, Mapping):
        return Attrs(cast("Mapping[str, Any]", value))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in cast("list[Any]", value))
    return value


@final
@dataclass(frozen=True, slots=True)
class PartSettings:
    """Which part to open, and with what.

    Attributes:
        kind: A short name (`parquet`), or the dotted path of a class.
        args: Keyword arguments of its constructor; secrets among them are `Secret`.
    """

    kind: str
    args: Attrs = field(default_factory=Attrs)


@final
@dataclass(frozen=True, slots=True)
class CacheValidation:
    """How strictly runs trust what is stored, unless they say otherwise."""

    mode: CacheValidationMode = CacheValidationMode.NORMAL
    disable_cache_function: bool = False
    ignore_task_version: bool = False


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_duration(value: object) -> float | None:
    """Return a duration in seconds: a number of seconds, or text such as `30s`, `45m`, `1h`, `1h 30m`, `2d`. None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if 0 <= value < float("inf") else None
    if not isinstance(value, str) or not value.strip():
        return None
    rest = _DURATION.sub("", value.strip().casefold()).strip()
    if rest:
        return parse_duration(float(rest)) if re.fullmatch(r"\d+(\.\d+)?", rest) and rest == value.strip() else None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value.casefold()))


def is_postgres(url: str) -> bool:
    """Return whether an address is that of a PostgreSQL database."""
    scheme = url.partition("://")[0].partition("+")[0]
    return scheme in ("postgresql", "postgres")
