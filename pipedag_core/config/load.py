"""Finds and reads configuration files. The environment, the user's name and the user's folder are read here and nowhere else."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from pipedag_core.errors import ConfigError

#: Names under which a configuration is looked for.
FILE_NAMES: Final = ("pipedag.yaml", "pipedag.yml")
#: Environment variable that names the configuration.
VARIABLE: Final = "PIPEDAG_CONFIG"


def environment() -> Mapping[str, str]:
    """Return the environment variables that `{$NAME}` stands for."""
    return os.environ


def username() -> str:
    """Return the name of the user who runs this process.

    Raises:
        ConfigError: The system does not know it.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ConfigError("The system has no name for the user of this process. Set the environment variable USER.") from error


def find_file(start: Path | None = None) -> Path | None:
    """Return the configuration file: the one that `PIPEDAG_CONFIG` names, else the nearest in the working directory, its parents, the user's folder.

    Args:
        start: Where the search begins, instead of in the working directory.

    Raises:
        ConfigError: `PIPEDAG_CONFIG` names a file that is not there.
    """
    named = environment().get(VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"The environment variable {VARIABLE} names {named!r}, which is not a file. Correct it, or unset it.", path=named
            )
        return path.absolute()
    here = start or Path.cwd()
    folders = [here, *here.parents]
    # A process without a user's folder has nothing to find there.
    with suppress(RuntimeError):
        folders.append(Path.home())
    for folder in folders:
        for name in FILE_NAMES:
            if (folder / name).is_file():
                return folder / name
    return None


def _told(error: Exception, path: Path) -> str:
    return str(error).replace('"<unicode string>"', path.name)


def read_file(path: Path) -> dict[str, Any]:
    """Return what a YAML file says; an empty file says nothing.

    Raises:
        ConfigError: It cannot be read, is not YAML, names a key twice, or is not a mapping.
    """
    import yaml

    class _Loader(yaml.SafeLoader):
        """Refuses what YAML's own loader passes over in silence: a key that stands twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (str, int)) and key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice in one mapping", key_node.start_mark)
                seen.add(key if isinstance(key, (str, int)) else None)
            return super().construct_mapping(node, deep)

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}.", path=str(path)) from error
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 -- a subclass of the safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"The configuration {path} is not valid YAML: {_told(error, path)}", path=str(path)) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"The configuration {path} must be a mapping at its top, not {type(raw).__name__}.", path=str(path))
    return cast("dict[str, Any]", raw)
