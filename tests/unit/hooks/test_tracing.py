from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipedag_core.arrow_schema import from_arrow
from pipedag_core.errors import TracingRefused
from pipedag_core.hooks.registry import Hooks
from pipedag_core.ports.hooks import TracingHook

SCHEMA = from_arrow(pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())]))
TYPES = [pl.LazyFrame, duckdb.DuckDBPyRelation]


def hook(as_type):
    found = Hooks().for_type(as_type)
    assert isinstance(found, TracingHook)
    return found


def empty(as_type, label="flights", schema=SCHEMA):
    return hook(as_type).empty(schema, as_type, label)


def trace(obj):
    return Hooks().for_object(obj).trace(obj)


# --- expressions: a small language of steps that both libraries understand, drawn at random

literals = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.sampled_from("aA 'é")
)  # fmt: skip
steps = st.lists(
    st.one_of(
        st.tuples(st.just("filter"), st.sampled_from(["a", "c"]), st.integers(-3, 3)),
        st.tuples(st.just("literal"), st.sampled_from(["x", "y"]), literals),
        st.tuples(st.just("sort"), st.sampled_from(["a", "b"]), st.booleans()),
        st.tuples(st.just("head"), st.just(""), st.integers(1, 5)),
        st.tuples(st.just("join"), st.sampled_from(["a", "b"]), st.sampled_from(["planes", "flights"])),
    ),
    max_size=4,
)


def polars_plan(program):
    frame = empty(pl.LazyFrame)
    for verb, name, value in program:
        match verb:
            case "filter":
                frame = frame.filter(pl.col(name) > value)
            case "literal":
                frame = frame.with_columns(pl.lit(value).alias(name))
            case "sort":
                frame = frame.sort(name, descending=value)
            case "head":
                frame = frame.head(value)
            case "join":
                frame = frame.join(empty(pl.LazyFrame, value), on=name)
    return frame


def duckdb_plan(program):
    relation = empty(duckdb.DuckDBPyRelation)
    for verb, name, value in program:
        match verb:
            case "filter":
                relation = relation.filter(f"{name} > {value}")
            case "literal":
                relation = relation.select(duckdb.StarExpression(), duckdb.ConstantExpression(value).alias(name))
            case "sort":
                relation = relation.order(f"{name} {'desc' if value else 'asc'}")
            case "head":
                relation = relation.limit(value)
            case "join":
                relation = relation.join(empty(duckdb.DuckDBPyRelation, value).set_alias("o"), "a", how="semi" if name == "a" else "anti")
    return relation


PLANS = [polars_plan, duckdb_plan]


def written(program):
    # repr tells 1 from 1.0 and from True, and NaN equals itself in text.
    return repr(program)


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=60, deadline=None)
@given(program=steps)
def test_the_same_expression_built_again_gives_the_same_trace(plan, program):
    assert trace(plan(program)) == trace(plan(program))


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=150, deadline=None)
@given(one=steps, other=steps)
def test_different_expressions_give_different_traces(plan, one, other):
    assert (trace(plan(one)) == trace(plan(other))) == (written(one) == written(other))


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=150, deadline=None)
@given(one=literals, other=literals)
def test_a_changed_literal_changes_the_trace(plan, one, other):
    same = written(one) == written(other)
    assert (trace(plan([("literal", "x", one)])) == trace(plan([("literal", "x", other)]))) == same


@pytest.mark.parametrize("as_type", TYPES)
def test_a_trace_names_its_inputs_and_the_librarys_version(as_type):
    version = pl.__version__ if as_type is pl.LazyFrame else duckdb.__version__
    assert version in trace(empty(as_type, "planes"))
    assert "planes" in trace(empty(as_type, "planes"))


@pytest.mark.parametrize("as_type", TYPES)
def test_swapped_inputs_change_the_trace(as_type):
    def joined(left, right):
        one, other = empty(as_type, left), empty(as_type, right)
        return one.join(other, on="a") if as_type is pl.LazyFrame else one.join(other.set_alias("o"), "a")

    assert trace(joined("x", "y")) != trace(joined("y", "x"))
    assert trace(joined("x", "y")) != trace(joined("x", "x"))


