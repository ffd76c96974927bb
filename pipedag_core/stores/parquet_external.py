"""Parquet files that somebody else writes: where a table that an `ExternalTableReference` names is, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from pipedag_core.errors import ConfigError, StoreError
from pipedag_core.naming import quote_literal


@final
class ExternalFiles:
    """Finds tables of others.

    Args:
        schemas: Schema, as references name it -> folder. Schemas that are absolute paths need no entry.
    """

    def __init__(self, schemas: Mapping[str, str | Path]) -> None:
        self._schemas = {name: Path(folder) for name, folder in schemas.items()}

    def paths(self, owner: str, name: str) -> list[Path]:
        """Return the files of a table: `<folder>/<name>.parquet`, or all Parquet files in the folder `<folder>/<name>`, by name.

        Raises:
            ConfigError: Nobody has said which folder the schema is.
            StoreError: There is no such file or folder, or the name would lead out of the schema's folder.
        """
        folder = self._folder(owner, name)
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise StoreError(f"External table {owner}.{name}: {name!r} is no name of a file in {folder}.", path=str(folder))
        single, several = folder / f"{name}.parquet", folder / name
        try:
            if single.is_file():
                return [single]
            found = sorted(several.glob("*.parquet")) if several.is_dir() else []
        except OSError as error:
            raise StoreError(f"External table {owner}.{name} cannot be looked for in {folder}: {error}", path=str(folder)) from error
        if not found:
            raise StoreError(
                f"There is no external table {owner}.{name}: neither a file {single} nor a folder {several} with Parquet files is there.",
                path=str(single),
            )
        return found

    def _folder(self, owner: str, name: str) -> Path:
        if owner in self._schemas:
            return self._schemas[owner].absolute()
        if Path(owner).is_absolute():
            return Path(owner)
        raise ConfigError(
            f"External table {owner}.{name}: this store keeps tables in files and does not know which folder the schema {owner!r} is. Name it in the "
            f"configuration, table_store.args.external_schemas: {{{owner}: /path/to/folder}}, or give the folder's absolute path as the schema."
        )


def query_place(paths: Sequence[Path]) -> str:
    """Return what stands behind FROM to read these files as one table."""
    literal = ", ".join(quote_literal("".join(f"[{char}]" if char in "*?[" else char for char in path.as_posix())) for path in paths)
    return f"read_parquet([{literal}], hive_partitioning = false, union_by_name = false)"
