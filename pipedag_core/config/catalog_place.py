"""Where the catalog of an instance is: a file, or a schema of a database."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from pipedag_core.config.context import ConfigContext
from pipedag_core.config.settings import is_postgres, mask, reveal
from pipedag_core.errors import ConfigError
from pipedag_core.naming import file_segment

#: File of the catalog in the folder of the tables.
CATALOG_FILE: Final = "catalog.sqlite"

#: PostgreSQL cuts longer names off without an error.
_MAX_SCHEMA: Final = 63


@final
@dataclass(frozen=True, slots=True, repr=False)
class CatalogPlace:
    """The place of a catalog.

    Attributes:
        path: Its SQLite file, or None.
        url, schema: Else its PostgreSQL database, and the schema there.
        beside_tables: It shares the database with the tables of a SQL store.
    """

    path: Path | None
    url: str = ""
    schema: str = ""
    beside_tables: bool = False

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"schema {self.schema} of {mask(self.url)}"

    __repr__ = __str__


def catalog_place(config: ConfigContext) -> CatalogPlace:
    """Return where the catalog is: beside the tables, or where `metadata_store` says.

    Raises:
        ConfigError: It is nowhere, or in a kind of database that this version does not know.
    """
    args: dict[str, Any] = reveal(config.table_store.args)
    url = str(args.get("url", ""))
    if config.metadata_store is not None:
        named = str(reveal(config.metadata_store.args["url"]))
        if is_postgres(named):
            return CatalogPlace(None, named, _shortened(f"pipedag_{config.name}_{config.instance_id}__catalog"))
        if not named.startswith("sqlite:///"):
            raise ConfigError(
                f"metadata_store.url is {mask(named)!r}, but catalogs other than SQLite files and PostgreSQL are not supported yet by this version. "
                "Write sqlite:///path, on a local disk, or postgresql://user@host/database."
            )
        return CatalogPlace(local_path(named.removeprefix("sqlite:///"), config))
    if is_postgres(url):
        # No stage can be called like it, whatever stands before and behind.
        schema = f"{args.get('schema_prefix') or ''}pipedag__catalog{args.get('schema_suffix') or ''}"
        return CatalogPlace(None, url, _shortened(schema), beside_tables=True)
    if url.startswith("duckdb:///"):
        # Several instances may share a file; each has a catalog of its own.
        around = [str(args.get(key) or "") for key in ("schema_prefix", "schema_suffix")]
        whose = f"{file_segment('~'.join(around).removesuffix('~'))}." if any(around) else ""
        return CatalogPlace(local_path(f"{url.removeprefix('duckdb:///')}.{whose}{CATALOG_FILE}", config))
    if config.table_store.kind == "sql":
        given = f"is {mask(url)!r}, but" if url else "is missing:"
        raise ConfigError(
            f"table_store.args.url {given} the SQL store keeps tables in PostgreSQL or in a DuckDB file. "
            "Write postgresql://user@host/database, or duckdb:///path for a file on a local disk."
        )
    if "base_path" not in args:
        raise ConfigError(
            f"The table store {config.table_store.kind!r} has no folder to keep the catalog in. Say where it is: metadata_store: {{url: 'sqlite:///...'}}."
        )
    return CatalogPlace(local_path(str(args["base_path"]), config) / CATALOG_FILE)


def local_path(text: str, config: ConfigContext) -> Path:
    """Return a path of the configuration as an absolute one.

    Raises:
        ConfigError: It is no path.
    """
    if "://" in text:
        raise ConfigError(
            f"{mask(text)!r} is not a path: object storage is not supported yet by this version. Use a folder on a local disk."
        )
    return config.base_dir / Path(text).expanduser()


def _shortened(name: str) -> str:
    raw = name.encode()
    if len(raw) <= _MAX_SCHEMA:
        return name
    return f"{raw[: _MAX_SCHEMA - 17].decode(errors='ignore')}_{hashlib.sha256(raw).hexdigest()[:16]}"