@pytest.mark.parametrize("as_type", TYPES)
def test_an_empty_input_has_the_columns_and_types_of_the_stored_table(as_type):
    relation = empty(as_type)
    if as_type is pl.LazyFrame:
        assert relation.collect_schema() == pl.Schema({"a": pl.Int64, "b": pl.String, "c": pl.Float64})
    else:
        assert dict(zip(relation.columns, map(str, relation.types), strict=True)) == {"a": "BIGINT", "b": "VARCHAR", "c": "DOUBLE"}


@pytest.mark.parametrize("as_type", TYPES)
def test_a_changed_schema_of_an_input_changes_what_depends_on_it(as_type):
    other = from_arrow(pa.schema([("a", pa.int64()), ("b", pa.string()), ("d", pa.float64())]))
    if as_type is pl.LazyFrame:
        assert trace(empty(as_type)) != trace(empty(as_type, schema=other))
    else:
        assert empty(as_type, "one").columns != empty(as_type, "other", other).columns


@pytest.mark.parametrize("label", ['we"ird', "tbls.flights", "order", "a b", "ä"])
@pytest.mark.parametrize("as_type", TYPES)
def test_any_label_can_be_traced(as_type, label):
    assert trace(empty(as_type, label)) != trace(empty(as_type, "flights"))


def test_labels_and_columns_with_dots_stay_apart():
    def of(label, column):
        return trace(empty(pl.LazyFrame, label, from_arrow(pa.schema([(column, pa.int8())]))).rename({column: "x"}))

    assert of("a", "b.c") != of("a.b", "c")


SCRIPT = """
    import duckdb, polars as pl, pyarrow as pa
    from pipedag_core.arrow_schema import from_arrow
    from pipedag_core.hooks.registry import Hooks
    schema = from_arrow(pa.schema([("a", pa.int64()), ("b", pa.string())]))
    hooks = Hooks()
    def empty(kind, label): return hooks.for_type(kind).empty(schema, kind, label)
    lf = empty(pl.LazyFrame, "x").filter(pl.col("a").is_in([1, 2, 3])).cache()
    small = pl.LazyFrame({"a": [1, 2, None], "z": ["x", None, "z"]})
    lf = lf.join(small, on="a").join(lf.group_by("b").agg(pl.len()), on="b").with_columns(pl.lit(pl.Series([1.5])).first().alias("s"))
    print(hooks.for_object(lf).trace(lf))
    r = empty(duckdb.DuckDBPyRelation, "x")
    r = r.query("q", "select a, b from q where b = 'A'").filter("a > 1").union(empty(duckdb.DuckDBPyRelation, "y").project("a, b").distinct())
    print(hooks.for_object(r).trace(r))
"""


def test_traces_are_the_same_in_every_process():
    def run(seed):
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], check=True, capture_output=True, text=True, env=env).stdout

    first = run("1")
    assert first.count("\n") >= 2
    assert first == run("2")


# --- polars


def test_a_constant_frame_counts_by_its_content():
    def joined(value):
        return trace(empty(pl.LazyFrame).join(pl.LazyFrame({"a": list(range(1000)), "z": [*range(999), value]}), on="a"))

    assert joined(1) == joined(1)
    assert joined(1) != joined(2)
    assert joined(1) != joined(None)


def test_a_long_list_of_constants_counts_by_its_content():
    def isin(last):
        return trace(empty(pl.LazyFrame).filter(pl.col("a").is_in([*range(1000), last])))

    assert isin(5000) == isin(5000)
    assert isin(5000) != isin(5001)


@settings(max_examples=100, deadline=None)
@given(one=st.lists(st.integers(0, 260) | st.none(), max_size=3), other=st.lists(st.integers(0, 260) | st.none(), max_size=3))
def test_constant_series_count_by_their_content(one, other):
    def plan(values):
        return trace(empty(pl.LazyFrame).select(pl.lit(pl.Series("s", values, dtype=pl.Int64))))

    assert (plan(one) == plan(other)) == (one == other)


def test_a_shared_part_of_a_plan_counts_like_a_repeated_one():
    shared = empty(pl.LazyFrame).filter(pl.col("a") > 1)
    again = empty(pl.LazyFrame).filter(pl.col("a") > 1)
    assert trace(shared.join(shared, on="a")) == trace(shared.join(again, on="a"))


