"""Content by digest for a step that has only a remote: downloaded before the command, uploaded after it."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.transfer.manifests import read_manifest
from dvkf_prefect.data.transfer.move import move
from dvkf_prefect.errors import DvkfError, MissingObjectError
from dvkf_prefect.formats.objects import MD5, object_key
from dvkf_prefect.formats.tree import Tree, is_tree
from dvkf_prefect.kubeflow.exchange.bundle import RENEW_AFTER
from dvkf_prefect.paths import make_folders
from dvkf_prefect.scratch import scratch_folder

# Outputs that stay out of the cache (``cache: false``) are not objects of the remote. A collection would not know
# them, and a listing would count them. They are stored under this prefix until they are fetched.
UNCACHED = "dvkf/uncached"
_logger = logging.getLogger(__name__)


class Below(Storage):
    """A folder of a storage, as a separate storage.

    Args:
        storage: The storage.
        folder: Path of the folder, without slashes at its ends.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self.name = storage.name
        self.url = f"{storage.url.rstrip('/')}/{folder}"
        self.jobs = storage.jobs
        self._storage = storage
        self._place = storage._place
        self._prefix = f"{folder}/"

    def size(self, key: str) -> int | None:
        """Return the size of the blob in bytes, or None if there is none."""
        return self._storage.size(self._prefix + key)

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        """Yield the content of the blob from byte ``start`` on."""
        return self._storage.stream(self._prefix + key, start=start)

    def write(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        self._storage.write(self._prefix + key, data)

    def upload(self, key: str, source: Path) -> None:
        """Store a file as a blob."""
        self._storage.upload(self._prefix + key, source)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield every ``(key, bytes)`` under the folder ``prefix``."""
        for key, size in self._storage.list((self._prefix + prefix).rstrip("/")):
            yield key[len(self._prefix) :], size

    def dated(self, prefix: str = "") -> Iterator[tuple[str, int, float | None]]:
        """Yield every ``(key, bytes, last change)`` under a folder."""
        for key, size, changed in self._storage.dated((self._prefix + prefix).rstrip("/")):
            yield key[len(self._prefix) :], size, changed

    def delete(self, keys: Iterable[str]) -> None:
        """Remove blobs; missing ones are ignored."""
        self._storage.delete(self._prefix + key for key in keys)


def uncached(remote: Remote) -> Remote:
    """Return the area of a remote for outputs that stay out of the cache."""
    return Remote(remote.name, Below(remote.storage, UNCACHED), jobs=remote.bound)


def volume_at(path: str) -> Remote | None:
    """Return the objects on a volume that pods share; None if it is not mounted.

    Args:
        path: Mount path of the volume, "" for none.
    """
    if not path or not os.path.isdir(path):
        return None
    return Remote("the volume", open_storage(os.path.join(path, "dvkf"), {}, name="the volume"))


def send(digests: Sequence[str], cache: Cache, remote: Remote, *, again: bool = False) -> None:
    """Upload objects that a remote lacks: files first, then the manifests that name them.

    Args:
        digests: Objects to upload; directories with all their files.
        cache: Source of the objects.
        remote: Destination.
        again: Upload existing objects too: a collection goes by the time of the last write.

    Raises:
        ObjectError: An object is missing or damaged; its manifest was not sent.
        RemoteError: The remote cannot be used.
    """
    trees = [digest for digest in dict.fromkeys(digests) if is_tree(digest)]
    files = {digest for digest in digests if not is_tree(digest)}
    files.update(digest for tree in trees for digest in cache.read_tree(tree).digests)
    for wanted in (files, set(trees)):
        moved = move("push", sorted(wanted if again else remote.missing(wanted)), MD5, cache, remote)
        for error in moved.failed.values():
            raise error


def renew(remote: Remote, digests: Iterable[str]) -> None:
    """Rewrite old uncached outputs on the remote, so that no collection removes them during a new run.

    Args:
        remote: The remote.
        digests: Content that the run needs; other than uncached outputs is ignored.

    Raises:
        ObjectError: An object is damaged, or was removed meanwhile.
        RemoteError: The remote cannot be used.
    """
    beside = uncached(remote)
    wanted = {digest for digest in digests if digest}
    wanted -= beside.missing(wanted)
    if not wanted:
        return
    with scratch_folder("dvkf-renew-") as folder:
        cache = Cache(folder / "cache")

        def bring(some: Iterable[str]) -> None:
            for error in move("fetch", sorted(cache.missing(some)), MD5, cache, beside).failed.values():
                raise error

        trees = {digest for digest in wanted if is_tree(digest)}
        bring(trees)
        members = set().union(*(cache.read_tree(tree).digests for tree in trees)) - wanted
        # Members of a tracked directory's part are ordinary objects of the remote.
        everything = wanted | (members - beside.missing(members))
        keys = {object_key(digest): digest for digest in everything}
        oldest = time.time() - RENEW_AFTER
        if any(key in keys and (changed or oldest) < oldest for key, _, changed in beside.storage.dated()):
            bring(everything)
            for some in (everything - trees, trees):
                for error in move("push", sorted(some), MD5, cache, beside).failed.values():
                    raise error


class RemoteObjects:
    """Objects of a remote, for `dvkf_prefect.pipeline.step.step.run_step`.

    Downloads are verified before use, and moved into place rather than copied, so a pod's disk holds data once.
    Objects stored by the step stay in the cache until `flush`.

    A volume that the pods of a run share is read first. Each object is verified, and a missing or damaged one comes
    from the remote. Everything that a later stage or the dispatcher needs is also on the remote.

    Args:
        remote: The remote.
        cache: Cache used only by this step; downloaded objects leave it when they are placed.
        volume: The shared volume; None for none.
        keep: True stores the step's outputs on the volume, too.
    """

    def __init__(
        self, remote: Remote, cache: Cache, *, volume: Remote | None = None, keep: bool = False
    ) -> None:
        self.remote = remote
        self.cache = cache
        self._beside = uncached(remote)
        self._volume = volume
        self._keep = keep
        self._known: dict[str, Remote] = {}
        self._absent: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._stored: dict[str, None] = {}

    def prepare(self, digests: Sequence[str]) -> None:
        """Download many objects at once: all that the remote has; `exists` reports the rest.

        Args:
            digests: Wanted digests, once for each place of use.

        Raises:
            ObjectError: An object is damaged, or a directory on the remote lacks a file.
            RemoteError: The remote cannot be used.
        """
        self._look_for(set(digests))
        # The manifest of a part of a directory is created locally; its files are on the remote.
        there = [d for d in digests if d in self._known or (is_tree(d) and self.cache.exists(d))]
        trees = [digest for digest in there if is_tree(digest)]
        self._fetch(set(trees))
        self._uses.update(digest for digest in there if not is_tree(digest))
        for tree in trees:
            self._uses.update(self.cache.read_tree(tree).digests)
        self._fetch(set(self._uses))

    def exists(self, digest: str) -> bool:
        """Return True if the object is in the cache or on the remote."""
        if digest in self._known or self.cache.exists(digest):
            return True
        self._look_for({digest})
        return digest in self._known

    def export(self, digest: str, dest: Path, *, isexec: bool = False) -> None:
        """Place a file or directory, verified."""
        if not is_tree(digest):
            self._place(digest, dest, isexec=isexec)
            return
        tree = self.read_tree(digest)
        self._fetch({d for d in tree.digests if not self.cache.exists(d)})
        make_folders(str(dest), tree.relpaths)
        for relpath, each in tree.items():
            self._place(each, dest / relpath)

    def read_tree(self, digest: str) -> Tree:
        """Return a directory's manifest."""
        known = self._known.get(digest)
        places = [self.remote, self._beside] if known in (None, self._volume) else [known]
        return read_manifest(digest, caches=[self.cache], remotes=places, mend=True)

    def add_file(self, source: str | Path, *, move: bool = False) -> str:
        """Store a file's content; return its digest."""
        digest = self.cache.add_file(source, move=move)
        self._stored[digest] = None
        return digest

    def add_tree(self, tree: Tree) -> str:
        """Store a directory's manifest; return its digest."""
        digest = self.cache.add_tree(tree)
        self._stored[digest] = None
        return digest

    def flush(self) -> None:
        """Upload all stored objects to the remote, files before manifests.

        Raises:
            ObjectError: An object is damaged.
            RemoteError: The remote cannot be used.
        """
        send(list(self._stored), self.cache, self.remote)
        self._put_on_volume(list(self._stored), self.cache)
        self._stored.clear()

    def keep_beside(self, side: Cache, digests: Sequence[str]) -> None:
        """Upload outputs that stay out of the cache, for downstream steps and the dispatcher.

        Args:
            side: Cache with the outputs.
            digests: Digests of the outputs.

        Raises:
            RemoteError: The remote cannot be used.
        """
        send(digests, side, self._beside, again=True)
        self._put_on_volume(digests, side)

    def _put_on_volume(self, digests: Sequence[str], cache: Cache) -> None:
        """Store objects on the shared volume; on failure later stages download them."""
        if self._volume is None or not self._keep:
            return
        try:
            send(digests, cache, self._volume)
        except (DvkfError, OSError) as error:
            _logger.warning(
                "outputs are not on the volume of the run, so later stages download them: %s", error
            )

    def _take_from_volume(self, wanted: list[str]) -> list[str]:
        """Copy objects from the shared volume, verified; return the rest."""
        if self._volume is None or not wanted:
            return wanted
        try:
            here = set(wanted) - self._volume.missing(wanted)
            for digest, error in move("fetch", sorted(here), MD5, self.cache, self._volume).failed.items():
                _logger.warning("an object on the volume of the run is not usable: %s", error)
                self._known.pop(digest, None)
                self._volume.storage.delete([object_key(digest)])
        except (DvkfError, OSError) as error:
            _logger.warning("the volume of the run is not usable, so inputs are downloaded: %s", error)
            self._known = {d: place for d, place in self._known.items() if place is not self._volume}
            self._volume = None
        return [digest for digest in wanted if not self.cache.exists(digest)]

    def _look_for(self, digests: set[str]) -> None:
        wanted = {d for d in digests if d not in self._known and d not in self._absent}
        for place in (*([self._volume] if self._volume else []), self.remote, self._beside):
            if wanted:
                absent = place.missing(wanted)
                self._known.update(dict.fromkeys(wanted - absent, place))
                wanted = absent
        self._absent.update(wanted)

    def _fetch(self, digests: set[str]) -> None:
        wanted = self._take_from_volume(sorted(digest for digest in digests if not self.cache.exists(digest)))
        for place in (self.remote, self._beside):
            if not wanted:
                return
            here = [d for d in wanted if self._known.get(d, place) is place]
            moved = move("fetch", here, MD5, self.cache, place)
            for digest, error in moved.failed.items():
                if (
                    place is self._beside
                    or not isinstance(error, MissingObjectError)
                    or digest in self._known
                ):
                    raise error
            wanted = [d for d in wanted if not self.cache.exists(d)]

    def _place(self, digest: str, dest: Path, *, isexec: bool = False) -> None:
        self._fetch({digest})
        self._uses[digest] -= 1
        # Downloaded for this place alone and already verified: move it, so it is not on the disk twice.
        if self._uses[digest] == 0 and digest not in self._stored:
            source = self.cache.path(digest)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(source, (0o777 if isexec else 0o666) & ~mask)
            try:
                os.rename(source, dest)
            except OSError:
                os.chmod(source, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
                shutil.copyfile(source, dest)
                os.chmod(dest, (0o777 if isexec else 0o666) & ~mask)
            return
        self.cache.export(digest, dest, isexec=isexec)
