"""The configuration as the user knows it: `PipedagConfig` for a file, `ConfigContext` for one instance of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, final

from pipedag_core.cache.modes import CacheValidationMode
from pipedag_core.config import load, merge, resolve
from pipedag_core.config.keys import FILE, Reader
from pipedag_core.config.settings import Attrs, CacheValidation, PartSettings
from pipedag_core.define.context import HAND_ON, at_work, executing
from pipedag_core.errors import ConfigError
from pipedag_core.ports.catalogs import Retention

#: Name of the instance where none is asked for.
DEFAULT_INSTANCE = "default"


@final
@dataclass(frozen=True, slots=True)
class ConfigContext:
    """The settings of one instance of a pipeline, for one flow. Frozen, picklable, and holding nothing that is open.

    Attributes:
        instance_name: The instance as it was asked for.
        instance_id: Names the instance's data; part of the address of its stores.
        flow_name: The flow whose sections were merged, or None.
        name: Name of the pipeline.
        attrs: The user's own data.
        fail_fast: Start nothing more after the first failure.
        cache_validation: How strictly runs trust what is stored.
        auto_table, auto_blob: Names of types that tasks may return bare; empty auto_table means all types for which there is a hook.
        table_store, blob_store, orchestration: Which part, with which arguments.
        metadata_store: Where the catalog is, if not beside the tables.
        observers: Who is told about every run.
        hook_args: Name of a library, or of a type (`polars.LazyFrame`) -> options of its hook.
        table_hooks: Name of a type -> `module:Class` of its hook.
        retention: What clean-up keeps.
        content_hash_rows: Tables in memory up to this many rows get a content hash also where none is needed.
        lease_ttl: Seconds for which a run's leases and pins hold without being renewed.
        lease_wait: Seconds for which a run in one process waits for a stage that another run writes.
        base_dir: Folder that relative paths start from: that of the file, else the working directory.
        tags, stage_tags: Labels for people and pictures.
        strict_result_get_locking: `Result.get` needs a `StageLockContext`.
        visualization, disable_kroki, kroki_url: How pictures are drawn.
        adapters: Name of an orchestrator (`airflow`) -> what its adapter is told; the core does not read it.
    """

    __pipedag_config__: ClassVar[bool] = True

    instance_name: str
    instance_id: str
    flow_name: str | None = None
    name: str = "pipedag"
    attrs: Attrs = field(default_factory=Attrs)
    fail_fast: bool = False
    cache_validation: CacheValidation = field(default_factory=CacheValidation)
    auto_table: tuple[str, ...] = ()
    auto_blob: tuple[str, ...] = ()
    table_store: PartSettings = field(default_factory=lambda: PartSettings("parquet"))
    blob_store: PartSettings = field(default_factory=lambda: PartSettings("file"))
    metadata_store: PartSettings | None = None
    orchestration: PartSettings = field(default_factory=lambda: PartSettings("threads"))
    observers: tuple[PartSettings, ...] = ()
    hook_args: Attrs = field(default_factory=Attrs)
    table_hooks: Attrs = field(default_factory=Attrs)
    retention: Retention = field(default_factory=Retention)
    content_hash_rows: int = 1_000_000
    lease_ttl: float = 30.0
    lease_wait: float = 3600.0
    base_dir: Path = field(default_factory=Path.cwd)
    tags: Any = ()
    stage_tags: Attrs = field(default_factory=Attrs)
    strict_result_get_locking: bool = True
    visualization: Attrs = field(default_factory=Attrs)
    disable_kroki: bool = True
    kroki_url: str = ""
    adapters: Attrs = field(default_factory=Attrs)

    @classmethod
    def get(cls) -> ConfigContext:
        """Return the configuration under which the task that calls this runs.

        Raises:
            ConfigError: No task is running here.
        """
        context = executing.get()
        if context is None:
            raise ConfigError(
                "ConfigContext.get() gives the configuration of the running task, but no task runs here. Call it inside a function that is decorated "
                "with @materialize while its flow runs; elsewhere use PipedagConfig.default.get(instance)."
                + (f" {HAND_ON}" if at_work() else "")
            )
        return context.config

    def evolve(self, **changes: Any) -> ConfigContext:
        """Return a configuration with some settings changed; `attrs` may be any mapping.

        Raises:
            ConfigError: There is no such setting.
        """
        known = [item.name for item in fields(self)]
        for key in changes:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
                raise ConfigError(f"A configuration has no setting {key!r}. {hint}")
        for key in ("attrs", "hook_args", "table_hooks", "stage_tags", "visualization", "adapters"):
            if key in changes:
                changes[key] = Attrs(changes[key])
        return replace(self, **changes)


class _Default:
    """Finds the configuration anew whenever it is asked for, so that it follows the working directory and the environment."""

    def __get__(self, instance: object, owner: type[PipedagConfig]) -> PipedagConfig:
        path = load.find_file()
        return owner({}) if path is None else owner(path)


@final
class PipedagConfig:
    """A configuration with all its instances and flows, read and checked, from a file or a dict.

    Args:
        source: Path of a YAML file, or what such a file would say.
        base_dir: Folder that relative paths start from; by default that of the file, else the working directory.

    Attributes:
        default: The configuration found in the working directory, its parents, the user's folder or at `PIPEDAG_CONFIG`; where there is none,
            one that keeps everything under `.pipedag/` in the working directory.
        name: Name of the pipeline.
        path: The file, or None.

    Raises:
        ConfigError: It cannot be read, or holds unknown keys or values of the wrong type; all of them are named.
    """

    __pipedag_config__: ClassVar[bool] = True
    default: ClassVar[_Default] = _Default()

    def __init__(self, source: str | Path | Mapping[str, Any], *, base_dir: str | Path | None = None) -> None:
        if isinstance(source, (str, Path)):
            self.path: Path | None = Path(source).expanduser().absolute()
            self._raw: Mapping[str, Any] = load.read_file(self.path)
        else:
            self.path = None
            self._raw = source
        self.base_dir = Path(base_dir).absolute() if base_dir is not None else self.path.parent if self.path else Path.cwd()
        reader = Reader(deferred=True)
        FILE.read(self._raw, "", reader)
        resolve.refuse(reader.faults, self.where)
        self.name = str(self._raw.get("name") or "pipedag")

    @property
    def where(self) -> str:
        """How messages name this configuration."""
        return str(self.path) if self.path else "the configuration given as a dict" if self._raw else "the built-in configuration"

    @property
    def instances(self) -> list[str]:
        """Names of the instances that have a section."""
        return merge.instance_names(self._raw)

    def get(self, instance: str | None = None, flow: str | None = None, per_user: bool = False) -> ConfigContext:
        """Return the settings of one instance, for one flow.

        Args:
            instance: Its name; None for the one called `default`, which needs a section of its own only where others have one.
            flow: Name of the flow, for the sections under `flows`.
            per_user: Give each user an instance of their own: the instance's id becomes what `per_user_template` says.

        Raises:
            ConfigError: The instance is named nowhere, or left out though others than `default` are named (unless `strict_instance_lookup` is
                off), a value is missing or wrong, or the address of a store does not name the instance.
        """
        strict = self._raw.get("strict_instance_lookup", True)
        if strict and not self._raw and instance not in (None, DEFAULT_INSTANCE):
            found = f"{self.path} says nothing" if self.path else "there is no pipedag.yaml here or above"
            raise ConfigError(
                f"There is no instance {instance!r}: {found}, so the only instance is {DEFAULT_INSTANCE!r}. "
                "Leave the instance out, or describe it in a pipedag.yaml.",
                instance=instance,
            )
        if strict and instance is None and self.instances and DEFAULT_INSTANCE not in self.instances:
            raise ConfigError(
                f"Say which instance: {self.where} has {', '.join(self.instances)}, and none that is called {DEFAULT_INSTANCE!r}.",
                instances=tuple(self.instances),
            )
        if instance is not None and instance != DEFAULT_INSTANCE and strict and instance not in self.instances:
            near = get_close_matches(instance, self.instances, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(self.instances) or 'none'}."
            raise ConfigError(
                f"The instance {instance!r} is named nowhere in {self.where}. {hint} Add it under `instances`, or set strict_instance_lookup: false.",
                instance=instance,
            )
        name = instance if instance is not None else DEFAULT_INSTANCE
        merged = merge.merge_sections(self._raw, name, flow, self.where)
        settings = resolve.settings(merged, self.name, name, self.base_dir, per_user=per_user, where=f"{self.where}, instance {name!r}")
        return ConfigContext(instance_name=name, flow_name=flow, name=self.name, base_dir=self.base_dir, **settings)

    def __repr__(self) -> str:
        return f"PipedagConfig({str(self.path)!r})" if self.path else f"<PipedagConfig of {self.where}>"


def create_basic_pipedag_config(
    engine_url: str | Path | None = None,
    disable_stage_locking: bool = False,
    blob_directory: str | Path | None = None,
    name: str = "pipedag",
    instance_id: str = DEFAULT_INSTANCE,
    *,
    fail_fast: bool = False,
    attrs: Mapping[str, Any] | None = None,
    cache_validation_mode: CacheValidationMode = CacheValidationMode.NORMAL,
    orchestration_engine: str = "threads",
) -> PipedagConfig:
    """Make a configuration in code, for one instance.

    Args:
        engine_url: Where tables are kept: a database URL, or a folder (for Parquet). The instance's id is appended to a folder that does not
            name it. None for `.pipedag/` in the working directory.
        disable_stage_locking: Without effect: leases cost next to nothing, and a dead process never leaves one behind.
        blob_directory: Folder of the blobs; by default beside the tables.
        name: Name of the pipeline.
        instance_id: Names the instance's data.
        fail_fast, attrs, cache_validation_mode, orchestration_engine: As in a file; the engine by its short name.

    Returns:
        A configuration whose `get()` and `get("default")` give that instance.
    """
    instance: dict[str, Any] = {
        "instance_id": instance_id,
        "fail_fast": fail_fast,
        "attrs": dict(attrs or {}),
        "cache_validation": {"mode": cache_validation_mode.value},
        "orchestration": {"class": orchestration_engine},
    }
    if engine_url is not None:
        url = str(engine_url)
        if "://" in url:
            # Schemas of this name are the instance's own; a database that is named after it needs no prefix.
            prefix = {} if resolve.names_instance(url, instance_id) else {"schema_prefix": "{instance_id}_"}
            instance["table_store"] = {"class": "sql", "args": {"url": url, **prefix}}
        else:
            instance["table_store"] = {"class": "parquet", "args": {"base_path": _folder(url, instance_id)}}
    if blob_directory is not None:
        instance["blob_store"] = {"class": "file", "args": {"base_path": _folder(str(blob_directory), instance_id)}}
    return PipedagConfig({"name": name, "strict_instance_lookup": True, "instances": {merge.ANY: instance, DEFAULT_INSTANCE: {}}})


def _folder(path: str, instance_id: str) -> str:
    return path if "{instance_id}" in path or resolve.names_instance(path, instance_id) else f"{path.rstrip('/')}/{{instance_id}}"
