"""The one place that turns names into opened parts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pipedag_core.config.catalog_place import catalog_place, local_path
from pipedag_core.config.context import ConfigContext
from pipedag_core.config.keys import PATH, Kind, Named, Reader, Section
from pipedag_core.config.registry import PARTS
from pipedag_core.config.resolve import refuse
from pipedag_core.config.settings import Attrs, PartSettings, reveal
from pipedag_core.errors import ConfigError
from pipedag_core.ports.catalogs import Catalog
from pipedag_core.ports.engines import Engine
from pipedag_core.ports.events import RunObserver
from pipedag_core.ports.stores import BlobStore, TableStore
from pipedag_core.run.session import Session

#: Arguments of the table store that hold for the connections of a catalog in the same database too.
_CONNECTING: Final = ("connect_timeout", "create_database")


@contextmanager
def open_session(config: ConfigContext, observers: Sequence[RunObserver] = (), *, read_only: bool = False) -> Iterator[Session]:
    """Open everything that steps work with, and close it at the end.

    Args:
        config: The instance's configuration.
        observers: Are told what happens, before those that the configuration names.
        read_only: Nothing is written to the catalog, which must be there.

    Raises:
        ConfigError: A part is not there, or does not take the arguments given.
    """
    hooks = import_module("pipedag_core.hooks.registry").Hooks(args=reveal(config.hook_args), extra=dict(config.table_hooks))
    configured = [_make(part, "observers", config) for part in config.observers]
    with ExitStack() as stack:
        catalog = open_catalog(config, read_only=read_only)
        stack.callback(catalog.close)
        tables = open_table_store(config)
        stack.callback(tables.close)
        yield Session(
            catalog=catalog,
            tables=tables,
            blobs=open_blob_store(config),
            hooks=hooks,
            config=config,
            observers=(*observers, *configured),
            retention=config.retention,
            content_hash_rows=config.content_hash_rows,
            auto_table=config.auto_table,
            auto_blob=config.auto_blob,
            ttl_s=config.lease_ttl,
            wait_s=config.lease_wait,
            open_other=open_other,
        )


@contextmanager
def open_other(config: ConfigContext, *, read_only: bool = False) -> Generator[Session | None]:
    """Open another instance for reading what it has committed; None if there is no catalog of it, and none is made. Nobody observes it."""
    if not has_catalog(config):
        yield None
        return
    with open_session(config.evolve(observers=()), read_only=read_only) as session:
        yield session


def open_table_store(config: ConfigContext) -> TableStore:
    """Open the store of the tables."""
    more = {"beside_catalog": catalog_place(config).beside_tables, "base_dir": config.base_dir} if config.table_store.kind == "sql" else {}
    return _make(config.table_store, "table_store", config, more)


def open_blob_store(config: ConfigContext) -> BlobStore:
    """Open the store of the blobs."""
    return _make(config.blob_store, "blob_store", config)


def open_engine(config: ConfigContext, **options: Any) -> Engine:
    """Make the engine that the configuration names; `options` come before its arguments there."""
    part = config.orchestration
    if options:
        part = PartSettings(part.kind, Attrs({**part.args, **options}))
    return _make(part, "orchestration", config)


def catalog_path(config: ConfigContext) -> Path:
    """Return the file of the catalog: in the folder of the tables, or where `metadata_store` says.

    Raises:
        ConfigError: The catalog is not a file.
    """
    place = catalog_place(config)
    if place.path is None:
        raise ConfigError(f"The catalog is no file here: it is {place}.")
    return place.path


def has_catalog(config: ConfigContext) -> bool:
    """Return whether there is a catalog already, without making one."""
    place = catalog_place(config)
    if place.path is not None:
        return place.path.exists()
    module = import_module("pipedag_core.catalogs.postgres")
    return module.is_there(module.open_database(place.url, place.schema), place.schema)


def open_catalog(config: ConfigContext, *, read_only: bool = False) -> Catalog:
    """Open the catalog, making it and its folder or schema if there is none; with `read_only` nothing is made, and nothing can be written."""
    _target(config.table_store, "table_store")
    place = catalog_place(config)
    if place.path is None:
        module = import_module("pipedag_core.catalogs.postgres")
        args = {key: value for key, value in reveal(config.table_store.args).items() if key in _CONNECTING} if place.beside_tables else {}
        return module.PostgresCatalog(module.open_database(place.url, place.schema, **args), place.schema, read_only=read_only)
    if read_only:
        return import_module("pipedag_core.catalogs.sqlite").SqliteCatalog(place.path, read_only=True)
    try:
        place.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {place.path.parent} for the catalog cannot be made: {error}.", path=str(place.path.parent)
        ) from error
    return import_module("pipedag_core.catalogs.sqlite").SqliteCatalog(place.path)


def _target(part: PartSettings, section: str) -> str:
    """Return `module:class` of a part."""
    entry = PARTS[section].get(part.kind)
    if entry is None:
        module, _, name = part.kind.replace(":", ".").rpartition(".")
        if not module:
            raise ConfigError(
                f"{section}.class is {part.kind!r}, but must be one of {', '.join(PARTS[section])}, or the dotted path of a class."
            )
        return f"{module}:{name}"
    if not entry.target:
        ready = ", ".join(name for name, other in PARTS[section].items() if other.target)
        raise ConfigError(f"{section}.class {part.kind!r} is not supported yet by this version. It has: {ready}.", part=part.kind)
    return entry.target


def _make(part: PartSettings, section: str, config: ConfigContext, more: Mapping[str, Any] | None = None) -> Any:
    target = _target(part, section)
    module, _, name = target.partition(":")
    args: dict[str, Any] = reveal(part.args)
    entry = PARTS[section].get(part.kind)
    if entry is not None and entry.args is not None:
        reader = Reader()
        args = Section(entry.args).read(args, f"{section}.args", reader)
        refuse(reader.faults, f"The {section} {part.kind!r}")
        args = {key: _local(value, entry.args[key], config) for key, value in args.items()}
    try:
        cls = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            error.add_note(f"This happened while {section}.class {part.kind!r} was imported.")
            raise
        raise ConfigError(
            f"{section}.class names {part.kind!r}, but there is no module {error.name!r}.{_hint(part.kind)}", part=part.kind
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{section}.class names {part.kind!r}, but module {module!r} has no {name!r}.", part=part.kind) from error
    try:
        return cls(**args, **(more or {}))
    except TypeError as error:
        raise ConfigError(f"The {section} {part.kind!r} does not take the arguments {sorted(args)}: {error}.", part=part.kind) from error


def _local(value: Any, kind: Kind, config: ConfigContext) -> Any:
    """Return an argument with paths as they are on this machine."""
    if isinstance(kind, Named) and kind.item is PATH:
        return {name: local_path(str(path), config) for name, path in value.items()}
    return local_path(str(value), config) if kind is PATH else value


#: Last part of class names that other configurations use -> the short name here.
_KNOWN_ELSEWHERE: Final[Mapping[str, str]] = {
    "SQLTableStore": "sql",
    "ParquetTableStore": "parquet",
    "FileBlobStore": "file",
    "SequentialEngine": "sequential",
    "DaskEngine": "dask",
    "PrefectEngine": "prefect",
}


def _hint(kind: str) -> str:
    short = _KNOWN_ELSEWHERE.get(kind.replace(":", ".").rpartition(".")[2])
    return f" Its counterpart here is called {short!r}." if short else " Install it, or correct the name."
