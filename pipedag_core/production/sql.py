"""SQL tasks in memory: one DuckDB connection per thread over Arrow tables, and queries that are made once and executed at every call.

The function of a task that gets tables by reference sees names, schemas and plain values, no rows. So it is called once for each combination of these,
and its queries are kept. A view reads through a `_Holder`, whose table is exchanged before each call: nothing is registered or bound anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, cast, final

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from pipedag_core.define.values import Blob, RawSql, Table, View
from pipedag_core.define.walk import Kind, children, is_plain, kind_of, map_leaves, segment
from pipedag_core.errors import ProductionError
from pipedag_core.naming import normalize, quote_identifier
from pipedag_core.ports.data import Placeholder, QueryData, Selection, StoredTable, TableSource
from pipedag_core.ports.hooks import ReadContext, TableHook, WriteContext
from pipedag_core.production.frames import QUERIES, Frames, MemorySession
from pipedag_core.production.program import Node
from pipedag_core.production.views import selected
from pipedag_core.run.inputs import RawTables, label, map_inputs
from pipedag_core.run.inputs import leaves as leaves_of
from pipedag_core.run.views import selection_of
from pipedag_core.stores import duckdb_engine, sqltext

#: Combinations of schemas and plain values whose queries are kept per task, and bound per thread.
_KEPT: Final = 64

#: Nothing outside of memory is reached: no file is read or written, and no extension is loaded.
_SETTINGS: Final = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "temp_directory": "",
}

#: Of these, values that are equal have the same text.
_SAME_TEXT: Final = frozenset({str, int, bool, bytes, type(None)})

_numbers = count()


@final
class _Holder:
    """What a view reads: the table that it holds at the moment."""

    __slots__ = ("table",)

    def __init__(self, table: Any = None) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


@final
class Database:
    """DuckDB in memory; each thread has a connection of its own.

    Args:
        dialect: The dialect that SQL text was written in for training.
        stages: Names of all stages of the training flow.
    """

    def __init__(self, dialect: str, stages: frozenset[str]) -> None:
        self.dialect = dialect
        self.stages = stages
        self._root: Any = None
        self._lock = threading.Lock()
        self._local = threading.local()

    def connection(self) -> Any:
        """Return this thread's connection."""
        found = getattr(self._local, "connection", None)
        if found is None:
            with self._lock:
                if self._root is None:
                    self._root = duckdb.connect(":memory:", config=dict(_SETTINGS))
                found = self._local.connection = self._root.cursor()
        return found

    def place(self, table: Any) -> tuple[str, Any]:
        """Make a table readable in this thread until `release`, and return its name and the connection."""
        connection = self.connection()
        name = f"pipedag_{next(_numbers)}"
        connection.register(name, table)
        self._temporary().append(name)
        return quote_identifier(name), connection

    def release(self) -> None:
        """Forget what `place` has made readable in this thread."""
        names = self._temporary()
        while names:
            self.connection().unregister(names.pop())

    def rows(self, text: str) -> Any:
        """Return the rows of a query without inputs."""
        try:
            return self.connection().sql(text).to_arrow_table()
        except duckdb.Error as error:
            raise duckdb_engine.translate(error, "A query in production", text) from error

    def arrow_types(self, types: Mapping[str, str], where: str) -> dict[str, Any]:
        """Return SQL types as the Arrow types that a store writes: by column."""
        return {name: duckdb_engine.arrow_type(self.connection(), kind, where) for name, kind in types.items()}

    @staticmethod
    def refuse_script(raw: RawSql) -> Any:
        """Refuse a script of a task that does not get its inputs by reference: it could read none of them."""
        raise ProductionError(f"This script cannot run in production, as its task does not get tables as sa.Table: {raw.sql:.200}")

    def bound(self) -> OrderedDict[int, _Bound]:
        """Return what is bound in this thread."""
        found = getattr(self._local, "bound", None)
        if found is None:
            found = self._local.bound = OrderedDict[int, _Bound]()
        return found

    def _temporary(self) -> list[str]:
        found = getattr(self._local, "temporary", None)
        if found is None:
            found = self._local.temporary = list[str]()
        return found


@final
@dataclass(frozen=True, slots=True)
class _Query:
    """One query of a template.

    Attributes:
        text, shown: It, and what it is for people.
        name: Under which later statements of a script read its rows.
        types: Column -> SQL type to cast to.
    """

    text: str
    shown: str
    name: str | None = None
    types: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True, slots=True)
