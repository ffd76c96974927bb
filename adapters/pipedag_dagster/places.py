"""Where an instance keeps its tables, as people and other tools name it: without secrets, the same on every machine that reaches it."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from pipedag_core import ConfigContext
from pipedag_core.config.settings import reveal

#: Port of a PostgreSQL server where the URL names none.
_POSTGRES_PORT = 5432


def store_kind(config: ConfigContext) -> str:
    """Return what kind of store it is: `parquet`, `duckdb`, `postgres`, or what the configuration calls it."""
    url = str(reveal(config.table_store.args).get("url", ""))
    scheme = url.partition(":")[0].partition("+")[0]
    return {"": config.table_store.kind, "postgresql": "postgres"}.get(scheme, scheme).rpartition(".")[2].lower()


def address(config: ConfigContext) -> str:
    """Return the address of an instance's tables, behind which `/stage/table` makes that of one table; no user, no password."""
    args = reveal(config.table_store.args)
    url = str(args.get("url", ""))
    if not url:
        base = str(args.get("base_path", f".pipedag/{config.instance_id}"))
        return base.rstrip("/") if "://" in base else f"file://{quote(str((config.base_dir / base).absolute()))}"
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "duckdb":
        return f"duckdb://{quote(str((config.base_dir / parts.path.removeprefix('/')).absolute()))}"
    port = parts.port or (_POSTGRES_PORT if scheme == "postgresql" else None)
    host = f"{parts.hostname or 'localhost'}{f':{port}' if port else ''}"
    return f"{scheme}://{host}{parts.path.rstrip('/')}"


def schema_of(config: ConfigContext, stage: str) -> str:
    """Return the name of the schema that readers find a stage under."""
    args = reveal(config.table_store.args)
    return f"{args.get('schema_prefix') or ''}{stage}{args.get('schema_suffix') or ''}"
