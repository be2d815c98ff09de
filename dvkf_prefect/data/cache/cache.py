"""Content-addressed store on the local disk: each file is named by the digest of its content.

Source of the layout: DVC 3.x, ``<root>/files/md5/aa/bbb…``; DVC 2.x, ``<root>/aa/bbb…``. Files are 0444.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from dvkf_prefect import durability
from dvkf_prefect.data.cache._copier import NOTED, Failure, Look, Stat, appearance, place_one
from dvkf_prefect.data.cache.lookup import listed_of, stored_of
from dvkf_prefect.data.cache.workers import meaning_of, share
from dvkf_prefect.errors import (
    CorruptObjectError,
    MissingObjectError,
    ObjectError,
    UnsafePathError,
)
from dvkf_prefect.files import MANIFEST_LIMIT, age, raise_disk_full, read_description, write_atomic
from dvkf_prefect.formats import manifest_rows
from dvkf_prefect.formats.digest import digest_bytes, digest_file
from dvkf_prefect.formats.objects import MD5, object_key
from dvkf_prefect.formats.tree import SUFFIX, Tree, is_tree
from dvkf_prefect.leftovers import OwnedFolder, claim
from dvkf_prefect.paths import check_own_folder, find_reserved, make_folders

_DIGESTS = re.compile(r"(?:[0-9a-f]{32}(?:\.dir)?\n)*")
_TEMPORARY = "tmp-dvkf"
_PART = "part-"
# Seconds to keep unfinished downloads, and temporary files named by older versions.
_KEPT = 7 * 24 * 3600
# Seconds after which an apparently untouched object is hashed again: disks rot.
_TRUSTED = 7 * 24 * 3600


class Cache:
    """A local content-addressed store.

    Args:
        root: Folder of the cache; created on the first write.
        ledger: File with the stat values of larger objects at their last hash. An object that still matches them is not
            hashed again. None hashes objects on each use.
    """

    foreign = False
    """True for a cache of another owner, with limited memory for its manifests."""

    def __init__(self, root: Path, *, ledger: Path | None = None) -> None:
        self.root = root
        self._ledger_file = ledger
        self._ledger_changed = False
        self._noted: dict[str, int] = {}
        self._made: set[str] = set()
        self._own: OwnedFolder | None = None
        self._owning = threading.Lock()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def path(self, digest: str, hash_name: str = MD5) -> Path:
        """Return the path of an object, existing or not."""
        return self.root / object_key(digest, hash_name)

    def exists(self, digest: str, hash_name: str = MD5) -> bool:
        """Return True if the object exists; for a directory, only its manifest is checked."""
        return not self.missing([digest], hash_name)

    def missing(
        self,
        digests: Iterable[str],
        hash_name: str = MD5,
        *,
        sizes: Mapping[str, int] | None = None,
        look: bool = True,
    ) -> set[str]:
        """Return the ``digests`` that are not in the cache, or have an unexpected size.

        Args:
            digests: Digests to look up.
            hash_name: ``md5`` or ``md5-dos2unix``.
            sizes: Expected sizes in bytes, if known. Any other object must not be empty.
            look: Compare sizes, and note objects that a killed run may not have flushed. Not needed if each object
                is hashed next and only its copy is used.
        """
        names = wanted = set(digests)
        if not _DIGESTS.fullmatch("".join([f"{digest}\n" for digest in wanted])):
            # What is no digest is in no cache.
            names = {digest for digest in wanted if _DIGESTS.fullmatch(digest + "\n")}
        young: list[str] = []
        folders: dict[str, list[str]] = {}
        for digest in names:
            folders.setdefault(digest[:2], []).append(digest)
        each = look or len(names) < 64
        for inside in folders.values():
            folder = str(self.path(inside[0], hash_name).parent)
            if each:
                found = stored_of(folder, inside, (sizes or {}) if look else None, young)
            else:
                found = listed_of(folder, inside)
            wanted.difference_update(found)
        # These objects get recorded without being stored again, so they need the flush too.
        durability.note(self.root, young)
        return wanted

    # -- ledger of verified objects ----------------------------------------------------------------------------------

    @cached_property
    def _ledger(self) -> dict[str, Look]:
        if self._ledger_file is None:
            return {}
        try:
            known = json.loads(read_description(self._ledger_file, limit=MANIFEST_LIMIT))
            oldest = time.time() - _TRUSTED
            self._noted = {digest: row[4] for digest, row in known.items() if row[4] > oldest}
            return {digest: tuple(known[digest][:4]) for digest in self._noted}
        except (OSError, ValueError, TypeError, AttributeError, IndexError):
            return {}

    def is_known(self, digest: str, info: os.stat_result) -> bool:
        """Return True if an object has the same stat values as at a recent hash."""
        return self._ledger.get(digest) == appearance(info)

    def _note(self, digest: str, size: int, hash_name: str = MD5) -> None:
        """Record the stat values of an object just hashed, if hashing it again costs more than the record."""
        if size < NOTED or self._ledger_file is None or hash_name != MD5:
            return
        path = self.path(digest)
        with suppress(OSError):
            info = os.stat(path)
            if self._ledger.get(digest) == appearance(info):
                return
            self._ledger[digest] = appearance(age(path, info))
            self._noted[digest] = int(time.time())
            self._ledger_changed = True

    def _save_ledger(self) -> None:
        if self._ledger_file is not None and self._ledger_changed:
            self._ledger_changed = False
            rows = {digest: [*look, self._noted[digest]] for digest, look in self._ledger.items()}
            with suppress(OSError):
                self._ledger_file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._ledger_file, json.dumps(rows).encode(), durable=False)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self, digest: str, hash_name: str = MD5, *, aside: bool = True) -> bytes:
        """Return an object's bytes, verified.

        Args:
            digest: Digest of the object.
            hash_name: ``md5`` or ``md5-dos2unix``.
            aside: Move a damaged object out of the way; False leaves the cache unchanged.

        Raises:
            MissingObjectError: It is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name.
        """
        path = self.path(digest, hash_name)
        try:
            data = read_description(path, limit=MANIFEST_LIMIT)
        except FileNotFoundError:
            raise MissingObjectError(
                f"{digest} is not in the cache ({self.root}). Run `dvkf fetch`."
            ) from None
        found = digest_bytes(data)
        if found != digest.removesuffix(SUFFIX) and hash_name == MD5:
            if not aside:
                raise CorruptObjectError(f"{digest} is damaged in the cache ({path} hashes to {found})")
            raise self._corrupt(digest, path, found)
        return data

    def read_tree(self, digest: str, hash_name: str = MD5, *, aside: bool = True) -> Tree:
        """Return a directory's manifest, verified; see `read_bytes` for the arguments.

        Raises:
            MissingObjectError: It is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name.
            ParseError: It is not a manifest.
        """
        own = self.is_own(digest, hash_name)
        return Tree.from_bytes(self.read_bytes(digest, hash_name, aside=aside), digest, own=own)

    def is_own(self, digest: str, hash_name: str = MD5) -> bool:
        """Return True if a manifest may take any memory, since no foreign repository brought it.

        Raises:
            ParseError: It is larger than the limit for a foreign manifest.
        """
        path = self.path(digest, hash_name)
        try:
            size = path.stat().st_size
        except OSError:
            return not self.foreign
        if size <= manifest_rows.file_limit():
            return not self.foreign
        from dvkf_prefect.data.git.command import comes_with_git  # needed for large manifests only

        if self.foreign or comes_with_git(path):
            raise manifest_rows.too_large(digest)
        return True

    def export(self, digest: str, dest: Path, *, isexec: bool = False, hash_name: str = MD5) -> None:
        """Copy a file or a directory out of the cache, verifying it on the way.

        Args:
            digest: Digest to copy; a ``.dir`` digest creates a directory.
            dest: Target path; must not exist.
            isexec: Make a single file executable.
            hash_name: ``md5`` or ``md5-dos2unix``.

        Raises:
            MissingObjectError: An object is not in the cache.
            CorruptObjectError: An object's bytes do not hash to its name; the copy is removed.
            DiskFullError: The disk is full.
        """
        if not is_tree(digest):
            self.copy_out(digest, dest, mode=0o777 if isexec else 0o666, hash_name=hash_name)
            return
        tree = self.read_tree(digest, hash_name)
        make_folders(str(dest), tree.relpaths)
        for _, result in self.place(tree.digests, f"{dest}/", tree.relpaths, hash_name=hash_name):
            if isinstance(result, ObjectError):
                raise result

    def copy_out(self, digest: str, dest: str | Path, *, mode: int = 0o666, hash_name: str = MD5) -> Stat:
        """Copy one object to a new file, hashing it on the way; return the new file's stat.

        The file appears under its name while it is written. Pass a temporary name if a reader could see it too early.

        Raises:
            MissingObjectError: The object is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name; the copy is removed.
            DiskFullError: The disk is full; the copy is removed.
        """
        ((_, result),) = self.place([digest], "", [str(dest)], mode=mode, hash_name=hash_name)
        if isinstance(result, ObjectError):
            raise result
        return result

    def place(
        self,
        digests: Sequence[str],
        base: str,
        relpaths: Sequence[str],
        *,
        mode: int = 0o666,
        hash_name: str = MD5,
        share_blocks: bool = False,
    ) -> Iterator[tuple[int, Stat | ObjectError]]:
        """Copy many objects to new files in existing folders, hashing each on the way.

        Args:
            digests: Digests to copy.
            base: Prefix of each path, with its slash.
            relpaths: Path of each new file, relative to ``base``.
            mode: Permissions of new files, before the umask.
            hash_name: ``md5`` or ``md5-dos2unix``.
            share_blocks: Let the files share the objects' blocks; the file system must support it.

        Yields:
            Each row's number and the new file's stat or the error, in any order.

        Raises:
            DiskFullError: The disk is full.
            OSError: A file cannot be written.
        """
        root = str(self._folder(hash_name))
        looks = [*map(self._ledger.get, digests)]
        work = "clone" if share_blocks else "place"
        pieces = share(work, (root, base, hash_name == MD5, mode), (digests, relpaths, looks))
        for start, results in pieces:
            for row, result in enumerate(results, start):
                found: Stat | Failure = result
                if result[:2] == ("error", errno.ENOENT):
                    # A subclass may hold its objects in more than one folder.
                    path = self.path(digests[row], hash_name)
                    with suppress(FileNotFoundError):
                        found = place_one(
                            str(path), base + relpaths[row], hash_name == MD5, mode, digests[row], None
                        )
                if isinstance(found[0], str):
                    yield row, self._problem(found, digests[row], hash_name, base + relpaths[row])
                else:
                    self._note(digests[row], found[0], hash_name)
                    yield row, found
        self._save_ledger()

    def _problem(self, failure: Failure, digest: str, hash_name: str, to: str = "") -> ObjectError:
        """Return the error for an object of this cache; raise the error for its target ``to``."""
        kind, number, detail = failure
        path = self.path(digest, hash_name)
        if kind == "corrupt":
            return self._corrupt(digest, path, detail)
        if number == errno.ENOENT and not path.exists():
            return MissingObjectError(f"{digest} is not in the cache ({self.root}). Run `dvkf fetch`.")
        raise meaning_of(failure, detail or str(path), to or detail)

    def _folder(self, hash_name: str) -> Path:
        """Return the folder that holds ``aa/bbb…``."""
        return self.root / "files" / "md5" if hash_name == MD5 else self.root

    def _corrupt(self, digest: str, path: Path, found: str) -> CorruptObjectError:
        aside = self.set_aside(digest)
        return CorruptObjectError(
            f"{path} hashes to {found}, not to its name; it was moved to {aside}. Run `dvkf fetch` for a "
            "good copy."
        )

    def set_aside(self, digest: str, hash_name: str = MD5) -> Path:
        """Move a damaged object out of the way, so that the next fetch replaces it; return its new path."""
        folder = self.root / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        # Not in this process's own folder, which is removed with the process.
        aside = folder / f"{os.urandom(8).hex()}-corrupt-{digest}"
        with suppress(OSError):
            os.replace(self.path(digest, hash_name), aside)
        return aside

    # -- writing ---------------------------------------------------------------------------------------------------

    def add_bytes(self, data: bytes, *, tree: bool = False, hash_name: str = MD5) -> str:
        """Store bytes; return their digest."""
        digest = digest_bytes(data) + (SUFFIX if tree else "")
        if self.missing([digest], hash_name, sizes={digest: len(data)}):
            temporary = self.temporary(digest)
            try:
                temporary.write_bytes(data)
            except OSError as error:
                _discard(temporary, error)
                raise
            self.adopt(temporary, digest, hash_name)
        return digest

    def add_tree(self, tree: Tree, hash_name: str = MD5) -> str:
        """Store a directory's manifest; return its digest.

        Raises:
            UnsafePathError: A path in it names a folder of git or DVC: no such manifest is ever read.
        """
        if (reserved := find_reserved(tree.relpaths)) is not None:
            raise UnsafePathError(
                f"{reserved}: a file system may take this name for a folder of git or DVC. Rename it."
            )
        return self.add_bytes(tree.to_bytes(), tree=True, hash_name=hash_name)

    def add_file(self, source: str | Path, *, move: bool = False) -> str:
        """Store the content of a file; return its digest.

        Args:
            source: Path of the file.
            move: Move the file itself instead of copying it.

        Raises:
            DiskFullError: The disk is full; nothing was stored.
        """
        if move:
            found = digest_file(source)
            self.adopt(source, found)
            return found
        ((_, found),) = self.add_files([str(source)], [os.stat(source).st_size])
        return found

    def add_files(
        self, files: Sequence[str], sizes: Sequence[int], *, share_blocks: bool = False
    ) -> Iterator[tuple[int, str]]:
        """Store the content of many files, hashing each during the copy.

        Args:
            files: The files.
            sizes: Expected sizes in bytes.
            share_blocks: Let objects share the files' blocks if the file system supports it.

        Yields:
            Each row's number and digest, in any order.

        Raises:
            DiskFullError: The disk is full; objects stored so far remain.
            OSError: A file cannot be read.
        """
        fixed = (str(self._folder(MD5)), f"{self._own_folder()}/", share_blocks)
        for start, results in share("store", fixed, (files, sizes), sizes):
            self._note_stored(fixed[0], [result for result in results if isinstance(result, str)])
            for row, result in enumerate(results, start):
                if not isinstance(result, str):
                    raise meaning_of(result, files[row], self.root)
                self._note(result, sizes[row])
                yield row, result
        self._save_ledger()

    def copy_from(
        self,
        folder: str | Path,
        digests: Sequence[str],
        hash_name: str = MD5,
        *,
        limits: Sequence[int | None] | None = None,
        workers: int | None = None,
    ) -> Iterator[tuple[str, int | ObjectError]]:
        """Copy objects in from another store's folder, hashing each on the way.

        Args:
            folder: The folder that holds ``aa/bbb…``.
            digests: Digests to copy.
            hash_name: ``md5`` or ``md5-dos2unix``.
            limits: Maximum size of each object in bytes, None if unknown.
            workers: Number of processes; None for a number that suits the machine.

        Yields:
            Each digest and its size in bytes or the error, in any order.

        Raises:
            DiskFullError: The disk is full; objects stored so far remain.
            OSError: A file cannot be read or written.
        """
        target, temporary = str(self._folder(hash_name)), f"{self._own_folder()}/"
        fixed = (str(folder), target, temporary, hash_name == MD5, 0o444)
        # Objects elsewhere have no recorded state: hash each of them.
        looks = [None] * len(digests)
        columns = (digests, looks, looks if limits is None else limits)
        for start, results in share("transfer", fixed, columns, workers=workers):
            self._note_stored(target, digests[start : start + len(results)])
            for row, result in enumerate(results, start):
                digest = digests[row]
                if isinstance(result, int):
                    self._note(digest, result, hash_name)
                    yield digest, result
                    continue
                kind, number, detail = result
                path = f"{folder}/{digest[:2]}/{digest[2:]}"
                if kind == "corrupt":
                    yield (
                        digest,
                        CorruptObjectError(f"{path} hashes to {detail}, not to its name; it was not stored"),
                    )
                elif kind == "large":
                    said = f"{path} has {number} bytes, more than recorded; it was not stored"
                    yield digest, CorruptObjectError(said)
                elif number == errno.ENOENT and not os.path.exists(path):
                    yield digest, MissingObjectError(f"{path} does not exist")
                else:
                    raise meaning_of(result, path, self.root)
        self._save_ledger()

    def _note_stored(self, folder: str, digests: Sequence[str]) -> None:
        """Note objects for the next flush; beyond a limit, only the fact that there are many."""
        some = digests[: durability.EACH + 1]
        durability.note(folder, [f"{folder}/{digest[:2]}/{digest[2:]}" for digest in some])
        durability.begin(folder, len(digests))

    def copy_to(
        self,
        folder: str | Path,
        digests: Sequence[str],
        hash_name: str = MD5,
        *,
        temporary: str | Path,
        mode: int = 0o444,
        workers: int | None = None,
    ) -> Iterator[tuple[str, int | ObjectError]]:
        """Copy objects out to another store's folder, hashing each on the way.

        Args:
            folder: The folder that holds ``aa/bbb…``.
            digests: Digests to copy.
            hash_name: ``md5`` or ``md5-dos2unix``.
            temporary: Folder for incomplete files, on the same file system.
            mode: Permissions of new files.
            workers: Number of processes; None for a number that suits the machine.

        Yields:
            Each digest and its size in bytes or the error, in any order.

        Raises:
            DiskFullError: The disk is full; objects copied so far remain.
            OSError: A file cannot be written.
        """
        fixed = (
            str(self._folder(hash_name)),
            str(folder),
            f"{temporary}/",
            hash_name == MD5,
            mode,
        )
        # Other users will rely on these copies: hash each object once more.
        looks = [None] * len(digests)
        for start, results in share("transfer", fixed, (digests, looks, looks), workers=workers):
            self._note_stored(str(folder), digests[start : start + len(results)])
            for row, result in enumerate(results, start):
                digest = digests[row]
                if not isinstance(result, int):
                    yield digest, self._problem(result, digest, hash_name, str(folder))
                else:
                    yield digest, result

    def adopt(
        self, temporary: str | Path, digest: str, hash_name: str = MD5, *, made_read_only: bool = False
    ) -> None:
        """Move a finished temporary file in under its digest, already verified by the caller."""
        key = object_key(digest, hash_name)
        target = self.root / key
        if key[:-30] not in self._made:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(key[:-30])
        if not made_read_only:
            os.chmod(temporary, 0o444)
        try:
            os.replace(temporary, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
        durability.note(self.root, [str(target)])

    def temporary(self, name: str = "") -> Path:
        """Return an unused path on the cache's own file system, for a file to move in later."""
        return self._own_folder() / f"{os.urandom(8).hex()}-{name}"

    def _own_folder(self) -> Path:
        """Return this cache's folder for incomplete files, removed when the process ends."""
        with self._owning:
            if self._own is None or not os.path.isdir(self._own.path):
                check_own_folder(self.root / _TEMPORARY)
                self._own = OwnedFolder(self.root / _TEMPORARY)
            return self._own.path

    def partials(self) -> dict[str, Path]:
        """Return unfinished downloads of processes that have ended, by digest."""
        self.sweep()
        found: dict[str, Path] = {}
        if self._own is not None and os.path.isdir(self._own.path):
            for name in os.listdir(self._own.path):
                thread, _, digest = name.partition(f"-{_PART}")
                if thread == "left":
                    found[digest] = self._own.path / name
        return found

    def partial(self, digest: str) -> Path:
        """Return this thread's path for an unfinished download; a later process can resume it."""
        return self._own_folder() / f"{threading.get_ident()}-{_PART}{digest}"

    def sweep(self) -> None:
        """Remove temporary files of ended processes; keep damaged objects, and downloads to resume."""
        for folder in claim(self.root / _TEMPORARY):
            for entry in list(os.scandir(folder)):
                _, part, digest = entry.name.partition(f"-{_PART}")
                if part and time.time() - entry.stat().st_mtime < _KEPT:
                    os.replace(entry.path, self._own_folder() / f"left-{_PART}{digest}")
        with suppress(FileNotFoundError), os.scandir(self.root / _TEMPORARY) as entries:
            for entry in entries:
                # Files of versions that marked the owner by process id.
                if entry.is_file() and "-corrupt-" not in entry.name:
                    with suppress(OSError):
                        if time.time() - entry.stat().st_mtime > _KEPT:
                            os.unlink(entry.path)


def _discard(temporary: Path, error: BaseException) -> None:
    """Remove an unfinished file; raise in place of ``error`` only for a full disk."""
    with suppress(OSError):
        temporary.unlink()
    if isinstance(error, OSError):
        raise_disk_full(error, temporary)
