"""What every blob store has to pass: subclass `BlobStoreContract` and give it the fixture `store`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipedag_core.errors import MaterializationError, StoredDataMissing, StoreError
from pipedag_core.ports.stores import BlobStore


def _keep(store: BlobStore, obj: object, name: str = "model", *, stage: str = "s", generation: int = 1) -> tuple[str, str, str, int]:
    raw, format = store.encode(obj)
    return store.write(raw, format, stage, generation, name), format, hashlib.sha256(raw).hexdigest(), len(raw)


class BlobStoreContract:
    """Blobs.

    Subclasses override the fixtures `store` and `damage`.
    """

    @pytest.fixture
    def store(self) -> BlobStore:
        """Return an empty store."""
        raise NotImplementedError("Override the fixture `store` in your subclass of BlobStoreContract.")

    @pytest.fixture
    def damage(self, store: BlobStore) -> Callable[[str, bytes], None]:
        """Return a function that puts other bytes at a location, past the store."""
        raise NotImplementedError("Override the fixture `damage` in your subclass of BlobStoreContract.")

    def test_an_object_comes_back_equal(self, store: BlobStore) -> None:
        obj = {"weights": [1.5, float("inf")], "name": "Ä", "nothing": None}
        location, format, sha256, _ = _keep(store, obj)
        assert store.read(location, format, sha256) == obj

    def test_a_second_attempt_gets_its_own_place(self, store: BlobStore) -> None:
        first, second = _keep(store, "first"), _keep(store, "second")
        assert first[0] != second[0]
        assert [store.read(*kept[:3]) for kept in (first, second)] == ["first", "second"]

    def test_names_that_look_like_paths_or_attempts_stay_apart(self, store: BlobStore) -> None:
        wanted = ["x", "x.a2", "../x", "..", "a/b", "a%2Fb", ".hidden", "ß*?[]", "x"]
        kept = [_keep(store, [i], name, stage="../s") for i, name in enumerate(wanted)]
        assert len({location for location, *_ in kept}) == len(wanted)
        assert [store.read(*item[:3]) for item in kept] == [[i] for i in range(len(wanted))]

    def test_many_threads_write_one_name_without_overwriting(self, store: BlobStore) -> None:
        count = 8
        barrier = threading.Barrier(count)

        def keep(number: int) -> tuple[str, str, str, int]:
            barrier.wait()
            return _keep(store, number)

        with ThreadPoolExecutor(count) as pool:
            kept = list(pool.map(keep, range(count)))
        assert [store.read(*item[:3]) for item in kept] == list(range(count))

    def test_what_cannot_be_encoded_is_refused_with_its_cause(self, store: BlobStore) -> None:
        with pytest.raises(MaterializationError, match="lock") as caught:
            store.encode({"lock": threading.Lock()})
        assert isinstance(caught.value.__cause__, TypeError)

    def test_other_bytes_are_not_read(self, store: BlobStore, damage: Callable[[str, bytes], None]) -> None:
        location, format, sha256, size = _keep(store, "right")
        damage(location, store.encode("wrong")[0])
        with pytest.raises(StoredDataMissing, match="SHA-256"):
            store.read(location, format, sha256)
        damage(location, b"")
        assert list(store.missing({location: size})) == [location]

    def test_a_blob_that_is_gone_is_missing(self, store: BlobStore) -> None:
        kept, lost = _keep(store, "kept", "a"), _keep(store, "lost", "b")
        store.drop([lost[0], "s/g9/never-there.pickle"])
        assert list(store.missing({kept[0]: kept[3], lost[0]: lost[3]})) == [lost[0]]
        with pytest.raises(StoredDataMissing, match="gone"):
            store.read(*lost[:3])
        assert store.read(*kept[:3]) == "kept"

    def test_everything_that_lies_in_the_store_is_told_recorded_or_not(self, store: BlobStore) -> None:
        assert list(store.deposits()) == []
        wanted = [("s", 1, "x"), ("s", 1, "x"), ("../s", 2, "a/b"), ("ß*?[]", 30, ".hidden")]
        kept = {_keep(store, "x", name, stage=stage, generation=number)[0]: (stage, number) for stage, number, name in wanted}
        assert {item.location: (item.stage, item.generation) for item in store.deposits()} == kept
        store.drop(list(kept))
        assert list(store.deposits()) == []

    def test_an_unknown_format_is_refused(self, store: BlobStore) -> None:
        location, _, sha256, _ = _keep(store, 1)
        with pytest.raises(StoreError, match="format"):
            store.read(location, "unheard-of", sha256)
