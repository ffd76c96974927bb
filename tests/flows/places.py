"""Where the flows of the crash and stress tests have their tables: each kind of store, in a form that other processes can be told."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from pipedag_core import PipedagConfig
from tests.postgres_server import drop_schemas, fresh_prefix

STORES = ("parquet", "duckdb", "postgres")


@dataclass(frozen=True)
class Place:
    """One instance.

    Attributes:
        kind: One of `STORES`.
        folder: Where files are.
        url, prefix: The server's address and the beginning of its schemas' names, for PostgreSQL.
    """

    kind: str
    folder: str
    url: str = ""
    prefix: str = ""

    @property
    def config(self):
        """A configuration under which a lease of somebody who died would hold for an hour, and clean-up spares nothing that no run holds."""
        if self.kind == "parquet":
            store = {"class": "parquet", "args": {"base_path": f"{self.folder}/{{instance_id}}", "threads": 1}}
        elif self.kind == "duckdb":
            # Whoever waits has to outlast all others on the slowest machine.
            store = {"class": "sql", "args": {"url": f"duckdb:///{self.folder}/{{instance_id}}.duckdb", "threads": 1, "file_wait": "240s"}}
        else:
            store = {"class": "sql", "args": {"url": self.url, "schema_prefix": self.prefix + "{instance_id}_"}}
        blobs = {"class": "file", "args": {"base_path": f"{self.folder}/{{instance_id}}"}}
        instance = {
            "table_store": store,
            "blob_store": blobs,
            "lease_ttl": "1h",
            "retention": {"committed": 2, "failed": 1, "minimum_age": "0s"},
        }
        return PipedagConfig({"instances": {"__any__": instance}}).get()

    def settle(self):
        """Wait until the server has noticed that a process is gone: it brings the statement that was sent last to its end."""
        if self.kind != "postgres":
            return
        with psycopg.connect(self.url, autocommit=True) as connection:
            busy = (
                "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            busy += " AND query LIKE %s"
            until = time.monotonic() + 60
            while connection.execute(busy, (f"%{self.prefix}%",)).fetchone() != (0,):
                assert time.monotonic() < until
                time.sleep(0.005)


def new_place(kind, folder, url=""):
    """Return a place of a kind in which nobody has been; what it has on a server has to be removed by `clear`.

    Args:
        kind: One of `STORES`.
        folder: Where files are.
        url: The server's address, for PostgreSQL.
    """
    return Place(kind, str(folder), url, fresh_prefix()) if kind == "postgres" else Place(kind, str(folder))


def clear(place):
    """Remove what a place has on a server."""
    if place.kind == "postgres":
        drop_schemas(place.url, place.prefix)