class _Mark:
    """Stands in a returned nest for rows: of a query, of all queries of a script (name -> query), of an input, or of a view."""

    query: int | None = None
    script: Mapping[str, int] | None = None
    leaf: int | None = None
    view: tuple[Selection, tuple[Any, ...]] | None = None


@final
@dataclass(frozen=True, slots=True)
class _Template:
    """What a task returned for one combination of schemas and plain values.

    Attributes:
        number: Its own.
        shape, leaves: The combination: containers, and per leaf the schema of a table or the value.
        inputs: Name of a view -> number of the leaf that it reads.
        queries: In the order in which they run.
        output: The returned nest with marks.
    """

    number: int
    shape: Any
    leaves: tuple[Any, ...]
    inputs: Mapping[str, int]
    queries: tuple[_Query, ...]
    output: Any


@final
@dataclass(slots=True)
class _Bound:
    """A template in one thread: the holders that its views read, and its relations."""

    holders: list[tuple[_Holder, int]]
    results: list[_Holder | None]
    relations: list[Any] = field(default_factory=list[Any])
    names: list[str] = field(default_factory=list[str])


@final
class SqlTask:
    """A task that gets its tables by reference.

    Args:
        database: Where its queries run.
        frames: Converts tables.
        node: The task.
        hook: Makes references, and text of what is returned.
    """

    def __init__(self, database: Database, frames: Frames, node: Node, hook: TableHook) -> None:
        self._database = database
        self._frames = frames
        self._node = node
        self._hook = hook
        self._who = f"Task {node.full_id} in production"
        self._templates: list[_Template] = []
        self._lock = threading.Lock()

    def __call__(self, parameters: Mapping[str, Any], call: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Return the task's output for arguments in which every table is a `pyarrow.Table`.

        Args:
            parameters: Label -> argument.
            call: Calls the task's function with arguments.
        """
        leaves: list[Any] = []
        shape = _flatten(parameters, leaves)
        template = self._find(shape, leaves)
        if template is None:
            with self._lock:
                template = self._find(shape, leaves)
                if template is None:
                    template = self._make(parameters, shape, leaves, call)
                    self._templates.insert(0, template)
                    del self._templates[_KEPT:]
        return self._run(template, leaves)

    def _find(self, shape: Any, leaves: list[Any]) -> _Template | None:
        for template in self._templates:
            if template.shape == shape and all(map(_same, template.leaves, leaves)):
                return template
        return None

    # --- making queries

    def _make(self, parameters: Mapping[str, Any], shape: Any, leaves: list[Any], call: Callable[[Mapping[str, Any]], Any]) -> _Template:
        node, frames = self._node, self._frames
        stored: dict[int, tuple[StoredTable, int]] = {}
        numbers = iter(range(len(leaves)))

        def as_stored(leaf: Any, path: str) -> Any:
            number = next(numbers)
            if not _is_table(leaf):
                return leaf
            stage, name = node.names.get(path, ("", ""))
            table = StoredTable(f"leaf {number}", stage, 0, name, "", frames.schema_of(leaf), f"leaf {number}")
            stored[number] = (table, number)
            return table

        inputs = label({name: map_inputs(value, as_stored, segment(name)) for name, value in parameters.items()})
        views = {table.id: f"pipedag_{next(_numbers)}" for table in inputs.tables}

        def view_of(table: TableSource) -> str:
            assert isinstance(table, StoredTable)
            return quote_identifier(views[table.id])

        references: dict[int, tuple[Any, int]] = {}

        def as_reference(leaf: Any, path: str) -> Any:
            if not isinstance(leaf, StoredTable):
                return leaf
            text = inputs.labels[path]
            context = ReadContext(_session(leaf), QUERIES, text, path.rpartition(".")[2] or text, frames.args(self._hook))
            made = self._hook.read(leaf, node.options.input_type, context)
            references[id(made)] = (made, int(leaf.id.removeprefix("leaf ")))
            return made

        value = call({name: map_inputs(item, as_reference, segment(name)) for name, item in inputs.parameters.items()})
        queries: list[_Query] = []

        def as_mark(leaf: Any, path: str) -> Any:
            obj: Any = leaf.obj if isinstance(leaf, (Table, Blob)) else leaf
            if id(obj) in references:
                return _Mark(leaf=references[id(obj)][1])
            if isinstance(obj, View):
                sources = tuple(as_mark(source, path) for _, source in leaves_of(obj.src, ""))
                return _Mark(view=(selection_of(obj, self._who), sources))
            if isinstance(obj, RawSql):
                return self._script(obj, inputs.placeholders, view_of, queries)
            is_query = isinstance(leaf, Table) and isinstance(obj, str)
            hook = self._hook if is_query else None if isinstance(obj, str) else frames.hook_of(type(obj), obj)
            if isinstance(leaf, Blob):
                return leaf
            if hook is None and not is_query:
                return obj
            text = obj if is_query else self._text(hook, obj, path)
            if text is None:
                return obj
            prepared = sqltext.prepare(text, inputs.placeholders, self._database.stages, view_of)
            types = frames.sql_types(cast("Table[Any]", leaf).type_map) if isinstance(leaf, Table) else {}
            queries.append(_Query(prepared.text, prepared.readable, types=types))
            return _Mark(query=len(queries) - 1)

        output = map_leaves(value, as_mark)
        return _Template(
            number=next(_numbers),
            shape=shape,
            leaves=tuple(leaf.schema if _is_table(leaf) else leaf for leaf in leaves),
            inputs={views[table.id]: number for table, number in stored.values()},
            queries=tuple(queries),
            output=output,
        )

    def _text(self, hook: TableHook | None, obj: Any, path: str) -> str | None:
        """Return a query in DuckDB's dialect; None for a frame, whose rows are there."""
        assert hook is not None
        if not hook.by_reference:
            return None
        context = WriteContext(_session(None), QUERIES, self._node.full_id, path, self._frames.args(hook))
        data = hook.write(obj, context)
        if not isinstance(data, QueryData):
            return None
        # Text is as its author wrote it; all else was compiled for DuckDB just now.
        return self._transpiled(data.text) if type(obj).__name__ == "TextClause" else data.text

    def _transpiled(self, text: str) -> str:
        if self._database.dialect == "duckdb":
            return text
        try:
            return ";\n".join(
                sqlglot.transpile(text, read=self._database.dialect, write="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)
            )
        except SqlglotError as error:
            raise self._error(
                f"its SQL text cannot be turned from {self._database.dialect} into DuckDB's dialect: {error}\n{text}"
            ) from error

    def _script(
        self, raw: RawSql, placeholders: Mapping[str, Placeholder], view_of: Callable[[TableSource], str], queries: list[_Query]
    ) -> _Mark:
        """Take a script apart into queries: each table that it creates is one, and is read by later statements under a name of ours."""
        prepared = sqltext.prepare(self._transpiled(raw.sql), placeholders, self._database.stages, view_of)
        made: dict[str, int] = {}
        own: dict[str, str] = {}
        for statement, shown in zip(sqltext.split(prepared.text), sqltext.split(prepared.readable), strict=True):
            try:
                tree = sqlglot.parse_one(statement, dialect="duckdb")
            except SqlglotError as error:
                raise self._error(f"its script cannot be read: {error}\n{shown}") from error
            if isinstance(tree, exp.Drop) and tree.args.get("exists") and tree.this.name.casefold() not in own:
                continue
            target = tree.this if isinstance(tree, exp.Create) and tree.kind in ("TABLE", "VIEW") else None
            if not isinstance(target, exp.Table) or tree.expression is None or target.db.casefold() not in ("", self._node.stage):
                raise self._error(
                    "its script does more than to create tables from queries (CREATE TABLE ... AS SELECT), which needs a database.\n"
                    f"{shown}\n"
                    "Split it: give what the rest makes the role const or input"
                )
            query = tree.expression
            for table in query.find_all(exp.Table):
                if table.name.casefold() in own and table.db.casefold() in ("", self._node.stage):
                    if not table.alias:
                        table.set("alias", exp.TableAlias(this=exp.to_identifier(table.name, quoted=True)))
                    table.set("this", exp.to_identifier(own[table.name.casefold()], quoted=True))
                    table.set("db", None)
            name = f"pipedag_{next(_numbers)}"
            own[target.name.casefold()] = name
            made[normalize(target.name, "table name")] = len(queries)
            queries.append(_Query(query.sql(dialect="duckdb"), shown, name))
        return _Mark(script=made)

    def _error(self, problem: str) -> ProductionError:
        return ProductionError(
            f"Task {self._node.full_id} cannot run in production: {problem}.", stage=self._node.stage, task=self._node.id
        )

    # --- running

    def _run(self, template: _Template, leaves: list[Any]) -> Any:
        all_bound = self._database.bound()
        bound = all_bound.get(template.number)
        if bound is None:
            bound = self._bind(template, all_bound)
        for holder, number in bound.holders:
            holder.table = leaves[number]
        results: list[Any] = []
        at = 0
        try:
            for at, query in enumerate(template.queries):
                if at == len(bound.relations):
                    bound.relations.append(self._relation(query))
                table = bound.relations[at].to_arrow_table()
                results.append(table)
                holder = bound.results[at]
                if holder is not None:
                    holder.table = table
                    if query.name not in bound.names:
                        self._database.connection().register(query.name, holder)
                        bound.names.append(query.name or "")
        except duckdb.Error as error:
            all_bound.pop(template.number, None)
            self._forget(bound)
            raise duckdb_engine.translate(error, self._who, template.queries[at].shown) from error
        finally:
            for holder, _ in bound.holders:
                holder.table = None
            for result in bound.results:
                if result is not None:
                    result.table = None
        if type(template.output) is _Mark and template.output.query is not None:
            return results[template.output.query]

        def filled(leaf: Any, path: str) -> Any:
            if not isinstance(leaf, _Mark):
                return leaf
            if leaf.view is not None:
                selection, sources = leaf.view
                found = [filled(source, path) for source in sources]
                return selected(selection, found, self._frames, self._database, self._who)
            if leaf.script is not None:
                return RawTables({name: results[number] for name, number in leaf.script.items()})
            return leaves[leaf.leaf] if leaf.leaf is not None else results[leaf.query or 0]

        return map_leaves(template.output, filled)

    def _bind(self, template: _Template, all_bound: OrderedDict[int, _Bound]) -> _Bound:
        connection = self._database.connection()
        bound = _Bound([], [_Holder() if query.name else None for query in template.queries])
        empty = {number: leaf.empty_table() for number, leaf in enumerate(template.leaves) if hasattr(leaf, "empty_table")}
        for name, number in template.inputs.items():
            holder = _Holder(empty[number])
            connection.register(name, holder)
            bound.holders.append((holder, number))
            bound.names.append(name)
        all_bound[template.number] = bound
        if len(all_bound) > 4 * _KEPT:
            self._forget(all_bound.popitem(last=False)[1])
        return bound

    def _forget(self, bound: _Bound) -> None:
        bound.relations.clear()
        for name in bound.names:
            self._database.connection().unregister(name)

    def _relation(self, query: _Query) -> Any:
        connection = self._database.connection()
        where = self._who
        # What a store would narrow when it writes the rows is narrowed here too.
        casts = duckdb_engine.projection(duckdb_engine.columns_of(connection, query.text, where), query.types, where)
        if not casts:
            return connection.sql(query.text)
        replaced = ", ".join(f"CAST({quote_identifier(name)} AS {kind}) AS {quote_identifier(name)}" for name, kind in casts)
        return connection.sql(f"SELECT * REPLACE ({replaced}) FROM ({query.text}\n)")


def _session(table: Any) -> Any:
    return MemorySession(table)


def _is_table(leaf: Any) -> bool:
    return type(leaf).__name__ == "Table" and hasattr(leaf, "__arrow_c_stream__")


def _same(known: Any, leaf: Any) -> bool:
    if hasattr(known, "empty_table"):
        return _is_table(leaf) and known.equals(leaf.schema)
    if known is leaf:
        return True
    # Values stand in the text of queries, so 0.0 and -0.0, or 1.0 and 1.00 as decimals, are two; and who knows what `==` means for other objects.
    return type(known) is type(leaf) and is_plain(known) and known == leaf and (type(known) in _SAME_TEXT or repr(known) == repr(leaf))


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """Collect the leaves of a nest, and return its containers as something that can be compared."""
    kind = type(value)
    if kind is dict:
        return (*value, *[_flatten(child, leaves) for child in value.values()])
    if kind is list or kind is tuple:
        return (kind, *[_flatten(child, leaves) for child in value])
    if kind is RawTables:
        return (*value, *[_flatten(child, leaves) for child in value.values()])
    walked = kind_of(value)
    if walked is Kind.LEAF:
        leaves.append(value)
        return None
    pairs = children(value, walked)
    return (kind, *[(key, _flatten(child, leaves)) for key, child in pairs])
