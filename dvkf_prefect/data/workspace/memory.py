"""Stat cache: the digest of each file with its stat values, to avoid hashing an unchanged file again."""

from __future__ import annotations

import json
import os
import time
import zlib
from array import array
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dvkf_prefect.data.cache._copier import Stat
from dvkf_prefect.files import (
    COARSE_TICK_NS,
    MANIFEST_LIMIT,
    TICK_NS,
    is_racy,
    read_description,
    write_atomic,
)
from dvkf_prefect.formats.digest import digest_bytes

# Hashing more bytes than this takes longer than a tick.
_MUCH = 16 << 20


@dataclass(slots=True)
class Rows:
    """Known stats and digests of the files below one folder, in columns sorted by path.

    Attributes:
        relpaths: Posix paths relative to the folder, in code-point order.
        sizes: Sizes in bytes.
        mtimes: Modification times, ns; -1 in a row not to trust.
        ctimes: Change times, ns.
        inodes: Inode numbers.
        execs: 1 if the owner may execute the file.
        digests: md5 in hex, or "" if unknown.
        tree: Digest of the folder's manifest, None if unknown.
    """

    relpaths: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    ctimes: array[int] = field(default_factory=lambda: array("q"))
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    execs: bytearray = field(default_factory=bytearray)
    digests: list[str] = field(default_factory=list)
    tree: str | None = None

    def __len__(self) -> int:
        return len(self.relpaths)

    @classmethod
    def expected(cls, relpaths: list[str], digests: list[str]) -> Rows:
        """Create the rows of files to be placed; fill in their stats with `put`."""
        zeros = bytes(8 * len(relpaths))
        return cls(
            relpaths,
            array("q", zeros),
            array("q", zeros),
            array("q", zeros),
            array("Q", zeros),
            bytearray(len(relpaths)),
            digests,
        )

    def put(self, row: int, stat: Stat) -> None:
        """Set the stat that `_copier` returned for a file."""
        self.sizes[row], self.mtimes[row], self.ctimes[row], self.inodes[row], self.execs[row] = stat

    def files(self) -> Iterator[tuple[str, str, int]]:
        """Yield path, digest and size of each file."""
        return zip(self.relpaths, self.digests, self.sizes, strict=True)

    def same_files(self, other: Rows) -> bool:
        """Return True if the stats of all files are equal in both."""
        return (
            self.mtimes == other.mtimes
            and self.sizes == other.sizes
            and self.ctimes == other.ctimes
            and self.inodes == other.inodes
            and self.relpaths == other.relpaths
        )

    def fill_from(self, known: Rows) -> list[int]:
        """Copy the digests of files with unchanged stats; return the rows to hash."""
        if self.same_files(known):
            self.digests = list(known.digests)
            self.tree = known.tree
            return [i for i, digest in enumerate(self.digests) if not digest]
        index = {path: i for i, path in enumerate(known.relpaths)}
        digests: list[str] = []
        missing: list[int] = []
        for i, path in enumerate(self.relpaths):
            j = index.get(path)
            if (
                j is not None
                and known.mtimes[j] == self.mtimes[i]
                and known.sizes[j] == self.sizes[i]
                and known.ctimes[j] == self.ctimes[i]
                and known.inodes[j] == self.inodes[i]
                and known.digests[j]
            ):
                digests.append(known.digests[j])
            else:
                digests.append("")
                missing.append(i)
        self.digests = digests
        return missing

    def append(self, relpath: str, stat: os.stat_result, digest: str) -> None:
        """Append one file; the caller keeps the order."""
        self.relpaths.append(relpath)
        self.sizes.append(stat.st_size)
        self.mtimes.append(stat.st_mtime_ns)
        self.ctimes.append(stat.st_ctime_ns)
        self.inodes.append(stat.st_ino)
        self.execs.append(1 if stat.st_mode & 0o100 else 0)
        self.digests.append(digest)

    def extend_stats(self, infos: list[os.stat_result]) -> None:
        """Append the stats of files after their paths, without digests."""
        self.sizes.extend([info.st_size for info in infos])
        self.mtimes.extend([info.st_mtime_ns for info in infos])
        self.ctimes.extend([info.st_ctime_ns for info in infos])
        self.inodes.extend([info.st_ino for info in infos])
        self.execs.extend([1 if info.st_mode & 0o100 else 0 for info in infos])

    def copy_row(self, other: Rows, row: int) -> None:
        """Append a row of other rows; the caller keeps the order."""
        self.relpaths.append(other.relpaths[row])
        self.sizes.append(other.sizes[row])
        self.mtimes.append(other.mtimes[row])
        self.ctimes.append(other.ctimes[row])
        self.inodes.append(other.inodes[row])
        self.execs.append(other.execs[row])
        self.digests.append(other.digests[row])

    def distrust_racy(self, read_ns: int, *, but: Collection[int] = ()) -> None:
        """Invalidate the times of files changed so shortly before ``read_ns`` that a later change could hide.

        Args:
            read_ns: Time before the files were read.
            but: Indexes of files to trust, of which any later write is detectable.
        """
        newest = max(self.mtimes, default=0)
        if newest < read_ns - COARSE_TICK_NS:
            return
        for i, mtime in enumerate(self.mtimes):
            if is_racy(mtime, read_ns) and i not in but:
                self.mtimes[i] = -1
                self.tree = None

    def settle(self) -> None:
        """Invalidate the times of files just written, or wait until a later write gets another time.

        Hashing a few small files again costs less than waiting; hashing large ones costs more.
        """
        now = time.time_ns()
        if max(self.mtimes, default=0) < now - COARSE_TICK_NS:
            return
        racy = [size for size, mtime in zip(self.sizes, self.mtimes, strict=True) if is_racy(mtime, now)]
        if sum(racy) > _MUCH:
            time.sleep((TICK_NS + 2_000_000) / 1e9)
            now = time.time_ns()
        self.distrust_racy(now)


