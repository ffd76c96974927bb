"""The Parquet table store: one immutable file per table, and DuckDB as its SQL engine.

Several processes can use one base folder at once: a file's place is given out once, and no file is changed after its table is recorded.
DuckDB, pyarrow and sqlglot are loaded when rows or queries are first touched, so that a run in which all is cached stays cheap.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from pipedag_core.errors import StoreError
from pipedag_core.naming import MAX_FILE_NAME
from pipedag_core.ports.catalogs import GenerationKey, Publication
from pipedag_core.ports.data import ExternalTable, Form, StoredTable
from pipedag_core.ports.stores import Capabilities, Deposit
from pipedag_core.stores.layout import OVERFLOW, Layout
from pipedag_core.stores.parquet_external import ExternalFiles
from pipedag_core.stores.seal import Inspector

if TYPE_CHECKING:
    from pipedag_core.stores.duckdb_engine import Engine
    from pipedag_core.stores.parquet_session import ParquetSession

_CAPABILITIES: Final = Capabilities(reads=frozenset(Form), writes=frozenset(Form), dialect="duckdb", max_name_bytes=MAX_FILE_NAME)


@final
class ParquetStore:
    """Keeps tables as Parquet files below one folder; implements `pipedag_core.ports.stores.TableStore`.

    Args:
        base_path: The folder; made when the first table is written.
        memory_limit: How much memory DuckDB may use, as it takes it (`"4GB"`); None for its default of 80 % of the memory.
        temp_directory: Where DuckDB puts rows that do not fit into memory; None for a folder below `base_path`.
        threads: How many threads DuckDB uses; None for all cores.
        external_schemas: Where tables of others are: schema, as an `ExternalTableReference` names it -> folder.
    """

    def __init__(
        self,
        base_path: str | Path,
        *,
        memory_limit: str | None = None,
        temp_directory: str | None = None,
        threads: int | None = None,
        external_schemas: Mapping[str, str | Path] | None = None,
    ) -> None:
        self._layout = Layout(base_path)
        self._external = ExternalFiles(external_schemas or {})
        self._inspector = Inspector()
        self._memory_limit = memory_limit
        # Processes must not share a folder for overflowing rows.
        self._temp_directory = temp_directory or str(self._layout.base / OVERFLOW / str(os.getpid()))
        self._threads = threads
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"ParquetStore({str(self._layout.base)!r})"

    @property
    def base_path(self) -> Path:
        """The absolute path of the folder that holds everything."""
        return self._layout.base

    @property
    def capabilities(self) -> Capabilities:
        """Reads and writes all three forms; DuckDB's dialect."""
        return _CAPABILITIES

    @property
    def address(self) -> str:
        """The same for all Parquet stores: DuckDB reads any file."""
        return "Parquet files"

    def seen_by_others(self, table: StoredTable) -> ExternalTable:
        """Return the table as a file in a folder."""
        path = self._layout.path(table.location)
        return ExternalTable("", "", 0, str(path.parent), path.stem, table.identity, table.schema)

    def session(self, label: str) -> AbstractContextManager[ParquetSession]:
        """Give one task its own access; nothing is opened before it is needed, and all is closed at the end."""
        from pipedag_core.stores.parquet_session import ParquetSession

        return closing(ParquetSession(self._layout, self._inspector, self._external, self._open_engine, label))

    def missing(self, tables: Sequence[StoredTable]) -> Sequence[StoredTable]:
        """Return those of the tables whose file is gone, or is not the one that was written; see `pipedag_core.stores.seal`."""
        return [table for table in tables if not self._is_whole(table)]

    def show(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> None:
        """Write `explore.duckdb` anew, a DuckDB file with one view per table; see `pipedag_core.stores.explore`."""
        from pipedag_core.stores import explore

        explore.refresh(self._layout.base, self._paths(stages), self._lend)

    def shows(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> bool:
        """Return whether `explore.duckdb` is there and shows these tables and no others."""
        from pipedag_core.stores import explore

        return explore.is_fresh(self._layout.base, self._paths(stages))

    def publication(self, generations: Mapping[str, int]) -> Publication | None:
        """Return None: the catalog's row is the commit, and `explore.duckdb` follows."""
        return None

    def show_generation(self, stage: str, generation: int, tables: Mapping[str, StoredTable]) -> None:
        """Do nothing: files are found through the catalog only."""

    def hide_generations(self, generations: Sequence[GenerationKey]) -> None:
        """Do nothing."""

    def deposits(self) -> Sequence[Deposit]:
        """Return all Parquet files in folders of generations, and what a process that died has left for DuckDB's work."""
        return list(self._layout.deposits())

    def drop(self, locations: Sequence[str]) -> None:
        """Delete the files of tables, and folders that are empty then; or other deposits.

        Raises:
            StoreError: A location is none of this store's, or a file cannot be deleted. All others are deleted nevertheless.
        """
        problems: list[Exception] = []
        for location in locations:
            try:
                self._layout.remove(location)
            except (OSError, StoreError) as error:
                problems.append(error)
        if problems:
            raise StoreError(
                f"{len(problems)} of {len(locations)} tables could not be removed from {self._layout.base}: {problems[0]}",
                locations=locations,
            ) from problems[0]

    def close(self) -> None:
        """Give the DuckDB database back; it is opened again when it is needed again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _paths(self, stages: Mapping[str, Mapping[str, StoredTable]]) -> dict[str, dict[str, Path]]:
        return {stage: {name: self._layout.path(table.location) for name, table in tables.items()} for stage, tables in stages.items()}

    def _is_whole(self, table: StoredTable) -> bool:
        try:
            path = self._layout.path(table.location)
        except StoreError:
            return False
        return self._inspector.problem(path, table.size, table.seal) is None

    @contextmanager
    def _lend(self) -> Generator[Any]:
        if self._engine is None:
            from pipedag_core.stores.duckdb_spare import SPARE

            with SPARE.lend() as connection:
                yield connection
            return
        engine = self._engine
        connection = engine.cursor()
        try:
            yield connection
        finally:
            engine.release(connection)

    def _open_engine(self) -> Engine:
        from pipedag_core.stores.duckdb_engine import Engine

        if self._engine is None:
            engine = Engine(memory_limit=self._memory_limit, temp_directory=self._temp_directory, threads=self._threads)
            # Two threads may get here at once; a spare engine has opened nothing yet.
            self._engine = self._engine or engine
        return self._engine
