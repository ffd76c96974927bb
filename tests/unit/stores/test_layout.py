from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedag_core.errors import FlowError, StoreError
from pipedag_core.stores.layout import Layout, place


def test_a_place_is_given_out_once(tmp_path):
    layout = Layout(tmp_path)
    assert [layout.claim("s", 3, "t") for _ in range(3)] == ["s/g3/t.parquet", "s/g3/t.a2.parquet", "s/g3/t.a3.parquet"]


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
def test_every_location_leads_back_to_its_file_below_the_base(tmp_path_factory, stage, table):
    layout = Layout(tmp_path_factory.getbasetemp() / "layout")
    location = layout.claim(stage, 1, table)
    path = layout.path(location)
    assert path.is_file()
    assert path.resolve().parent.parent.parent == layout.base
    assert [(item.location, item.stage, item.generation) for item in layout.deposits()] == [(location, stage, 1)]
    layout.remove(location)
    assert not path.exists()


@pytest.mark.parametrize(
    "location",
    [
        "",
        "x",
        "/etc/passwd",
        "../s/g1/t.parquet",
        "s/../g1/t.parquet",
        "s/g1/../t.parquet",
        "s/g1/.parquet",
        "s/g1/t.duckdb",
        "s/gx/t.parquet",
        "s/g1/u/t.parquet",
        "s\\..\\g1/g1/t.parquet",
        "c:/g1/t.parquet",
        "/s/g1/t.parquet",
        "s/g1/t.parquet\n",
        "./g1/t.parquet",
    ],
)
def test_a_location_that_is_none_of_ours_is_refused(tmp_path, location):
    with pytest.raises(StoreError, match="catalog"):
        Layout(tmp_path).path(location)


def test_empty_folders_go_with_their_last_file_and_others_stay(tmp_path):
    layout = Layout(tmp_path)
    first, second = layout.claim("s", 1, "a"), layout.claim("s", 1, "b")
    layout.remove(first)
    assert (tmp_path / "s/g1").is_dir()
    layout.remove(second)
    layout.remove(second)
    assert list(tmp_path.iterdir()) == []


def test_work_files_are_told_and_removed_and_what_is_not_ours_is_neither(tmp_path):
    layout = Layout(tmp_path)
    ours = [".overflow/7", f".{'0a' * 16}.duckdb", f".{'0b' * 16}.duckdb.wal"]
    others = ["explore.duckdb", ".explore", "catalog.sqlite", ".mine.duckdb", "s/g1/notes.txt", "s/x/t.parquet", ".overflow/mine"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert sorted(item.location for item in layout.deposits()) == sorted(ours)
    for name in ours:
        layout.remove(name)
    for name in others:
        with pytest.raises(StoreError):
            layout.remove(name)
        assert (tmp_path / name).exists()


def test_the_base_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    layout = Layout("tables")
    monkeypatch.chdir("/")
    assert layout.base == (tmp_path / "tables").resolve()


def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path):
    with pytest.raises(FlowError, match="Shorten"):
        Layout(tmp_path).claim("s", 1, "x" * 250)


def test_patterns_and_quotes_in_a_path_are_taken_literally(tmp_path):
    assert place(tmp_path / "it's [a]*?.parquet").startswith(f"read_parquet('{tmp_path.as_posix()}/it''s [[]a][*][?].parquet'")
