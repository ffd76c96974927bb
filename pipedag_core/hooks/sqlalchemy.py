"""SQLAlchemy: inputs as aliases of tables, outputs as selects, texts and other things to select from."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Final, final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import registry as dialects

from pipedag_core.arrow_schema import to_arrow
from pipedag_core.errors import ConfigError, FlowError
from pipedag_core.hooks import sqlalchemy_literals as literals
from pipedag_core.hooks import sqlalchemy_types as types
from pipedag_core.hooks.forms import refused, write_form
from pipedag_core.ports.data import PLACEHOLDER_SCHEMA, Form, QueryData, TableData, TableSchema, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext

#: Dialect as stores call it -> `module:class` where SQLAlchemy does not know it by that name.
_DIALECTS: Final = {"duckdb": "duckdb_sqlalchemy:Dialect", "postgres": "sqlalchemy.dialects.postgresql:dialect"}


#: What stands for a stored table in queries.
REFERENCE: Final = sa.Table


@final
class SqlAlchemyHook:
    """Queries that run where the tables are. An input's columns come from what the catalog knows; no database is asked."""

    by_reference = True

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Return a `sa.Alias` with the argument's name, whose `original` is the input's placeholder as a `sa.Table`."""
        return _alias(table.schema.arrow, context.label, context.alias)

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand over the query as text of the store's dialect, with all values written into it.

        Raises:
            MaterializationError: A value, type or construct has no text in this dialect.
        """
        write_form(context, Form.QUERY)
        query = sa.select(sa.text("*")).select_from(obj) if isinstance(obj, sa.FromClause) else obj
        try:
            compiled = query.compile(dialect=_dialect(context.capabilities.dialect), compile_kwargs={"literal_binds": True})
        except exc.SQLAlchemyError as error:
            causes = f" ({error.__cause__})" if error.__cause__ else ""
            raise refused(context, f"the query cannot be written as {context.capabilities.dialect} SQL: {error}{causes}") from error
        return QueryData(str(compiled))


def type_text(kind: Any, dialect: str) -> str:
    """Return a type of SQLAlchemy, class or instance, as text of a dialect.

    Raises:
        FlowError: The dialect has no such type.
    """
    made = kind() if isinstance(kind, type) else kind
    try:
        return str(made.compile(dialect=_dialect(dialect)))
    except exc.SQLAlchemyError as error:
        raise FlowError(f"{made!r} is no type that {dialect} can store a column as: {error}") from error


@lru_cache(maxsize=4096)
def _alias(arrow: bytes, label: str, alias: str) -> Any:
    # Nothing changes it, and what it works out about its columns is kept with it.
    return _table(arrow, label).alias(alias)


@lru_cache(maxsize=4096)
def _table(arrow: bytes, label: str) -> Any:
    fields = to_arrow(TableSchema((), arrow))
    columns = [sa.Column(field.name, types.from_arrow(field.type), nullable=field.nullable) for field in fields]
    return sa.Table(label, sa.MetaData(), *columns, schema=PLACEHOLDER_SCHEMA)


@cache
def _dialect(name: str) -> Any:
    """Return the dialect that compiles for a store; made once, as making one is slow."""
    module, _, cls = _DIALECTS.get(name, "").partition(":")
    try:
        found = getattr(import_module(module), cls) if module else dialects.load(name)
    except (ImportError, exc.NoSuchModuleError) as error:
        raise ConfigError(f"SQLAlchemy has no dialect {name!r}; install the package that brings it.", dialect=name) from error
    # Other ways to mark parameters make compilers write every percent sign twice.
    dialect = found(paramstyle="named")
    dialect.statement_compiler = literals.compiler(dialect.statement_compiler, name)
    return dialect
