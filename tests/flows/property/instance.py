"""A real instance in a folder of its own: runs a model, kills runs, and reads what is visible."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipedag_core import Flow, PipedagConfig, Result, SequentialEngine, ThreadEngine
from pipedag_core.config.wire import catalog_path, open_session
from pipedag_core.errors import RunError, StoredDataMissing
from pipedag_core.housekeeping import clean_up, roll_back
from pipedag_core.plan.compile import compile_flow
from pipedag_core.plan.outputs import name_outputs
from pipedag_core.ports.data import FileSource, Form, StoredTable
from pipedag_core.ports.events import Outcome, PointReached, StepEnded, StepStarted
from pipedag_core.run import memory
from pipedag_core.stores.parquet import ParquetStore
from tests.flows.property.building import build
from tests.flows.property.contents import BlobContent, Content, Frame, Lost, Row
from tests.flows.property.memory import Retention
from tests.flows.property.model import ITEMS, OPTIONS, Model, Task
from tests.flows.property.simulation import Options, Seen

POINTS = ("call", "before_record", "after_record", "before_commit", "after_commit", "before_finish", "after_finish")


class Killed(KeyboardInterrupt):
    """The process is gone: nothing more of the run happens."""


@dataclass
class Watcher:
    """Watches a run, and kills it at a point.

    Args:
        point: (name, how often it is passed before), or None.
    """

    point: tuple[str, int] | None
    steps: list[tuple[str, bool]] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)
    killed: str | None = None
    warnings: list[str] = field(default_factory=list)
    _passed: int = 0
    _calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on_event(self, event: Any) -> None:
        if self.killed is None and isinstance(event, StepStarted):
            self.steps.append((event.step, True))
        elif self.killed is None and isinstance(event, StepEnded):
            if event.report.outcome is Outcome.SKIPPED:
                self.steps.append((event.report.step, False))
            self.outcomes[event.report.step] = event.report.outcome.value
            if event.report.error is not None:
                self.errors.append(f"{event.report.step}: {event.report.message}")
        elif isinstance(event, PointReached):
            self._reached(event.point)

    def called(self, task: Task) -> None:
        with self._lock:
            self.calls[task.uid] += 1
            self._calls = self.calls[task.uid]
        self._reached("call")

    def _reached(self, point: str) -> None:
        if self.killed is not None:
            raise Killed
        if self.point is not None and self.point[0] == point:
            self._passed += 1
            if self._passed > self.point[1]:
                self.killed = point
                raise Killed

    @property
    def seen(self) -> Seen:
        return Seen(tuple(self.steps), self.killed, self._calls)


class QuietStore:
    """The embedded store without its `explore.duckdb`, and with one DuckDB for all runs of an instance: these two would take most of the time.

    Args:
        base_path: As for the store.
    """

    _opened: ClassVar[dict[str, ParquetStore]] = {}

    def __init__(self, base_path: str) -> None:
        self._store = self._opened.setdefault(base_path, ParquetStore(base_path, threads=1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def show(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing; see `let_go`."""

    @classmethod
    def let_go(cls, base_path: str) -> None:
        """Close the store of an instance."""
        cls._opened.pop(base_path).close()


