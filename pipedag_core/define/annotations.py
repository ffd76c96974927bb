"""What stands in the annotations of a task's function: evaluated where it can be, and what cannot be is told, since a contract may stand there.

With `from __future__ import annotations` all annotations are text. Names in them are looked for in the function's module and, for a function that is
defined inside another one, among the names of that one at the moment of `@materialize`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Final, cast, final, get_args, get_origin

#: Stands for an annotation about which nothing is known.
UNKNOWN: Final = object()

#: Table types by the names under which their libraries are commonly imported, for text that cannot be evaluated.
_TABLE_TEXT: Final = re.compile(
    r"(?:(?:pd|pandas)\.DataFrame|(?:pl|polars)\.(?:DataFrame|LazyFrame)|(?:pa|pyarrow)\.(?:Table|RecordBatch|RecordBatchReader)"
    r"|(?:sa|sqlalchemy)\.(?:Select|CompoundSelect|Selectable|FromClause|TextClause|Alias|Subquery|CTE|Table|TableClause)"
    r"|(?:duckdb\.)?DuckDBPyRelation|(?:ibis|ir|pdt)\.Table|DataFrame|LazyFrame|RecordBatchReader|TextClause)(?:\[.*\])?"
)

#: Classes in whose brackets a contract stands.
_FRAMES: Final = frozenset({"DataFrame", "LazyFrame", "Table"})

#: (library, name) of the class from which all contracts of a library are derived.
CONTRACT_BASES: Final = frozenset({("dataframely", "Schema"), ("pandera", "DataFrameModel"), ("pydiverse.colspec", "ColSpec")})

_CONTRACT_LIBRARIES: Final = frozenset(name for name, _ in CONTRACT_BASES)

#: Calls on the stack that are looked at for the function around a task.
_DEPTH: Final = 100


@final
@dataclass(frozen=True, slots=True)
class Unevaluated:
    """An annotation, or a part of one, that cannot be evaluated.

    Attributes:
        text: As it is written.
        where: "" for the annotation itself, else which field of which class.
        why: What went wrong.
        is_contract: It surely says what rows a table has; otherwise it may.
    """

    text: str
    where: str
    why: str
    is_contract: bool


def annotation_of(fn: Callable[..., Any], name: str, scope: Mapping[str, Any] | None = None) -> Any:
    """Return the annotation of one parameter of a function, or of `return`: evaluated where it can be, else as text, else `UNKNOWN`.

    Args:
        fn: The function.
        name: The parameter's name.
        scope: Names around it, as `scope_of` gave them.
    """
    raw: Any = getattr(fn, "__annotations__", {}).get(name, UNKNOWN)
    if raw is UNKNOWN or (not isinstance(raw, str) and not _holds_text(raw)):
        return type(None) if raw is None else raw
    try:
        return _evaluated(raw, _globals(fn), scope)
    except Exception:  # noqa: BLE001 -- evaluating text that users wrote can raise anything; then the text is all that is known
        return raw


def is_table_text(text: str) -> bool:
    """Return whether text that cannot be evaluated names a table type, by the name under which its library is commonly imported."""
    return _TABLE_TEXT.fullmatch(text.strip().strip("\"'")) is not None


def library(cls: type[object]) -> str:
    """Return the library that a class is from: its top package; of one namespace package, which holds several libraries, two parts."""
    return _library(cls.__module__)


def field_annotation(cls: Any, key: Any) -> Any:
    """Return the evaluated annotation of one field of a dataclass, named tuple or typed dict, or `UNKNOWN`."""
    try:
        return typing.get_type_hints(cls, include_extras=True).get(key, UNKNOWN)
    except Exception:  # noqa: BLE001 -- as in `annotation_of`; one field that cannot be evaluated must not hide the others
        raw = _raw_fields(cls).get(key, UNKNOWN)
        try:
            return UNKNOWN if raw is UNKNOWN else _evaluated(raw, _module_of(cls), None)
        except Exception:  # noqa: BLE001 -- told by `unevaluated`
            return UNKNOWN


def scope_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the names in the functions around a function that its annotations may mean; called while the innermost of these runs."""
    plain: Any = inspect.unwrap(fn)
    if "<locals>" not in getattr(plain, "__qualname__", ""):
        return {}
    wanted = {name for raw in plain.__annotations__.values() for text in _texts(raw) for name in re.findall(r"[^\W\d]\w*", text)}
    found: dict[str, Any] = {}
    frame = sys._getframe(1) if wanted else None  # pyright: ignore[reportPrivateUsage] -- the documented way to see one's caller
    for _ in range(_DEPTH):
        if frame is None or wanted <= found.keys():
            break
        if frame.f_globals is plain.__globals__ and plain.__qualname__.startswith(f"{frame.f_code.co_qualname}.<locals>."):
            # The innermost function's names come first.
            found = {**{name: value for name, value in frame.f_locals.items() if name in wanted}, **found}
        frame = frame.f_back
    return found