def test_a_plan_of_many_self_joins_is_traced_in_no_time():
    frame = empty(pl.LazyFrame)
    for _ in range(60):
        frame = frame.join(frame, on="a", how="semi")
    assert trace(frame)


def test_a_frame_that_was_computed_from_constants_counts_by_its_content():
    assert trace(pl.DataFrame({"a": [1]})) != trace(pl.DataFrame({"a": [2]}))


def test_columns_may_be_called_like_parts_of_plans():
    names = ["Scan", "PythonScan", "AnonymousFunction", "idx", "version", "df"]
    schema = from_arrow(pa.schema([(name, pa.int64()) for name in names]))
    assert trace(empty(pl.LazyFrame, schema=schema).join(pl.LazyFrame({name: [1] for name in names}), on=names))


CSV = "a\n1\n"
OPAQUE = {
    "map_elements": lambda t: t.select(pl.col("a").map_elements(lambda x: x, return_dtype=pl.Int64)),
    "map_batches of a column": lambda t: t.select(pl.col("a").map_batches(lambda x: x, return_dtype=pl.Int64)),
    "map_batches": lambda t: t.map_batches(lambda frame: frame),
    "map_groups": lambda t: t.group_by("a").map_groups(lambda frame: frame, schema=None),
    "rolling_map": lambda t: t.select(pl.col("a").rolling_map(lambda series: 1, 2)),
    "fold": lambda t: t.select(pl.fold(0, lambda x, y: x + y, [pl.col("a")])),
    "name.map": lambda t: t.select(pl.col("a").name.map(str.upper)),
    "map_fields": lambda t: t.select(pl.struct("a").name.map_fields(str.upper)),
    "pipe_with_schema": lambda t: t.pipe_with_schema(lambda frame, schema: frame),
    "inspect": lambda t: t.inspect(),
    "deep inside": lambda t: t.join(
        t.select(pl.when(pl.col("a") > pl.col("a").map_batches(lambda x: x, return_dtype=pl.Int64)).then("a")), on="a"
    ),
    "defer": lambda t: pl.defer(lambda: pl.DataFrame({"a": [1]}), schema={"a": pl.Int64}),
    "another source": lambda t: pl.scan_pyarrow_dataset(pyarrow.dataset.dataset(pa.table({"a": [1]}))),
    "sink": lambda t: t.sink_parquet("x.parquet", lazy=True),
    "scan_parquet": lambda t: pl.scan_parquet("x.parquet"),
    "scan_csv": lambda t: t.join(pl.scan_csv("x.csv"), on="a"),
    "scan_ipc": lambda t: pl.scan_ipc("x.arrow"),
    "scan_ndjson": lambda t: pl.scan_ndjson("x.ndjson"),
    "sql": lambda t: t.sql("SELECT a FROM self UNION ALL SELECT a FROM READ_CSV ('x.csv')"),
    "objects": lambda t: pl.LazyFrame({"a": pl.Series([object()], dtype=pl.Object)}),
}


@pytest.mark.filterwarnings("ignore::polars.exceptions.PolarsInefficientMapWarning")
@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_seen_into_is_refused_with_a_proposal(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text(CSV)
    with pytest.raises(TracingRefused, match=r"AUTO_VERSION.*(?s:.*)version='\.\.\.'"):
        trace(OPAQUE[name](empty(pl.LazyFrame)))


EXECUTING = {
    "collect": lambda t: t.collect(),
    "count": lambda t: t.select(pl.len()).collect(),
    "streaming": lambda t: t.filter(pl.col("a") > 1).collect(engine="streaming"),
    "sink": lambda t: t.sink_parquet("never.parquet"),
    "describe": lambda t: t.describe(),
    "collect_all": lambda t: pl.collect_all([t]),
}


@pytest.mark.parametrize("name", EXECUTING)
def test_executing_a_frame_without_data_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TracingRefused, match="executes a query"):
        EXECUTING[name](empty(pl.LazyFrame))


def test_an_eager_frame_cannot_be_traced():
    with pytest.raises(TracingRefused, match=r"input_type=pl\.LazyFrame"):
        hook(pl.DataFrame).empty(SCHEMA, pl.DataFrame, "flights")