class Memory:
    """Stat → digest memory of a repository: one small file per tracked folder, read and written as a whole.

    It only saves work: a row that does not match the current file is ignored, and an unreadable memory counts as empty.

    Args:
        folder: Folder of the memory; created on the first write.
    """

    _VERSION = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / digest_bytes(os.fsencode(key))

    def load(self, key: str) -> Rows | None:
        """Return the rows of the folder ``key`` (relative to the repository), or None."""
        try:
            blob = read_description(self._file(key), limit=MANIFEST_LIMIT)
        except OSError:
            return None
        try:
            head, _, body = blob.partition(b"\n")
            meta = json.loads(head)
            count = meta["count"]
            if meta["version"] != self._VERSION or meta["crc"] != zlib.crc32(body) or meta["key"] != key:
                return None
            rows = Rows(tree=meta["tree"])
            offset = 0
            for column in (rows.sizes, rows.mtimes, rows.ctimes, rows.inodes):
                column.frombytes(body[offset : offset + 8 * count])
                offset += 8 * count
            rows.execs = bytearray(body[offset : offset + count])
            offset += count
            digests = body[offset : offset + 16 * count].hex()
            offset += 16 * count
            rows.digests = [digests[i : i + 32] for i in range(0, 32 * count, 32)]
            if meta["holes"]:
                rows.digests = ["" if d == "0" * 32 else d for d in rows.digests]
            if count:
                rows.relpaths = body[offset:].decode().split("\0")
        except (ValueError, KeyError, TypeError):
            return None
        return rows if len(rows.relpaths) == count == len(rows.digests) else None

    def save(self, key: str, rows: Rows) -> None:
        """Store ``rows`` for the folder ``key``; write errors are ignored."""
        holes = "" in rows.digests
        digests = [d or "0" * 32 for d in rows.digests] if holes else rows.digests
        body = b"".join(
            (
                rows.sizes.tobytes(),
                rows.mtimes.tobytes(),
                rows.ctimes.tobytes(),
                rows.inodes.tobytes(),
                bytes(rows.execs),
                bytes.fromhex("".join(digests)),
                "\0".join(rows.relpaths).encode(),
            )
        )
        meta = {
            "version": self._VERSION,
            "key": key,
            "count": len(rows),
            "tree": rows.tree,
            "holes": holes,
            "crc": zlib.crc32(body),
        }
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file(key), json.dumps(meta).encode() + b"\n" + body, durable=False)

    def forget(self, key: str) -> None:
        """Remove the rows of the folder ``key``."""
        with suppress(OSError):
            self._file(key).unlink()