def unevaluated(fn: Callable[..., Any], scope: Mapping[str, Any] | None = None) -> dict[str, Unevaluated]:
    """Return, for parameters of a function and for `return`, what of the annotation cannot be evaluated, though a contract may stand there.

    Plain names of table types (`pd.DataFrame`, imported for type checkers only) say all that they have to say as text, and are not among them.

    Args:
        fn, scope: As for `annotation_of`.
    """
    found: dict[str, Unevaluated] = {}
    for name in getattr(fn, "__annotations__", {}):
        annotation = annotation_of(fn, name, scope)
        problem = next(_problems(annotation, _globals(fn), scope or {}, "", set()), None)
        if problem is not None:
            found[name] = problem
    return found


def _problems(annotation: Any, known: Mapping[str, Any], scope: Mapping[str, Any], where: str, seen: set[int]) -> Iterator[Unevaluated]:
    for text in _texts(annotation):
        problem = _problem(text, known, scope, where)
        if problem is not None:
            yield problem
    cls: Any = get_origin(annotation) or annotation
    if isinstance(cls, type) and id(cast("Any", cls)) not in seen:
        seen.add(id(cast("Any", cls)))
        for key, raw in _raw_fields(cast("type[object]", cls)).items():
            value = field_annotation(cls, key)
            told = f"field {key!r} of {cast('type[object]', cls).__qualname__}"
            yield from _problems(raw if value is UNKNOWN else value, _module_of(cast("type[object]", cls)), {}, told, seen)
    for part in _parts(annotation):
        if not isinstance(part, (str, typing.ForwardRef)):
            yield from _problems(part, known, scope, where, seen)


def _problem(text: str, known: Mapping[str, Any], scope: Mapping[str, Any], where: str) -> Unevaluated | None:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        return Unevaluated(text, where, str(error), is_contract=False)
    names = list(_names(tree, in_frame=False))
    missing: list[tuple[str, bool, str]] = []
    is_contract = False
    for name, in_frame in names:
        try:
            value = eval(name, cast("dict[str, Any]", known), scope)  # noqa: S307 -- a dotted name, and nothing else
        except Exception as error:  # noqa: BLE001 -- as in `annotation_of`
            missing.append((name, in_frame, str(error)))
        else:
            is_contract = is_contract or _is_of_contracts(value)
    # A table type that is imported for type checkers only.
    missing = [item for item in missing if not is_table_text(item[0])]
    if not missing:
        return None
    return Unevaluated(text, where, missing[0][2], is_contract or any(in_frame for _, in_frame, _ in missing))


def _names(node: ast.AST, *, in_frame: bool) -> Iterator[tuple[str, bool]]:
    """Yield the dotted names in an annotation, and whether each stands in the brackets of a frame."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        yield ast.unparse(node), in_frame
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            try:
                yield from _names(ast.parse(node.value.strip(), mode="eval").body, in_frame=in_frame)
            except SyntaxError:
                # What stands in Literal[...] and Annotated[...] may be any text.
                return
    elif isinstance(node, ast.Subscript):
        yield from _names(node.value, in_frame=in_frame)
        yield from _names(node.slice, in_frame=in_frame or ast.unparse(node.value).rpartition(".")[2] in _FRAMES)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child, in_frame=in_frame)


def _is_of_contracts(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _library(value.__name__) in _CONTRACT_LIBRARIES
    return isinstance(value, type) and any(library(base) in _CONTRACT_LIBRARIES for base in cast("type[object]", value).__mro__)


def _library(module: str) -> str:
    package, _, rest = module.partition(".")
    return f"pydiverse.{rest.partition('.')[0]}" if package == "pydiverse" else package


def _evaluated(raw: Any, known: Mapping[str, Any], scope: Mapping[str, Any] | None) -> Any:
    holder = SimpleNamespace(__annotations__={"it": raw})
    return typing.get_type_hints(holder, globalns=cast("dict[str, Any]", known), localns=scope or None, include_extras=True)["it"]


def _globals(fn: Callable[..., Any]) -> Mapping[str, Any]:
    # The names in an annotation are those of the module in which it was written, also if a decorator of another one has wrapped the function.
    return getattr(inspect.unwrap(fn), "__globals__", {})


def _module_of(cls: type) -> Mapping[str, Any]:
    return vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}


def _raw_fields(cls: type[object]) -> dict[str, Any]:
    """Return field -> annotation, as written, of a dataclass, named tuple or typed dict; nothing of other classes."""
    if is_dataclass(cls):
        return {item.name: item.type for item in fields(cls)}
    return dict(cls.__annotations__) if typing.is_typeddict(cls) or hasattr(cls, "_fields") else {}


def _holds_text(annotation: Any) -> bool:
    return any(isinstance(part, (str, typing.ForwardRef)) or _holds_text(part) for part in _parts(annotation))


def _texts(annotation: Any) -> Iterator[str]:
    """Yield what is text in an annotation."""
    if isinstance(annotation, str):
        yield annotation
    elif isinstance(annotation, typing.ForwardRef):
        yield annotation.__forward_arg__
    else:
        for part in _parts(annotation):
            yield from _texts(part)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Return what stands in an annotation's brackets and is an annotation itself."""
    origin = get_origin(annotation)
    if origin is typing.Literal:
        return ()
    args = get_args(annotation)
    return args[:1] if origin is typing.Annotated else args
