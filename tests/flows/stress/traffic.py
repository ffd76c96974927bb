"""Processes that write the same and different stages of one instance, and processes that read them, all at once."""

from __future__ import annotations

import time
import traceback
from itertools import count

import pyarrow as pa

from pipedag_core import Flow, SequentialEngine, Stage, ThreadEngine, materialize
from pipedag_core.config.wire import open_session
from pipedag_core.errors import StoredDataMissing
from pipedag_core.ports.data import Form, StoredTable
from pipedag_core.ports.events import Outcome
from tests.flows.crash.processes import fork_context

#: Tables of each stage that say which run wrote them.
MARKED = {"shared": {"left", "right", "asked"}, "other": {"near", "far"}}


def marked(marker):
    return pa.table({"marker": [marker] * 3})


@materialize(version="1.0")
def left(marker):
    return marked(marker)


@materialize
def right(marker):
    return marked(marker)


@materialize(lazy=True)
def asked(marker):
    from sqlalchemy import text

    return text(f"SELECT '{marker}' AS marker UNION ALL SELECT '{marker}'")


@materialize
def parity(number):
    # Equal to what an earlier run wrote, so it is pointed to, or clean-up is faster.
    return pa.table({"even": [number % 2 == 0]})


@materialize(version="1.0")
def near(marker):
    return marked(marker)


@materialize(version="1.0", input_type=pa.Table)
def far(table):
    return table


@materialize(input_type=pa.Table)
def mine(table, own):
    return {"taken": table, "own": marked(own)}


@materialize(input_type=pa.Table)
def first(table, place):
    wait_for_commits(place, "shared", 3)
    return table


@materialize(input_type=pa.Table)
def second(first, table, *others):
    seen = {marker for part in (first, table, *others) for marker in part["marker"].to_pylist()}
    assert len(seen) == 1, f"the inputs of one run changed under it: {seen}"
    return table


def wait_for_commits(place, stage, wanted):
    """Let others commit a stage so often that clean-up would take what was current before, if nobody held it; they may have ended, too."""
    with open_session(place.config) as session:
        before = session.catalog.current(stage)
        for _ in range(300):
            if session.catalog.current(stage) >= before + wanted:
                return
            time.sleep(0.01)


def make_flow(who, number, place=None):
    """Return the flow of a writer or a reader; its markers name both."""
    marker = f"{who}-{number}"
    with Flow("traffic") as flow:
        stages = [_shared, _other]
        made = {}
        # Writers open the stages in different orders.
        for declare in stages if number % 2 else reversed(stages):
            made.update(declare(marker, number))
        with Stage(f"of_{who}"):
            if who.startswith("reader"):
                once = first(made["left"], place)
                second(once, made["left"], made["right"], made["asked"])
            else:
                mine(made["left"], marker)
    return flow


def _shared(marker, number):
    with Stage("shared"):
        parity(number)
        return {"left": left(marker), "right": right(marker), "asked": asked(marker)}


def _other(marker, _):
    with Stage("other"):
        return {"far": far(near(marker))}


# --- those who write ----------------------------------------------------------------------------------------------------------------


def write(place, who, number, *, threads):
    """Run the whole flow once, check what it says of itself, and return stage -> the generation that it committed."""
    engine = ThreadEngine(max_workers=3) if threads else SequentialEngine()
    result = make_flow(who, number).run(config=place.config, orchestration_engine=engine)
    assert result.successful, result.exception
    commits = [report for report in result.reports if report.step.startswith("commit:")]
    assert {report.outcome for report in commits} == {Outcome.COMMITTED}
    taken = result.get(result.flow[f"of_{who}"]["mine"])
    assert set(taken["taken"]["marker"].to_pylist()) == set(taken["own"]["marker"].to_pylist()) == {f"{who}-{number}"}
    return {report.stage: int(report.reason.rpartition(" g")[2]) for report in commits}


def keep_writing(place, who, until, threads):
    """Write until the time comes, and return all generations that were committed."""
    done = []
    for number in count():
        if time.time() > until and number > 1:
            return done
        done.append(write(place, who, number, threads=threads))
    return None


# --- those who read -----------------------------------------------------------------------------------------------------------------


def keep_reading(place, who, until, threads):
    """Look at what is current, without holding it, until the time comes; return how many whole stages were seen."""
    seen = 0
    with open_session(place.config) as session:
        while time.time() <= until or seen < 10:
            for stage, entries in session.catalog.shown().items():
                seen += look(session, stage, entries)
            for stage in MARKED:
                number = session.catalog.current(stage)
                seen += look(session, stage, session.catalog.entries(stage, number))
    return seen


def look(session, stage, entries):
    """Check that the tables of a stage are of one run; return whether they could be seen at all before clean-up took them."""
    tables = {name: item for name, item in entries.items() if isinstance(item, StoredTable) and "marker" in item.schema.names}
    if not tables:
        # The generation has gone between asking for its number and for its names.
        assert stage in MARKED
        return False
    if stage in MARKED:
        assert set(tables) == MARKED[stage], (stage, set(tables))
    try:
        with session.tables.session("reader") as access:
            markers = {name: _markers(access, table) for name, table in tables.items()}
    except StoredDataMissing:
        generation = max(table.generation for table in tables.values())
        assert session.catalog.current(stage) != generation, f"a table of the current generation of {stage} is gone"
        return False
    if not stage.startswith("of_reader"):
        assert len(set().union(*markers.values())) == 1, f"stage {stage} shows tables of several runs: {markers}"
    return True


def _markers(access, table):
    with pa.RecordBatchReader.from_stream(access.read(table, Form.BATCHES).stream) as reader:
        return set(reader.read_all()["marker"].to_pylist())


def keep_running_on_inputs(place, who, until, threads):
    """Run a stage whose tasks read another stage one after the other, until the time comes; return how many runs there were."""
    for number in count():
        if time.time() > until and number > 1:
            return number
        flow = make_flow(who, 1, place)
        engine = ThreadEngine(max_workers=2) if threads else SequentialEngine()
        # The stage is wired with other markers than those of whoever wrote it last.
        result = flow.run(flow[f"of_{who}"], config=place.config, orchestration_engine=engine, ignore_position_hashes=True)
        assert result.successful, result.exception
        once, twice = (result.get(flow[f"of_{who}"][task]) for task in ("first", "second"))
        assert once.equals(twice)
    return None


# --- processes ----------------------------------------------------------------------------------------------------------------------


def _work(pipe, action, *args):
    try:
        pipe.send((True, action(*args)))
    except BaseException:  # noqa: BLE001 -- whatever it is, the test is told
        pipe.send((False, traceback.format_exc()))


class Worker:
    """A process that calls a function and tells what it returned.

    Args:
        action, args: The function, and what it gets.
    """

    def __init__(self, action, *args):
        context = fork_context()
        self._here, there = context.Pipe()
        self._name = f"{action.__name__}{args}"
        self._process = context.Process(target=_work, args=(there, action, *args))
        self._process.start()
        there.close()

    def result(self, timeout_s):
        """Return what it returned.

        Raises:
            AssertionError: It failed, or has not ended in time.
        """
        assert self._here.poll(timeout_s), f"{self._name} has not ended: it waits for somebody for ever"
        good, told = self._here.recv()
        self._process.join()
        assert good, f"{self._name}:\n{told}"
        return told

    def end(self):
        """Kill it if it still lives."""
        self._process.kill()
        self._process.join()