def test_a_python_function_that_is_run_while_wiring_is_seen_through():
    assert trace(empty(pl.LazyFrame).pipe(lambda t: t.head(1))) == trace(empty(pl.LazyFrame).head(1))


# --- DuckDB

FOREIGN = {
    "csv by name": lambda t: t.query("q", "SELECT * FROM 'x.csv'"),
    "csv in a join": lambda t: t.query("q", "SELECT * FROM q WHERE a IN (SELECT a FROM read_csv('x.csv'))"),
    "csv in a filter": lambda t: t.filter("a IN (FROM 'x.csv')"),
    "glob": lambda t: t.query("q", "FROM glob('*')"),
    "data frame": lambda t: t.query("q", "FROM q JOIN local_frame USING (a)"),
    "arrow table": lambda t: t.query("q", "FROM local_arrow"),
    "map": lambda t: t.map(lambda frame: frame, schema={"a": "BIGINT"}),
    "catalog": lambda t: t.query("q", "FROM information_schema.tables"),
    "settings": lambda t: t.query("q", "FROM duckdb_settings()"),
    "describe": lambda t: t.query("q", "DESCRIBE SELECT * FROM q"),
    "parameters": lambda t: duckdb.connect().sql("SELECT * FROM range(3) AS r(a) WHERE a = ?", params=[1]),
    "named parameters": lambda t: duckdb.connect().sql("SELECT $x AS a", params={"x": 1}),
    "view": lambda t: (t.create_view("other"), t.query("q", "FROM other"))[1],
    "another connection": lambda t: duckdb.connect().values([1]),
    "another file": lambda t: duckdb.connect().read_csv("x.csv"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_relations_over_anything_but_inputs_are_refused(name, tmp_path, monkeypatch):
    local_frame, local_arrow = pd.DataFrame({"a": [1]}), pa.table({"a": [1]})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text(CSV)
    t = empty(duckdb.DuckDBPyRelation)
    if name == "data frame":
        relation = t.query("q", "FROM q JOIN local_frame USING (a)")
    elif name == "arrow table":
        relation = t.query("q", "FROM local_arrow")
    else:
        relation = FOREIGN[name](t)
    assert len(local_frame) == len(local_arrow)
    with pytest.raises(TracingRefused, match=r"version='\.\.\.'"):
        trace(relation)


RELATIONS = {
    "cte": lambda t: t.query("q", "WITH w AS (SELECT a FROM q) SELECT * FROM w JOIN q USING (a)"),
    "recursion": lambda t: t.query("q", "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r, q"),
    "range": lambda t: t.query("q", "FROM q, range(3)"),
    "unnest": lambda t: t.query("q", "SELECT unnest([1, 2]), a FROM q"),
    "union": lambda t: t.union(t),
    "window": lambda t: t.project("row_number() OVER (PARTITION BY b ORDER BY a) AS n"),
    "values": lambda t: t.query("q", "FROM q JOIN (VALUES (1)) v(a) USING (a)"),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_of_inputs_only_are_traced(name):
    one, other = (trace(RELATIONS[name](empty(duckdb.DuckDBPyRelation))) for _ in range(2))
    assert one == other
    assert one != trace(empty(duckdb.DuckDBPyRelation))


def test_case_and_spaces_inside_literals_count():
    traces = {trace(empty(duckdb.DuckDBPyRelation).filter(f"b = {text}")) for text in ("'A'", "'a'", "'A '", "' A'")}
    assert len(traces) == 4


def test_generated_names_do_not_count():
    def nested():
        inner = empty(duckdb.DuckDBPyRelation).query("q", "SELECT a FROM q").filter("a > 1")
        return trace(inner.join(empty(duckdb.DuckDBPyRelation, "y").project("a").distinct().set_alias("z"), "a"))

    assert nested() == nested()


@pytest.mark.parametrize(
    "execute", [lambda t: t.fetchall(), len, lambda t: t.df(), lambda t: t.aggregate("count(*)").fetchall(), repr, lambda t: t.pl()]
)
def test_executing_a_relation_without_data_fails_and_says_why(execute):
    with pytest.raises(duckdb.Error, match=r"AUTO_VERSION found that the task executes a relation.*version='\.\.\.'"):
        execute(empty(duckdb.DuckDBPyRelation))
