"""Real processes that start as fast as a fork, without what a fork of the test's own process would drag along."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver


def fork_context():
    """Return a context whose processes are forked from a server that has imported everything, and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.flows.crash.warm"])
    before = os.environ.get("PYTHONPATH")
    # The server imports from where the tests do.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
