"""A store in a folder that cannot be written: an error with the path, and what is there can still be read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("read_only_worker.py")


@pytest.fixture
def run(tmp_path):
    """Runs the worker in a file system of its own, since permissions mean nothing to the super-user."""
    mounting = sys.platform == "linux" and shutil.which("unshare") is not None
    space = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    tried = subprocess.run([*space, "true"], capture_output=True, text=True, check=False) if mounting else None
    if (tried is None or tried.returncode) and os.geteuid() == 0:
        pytest.skip("the super-user may write everywhere, and no file system of its own can be mounted here")

    def go(mounted: str, permissions: str):
        prefix, command = (space, mounted) if tried is not None and not tried.returncode else ([], permissions)
        done = subprocess.run([*prefix, sys.executable, str(WORKER), str(tmp_path), command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return go


def test_a_read_only_store_is_an_error_with_its_path_and_can_be_read(run, tmp_path):
    first, second, read = run(f"mount -o remount,ro '{tmp_path}'", f"chmod -R a-w '{tmp_path}'")
    assert first["error"] == "NoneType"
    assert second["error"] == "CatalogError"
    assert all(word in second["text"] for word in (str(tmp_path), "catalog.sqlite", "be written"))
    assert read["rows"] == [{"x": "1"}]


def test_a_read_only_folder_of_a_stage_is_an_error_that_says_where(run, tmp_path):
    raw = tmp_path / "default" / "raw"
    first, second, read = run(f"mount --bind '{raw}' '{raw}' && mount -o remount,bind,ro '{raw}'", f"chmod -R a-w '{raw}'")
    assert first["error"] == "NoneType"
    assert second["error"] == "StoreError"
    assert all(word in second["text"] for word in ("shop", "'raw'", "'table'", str(tmp_path), "Check room and rights"))
    assert read["rows"] == [{"x": "1"}]
