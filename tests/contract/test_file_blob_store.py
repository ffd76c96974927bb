"""The file blob store keeps the promises of all blob stores, and a few of its own."""

from __future__ import annotations

import hashlib

import pytest

from pipedag_core.blobs.file import FileBlobStore
from pipedag_core.errors import FlowError, MaterializationError, StoreError
from pipedag_core.testing.blob_store_contract import BlobStoreContract


class Stubborn:
    def __reduce__(self):
        raise ZeroDivisionError("no")


class Gone:
    pass


class TestFileBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileBlobStore(tmp_path / "not there yet")

    @pytest.fixture
    def damage(self, tmp_path):
        return lambda location, raw: (tmp_path / "not there yet" / location).write_bytes(raw)

    def test_blobs_lie_in_folders_of_their_stage_and_generation(self, store):
        assert [store.write(b"x", "pickle", "s", 3, "model") for _ in range(3)] == [
            "s/g3/model.pickle",
            "s/g3/model.a2.pickle",
            "s/g3/model.a3.pickle",
        ]

    def test_every_file_stays_below_the_base_folder(self, store, tmp_path):
        for stage, name in (("..", ".."), ("../..", "../../x"), ("/", "/etc/x")):
            store.write(b"x", "pickle", stage, 1, name)
        assert {path.name for path in tmp_path.iterdir()} == {"not there yet"}

    @pytest.mark.parametrize("location", ["../x", "/etc/passwd", "s/../../x", ""])
    def test_a_location_outside_of_the_base_folder_is_refused(self, store, location):
        with pytest.raises(StoreError, match="outside"):
            store.read(location, "pickle", "")

    def test_a_name_that_is_too_long_for_a_file_is_refused(self, store):
        with pytest.raises(FlowError, match="Shorten it"):
            store.write(b"x", "pickle", "s", 1, "ä" * 200)

    def test_the_folder_of_a_generation_goes_with_its_last_blob(self, store, tmp_path):
        kept = [store.write(b"x", "pickle", "s", 1, name) for name in "ab"]
        folder = tmp_path / "not there yet" / "s" / "g1"
        store.drop(kept[:1])
        assert folder.is_dir()
        store.drop(kept[1:])
        assert not folder.exists()

    def test_whatever_an_object_raises_while_it_is_pickled_is_the_cause(self, store):
        with pytest.raises(MaterializationError, match="Stubborn") as caught:
            store.encode(Stubborn())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_a_class_that_has_moved_is_said_to_be_the_reason(self, store):
        raw = b"\x80\x05c" + b"no.such.module\nGone\n."
        location = store.write(raw, "pickle", "s", 1, "x")
        with pytest.raises(StoreError, match="has moved or changed"):
            store.read(location, "pickle", hashlib.sha256(raw).hexdigest())

    def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(StoreError, match="could not be written"):
            FileBlobStore(tmp_path / "file").write(b"x", "pickle", "s", 1, "x")
