"""The reader of manifests: the place that has it intact, and the error if none has."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.manifests import opened, read_manifest
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError, RemoteNotFoundError
from dvkf_prefect.formats.digest import digest_bytes
from dvkf_prefect.formats.objects import LEGACY, MD5
from dvkf_prefect.formats.tree import Tree

TREE = Tree(["a/x", "a/y", "ab", "b"], [digest_bytes(name.encode()) for name in ("1", "2", "3", "4")])


def damage(cache: Cache, hash_name: str = MD5) -> Path:
    path = cache.path(TREE.digest, hash_name)
    path.chmod(0o644)
    path.write_text("[]")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "store")


@pytest.fixture
def remote(store: Cache) -> Remote:
    store.root.mkdir()
    return Remote("store", open_storage(str(store.root), name="store"))


@pytest.mark.parametrize("hash_name", [MD5, LEGACY])
def test_a_manifest_comes_from_the_remote_and_is_kept_on_demand(
    cache: Cache, store: Cache, remote: Remote, hash_name: str
) -> None:
    store.add_tree(TREE, hash_name)
    assert read_manifest(TREE.digest, hash_name, caches=[cache], remotes=[remote]) == TREE
    assert not cache.exists(TREE.digest, hash_name)
    assert read_manifest(TREE.digest, hash_name, caches=[cache], remotes=[remote], mend=True) == TREE
    assert read_manifest(TREE.digest, hash_name, caches=[cache]) == TREE


def test_a_damaged_manifest_of_the_cache_is_replaced_only_on_demand(
    cache: Cache, store: Cache, remote: Remote
) -> None:
    cache.add_tree(TREE)
    store.add_tree(TREE)
    path = damage(cache)
    assert read_manifest(TREE.digest, caches=[cache], remotes=[remote]) == TREE
    assert path.read_text() == "[]"
    assert read_manifest(TREE.digest, caches=[cache], remotes=[remote], mend=True) == TREE
    assert path.read_bytes() == TREE.to_bytes()


def test_a_damaged_manifest_is_not_missing(cache: Cache, store: Cache, remote: Remote) -> None:
    store.add_tree(TREE)
    damage(store)
    with pytest.raises(CorruptObjectError, match=r"is not in the cache, .* is damaged on the remote 'store'"):
        read_manifest(TREE.digest, caches=[cache], remotes=[remote])


def test_the_error_names_every_place(cache: Cache, remote: Remote) -> None:
    def opener(name: str | None) -> Remote:
        if name is None:
            raise RemoteNotFoundError("there is no default remote")
        return remote

    with pytest.raises(
        MissingObjectError, match=r"not in the cache, not on remote 'store' .*no default remote"
    ):
        read_manifest(TREE.digest, caches=[cache], remotes=opened(opener, ["store", None, "again"]))


def test_no_remote_is_opened_for_a_manifest_of_the_cache(cache: Cache) -> None:
    def opener(name: str | None) -> Remote:
        raise AssertionError(name)

    cache.add_tree(TREE)
    assert read_manifest(TREE.digest, caches=[cache], remotes=opened(opener, [None])) == TREE


def test_the_subtree_of_a_folder_and_of_a_file() -> None:
    assert list(TREE.subtree("a").items()) == [("x", TREE.digests[0]), ("y", TREE.digests[1])]
    assert list(TREE.subtree("ab").items()) == [("", TREE.digests[2])]
    assert not TREE.subtree("c")
