"""Placeholders in texts: `{$NAME}` for environment variables, `{name}` for what is known about the instance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, cast, final
from urllib.parse import quote

_PLACEHOLDER: Final = re.compile(r"\{(\$?)([A-Za-z_][A-Za-z0-9_]*)\}")

#: User and password in an address.
_USER: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)@")

#: What cannot stand there as it is, so that whoever put it there did not encode it.
_RAW: Final = re.compile(r"[@/?#\[\]\s]|%(?![0-9A-Fa-f]{2})")


@final
@dataclass
class Expander:
    """Puts values in the place of placeholders, and collects those that have none.

    Attributes:
        environment: Values of `{$NAME}`.
        names: Values of `{name}`; None leaves such texts alone.
        faults: One sentence for each placeholder without a value.
    """

    environment: Mapping[str, str]
    names: Mapping[str, str] | None = None
    faults: list[str] = field(default_factory=list[str])

    def expand(self, value: Any, path: str) -> Any:
        """Return the value with all texts in it expanded. Each text is read once: braces in what is put in stay as they are.

        What is put in as user or password of an address is percent-encoded if it could not stand there otherwise.
        """
        if isinstance(value, str):
            user = _USER.match(value)
            start, end = (0, 0) if user is None else user.span(1)

            def put(match: re.Match[str]) -> str:
                found = self._lookup(match, path)
                return quote(found, safe=":") if start <= match.start() < end and _RAW.search(found) else found

            return _PLACEHOLDER.sub(put, value)
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            return {key: self.expand(item, f"{path}.{key}" if path else str(key)) for key, item in items}
        if isinstance(value, (list, tuple)):
            return [self.expand(item, f"{path}[{i}]") for i, item in enumerate(cast("list[Any]", value))]
        return value

    def _lookup(self, match: re.Match[str], path: str) -> str:
        whole, name = match.group(0), match.group(2)
        if match.group(1):
            if name not in self.environment:
                self.faults.append(f"{path} needs the environment variable {name}, which is not set.")
            return self.environment.get(name, whole)
        if self.names is None:
            return whole
        if name not in self.names:
            near = get_close_matches(name, list(self.names), n=1)
            hint = f"Did you mean {{{near[0]}}}?" if near else f"There are: {', '.join(f'{{{known}}}' for known in sorted(self.names))}."
            self.faults.append(f"{path} has the placeholder {whole}, which is not known. {hint}")
        return self.names.get(name, whole)