class Instance:
    """An instance of the embedded store.

    Args:
        folder: Where everything is.
        retention: What clean-up keeps.
    """

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.retention = {"committed": retention.committed, "failed": retention.failed, "minimum_age": "1h" if retention.young else "0s"}
        self.config = self.make_config()
        self._read: dict[str, Content] = {}
        self.unique: dict[str, str] = {}
        self._lost: set[str] = set()
        self.stack = ExitStack()
        self.session = self.stack.enter_context(open_session(self.config))
        self.access: Any = self.stack.enter_context(self.session.tables.session("test"))

    def make_config(self) -> Any:
        """Return the configuration of the instance."""
        return self._config(f"{QuietStore.__module__}.{QuietStore.__qualname__}")

    @property
    def world_folder(self) -> Path | None:
        """Where queries find files; None if they cannot read any."""
        return self.folder

    def _config(self, kind: str) -> Any:
        store = {"class": kind, "args": {"base_path": str(self.folder / "{instance_id}")}}
        blobs = {"class": "file", "args": {"base_path": str(self.folder / "blobs" / "{instance_id}")}}
        return PipedagConfig({"instances": {"__any__": {"table_store": store, "blob_store": blobs, "retention": self.retention}}}).get()

    def close(self) -> None:
        """Close what is open, and remove everything."""
        self.stack.close()
        QuietStore.let_go(str(catalog_path(self.config).parent))
        shutil.rmtree(self.folder)

    def run(self, model: Model, options: Options) -> tuple[Result | None, Watcher]:
        """Run a model; None for the result of a run that was killed."""
        watcher = Watcher(options.point)
        flow = build(model, self.world_folder, watcher.called)
        self._learn_names(flow, model)
        # Results that point to what is current wait as long as they may; a run that is killed forgets those that wait, at a moment that no rule
        # knows, so there they do not wait.
        before, memory.PATIENCE_S = memory.PATIENCE_S, -1.0 if options.point else 3600.0
        heard = _Heard(watcher.warnings)
        logging.getLogger("pipedag_core").addHandler(heard)
        try:
            result = flow.run(
                *options.stages,
                *(model.full_id(model.task(uid)) for uid in options.tasks),
                config=self.config,
                orchestration_engine=ThreadEngine(max_workers=2) if options.threads else SequentialEngine(),
                fail_fast=False,
                cache_validation_mode=None if options.tasks else options.mode,
                disable_cache_function=options.no_cache_function,
                ignore_task_version=options.ignore_version,
                ignore_position_hashes=options.any_position,
                observers=[watcher],
            )
        except Killed:
            self.let_time_pass()
            return None, watcher
        finally:
            memory.PATIENCE_S = before
            logging.getLogger("pipedag_core").removeHandler(heard)
        return result, watcher

    def _learn_names(self, flow: Flow, model: Model) -> None:
        """Note what the model calls the names that end in `%%`: equal places have equal names, different places different ones."""
        planned = {f"{task.stage}.{task.task}": task for task in compile_flow(flow, self.config.instance_name, flow.source).tasks}
        for task in model.tasks:
            if task.table_name and "%" in task.table_name and task.kind.engine != "script" and model.names(task):
                leaves = [(ITEMS[0], task.table_name), (ITEMS[1], None)] if task.kind.shape == "pair" else [("", task.table_name)]
                name = name_outputs(model.ids[task.uid], leaves, planned[model.full_id(task)].position)[0]
                wanted = model.names(task)[0]
                assert self.unique.setdefault(name, wanted) == wanted

    def clean_up(self) -> None:
        """What `pipedag gc` does."""
        clean_up(self.config)

    def roll_back(self, stage: str, number: int | None) -> str:
        """What `pipedag rollback` does; return how it ended."""
        try:
            return "changed" if roll_back(stage, number, self.config).changed else "unchanged"
        except StoredDataMissing:
            return "missing"
        except RunError:
            return "refused"

    def lose(self, stage: str, generation: int, name: str, *, whole: bool) -> None:
        """Take away the file of a table or blob, or a part of it."""
        entries = {self.unique.get(real, real): item for real, item in self.session.catalog.entries(stage, generation).items()}
        item = entries[name]
        path = next(self.folder.rglob(item.location))
        if whole:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-7])
        self._lost.add(item.id)

    def let_time_pass(self) -> None:
        """What a dead run holds expires."""
        with sqlite3.connect(catalog_path(self.config)) as connection:
            connection.execute("UPDATE runs SET expires = 0 WHERE state = 'running'")
        connection.close()

    def visible(self) -> Mapping[str, Mapping[str, Content]]:
        """Return stage -> readable name -> content, of what readers see."""

        def content(item: Any) -> Content:
            if item.id in self._lost:
                return Lost()
            if isinstance(item, StoredTable):
                data = self.rows(item, known=item.id in self._read)
                if data is not None:
                    self._read[item.id] = _frame(data, item)
                return self._read[item.id]
            return BlobContent(self.session.blobs.read(item.location, item.format, item.identity)["number"])

        entries = self.session.catalog.shown()
        return {stage: {self.unique.get(name, name): content(item) for name, item in names.items()} for stage, names in entries.items()}

    def rows(self, table: StoredTable, *, known: bool) -> pa.Table | None:
        """Make sure that a table is there, and return its rows; None for those that were read before."""
        source = self.access.read(table, Form.FILES)
        assert isinstance(source, FileSource)
        return None if known else pq.ParquetFile(source.paths[0]).read()

    def explored(self) -> Mapping[str, Mapping[str, Sequence[Row]]]:
        """Return stage -> name -> rows, sorted, of what `explore.duckdb` shows once it is made."""
        config = self._config("parquet")
        with open_session(config) as session:
            entries = session.catalog.shown()
            tables = {
                stage: {name: item for name, item in names.items() if isinstance(item, StoredTable)} for stage, names in entries.items()
            }
            session.tables.show(tables)
        with duckdb.connect(str(catalog_path(config).parent / "explore.duckdb"), read_only=True) as connection:
            found = connection.execute("SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal").fetchall()
            read = {(stage, name): connection.execute(f'FROM "{stage}"."{name}"').fetchall() for stage, name in found}
        named = {(stage, self.unique.get(name, name)): rows for (stage, name), rows in read.items()}
        return {stage: {name: sorted(rows) for (place, name), rows in named.items() if place == stage} for stage, _ in found}


class _Heard(logging.Handler):
    """Keeps warnings."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


def _frame(data: pa.Table, table: StoredTable) -> Frame:
    types = [field.type for field in data.schema]
    assert data.column_names[0] == "x"
    assert types[0] == pa.int64()
    assert types[1] in (pa.string(), pa.large_string(), pa.string_view())
    assert table.options.primary_key in ((), ("x",))
    rows = zip(data.column(0).to_pylist(), data.column(1).to_pylist(), strict=True)
    declared = {
        "indexes": [list(one) for one in table.options.indexes],
        "non_nullable": table.options.non_nullable and list(table.options.non_nullable),
    }
    options = OPTIONS.index({name: value for name, value in declared.items() if value})
    return Frame(data.column_names[1], tuple(sorted(rows)), table.options.primary_key == ("x",), options)
