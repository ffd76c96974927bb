"""A layout as Python source: a DAG file that people can read in a diff. The same layout always gives the same text.

What does not fit into a short line is broken after each item and ends in a comma, which formatters leave as it is at any usual length of lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final, final

from pipedag_airflow.layout import Edge, Granularity, Group, Layout, Node, Role
from pipedag_airflow.names import identifier
from pipedag_core.errors import ConfigError

_INDENT: Final = "    "
#: Lines are shorter than what any project's formatter allows.
_SHORT: Final = 79


@final
@dataclass(frozen=True, slots=True)
class Code:
    """A text that is code already."""

    text: str


@final
@dataclass(frozen=True)
class File:
    """What a DAG file says beside its operators.

    Attributes:
        dag_id: The DAG's id.
        title: First line of the file.
        header: Lines below it: what made the file, from what, by which command.
        flow: What all operators of ours are given, in its order.
        dag: Arguments of the DAG, in their order, without `dag_id`, `params` and `default_args`.
        default_args: Arguments of all operators.
        stages: Names for the parameter that chooses stages.
        operator: The operators' class.
    """

    dag_id: str
    title: str
    header: Sequence[str]
    flow: Mapping[str, Any]
    dag: Mapping[str, Any]
    default_args: Mapping[str, Any]
    stages: Sequence[str] = field(default_factory=tuple)
    operator: str = "PipedagStepOperator"


def literal(value: Any, indent: int = 0, before: int = _SHORT) -> str:
    """Return a value as a Python expression.

    Args:
        value: The value.
        indent: How deep the line is in which it begins.
        before: Characters that are in its line already, indentation included; by default so many that lists and dicts are broken.

    Raises:
        ConfigError: It is of a type that a file cannot show.
    """
    inside, outside = _INDENT * (indent + 1), _INDENT * indent
    if isinstance(value, (Mapping, list, tuple)) and before + len(flat := _flat(value)) <= _SHORT:
        return flat
    match value:
        case Code(text):
            return text
        case bool() | None | int() | float():
            return repr(value)
        case str():
            return _text(value)
        case datetime():
            return _moment(value)
        case date():
            return f"datetime.datetime({value.year}, {value.month}, {value.day}, tzinfo=datetime.UTC)"
        case timedelta():
            return f"datetime.timedelta(seconds={value.total_seconds():g})"
        case Mapping():
            if not value:
                return "{}"
            items = "".join(
                f"{inside}{literal(key)}: {_after(inside, f'{literal(key)}: ', item, indent)},\n" for key, item in value.items()
            )
            return f"{{\n{items}{outside}}}"
        case list() | tuple():
            brackets = "[]" if isinstance(value, list) else "()"
            if not value:
                return brackets
            items = "".join(f"{inside}{_after(inside, '', item, indent)},\n" for item in value)
            return f"{brackets[0]}\n{items}{outside}{brackets[1]}"
    raise ConfigError(
        f"A DAG file cannot show {value!r:.100}, which is a {type(value).__name__}. Use plain values, or write the DAG with flow_to_dag()."
    )


def _after(inside: str, text: str, value: Any, indent: int) -> str:
    # One more for the comma behind it.
    return literal(value, indent + 1, len(inside) + len(text) + 1)


def _flat(value: Any) -> str:
    """Return a list or dict as a Python expression in one line."""
    match value:
        case Mapping() if value:
            return f"{{{', '.join(f'{_flat(key)}: {_flat(item)}' for key, item in value.items())}}}"
        case list() if value:
            return f"[{', '.join(_flat(item) for item in value)}]"
        case tuple() if value:
            return f"({', '.join(_flat(item) for item in value)}{',' if len(value) == 1 else ''})"
    return (
        literal(value)
        if not isinstance(value, (Mapping, list, tuple))
        else "{}"
        if isinstance(value, Mapping)
        else "[]"
        if isinstance(value, list)
        else "()"
    )


def _text(value: str) -> str:
    quoted = repr(value)
    # As formatters have it: double quotes, unless that needs more backslashes.
    return quoted if quoted[0] == '"' or '"' in value else f'"{quoted[1:-1]}"'


def _moment(value: datetime) -> str:
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second]
    while len(parts) > 3 and not parts[-1]:
        parts.pop()
    return f"datetime.datetime({', '.join(map(str, parts))}, tzinfo=datetime.UTC)"


def render(layout: Layout, file: File) -> str:
    """Return the text of a DAG file."""
    return _Writer(layout, file).text()


def render_call(name: str, arguments: Mapping[str, Any], indent: int = 0) -> str:
    """Return a call with one keyword argument per line."""
    inside = _INDENT * (indent + 1)
    items = "".join(f"{inside}{key}={_after(inside, f'{key}=', value, indent)},\n" for key, value in arguments.items())
    return f"{name}(\n{items}{_INDENT * indent})"


def head(title: str, header: Iterable[str]) -> list[str]:
    """Return the first lines of a file."""
    lines = [line.replace("\\", "\\\\").replace('"', "'") for line in (title, "", *header)]
    return [f'"""{lines[0]}', *lines[1:], '"""', "", "from __future__ import annotations", ""]


@final
class _Writer:
    def __init__(self, layout: Layout, file: File) -> None:
        self._layout = layout
        self._file = file
        self._names = _variables(layout)
        self._groups = {group.path: group for group in layout.groups}

    def text(self) -> str:
        body = self._body()
        dag = self._dag()
        imports = ["from airflow.sdk import DAG"]
        if any("Asset(" in line for line in body) or "Asset(" in dag:
            imports = ["from airflow.sdk import DAG, Asset"]
        if self._layout.groups:
            imports = [f"{imports[0]}, TaskGroup"]
        lines = head(self._file.title, self._file.header)
        flow = f"FLOW = {literal(self._file.flow)}"
        everything = "\n".join([dag, flow, *body])
        first = [f"import {name}" for name in ("datetime",) if f"{name}." in everything]
        lines += [*first, ""] if first else []
        lines += [*imports, f"from pipedag_airflow.operators import {self._file.operator}, run_params", ""]
        lines += [flow, "", dag, *body]
        return "\n".join(lines) + "\n"

    def _dag(self) -> str:
        arguments = {
            "dag_id": self._file.dag_id,
            **self._file.dag,
            "default_args": {**self._file.default_args, "pipedag": Code("FLOW")},
            "params": Code(self._params()),
        }
        return f"with {render_call('DAG', arguments)}:"

    def _params(self) -> str:
        stages = [*self._file.stages]
        flat = f"run_params({_flat(stages)})"
        return flat if len(f"{_INDENT}params={flat},") <= _SHORT else f"run_params(\n{_INDENT * 2}{literal(stages, 2)},\n{_INDENT})"

    def _body(self) -> list[str]:
        lines: list[str] = []
        if self._layout.granularity is Granularity.TASK:
            for group in self._layout.groups:
                if len(group.path) == 1:
                    lines += [*self._group(group, 1), ""]
            rest = [node for node in self._layout.nodes if not node.group]
        else:
            rest = list(self._layout.nodes)
        for node in rest:
            lines += self._node(node, 1)
        if self._layout.edges:
            lines += ["", *(line for edge in self._outer_edges() for line in self._edge(edge, 1))]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _group(self, group: Group, depth: int) -> list[str]:
        arguments: dict[str, Any] = {"group_id": group.id}
        if group.id != group.stage:
            arguments["group_display_name"] = group.stage
        flat = f"{_INDENT * depth}with TaskGroup({', '.join(f'{key}={literal(value)}' for key, value in arguments.items())}):"
        lines = [flat if len(flat) <= _SHORT else f"{_INDENT * depth}with {render_call('TaskGroup', arguments, depth)}:"]
        own = [node for node in self._layout.nodes if node.group == group.path]
        inner = [other for other in self._layout.groups if other.path[:-1] == group.path]
        head = [node for node in own if node.role is Role.SETUP]
        for node in head:
            lines += self._node(node, depth + 1)
        for node in own:
            if node not in head and not node.step.startswith(("commit:", "close:")):
                lines += self._node(node, depth + 1)
        for other in inner:
            lines += [*self._group(other, depth + 1)]
        for node in own:
            if node.step.startswith(("commit:", "close:")):
                lines += self._node(node, depth + 1)
        edges = [edge for edge in self._layout.edges if self._home(edge) == group.path]
        if edges:
            lines += ["", *(line for edge in edges for line in self._edge(edge, depth + 1))]
        if not own and not inner:
            lines.append(f"{_INDENT * (depth + 1)}pass")
        return lines

    def _node(self, node: Node, depth: int) -> list[str]:
        arguments: dict[str, Any] = {"task_id": node.task_id, "step": node.step}
        if node.display:
            arguments["task_display_name"] = node.display
        arguments.update(node.arguments)
        if node.doc and "doc_md" not in arguments:
            arguments["doc_md"] = node.doc
        if node.inlets and "inlets" not in arguments:
            arguments["inlets"] = [Code(asset(uri, depth + 2)) for uri in node.inlets]
        if node.outlets:
            arguments["outlets"] = [Code(asset(uri, depth + 2)) for uri in node.outlets]
        call = render_call(self._file.operator, arguments, depth)
        if node.role is Role.SETUP:
            call += ".as_setup()"
        elif node.role is Role.TEARDOWN and node.setups:
            setups = [Code(self._names[other]) for other in node.setups]
            flat = f").as_teardown(setups={_flat(setups)})"
            fits = len(_INDENT * depth + flat) <= _SHORT
            call = f"{call[:-1]}{flat}" if fits else f"{call}.{render_call('as_teardown', {'setups': setups}, depth)}"
        elif node.role is Role.TEARDOWN:
            call += ".as_teardown()"
        return [f"{_INDENT * depth}{self._names[node.full_id]} = {call}"]

    def _edge(self, edge: Edge, depth: int) -> list[str]:
        sides = [[self._names[id] for id in side] for side in (edge.before, edge.after)]
        flat = [names[0] if len(names) == 1 else f"[{', '.join(names)}]" for names in sides]
        line = f"{_INDENT * depth}{' >> '.join(flat)}"
        if len(line) <= _SHORT:
            return [line]
        broken = [names[0] if len(names) == 1 else literal([Code(name) for name in names], depth) for names in sides]
        return [f"{_INDENT * depth}{' >> '.join(broken)}"]

    def _home(self, edge: Edge) -> tuple[str, ...]:
        """Return the path of the innermost group that holds both ends; edges between units stand below all groups."""
        paths = [tuple(id.split(".")[:-1]) for id in (*edge.before, *edge.after)]
        common = paths[0]
        for path in paths[1:]:
            while path[: len(common)] != common:
                common = common[:-1]
        # Variables of the outermost group are all defined only at its end.
        return common[:1]

    def _outer_edges(self) -> list[Edge]:
        return [edge for edge in self._layout.edges if not self._home(edge)]


def asset(uri: str, depth: int) -> str:
    """Return an Asset as a Python expression."""
    flat = f"Asset({literal(uri)})"
    fits = len(f"{_INDENT * depth}{flat},") <= _SHORT
    return flat if fits else f"Asset(\n{_INDENT * (depth + 1)}{literal(uri)},\n{_INDENT * depth})"


def _variables(layout: Layout) -> dict[str, str]:
    """Return a Python name for each operator, unique and made of its id only."""
    taken: set[str] = set()
    found: dict[str, str] = {}
    for node in layout.nodes:
        wanted = name = identifier(*node.group, node.task_id)
        number = 1
        while name in taken or name in ("FLOW", "DAG", "Asset", "TaskGroup", "Path", "datetime"):
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name)
        found[node.full_id] = name
    return found
