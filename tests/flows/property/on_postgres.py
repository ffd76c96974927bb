"""Edited flows on the PostgreSQL store: what readers see is always what the flow says.

The rules of what runs again differ from the embedded store's, since queries have no content hashes in PostgreSQL; so a life is compared with what is
computed from the flow alone, and with a run from scratch, but not with `simulation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa

from pipedag_core import PipedagConfig
from pipedag_core.ports.data import BatchSource, Form, StoredTable
from tests.flows.property.contents import Frame, Row
from tests.flows.property.instance import POINTS, Instance
from tests.flows.property.machine import EditedFlow, compare, how, tell
from tests.flows.property.memory import Retention
from tests.flows.property.simulation import Options
from tests.flows.property.telling import told
from tests.postgres_server import drop_schemas, fresh_prefix


class PostgresInstance(Instance):
    """An instance on a PostgreSQL server.

    Args:
        folder: Where blobs are.
        retention: What clean-up keeps.
        url: The server's address.
    """

    def __init__(self, folder: Path, retention: Retention, url: str) -> None:
        self.url = url
        self.prefix = fresh_prefix()
        super().__init__(folder, retention)

    def make_config(self) -> Any:
        store = {"class": "sql", "args": {"url": self.url, "schema_prefix": self.prefix + "{instance_id}_"}}
        blobs = {"class": "file", "args": {"base_path": str(self.folder / "{instance_id}")}}
        return PipedagConfig({"instances": {"i": {"table_store": store, "blob_store": blobs, "retention": self.retention}}}).get("i")

    @property
    def world_folder(self) -> Path | None:
        return None

    def close(self) -> None:
        self.stack.close()
        drop_schemas(self.url, self.prefix)

    def let_time_pass(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(f"UPDATE {self.prefix}i_pipedag__catalog.runs SET expires = 0 WHERE state = 'running'")

    def rows(self, table: StoredTable, *, known: bool) -> pa.Table | None:
        source = self.access.read(table, Form.BATCHES)
        assert isinstance(source, BatchSource)
        return pa.RecordBatchReader.from_stream(source.stream).read_all()

    def explored(self) -> Mapping[str, Mapping[str, Sequence[Row]]]:
        """Return stage -> name -> rows, sorted, of what readers find under the readable names."""
        schemas = f"{self.prefix}i_"
        result: dict[str, dict[str, Sequence[Row]]] = {}
        with psycopg.connect(self.url, autocommit=True) as connection:
            views = (
                "SELECT schemaname, viewname FROM pg_views WHERE starts_with(schemaname, %s) AND schemaname !~ '__g[0-9]+$' ORDER BY 1, 2"
            )
            for schema, name in connection.execute(views, (schemas,)).fetchall():
                rows = connection.execute(f'SELECT * FROM "{schema}"."{name}"').fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]
                result.setdefault(schema.removeprefix(schemas), {})[self.unique.get(name, name)] = sorted(rows)
        return result


class EditedOnPostgres(EditedFlow):
    """A life on PostgreSQL.

    Args:
        new_folder: Returns the path of a folder that is not there yet.
        url: The server's address.
    """

    def __init__(self, new_folder: Callable[[], Path], url: str) -> None:
        super().__init__(new_folder)
        self.url = url

    def open_instance(self, retention: Retention) -> Instance:
        return PostgresInstance(self.new_folder(), retention, self.url)

    def happen(self, kind: str, at: int, value: int) -> None:
        """Nothing: losses and ways back are told apart by rules that do not hold here."""

    def options(self, way: str, when: int) -> Sequence[Options]:
        match way:
            case "twice":
                return [Options(), Options()]
            case "killed":
                return [Options(point=(POINTS[when % len(POINTS)], when // len(POINTS)))]
            case "ignore version":
                return [Options(ignore_version=True)]
            case "normal" | "threads" | "stage" | "stage, any position" | "task":
                return [Options()]
            case _:
                mode, _, more = way.partition(", ")
                return [Options(mode=mode, no_cache_function=bool(more))]

    def run_once(self, options: Options) -> None:
        tell(f"(the edit in the line below gives this flow, which is run {how(options)})\n{told(self.model)}")
        assert self.instance is not None
        before = self.shown
        _, watcher = self.instance.run(self.model, options)
        self.runs += 1
        self.shown = self.instance.visible()
        self.compare_with_oracle(before, self.shown, watcher, options)
        if watcher.killed is None:
            tables = {
                stage: {name: list(item.rows) for name, item in names.items() if isinstance(item, Frame)}
                for stage, names in self.shown.items()
            }
            compare("what readers find", {stage: names for stage, names in tables.items() if names}, self.instance.explored(), self.model)
