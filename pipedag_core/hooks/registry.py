"""Finds the hook for a table type by the type's name, so that no library is loaded before one of its tables is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, cast, final

from pipedag_core.errors import ConfigError
from pipedag_core.ports.hooks import RowContract, TableHook

#: Entry-point group in which other distributions offer hooks: the name is a type's name, the value is `module:Class`.
ENTRY_POINTS: Final = "pipedag.table_hooks"


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A hook and how to get its library.

    Attributes:
        target: `module:Class`.
        install: What to install when the library is missing.
        reads: Whether inputs can be asked for as this type; else it can only be returned.
        options: Option of the configuration -> values that it may have.
    """

    target: str
    install: str
    reads: bool = True
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


_ARROW: Final = "pipedag_core.hooks.arrow:ArrowHook"
_POLARS: Final = "pipedag_core.hooks.polars:PolarsHook"
_SQLALCHEMY: Final = "pipedag_core.hooks.sqlalchemy:SqlAlchemyHook"

#: Name of a type (its top package and its class) -> hook.
BUILT_IN: Final[Mapping[str, Entry]] = {
    "pandas.DataFrame": Entry(
        "pipedag_core.hooks.pandas:PandasHook", "pipedag-core[pandas]", options={"dtype_backend": ("numpy", "numpy_nullable", "pyarrow")}
    ),
    "polars.DataFrame": Entry(_POLARS, "pipedag-core[polars]"),
    "polars.LazyFrame": Entry(_POLARS, "pipedag-core[polars]"),
    "pyarrow.Table": Entry(_ARROW, "pyarrow"),
    "pyarrow.RecordBatch": Entry(_ARROW, "pyarrow"),
    "pyarrow.RecordBatchReader": Entry(_ARROW, "pyarrow"),
    "duckdb.DuckDBPyRelation": Entry("pipedag_core.hooks.duckdb:DuckDbHook", "duckdb"),
    "sqlalchemy.Table": Entry(_SQLALCHEMY, "sqlalchemy"),
    "sqlalchemy.Alias": Entry(_SQLALCHEMY, "sqlalchemy"),
    "sqlalchemy.FromClause": Entry(_SQLALCHEMY, "sqlalchemy", reads=False),
    "sqlalchemy.SelectBase": Entry(_SQLALCHEMY, "sqlalchemy", reads=False),
    "sqlalchemy.TextClause": Entry(_SQLALCHEMY, "sqlalchemy", reads=False),
    "builtins.str": Entry("pipedag_core.hooks.sqltext:SqlTextHook", "pipedag-core", reads=False),
}


def type_name(cls: type) -> str:
    """Return the name under which a type is looked up: top package and class, whatever private module defines it."""
    package = cls.__module__.partition(".")[0].lstrip("_")
    return f"{package}.{cls.__name__}"


@final
class Hooks:
    """The hooks of one instance; implements `HookRegistry`.

    Args:
        args: Options by name of the library (`pandas`) or of the type (`polars.LazyFrame`); the latter wins.
        extra: Type name -> `module:Class`, from the configuration; goes before the built-in hooks.
    """

    def __init__(self, args: Mapping[str, Mapping[str, Any]] | None = None, extra: Mapping[str, str] | None = None) -> None:
        self._args = args or {}
        self._extra = {name: Entry(target, name.partition(".")[0]) for name, target in (extra or {}).items()}
        self._loaded: dict[str, TableHook] = {}
        self._by_class: dict[type, TableHook | None] = {}
        self._contracts: dict[type, RowContract] = {}

    def for_object(self, obj: Any) -> TableHook | None:
        """Return the hook for this object's type or the nearest of its ancestors, else the one for `__arrow_c_stream__`, else None."""
        cls = cast("type", type(obj))
        if cls not in self._by_class:
            self._by_class[cls] = self._find(cls)
        return self._by_class[cls]

    def for_type(self, as_type: Any) -> TableHook:
        """Return the hook that can load inputs as `as_type`.

        Raises:
            ConfigError: There is none; the message lists the types that there are.
        """
        name = type_name(as_type) if isinstance(as_type, type) else None
        entry = None if name is None else self._entry(name)
        if name is None or entry is None or not entry.reads:
            asked = name or repr(as_type)
            known = sorted(key for key, one in self._all().items() if one.reads)
            raise ConfigError(
                f"Inputs cannot be loaded as {asked}. Use one of these as input_type: {', '.join(known)}; "
                f"or name a hook for the type under table_hooks in the configuration.",
                type=asked,
            )
        return self._load(name, entry)

    def sql_type(self, kind: Any, dialect: str) -> str:
        """Return a column's type, in whatever library it is named, as text of a dialect; see `pipedag_core.hooks.dtypes`."""
        return kind if isinstance(kind, str) else import_module("pipedag_core.hooks.dtypes").sql_type(kind, dialect)

    def reference_type(self) -> type:
        """Return the type in which tasks get references to stored tables, unless they ask for another."""
        return import_module("pipedag_core.hooks.sqlalchemy").REFERENCE

    def contract(self, cls: type) -> RowContract:
        """Return what a class of a schema library says; see `pipedag_core.hooks.contracts`."""
        found = self._contracts.get(cls)
        if found is None:
            found = self._contracts[cls] = import_module("pipedag_core.hooks.contracts").read_contract(cls)
        return found

    def args(self, hook: TableHook) -> Mapping[str, Any]:
        """Return the options of this hook from the configuration."""
        target = f"{type(hook).__module__}:{type(hook).__qualname__}"
        names = [name for name, entry in self._all().items() if entry.target == target]
        result: dict[str, Any] = {}
        for key in [*dict.fromkeys(name.partition(".")[0] for name in names), *names]:
            result.update(self._args.get(key, {}))
        return result

    def _find(self, cls: type) -> TableHook | None:
        for name in map(type_name, cls.__mro__):
            entry = self._entry(name)
            if entry is not None:
                return self._load(name, entry)
        if hasattr(cls, "__arrow_c_stream__"):
            return self._load("pyarrow.Table", BUILT_IN["pyarrow.Table"])
        return None

    def _all(self) -> Mapping[str, Entry]:
        return {**_from_distributions(), **BUILT_IN, **self._extra}

    def _entry(self, name: str) -> Entry | None:
        return self._extra.get(name) or BUILT_IN.get(name) or _from_distributions().get(name)

    def _load(self, name: str, entry: Entry) -> TableHook:
        # Two threads may both load a hook; hooks hold no state, so either will do.
        if entry.target not in self._loaded:
            module, _, cls = entry.target.partition(":")
            try:
                self._loaded[entry.target] = getattr(import_module(module), cls)()
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"The hook for {name} needs the package {error.name}, which is not installed. Install {entry.install}.",
                    type=name,
                    install=entry.install,
                ) from error
            except AttributeError as error:
                raise ConfigError(f"The hook for {name} is said to be {entry.target}, where there is none.", type=name) from error
        return self._loaded[entry.target]


@cache
def _from_distributions() -> Mapping[str, Entry]:
    # Reading the metadata of all distributions takes milliseconds, so it is done once, and only for a type that is not built in.
    points = entry_points(group=ENTRY_POINTS)
    return {point.name: Entry(point.value, point.dist.name if point.dist else point.name.partition(".")[0]) for point in points}
