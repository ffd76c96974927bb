"""What a catalog promises to many threads and processes at once: nobody waits for ever, nothing is lost."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from pipedag_core.ports.catalogs import Catalog, Opened, Retention, TaskKey
from pipedag_core.testing.catalog_samples import Worker

_ROUNDS = 12
_WORKERS = 3


def _commit_again_and_again(opener: Callable[..., Any], who: str, catalog: Catalog | None = None) -> int:
    """Write a stage that all write and one that is this worker's own, and return the number of commits."""
    used: Catalog = catalog or opener(clock=time.time)
    commits = 0
    for number in range(_ROUNDS):
        worker = Worker(used, f"{who}-{number}").begin()
        for stage in ("shared", f"own_{who}"):
            while not isinstance(opened := used.open_stages(worker.run_id, [stage], ["shared"], scratch=False), Opened):
                time.sleep(0.002)
            worker.keys.update(opened.generations)
            for task in ("t", "u"):
                worker.record(stage, task, f"{who}-{number}-{stage}-{task}")
            assert TaskKey(stage, "t") in used.inputs(worker.run_id, [TaskKey(stage, "t"), TaskKey("shared", "u")])
            commits += worker.commit(stage)
        used.finish_run(worker.run_id, "succeeded")
        used.expire(Retention(committed=2, failed=1, minimum_age_s=0))
    if catalog is None:
        used.close()
    return commits


class HammerContract:
    """Threads and processes."""

    @pytest.mark.parametrize("kind", ["threads of one catalog", "threads with their own", "processes"])
    def test_many_writers_neither_block_each_other_for_ever_nor_lose_a_commit(self, opener: Callable[..., Any], kind: str) -> None:
        shared: Catalog = opener(clock=time.time)
        pool: Executor
        if kind == "processes":
            pool = ProcessPoolExecutor(_WORKERS, mp_context=multiprocessing.get_context("spawn"))
        else:
            pool = ThreadPoolExecutor(_WORKERS)
        with pool:
            catalog = shared if kind == "threads of one catalog" else None
            futures = [pool.submit(_commit_again_and_again, opener, f"w{i}", catalog) for i in range(_WORKERS)]
            assert [future.result() for future in futures] == [2 * _ROUNDS] * _WORKERS
        assert shared.current("shared") == _WORKERS * _ROUNDS
        assert [shared.current(f"own_w{i}") for i in range(_WORKERS)] == [_ROUNDS] * _WORKERS
        assert all(len(entries) == 2 for entries in shared.shown().values())
        assert list(shared.leases()) == []
        shared.close()
