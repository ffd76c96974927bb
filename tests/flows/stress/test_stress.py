"""Writers and readers of the same and of different stages, at the same time.

`pytest` lets them work for 10 seconds, `make stress` for 120.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from pipedag_core.catalogs.owner import lives
from pipedag_core.config.wire import open_session
from pipedag_core.run.doctor import examine
from tests.flows.stress import traffic

IS_LONG = "PIPEDAG_LONG_TESTS" in os.environ
SECONDS = 120 if IS_LONG else 10

#: Seconds after which somebody who should have ended counts as waiting for ever; far more than the slowest machine needs.
PATIENCE_S = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 2 * PATIENCE_S)]


def test_writers_and_readers_do_not_disturb_each_other(place):
    committed = [traffic.write(place, "setup", 0, threads=False)]
    until = time.time() + SECONDS
    writers = [traffic.Worker(traffic.keep_writing, place, f"writer{i}", until, i % 2 == 0) for i in range(4)]
    readers = [traffic.Worker(traffic.keep_reading, place, f"looker{i}", until, False) for i in range(2)]
    runners = [traffic.Worker(traffic.keep_running_on_inputs, place, f"reader{i}", until, i == 0) for i in range(2)]
    try:
        written = [writer.result(SECONDS + PATIENCE_S) for writer in writers]
        seen = [reader.result(PATIENCE_S) for reader in readers]
        runs = [runner.result(PATIENCE_S) for runner in runners]
    finally:
        for worker in (*writers, *readers, *runners):
            worker.end()
    assert all(seen)
    assert all(runs)
    assert all(written)
    committed += [generations for one in written for generations in one]
    with open_session(place.config) as session:
        for stage in ("shared", "other"):
            # Every commit has its own number, and none is missing: nobody's was lost.
            assert sorted(generations[stage] for generations in committed) == list(range(1, len(committed) + 1))
            assert session.catalog.current(stage) == len(committed)
        for number, one in enumerate(written):
            assert session.catalog.current(f"of_writer{number}") == len(one)
        counts = Counter(row.state for row in session.catalog.generations())
        assert counts["open"] == 0
        # And when all have gone, nothing of theirs lies about.
        found = examine(session, lives, grace_s=0)
        assert found.findings == []
        assert found.leases == []
