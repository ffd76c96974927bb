"""A small pipeline whose every table says which run wrote it, and what a reader sees of it."""

from __future__ import annotations

import pyarrow as pa

from pipedag_core import Blob, Flow, SequentialEngine, Stage, Table, ThreadEngine, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.ports.data import BatchSource, Form, StoredTable

#: Stage -> readable names of its tables; `inner` is committed with `outer`.
TABLES = {"raw": {"first", "second", "query"}, "outer": {"copied", "joined"}, "inner": {"deep"}, "free": {"alone"}}


@materialize(version="1.0", nout=3)
def load(marker):
    first, second = (pa.table({"marker": [marker] * count}) for count in (3, 5))
    return Table(first, "first"), Table(second, "second"), Blob({"marker": marker}, "blob")


@materialize(lazy=True)
def query(marker):
    from sqlalchemy import text

    return text(f"SELECT CAST({int(marker)} AS BIGINT) AS marker UNION ALL SELECT {int(marker)}")


@materialize(version="1.0", input_type=pa.Table)
def copied(table):
    return table


@materialize(version="1.0", input_type=pa.Table)
def deep(table, blob):
    assert set(table["marker"].to_pylist()) == {blob["marker"]}
    return table.slice(0, 1)


@materialize(input_type=pa.Table)
def joined(*tables):
    return pa.concat_tables([table.select(["marker"]).cast(pa.schema([("marker", pa.int64())])) for table in tables])


@materialize
def alone(marker):
    return pa.table({"marker": [marker]})


def make_flow(marker: int) -> Flow:
    """Return the flow in which everything carries a marker."""
    with Flow("crash") as flow:
        with Stage("raw"):
            first, second, blob = load(marker)
            third = query(marker)
        with Stage("outer"):
            near = copied(first)
            with Stage("inner"):
                far = deep(second, blob)
            joined(near, far, third)
        with Stage("free"):
            alone(marker)
    return flow


def run(place, marker, *, threads=False, observers=()):
    """Run the flow and return its result."""
    engine = ThreadEngine(max_workers=2) if threads else SequentialEngine()
    return make_flow(marker).run(config=place.config, orchestration_engine=engine, observers=observers)


def markers_in(session, stages):
    """Return stage -> readable name -> the markers in its rows, for tables of the catalog."""
    with session.tables.session("reader") as access:
        return {
            stage: {name: _markers(access, table) for name, table in entries.items() if isinstance(table, StoredTable)}
            for stage, entries in stages.items()
        }


def _markers(access, table):
    source = access.read(table, Form.BATCHES)
    assert isinstance(source, BatchSource)
    with pa.RecordBatchReader.from_stream(source.stream) as reader:
        return set(reader.read_all()["marker"].to_pylist())


def read(config):
    """Return stage -> the one marker of the generation that readers see, and check that it is whole."""
    with open_session(config) as session:
        found = markers_in(session, session.catalog.shown())
    whole = {}
    for stage, tables in found.items():
        assert set(tables) == TABLES[stage], (stage, tables)
        markers = set().union(*tables.values())
        assert len(markers) == 1, f"stage {stage} shows tables of several runs: {tables}"
        whole[stage] = markers.pop()
    return whole
