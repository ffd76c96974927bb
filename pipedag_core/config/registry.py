"""The short names that `class:` may have, with the arguments that each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from pipedag_core.config.keys import COUNT, DURATION, FLAG, LEASE, PATH, SIZE, TEXT, Kind, Named, Section


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A part that can be opened by its short name.

    Attributes:
        target: `module:class`, imported when the part is opened; "" for a part that this version does not have.
        args: Its arguments; None where any are taken.
        address: Those of its arguments that say where the data is; one of them must name the instance.
    """

    target: str
    args: Mapping[str, Kind] | None = None
    address: tuple[str, ...] = ()


TABLE_STORES: Final[Mapping[str, Entry]] = {
    "parquet": Entry(
        "pipedag_core.stores.parquet:ParquetStore",
        {"base_path": PATH, "memory_limit": SIZE, "temp_directory": PATH, "threads": COUNT, "external_schemas": Named(PATH)},
        ("base_path",),
    ),
    "sql": Entry(
        "pipedag_core.stores.sql_store:SqlStore",
        {
            "url": TEXT,
            "schema_prefix": TEXT,
            "schema_suffix": TEXT,
            "commit_wait": DURATION,
            "keep_dependent_views": FLAG,
            "materialization_details": Named(Section({"unlogged": FLAG, "tablespace": TEXT})),
            "max_connections": COUNT,
            "connect_timeout": LEASE,
            "statement_timeout": LEASE,
            "create_database": FLAG,
            "file_wait": DURATION,
            "memory_limit": SIZE,
            "temp_directory": PATH,
            "threads": COUNT,
        },
        ("url", "schema_prefix", "schema_suffix"),
    ),
}
BLOB_STORES: Final[Mapping[str, Entry]] = {"file": Entry("pipedag_core.blobs.file:FileBlobStore", {"base_path": PATH}, ("base_path",))}
ENGINES: Final[Mapping[str, Entry]] = {
    "sequential": Entry("pipedag_core.engines.sequential:SequentialEngine", {}),
    "threads": Entry("pipedag_core.engines.threads:ThreadEngine", {"max_workers": COUNT}),
    "dask": Entry(""),
    "prefect": Entry(""),
}
OBSERVERS: Final[Mapping[str, Entry]] = {}

#: Section -> what its `class:` may be.
PARTS: Final[Mapping[str, Mapping[str, Entry]]] = {
    "table_store": TABLE_STORES,
    "blob_store": BLOB_STORES,
    "orchestration": ENGINES,
    "observers": OBSERVERS,
}
