"""The cache: a local store whose files are named by the digest of their content.

Source of the layout: DVC 3.x, ``<root>/files/md5/aa/bbb…``; DVC 2.x, ``<root>/aa/bbb…``. Files are 0444.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.data.digest import CHUNK, digest_bytes, digest_file, raise_disk_full
from dvkf_prefect.data.tree import SUFFIX, Tree, is_tree
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError, OutputError, UnsafePathError

MD5 = "md5"
LEGACY = "md5-dos2unix"
_HEX = frozenset("0123456789abcdef")
_counter = itertools.count()
_TEMPORARY = "tmp-dvkf"


def object_key(digest: str, hash_name: str = MD5) -> str:
    """Return where an object lies below the root of a cache or a remote.

    Raises:
        UnsafePathError: ``digest`` is not a digest.
    """
    name = digest[: -len(SUFFIX)] if digest.endswith(SUFFIX) else digest
    if len(name) != 32 or not _HEX.issuperset(name):
        raise UnsafePathError(f"{digest!r} is not an md5 digest")
    place = f"{digest[:2]}/{digest[2:]}"
    return place if hash_name == LEGACY else f"files/md5/{place}"


@dataclass(frozen=True, slots=True)
class Stored:
    """Content that is in the cache now.

    Attributes:
        digest: md5 in hex, with ``.dir`` for a directory.
        size: Bytes; of a directory the sum.
        nfiles: Number of files of a directory, None for a file.
        isexec: Whether a single file may be executed.
    """

    digest: str
    size: int
    nfiles: int | None = None
    isexec: bool = False


class Cache:
    """A local content-addressed store.

    Args:
        root: Its folder; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: set[str] = set()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def path(self, digest: str, hash_name: str = MD5) -> Path:
        """Return where an object lies, whether or not it is there."""
        return self.root / object_key(digest, hash_name)

    def exists(self, digest: str, hash_name: str = MD5) -> bool:
        """Tell whether the object is there; of a directory, only its manifest is looked for."""
        return self.path(digest, hash_name).exists()

    def missing(self, digests: Iterable[str], hash_name: str = MD5) -> set[str]:
        """Return those of ``digests`` that are not in the cache."""
        wanted = set(digests)
        if len(wanted) < 64:
            return {digest for digest in wanted if not self.exists(digest, hash_name)}
        prefixes = {digest[:2] for digest in wanted}
        base = self.root / "files" / "md5" if hash_name == MD5 else self.root
        for prefix in prefixes:
            with suppress(FileNotFoundError):
                wanted.difference_update([prefix + name for name in os.listdir(base / prefix)])
        return wanted

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self, digest: str, hash_name: str = MD5) -> bytes:
        """Return an object's bytes, verified.

        Raises:
            MissingObjectError: It is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name.
        """
        path = self.path(digest, hash_name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingObjectError(
                f"{digest} is not in the cache ({self.root}); `dvkf fetch` brings it"
            ) from None
        found = digest_bytes(data)
        if found != digest.removesuffix(SUFFIX) and hash_name == MD5:
            raise self._corrupt(digest, path, found)
        return data

    def read_tree(self, digest: str, hash_name: str = MD5) -> Tree:
        """Return a directory's manifest, verified.

        Raises:
            MissingObjectError: It is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name.
            ParseError: It is not a manifest.
        """
        return Tree.from_bytes(self.read_bytes(digest, hash_name), digest)

    def export(self, digest: str, dest: Path, *, isexec: bool = False, hash_name: str = MD5) -> None:
        """Copy a file or a directory out of the cache, verified on the way.

        Args:
            digest: What to copy; a ``.dir`` digest makes a directory.
            dest: Where to; must not exist.
            isexec: Make a single file executable.
            hash_name: ``md5`` or ``md5-dos2unix``.

        Raises:
            MissingObjectError: An object is not in the cache.
            CorruptObjectError: An object's bytes do not hash to its name; the copy is removed.
            DiskFullError: There is no room.
        """
        if not is_tree(digest):
            self.copy_out(digest, dest, mode=0o777 if isexec else 0o666, hash_name=hash_name)
            return
        made = {dest}
        dest.mkdir(parents=True)
        for relpath, file_digest in self.read_tree(digest, hash_name).items():
            target = dest / relpath
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            self.copy_out(file_digest, target, mode=0o666, hash_name=hash_name)

    def copy_out(
        self, digest: str, dest: str | Path, *, mode: int = 0o666, hash_name: str = MD5
    ) -> os.stat_result:
        """Copy one object to a new file, hashed on the way; return the new file's stat.

        The file appears under its name as it is written: where a reader could see it half done, give a temporary name.

        Raises:
            MissingObjectError: The object is not in the cache.
            CorruptObjectError: Its bytes do not hash to its name; the copy is removed.
            DiskFullError: There is no room; the copy is removed.
        """
        path = self.path(digest, hash_name)
        try:
            source = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise MissingObjectError(
                f"{digest} is not in the cache ({self.root}); `dvkf fetch` brings it"
            ) from None
        try:
            target = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                found = _pump(source, target)
                if found != digest and hash_name == MD5:
                    raise self._corrupt(digest, path, found)
                return os.fstat(target)
            except BaseException as error:
                _discard(Path(dest), error)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _corrupt(self, digest: str, path: Path, found: str) -> CorruptObjectError:
        """Take a damaged object out of the way, so that the next fetch brings a good one."""
        aside = self.temporary("corrupt-" + digest)
        with suppress(OSError):
            os.replace(path, aside)
        return CorruptObjectError(
            f"{path} hashes to {found}, not to its name; it was moved to {aside}. "
            "`dvkf fetch` brings a good copy from the remote."
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    def add_bytes(self, data: bytes, *, tree: bool = False) -> str:
        """Store bytes; return their digest."""
        digest = digest_bytes(data) + (SUFFIX if tree else "")
        if not self.exists(digest):
            temporary = self.temporary(digest)
            try:
                temporary.write_bytes(data)
            except OSError as error:
                _discard(temporary, error)
                raise
            self.adopt(temporary, digest)
        return digest

    def add_file(self, source: str | Path, *, digest: str | None = None, move: bool = False) -> str:
        """Store a file's content; return its digest.

        Args:
            source: The file.
            digest: What it must hash to, where that is known.
            move: Take the file itself instead of a copy.

        Raises:
            CorruptObjectError: It does not hash to ``digest``; nothing was stored.
            DiskFullError: There is no room; nothing was stored.
        """
        if move:
            found = digest_file(source)
            if digest not in (None, found):
                raise CorruptObjectError(f"{source} hashes to {found}, not to {digest}; it was not stored")
            self.adopt(source, found)
            return found
        temporary = self.temporary()
        try:
            found, _ = _copy(source, temporary)
            if digest not in (None, found):
                raise CorruptObjectError(
                    f"{source} hashes to {found}, not to {digest}: it changed; nothing was stored"
                )
        except BaseException as error:
            _discard(temporary, error)
            raise
        self.adopt(temporary, found, made_read_only=True)
        return found

    def copy_in(self, source: str | Path, digest: str, hash_name: str = MD5) -> int:
        """Copy an object from another store's file, hashed on the way; return its bytes.

        Raises:
            CorruptObjectError: It does not hash to its name; nothing was stored.
            DiskFullError: There is no room; nothing was stored.
            FileNotFoundError: There is no such file.
        """
        temporary = self.temporary()
        try:
            found, size = _copy(source, temporary)
            if hash_name == MD5 and found != digest.removesuffix(SUFFIX):
                raise CorruptObjectError(f"{source} hashes to {found}, not to its name; it was not stored")
        except BaseException as error:
            _discard(temporary, error)
            raise
        self.adopt(temporary, digest, hash_name, made_read_only=True)
        return size

    def adopt(
        self, temporary: str | Path, digest: str, hash_name: str = MD5, *, made_read_only: bool = False
    ) -> None:
        """Take a finished temporary file in under its digest, which the caller has verified."""
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

    def temporary(self, name: str = "") -> Path:
        """Return an unused name on the cache's own file system, for a file to be moved in from."""
        folder = self.root / _TEMPORARY
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{os.getpid()}-{name}-{next(_counter)}"

    def partials(self) -> dict[str, Path]:
        """Return what downloads of processes that have ended left unfinished, by digest."""
        found: dict[str, Path] = {}
        with suppress(FileNotFoundError):
            for name in os.listdir(self.root / _TEMPORARY):
                pid, _, digest = name.partition("-part-")
                if digest and pid.isdigit() and not _alive(int(pid)):
                    found[digest] = self.root / _TEMPORARY / name
        return found

    def partial(self, digest: str) -> Path:
        """Return where this process keeps an unfinished download, for one that comes after it to go on from."""
        return self.temporary().with_name(f"{os.getpid()}-part-{digest}")

    def sweep(self) -> None:
        """Remove temporary files that processes no longer alive left behind; damaged objects are kept."""
        folder = self.root / _TEMPORARY
        with suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                pid, _, rest = entry.name.partition("-")
                if pid.isdigit() and not rest.startswith(("corrupt-", "part-")) and not _alive(int(pid)):
                    with suppress(OSError):
                        os.unlink(entry.path)


def walk_files(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield ``(relpath, entry)`` for every file below ``root``, links to files included.

    Raises:
        OutputError: A link leads nowhere or to a directory, or something is no regular file or not UTF-8.
    """
    stack = [("", str(root))]
    while stack:
        prefix, folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                relpath = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    stack.append((relpath + "/", entry.path))
                    continue
                check_entry(entry)
                yield relpath, entry


def check_entry(entry: os.DirEntry[str]) -> None:
    """Refuse what a manifest cannot hold.

    Raises:
        OutputError: A link leads nowhere or to a directory, it is no regular file, or its name is not UTF-8.
    """
    if not entry.name.isascii():
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise OutputError(
                f"{os.fsencode(entry.path)!r}: the name is not UTF-8; rename the file"
            ) from None
    if entry.is_file():
        return
    if not entry.is_symlink():
        kind = "not a regular file"
    elif entry.is_dir():
        kind = "a link to a directory; replace it by the directory, or leave it out with .dvcignore"
    else:
        kind = "a link that leads nowhere; remove it, or leave it out with .dvcignore"
    raise OutputError(f"{entry.path}: {kind}")


def _copy(source: str | Path, target: str | Path) -> tuple[str, int]:
    """Copy a file to a new read-only one; return the md5 and the bytes of what went through."""
    reading = os.open(source, os.O_RDONLY)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        try:
            return _pump(reading, writing), os.lseek(writing, 0, os.SEEK_CUR)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _pump(source: int, target: int) -> str:
    """Copy one open file to another and return the md5 of what went through."""
    md5 = hashlib.md5(usedforsecurity=False)
    while chunk := os.read(source, CHUNK):
        md5.update(chunk)
        written = os.write(target, chunk)
        while written < len(chunk):
            written += os.write(target, memoryview(chunk)[written:])
    return md5.hexdigest()


def _discard(temporary: Path, error: BaseException) -> None:
    """Remove an unfinished file; raise in place of ``error`` only when it means a full disk."""
    with suppress(OSError):
        temporary.unlink()
    if isinstance(error, OSError):
        raise_disk_full(error, temporary)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
