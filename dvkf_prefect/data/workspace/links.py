"""Placement of the cache's objects in the workspace, as copies or as links that the disk supports."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from dvkf_prefect.data.cache._copier import Stat, clone_one, look
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.cache.workers import digest_files
from dvkf_prefect.data.workspace.memory import Memory, Rows
from dvkf_prefect.errors import MissingObjectError, ObjectError, OutputError
from dvkf_prefect.files import age, temporary_name
from dvkf_prefect.formats.objects import MD5, is_plausible

# Key of the stat values that linked objects had when their content was last verified.
_MEMORY_KEY = "\0linked objects"
# Limit in bytes for hashing hard-linked objects again when only their change times moved.
_RECHECKED = 256 << 20


class Links:
    """Placement of objects in the workspace by the first link type that works there.

    A write to a linked file changes the object in the cache too. So an object is linked only in its last verified
    state, or if it still hashes to its name.

    Args:
        cache: The cache.
        memory: Store for the stat values of linked objects.
        types: ``reflink``, ``hardlink``, ``symlink`` and ``copy`` in order of preference.
        probe: A folder on the workspace's file system for short-lived test files.
    """

    def __init__(self, cache: Cache, memory: Memory, types: Sequence[str], probe: Path) -> None:
        self._cache = cache
        self._memory = memory
        self._types = types
        self._probe = probe
        self._fresh: dict[str, os.stat_result] = {}

    @cached_property
    def kind(self) -> str:
        """Link type in use, tested once.

        Raises:
            OutputError: None of the configured types works here.
        """
        for kind in self._types:
            if kind == "copy" or self.works(kind):
                return kind
        raise OutputError(
            f"cache.type = {','.join(self._types)}: none of these works from the cache ({self._cache.root}) "
            "to the workspace. Add 'copy'."
        )

    def works(self, kind: str) -> bool:
        """Return True if a link type works from the workspace to the cache."""
        source = self._cache.temporary("probe")
        self._probe.mkdir(parents=True, exist_ok=True)
        target = self._probe / temporary_name()
        try:
            source.write_bytes(b"probe")
            if kind == "reflink":
                clone_one(str(source), str(target), 0o666)
            elif kind == "hardlink":
                os.link(source, target)
            else:
                os.symlink(source.resolve(), target)
        except OSError:
            return False
        finally:
            source.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        return True

    @property
    def shares(self) -> bool:
        """True if workspace files are the same files as the cache's objects."""
        return self.kind in ("hardlink", "symlink")

    def place(
        self,
        digests: Sequence[str],
        base: str,
        relpaths: Sequence[str],
        *,
        mode: int = 0o666,
        hash_name: str = MD5,
    ) -> Iterator[tuple[int, Stat | ObjectError]]:
        """Put many objects at new paths in existing folders, with the arguments and results of `Cache.place`.

        An executable or empty file is always a copy: a shared object keeps its own permissions.
        """
        if self.shares and not mode & 0o111:
            yield from self._share(digests, base, relpaths, hash_name)
        else:
            yield from self._cache.place(
                digests, base, relpaths, mode=mode, hash_name=hash_name, share_blocks=self.kind == "reflink"
            )

    def _share(
        self, digests: Sequence[str], base: str, relpaths: Sequence[str], hash_name: str
    ) -> Iterator[tuple[int, Stat | ObjectError]]:
        known = self._memory.load(_MEMORY_KEY) or Rows()
        damaged = self._damaged(known, digests, hash_name)
        for row, (digest, relpath) in enumerate(zip(digests, relpaths, strict=True)):
            info = self._fresh.get(digest)
            source = self._cache.path(digest, hash_name)
            if digest in damaged:
                aside = self._cache.set_aside(digest, hash_name)
                yield (
                    row,
                    ObjectError(
                        f"{digest} was changed in the cache by a write to a file linked to it; it was moved "
                        f"to {aside}. Run `dvkf fetch` for a good copy."
                    ),
                )
                continue
            if info is None:
                yield row, self._missing(digest)
                continue
            target = base + relpath
            if not info.st_size:
                os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
            elif self.kind == "hardlink":
                os.link(source, target)
            else:
                os.symlink(os.path.realpath(source), target)
            yield row, look(target)

    def _damaged(self, known: Rows, digests: Sequence[str], hash_name: str) -> set[str]:
        """Check objects before linking; return those that no longer hash to their names."""
        rows = dict(zip(known.relpaths, range(len(known)), strict=True))
        paths: dict[str, str] = {}
        linked: dict[str, str] = {}
        for digest in digests:
            source = str(self._cache.path(digest, hash_name))
            self._fresh.pop(digest, None)
            with suppress(FileNotFoundError):
                info = os.stat(source)
                if not is_plausible(digest, info.st_size):
                    continue  # left by a power cut; counts as missing
                self._fresh[digest] = info if info.st_size else age(source, info)
                i = rows.get(digest)
                if i is not None and _same(known, i, info):
                    if known.ctimes[i] != info.st_ctime_ns:
                        elsewhere = self.kind == "hardlink" and known.digests[i] != _count(info)
                        (linked if elsewhere else paths)[digest] = source
                elif info.st_size and not self._cache.is_known(digest, info):
                    paths[digest] = source
        # A link created or removed elsewhere moves the change time too: hash these objects only up to a limit. If the
        # number of links is the same, something else moved it: hash in any case.
        if sum(self._fresh[digest].st_size for digest in linked) <= _RECHECKED:
            paths.update(linked)
        todo = list(paths) if hash_name == MD5 else []
        sizes = [self._fresh[digest].st_size for digest in todo]
        started = time.time_ns()
        found = dict(digest_files([paths[digest] for digest in todo], sizes))
        damaged = {digest for row, digest in enumerate(todo) if found[row] != digest}
        for digest in paths.keys() - damaged:
            self._fresh[digest] = age(paths[digest], self._fresh[digest], started)
        return damaged

    def settle(self, hash_name: str = MD5) -> None:
        """Record the stat values of linked objects after all links are in place: each link and move changes them."""
        infos: dict[str, os.stat_result] = {}
        for digest, before in self._fresh.items():
            with suppress(OSError):
                info = os.stat(self._cache.path(digest, hash_name))
                if info.st_size and (info.st_size, info.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                    infos[digest] = info
        self._fresh.clear()
        if not infos:
            return
        known = self._memory.load(_MEMORY_KEY) or Rows()
        rows = dict(zip(known.relpaths, range(len(known)), strict=True))
        merged = Rows()
        for digest in sorted([*infos, *rows.keys() - infos.keys()]):
            if digest in infos:
                merged.append(digest, infos[digest], _count(infos[digest]))
            else:
                merged.copy_row(known, rows[digest])
        self._memory.save(_MEMORY_KEY, merged)

    def _missing(self, digest: str) -> ObjectError:
        return MissingObjectError(f"{digest} is not in the cache ({self._cache.root}). Run `dvkf fetch`.")

    def move(self, aside: str, path: str) -> None:
        """Move a file placed under a temporary name to its path."""
        os.replace(aside, path)
        if self.kind == "hardlink":
            # A rename between two names of the same file does nothing.
            with suppress(FileNotFoundError):
                os.unlink(aside)

    def relink(self, base: str, rows: Rows, chosen: Sequence[int], *, hash_name: str = MD5) -> list[int]:
        """Replace files with links of this type to their objects, each atomically.

        Args:
            base: Prefix of each path, with its slash.
            rows: The files; their stats are updated.
            chosen: Indexes of the files to replace.
            hash_name: ``md5`` or ``md5-dos2unix``.

        Returns:
            Indexes of the replaced files. Any later write to one gets another mtime.

        Raises:
            ObjectError: An object is missing or damaged; its file is unchanged.
        """
        aside = [aside_name(rows.relpaths[i]) for i in chosen]
        digests = [rows.digests[i] for i in chosen]
        problems: list[ObjectError] = []
        done: list[int] = []
        for n, result in self.place(digests, base, aside, hash_name=hash_name):
            i = chosen[n]
            if isinstance(result, ObjectError):
                problems.append(result)
                continue
            path = base + rows.relpaths[i]
            info = os.stat(path)
            # Keep a file that changed since its inspection.
            if rows.execs[i] or (info.st_size, info.st_mtime_ns) != (rows.sizes[i], rows.mtimes[i]):
                with suppress(OSError):
                    os.unlink(base + aside[n])
                continue
            self.move(base + aside[n], path)
            done.append(i)
        # At the end, since each move and each further link changes an object's stat.
        for i in done:
            rows.put(i, look(base + rows.relpaths[i]))
        self.settle(hash_name)
        if problems:
            raise problems[0]
        return done


def aside_name(relpath: str) -> str:
    """Return a temporary name beside a file, for its replacement."""
    folder, slash, _ = relpath.rpartition("/")
    return f"{folder}{slash}{temporary_name()}"


def _count(info: os.stat_result) -> str:
    """Return the number of a file's links, in the form of a digest for the memory."""
    return f"{info.st_nlink:032x}"


def _same(rows: Rows, i: int, info: os.stat_result) -> bool:
    return (rows.mtimes[i], rows.sizes[i], rows.inodes[i]) == (info.st_mtime_ns, info.st_size, info.st_ino)
