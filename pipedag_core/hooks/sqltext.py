"""SQL as plain text, as in `Table("SELECT ...")`."""

from __future__ import annotations

from typing import Any, final

from pipedag_core.errors import ConfigError
from pipedag_core.hooks.forms import refused, write_form
from pipedag_core.ports.data import Form, QueryData, TableData, TableSource
from pipedag_core.ports.hooks import ReadContext, WriteContext


@final
class SqlTextHook:
    """Text that is a query. Text is a table only where the caller knows that it is meant as one."""

    by_reference = True

    def read(self, table: TableSource, as_type: Any, context: ReadContext) -> Any:
        """Refuse: a table is not given as text.

        Raises:
            ConfigError: Always; the message names the type to use.
        """
        raise ConfigError(
            f"Input {context.label!r} cannot be loaded as text. Use input_type=sa.Alias, whose `original.schema` and `original.name` may stand in SQL text."
        )

    def write(self, obj: Any, context: WriteContext) -> TableData:
        """Hand the query over as it is.

        Raises:
            MaterializationError: The text is empty.
        """
        write_form(context, Form.QUERY)
        if not obj.strip():
            raise refused(context, "the SQL text is empty. Return a query, such as Table('SELECT ...').")
        return QueryData(str(obj))
