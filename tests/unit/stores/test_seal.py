"""A file is still the one that was written, or it is not: what a seal notices, and when it reads."""

from __future__ import annotations

import os
import random

import pytest

from pipedag_core.stores import seal
from pipedag_core.stores.seal import Inspector

SIZES = [40, seal.SMALL, seal.SMALL * 3]


@pytest.fixture(params=SIZES)
def written(tmp_path, request):
    path = tmp_path / "t.parquet"
    # The end says that eight bytes belong to it, as that of a Parquet file does.
    path.write_bytes(random.Random(1).randbytes(request.param - 8) + (8).to_bytes(4, "little") + b"PAR1")
    return path


def rewrite(path, raw, *, keep_time=False):
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(raw)
    os.utime(path, ns=times if keep_time else (times[0], times[1] + 1))


def problem(path, made, size=None, **options):
    return Inspector().problem(path, size or path.stat().st_size, made, **options)


def test_a_file_that_nobody_touched_is_whole_and_is_not_read(written):
    made = seal.make(written)
    opened = []
    inspector = Inspector(lambda path: opened.append(path) or path.open("rb"))
    assert inspector.problem(written, written.stat().st_size, made) is None
    assert opened == []


def test_a_copy_is_whole_and_is_read_once(written):
    made = seal.make(written)
    rewrite(written, written.read_bytes())
    opened = []
    inspector = Inspector(lambda path: opened.append(path) or path.open("rb"))
    for _ in range(3):
        assert inspector.problem(written, written.stat().st_size, made) is None
    assert opened == [written]


def test_another_file_of_equal_size_is_noticed(written):
    made = seal.make(written)
    rewrite(written, random.Random(2).randbytes(written.stat().st_size))
    assert "another one" in problem(written, made)


def test_a_bad_disk_is_noticed_once_something_cannot_be_read(written):
    made = seal.make(written)
    rewrite(written, bytes(written.stat().st_size), keep_time=True)
    assert problem(written, made) is None
    assert "changed in place" in problem(written, made, thorough=True)


def test_a_file_that_is_cut_short_or_gone_is_noticed_without_a_seal_too(written):
    size = written.stat().st_size
    written.write_bytes(b"PAR1")
    assert f"instead of {size}" in problem(written, None, size)
    written.unlink()
    assert "cannot be reached" in problem(written, None, size)


def test_of_a_file_without_a_seal_only_the_size_is_known(written):
    rewrite(written, bytes(written.stat().st_size))
    assert problem(written, None) is None
