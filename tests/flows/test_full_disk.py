"""A disk that is full: an error that says so, readers keep what they have, nothing is left behind, and the next run with more room goes well."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("full_disk_worker.py")

#: A file system of 64 MB that nobody but the process sees; allowed to everybody on most systems.
MOUNTED = 'mount -t tmpfs -o size=64m tmpfs "$1" && shift && exec "$@"'


def checked(command, text=""):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [attempt["kind"] for attempt in attempts] == ["polars", "lazy", "pandas", "pyarrow", "query", "polars"]
    for attempt in attempts[:-1]:
        assert attempt["error"] == "StoreError", attempt
        assert all(word in attempt["text"] for word in ("shop", "'raw'", "'table'", "Check room", text)), attempt
        # Readers still see the small table.
        assert (attempt["rows"], attempt["left"]) == (1, 0), attempt
        assert (attempt["again"], attempt["rows_again"]) == ("None", 1_000_000), attempt
    no_catalog = attempts[-1]
    assert no_catalog["error"] == "CatalogError", no_catalog
    assert "full" in no_catalog["text"]
    assert (no_catalog["rows"], no_catalog["left"]) == (1_000_000, 0)
    assert (no_catalog["again"], no_catalog["rows_again"]) == ("None", 1)


def test_a_full_disk_is_an_error_and_nothing_is_lost(tmp_path):
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("only Linux lets a process mount a small file system of its own")
    space = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNTED, "sh", str(tmp_path)]
    tried = subprocess.run([*space, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system does not let a process mount a file system of its own: {tried.stderr.strip()}")
    checked([*space, sys.executable, str(WORKER), "tmpfs", str(tmp_path)], "No space left")


def test_a_limit_on_the_size_of_files_is_an_error_and_nothing_is_lost(tmp_path):
    if sys.platform == "win32":
        pytest.skip("Windows has no limit on the size of a process's files")
    checked([sys.executable, str(WORKER), "rlimit", str(tmp_path)], "File too large")
