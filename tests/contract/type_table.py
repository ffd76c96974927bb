"""What each library gets back of each Arrow type, by store: measured, and written as the page docs/types.md."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from pipedag_core import PipedagConfig
from pipedag_core.config.wire import open_session
from pipedag_core.errors import PipedagError
from pipedag_core.hooks.registry import Hooks
from pipedag_core.ports.data import Placeholder, QueryData, StoredTable, Target
from pipedag_core.ports.hooks import ReadContext, WriteContext

PAGE: Final = Path(__file__).parents[2] / "docs" / "types.md"

#: The page is true for these, as constraints.txt pins them.
VERSIONS: Final = ("pyarrow", "polars", "pandas", "duckdb")

#: Name of a store, as headings show it -> its configuration; `{folder}`, `{url}` and `{prefix}` are those of the test.
STORES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Parquet (`class: parquet`)": {"class": "parquet", "args": {"base_path": "{folder}/{instance_id}"}},
    "PostgreSQL (`class: sql`)": {"class": "sql", "args": {"url": "{url}", "schema_prefix": "{prefix}{instance_id}_"}},
    "DuckDB file (`class: sql`)": {"class": "sql", "args": {"url": "duckdb:///{folder}/{instance_id}.duckdb"}},
}

_LEGEND: Final = """\
A table with one column of each Arrow type, with values at the type's limits and a null, is returned by a task in each library and read
again in the same library. A cell shows the library's type; two types, if it comes back as another one, with the form that values have then; *refused*, if that is an error, which
says what to do; a dash, if the library has no such type. Nothing is rounded or cut. *SQL query* is a query over the table that pyarrow has
stored, and shows Arrow types."""

_DAY = dt.date(2026, 2, 28)
_AT = dt.datetime(2026, 2, 28, 12, 30, 15)  # noqa: DTZ001 -- a timestamp without a zone is wanted
_UTC = _AT.replace(tzinfo=dt.UTC)
_TIME = dt.time(12, 30, 15)
_SPAN = dt.timedelta(days=1, seconds=5)
_FINE = 1_772_281_815_123_456_789


def _integers() -> dict[str, pa.Array]:
    bits = (8, 16, 32, 64)
    signed = {f"int{n}": pa.array([2 ** (n - 1) - 1, None, -(2 ** (n - 1))], getattr(pa, f"int{n}")()) for n in bits}
    return signed | {f"uint{n}": pa.array([2**n - 1, None, 0], getattr(pa, f"uint{n}")()) for n in bits}


def samples() -> dict[str, pa.Array]:
    """Return every Arrow type with values at its limits and a null."""
    run_ends = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))
    kinds, offsets = pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32())
    arrays = [
        pa.nulls(2),
        pa.array([True, None, False]),
        *_integers().values(),
        pa.array(np.array([1.5, -65504], np.float16)),
        pa.array([1.5, None, 3.0e38], pa.float32()),
        pa.array([0.1, None, math.inf], pa.float64()),
        pa.array([Decimal("12345.67"), None], pa.decimal32(7, 2)),
        pa.array([Decimal("1234567890123456.78"), None], pa.decimal64(18, 2)),
        pa.array([Decimal("9" * 36 + ".99"), None], pa.decimal128(38, 2)),
        pa.array([Decimal("9" * 30 + ".99"), None], pa.decimal256(38, 2)),
        pa.array([Decimal("9" * 48 + ".99"), None], pa.decimal256(50, 2)),
        *(pa.array(["", "Größe", None], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        *(pa.array([b"", b"\x00\xff", None], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
        pa.array([b"\x00abc", None], pa.binary(4)),
        *(pa.array([_DAY, None], kind) for kind in (pa.date32(), pa.date64())),
        *(pa.array([_TIME, None], kind) for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"))),
        pa.array([45_015_123_456_789, None], pa.time64("ns")),
        *(pa.array([_AT, None], pa.timestamp(unit)) for unit in ("s", "ms", "us")),
        pa.array([_FINE, None], pa.timestamp("ns")),
        *(pa.array([_UTC, None], pa.timestamp("us", zone)) for zone in ("UTC", "Europe/Berlin", "+02:00")),
        pa.array([_FINE, None], pa.timestamp("ns", "UTC")),
        *(pa.array([_SPAN, None], pa.duration(unit)) for unit in ("s", "ms", "us")),
        pa.array([1, None], pa.duration("ns")),
        pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
        *(pa.array([[1, None], [], None], kind) for kind in (pa.list_(pa.int32()), pa.large_list(pa.int32()), pa.list_view(pa.int32()))),
        pa.array([[1, None], []], pa.large_list_view(pa.int32())),
        pa.array([[1.5, 2.5], None], pa.list_(pa.float32(), 2)),
        pa.array([{"a": 1, "b": "x"}, None], pa.struct({"a": pa.int64(), "b": pa.string()})),
        pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array(["a", None, "a"]).dictionary_encode(),
        pa.array([7, None, 7], pa.int64()).dictionary_encode(),
        run_ends,
        pa.UnionArray.from_sparse(kinds, [pa.array([1, 2]), pa.array(["a", "b"])]),
        pa.UnionArray.from_dense(kinds, offsets, [pa.array([1]), pa.array(["a"])]),
        pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()),
        pa.array(['{"a": 1}', None], pa.json_()),
        pa.array([1, None], pa.bool8()),
    ]
    return {_name(array.type): array for array in arrays}


def _name(kind: Any) -> str:
    text = str(kind).replace("extension<", "").removesuffix(">") if isinstance(kind, pa.BaseExtensionType) else str(kind)
    return re.sub(r"<(?:item|l): ", "<", text).replace("item: ", "")


def _polars(array: pa.Array) -> Any:
    return pl.from_arrow(pa.table({"x": array}))


def _pandas(array: pa.Array) -> Any:
    return pa.table({"x": array}).to_pandas()


def _duckdb(array: pa.Array) -> Any:
    return duckdb.connect().from_arrow(pa.table({"x": array}))


@dataclass(frozen=True)
class Library:
    """How a library makes a table of a column, which type that has, and its values as Python knows them.

    Attributes:
        packages: Those of the hook registry that it stands for.
        make: From an Arrow array to the library's table; None for a query over what pyarrow has stored.
        as_type: As what the table is read again.
        kind: The type of its column.
        values: The values of its column.
    """

    packages: tuple[str, ...]
    make: Callable[[pa.Array], Any] | None
    as_type: Any
    kind: Callable[[Any], str]
    values: Callable[[Any], list[Any]]


def _arrow_kind(table: pa.Table) -> str:
    return _name(table.schema.field(0).type)


LIBRARIES: Final[Mapping[str, Library]] = {
    "pyarrow": Library(("pyarrow",), lambda array: pa.table({"x": array}), pa.Table, _arrow_kind, lambda t: t["x"].to_pylist()),
    "polars": Library(("polars",), _polars, pl.DataFrame, lambda frame: str(frame["x"].dtype), lambda frame: frame["x"].to_list()),
    "pandas": Library(("pandas",), _pandas, pd.DataFrame, lambda frame: str(frame["x"].dtype), lambda frame: list(frame["x"])),
    "DuckDB relation": Library(
        ("duckdb",), _duckdb, duckdb.DuckDBPyRelation, lambda r: str(r.types[0]), lambda r: [row[0] for row in r.fetchall()]
    ),
    "SQL query": Library(("sqlalchemy", "builtins"), None, pa.Table, _arrow_kind, lambda t: t["x"].to_pylist()),
}


@dataclass(frozen=True)
class Cell:
    """What became of one type in one library.

    Attributes:
        given: The library's type before; "" if it has none for it.
        back: Its type after; "" if it was refused.
        form: In which other form values come back, for people; "" if they are equal.
        refused: What the error says.
    """

    given: str
    back: str = ""
    form: str = ""
    refused: str = ""

    def __str__(self) -> str:
        """Return the cell as the page shows it."""
        if not self.given:
            return "-"
        if self.refused:
            return "refused"
        text = f"`{self.back}`" if self.given == self.back else f"`{self.given}` → `{self.back}`"
        return (f"{text}, {self.form}" if self.form else text).replace("|", "\\|")


def measure(folder: Path, store: Mapping[str, Any], url: str, prefix: str) -> dict[str, dict[str, Cell]]:
    """Write and read every type by every library: type -> library -> cell."""
    places = {"{folder}": str(folder), "{url}": url, "{prefix}": prefix}

    def placed(text: str) -> str:
        for name, value in places.items():
            text = text.replace(name, value)
        return text

    args = {name: placed(value) for name, value in store["args"].items()}
    instance = {"table_store": {**store, "args": args}, "blob_store": {"class": "file", "args": {"base_path": f"{folder}/{{instance_id}}"}}}
    config = PipedagConfig({"instances": {"__any__": instance}}).get()
    hooks = Hooks()
    found: dict[str, dict[str, Cell]] = {}
    with open_session(config) as opened:
        capabilities = opened.tables.capabilities
        for name, array in samples().items():
            found[name] = {}
            arrow: StoredTable | None = None
            for title, library in LIBRARIES.items():
                with opened.tables.session("types: raw.types") as access:

                    def keep(obj: Any, inputs: Mapping[str, StoredTable], access: Any = access) -> StoredTable:
                        data = hooks.for_object(obj).write(obj, WriteContext(access, capabilities, "raw.types", ""))
                        places = {label: Placeholder(label, table) for label, table in inputs.items()}
                        prepared = access.prepare(data.text, places, frozenset()) if isinstance(data, QueryData) else None
                        written = access.write(data, Target("raw", 1, "t", "types"), prepared=prepared)
                        return StoredTable("t", "raw", 1, "t", written.location, written.schema, "t", written.rows, written.size)

                    def load(table: StoredTable, as_type: Any, access: Any = access) -> Any:
                        return hooks.for_type(as_type).read(table, as_type, ReadContext(access, capabilities, "t", "t"))

                    if library.make is None:
                        if arrow is None:
                            found[name][title] = Cell("")
                            continue
                        given, inputs = load(arrow, pa.Table), {"t": arrow}
                        obj: Any = "SELECT x FROM pipedag__in.t"
                    else:
                        try:
                            obj = library.make(array)
                        except (KeyboardInterrupt, SystemExit):
                            raise
                        except BaseException:  # noqa: BLE001 -- every library has its own errors for what it does not have, polars panics
                            found[name][title] = Cell("")
                            continue
                        given, inputs = obj, {}
                    kind, values = library.kind(given), None
                    try:
                        values = library.values(given)
                        stored = keep(obj, inputs)
                        if title == "pyarrow":
                            arrow = stored
                        back = load(stored, library.as_type)
                    except PipedagError as error:
                        found[name][title] = Cell(kind, refused=_advice(error))
                        continue
                    found[name][title] = Cell(kind, library.kind(back), _form(_plain(library.values(back)), _plain(values)))
    return found


def _form(back: list[Any], values: list[Any]) -> str:
    """Return in which other form values came back; "" if they are equal, "others" if they are not the same in any form."""
    if back == values:
        return ""
    forms = {
        "as JSON text": _same_as_json,
        "as text": _same_as_text,
        "as bytes": _same_as_bytes,
        "as an interval": _same_as_interval,
        "as the number of units": _same_as_number,
    }
    pairs = [(one, other) for one, other in zip(back, values, strict=True) if one is not None or other is not None]
    return next((form for form, same in forms.items() if all(same(one, other) for one, other in pairs)), "others")


def _same_as_json(back: Any, value: Any) -> bool:
    if not isinstance(back, str) or not isinstance(value, list | dict):
        return False
    pairs = isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value)
    return json.loads(back) == (dict(value) if pairs else value)


def _same_as_text(back: Any, value: Any) -> bool:
    return isinstance(back, str) and back == str(value)


def _same_as_bytes(back: Any, value: Any) -> bool:
    return isinstance(back, bytes) and back == getattr(value, "bytes", None)


def _same_as_interval(back: Any, value: Any) -> bool:
    if not isinstance(value, dt.timedelta) or not isinstance(back, list):
        return False
    months, days, nanoseconds = back
    return months == 0 and dt.timedelta(days=days, microseconds=nanoseconds / 1000) == value


def _same_as_number(back: Any, value: Any) -> bool:
    return isinstance(back, int) and isinstance(value, int | dt.timedelta)


def _advice(error: PipedagError) -> str:
    text = " ".join(str(error).partition("The query was:")[0].split())
    for start in ("Table 't' of task 'types' in stage 'raw': ", "Task 'raw.types': ", "Table 't' of task 'types' in stage 'raw' "):
        text = text.removeprefix(start)
    return text


def _plain(value: Any) -> Any:
    """Return a value so that equal ones compare as equal, whatever class they have."""
    if isinstance(value, np.ndarray | pl.Series):
        value = value.tolist() if isinstance(value, np.ndarray) else value.to_list()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    return value


def page(found: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> str:
    """Return the text of the page."""
    parts = [
        "# Which types come back as what",
        "",
        "This page is written by the test that checks it: `make types`. It is true for "
        + ", ".join(f"{name} {version(name)}" for name in VERSIONS)
        + ".",
        "",
        _LEGEND,
    ]
    for store, types in found.items():
        parts += ["", f"## {store}", "", f"| Arrow type | {' | '.join(LIBRARIES)} |", "|---" * (len(LIBRARIES) + 1) + "|"]
        parts += [f"| `{name}` | {' | '.join(str(cells[title]) for title in LIBRARIES)} |" for name, cells in types.items()]
        parts += ["", "What is refused, and what the error says:", ""]
        for name, cells in types.items():
            texts: dict[str, list[str]] = {}
            for title, cell in cells.items():
                if cell.refused:
                    texts.setdefault(cell.refused, []).append(title)
            parts += [f"* `{name}` ({', '.join(titles)}): {text}" for text, titles in texts.items()]
    return "\n".join(parts) + "\n"
