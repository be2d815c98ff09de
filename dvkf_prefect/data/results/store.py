"""Results on a remote, named by key and kept by content.

All of it is below ``results-dvkf/`` of the remote, which DVC and its garbage collection ignore:

- ``keys/ab/cdef….json`` is the entry of a key, named by the sha256 of the key. It has the key, the head of the content,
  and the rest of it or the place of the rest.
- ``objects/<day>/ab/cdef…`` is the rest of a content, named by its sha256. Equal results of one day are stored once.

Prefect writes the metadata of a result, which differ in each run, and the value in one text. The metadata are the head.

A writer stores the object first and the entry last, each atomically, so a reader finds whole results only. Writers of
one key store equal bytes or replace each other. An object has the day of its writing in its name. Collection removes
unused objects of past days only, and writers use no objects of past days, so they need no lock against each other.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dvkf_prefect import durability
from dvkf_prefect.data.remotes import Storage
from dvkf_prefect.errors import CorruptObjectError, MissingObjectError

FOLDER = "results-dvkf"
KEYS, OBJECTS, LOCKS = f"{FOLDER}/keys", f"{FOLDER}/objects", f"{FOLDER}/locks"
FORMAT = 1
# Contents up to this many bytes are part of the entry: one request reads them.
_INSIDE = 4096
_ENTRY_LIMIT = 1 << 20
# Larger contents are uploaded from a file, in parts.
_AT_ONCE = 32 << 20
_HEAD = b'{"metadata":'


@dataclass(frozen=True, slots=True)
class ResultEntry:
    """Entry of a key.

    Attributes:
        key: The key.
        written: Time of writing in seconds since 1970.
        expires: Time of expiration in seconds since 1970; None for none.
        head: First bytes of the content, as text.
        rest: The other bytes if there are few, as text; None if they are an object.
        place: Place of the object below the root of the remote; "" without one.
        sha256: sha256 of the object in hex.
        size: Size of the object in bytes.
    """

    key: str
    written: float
    expires: float | None
    head: str
    rest: str | None = None
    place: str = ""
    sha256: str = ""
    size: int = 0

    def to_json(self) -> bytes:
        """Return the entry as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ResultEntry:
        """Read the JSON of `to_json`.

        Args:
            data: The JSON.
            where: Place of the entry, for messages.

        Raises:
            CorruptObjectError: It is damaged, or a later version of dvkf wrote it.
        """
        try:
            values = json.loads(data)
            made = values.pop("format")
            if made == FORMAT:
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CorruptObjectError(
                f"{where}: the entry of a result is damaged. Run its task again."
            ) from None
        raise CorruptObjectError(
            f"{where}: the entry of a result has format {made}, which this version of dvkf does not know. Update dvkf."
        )

    def expired(self, now: float, older_than: float | None) -> bool:
        """Return True if the entry can be removed.

        Args:
            now: The time in seconds since 1970.
            older_than: Age in seconds; None to keep results without an expiration.
        """
        if self.expires is not None and self.expires <= now:
            return True
        return older_than is not None and self.written + older_than <= now


class ResultStorage:
    """Results on a remote; its methods may be called from several threads and machines at once.

    Args:
        storage: The remote's storage.

    Example:
        >>> from dvkf_prefect.data.remotes import open_storage
        >>> results = ResultStorage(open_storage("memory://example"))
        >>> results.write("key-1", b"value")
        >>> results.read("key-1")
        b'value'
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def write(self, key: str, content: bytes) -> None:
        """Store a result; one of the same key is replaced.

        Args:
            key: Any text that names the result.
            content: The result.

        Raises:
            RemoteError: The remote cannot be used.
            DiskFullError: The disk is full.
        """
        now = time.time()
        end, expires = _head_of(content)
        head, rest = content[:end].decode(), content[end:]
        inside = _as_text(rest) if len(rest) <= _INSIDE else None
        entry = ResultEntry(key, now, expires, head, inside)
        if inside is None:
            digest = hashlib.sha256(rest).hexdigest()
            place = f"{OBJECTS}/{day_of(now)}/{digest[:2]}/{digest[2:]}"
            if self.storage.size(place) != len(rest):
                self._store(place, rest)
            entry = ResultEntry(key, now, expires, head, None, place, digest, len(rest))
        # Objects are on the disk before the entry names them.
        durability.flush()
        self.storage.write(place_of(key), entry.to_json())
        durability.flush()

    def read(self, key: str) -> bytes:
        """Return a result.

        Args:
            key: Key of the result.

        Raises:
            MissingObjectError: There is no such result, or it was removed.
            CorruptObjectError: The stored bytes differ from the written ones.
            RemoteError: The remote cannot be used.
        """
        entry = self.entry(place_of(key))
        if entry.rest is not None:
            return (entry.head + entry.rest).encode()
        rest = self.storage.read(entry.place, limit=entry.size)
        if hashlib.sha256(rest).hexdigest() != entry.sha256:
            raise CorruptObjectError(
                f"{self._at(entry.place)}: the result '{key}' is damaged. Run its task again."
            )
        return entry.head.encode() + rest

    def entry(self, place: str) -> ResultEntry:
        """Return the entry at a place below the root of the remote.

        Raises:
            MissingObjectError: There is none.
            CorruptObjectError: It is damaged, or a later version of dvkf wrote it.
        """
        try:
            data = self.storage.read(place, limit=_ENTRY_LIMIT)
        except MissingObjectError as error:
            raise MissingObjectError(
                f"{self._at(place)}: there is no such result. Run its task again."
            ) from error
        return ResultEntry.from_json(data, self._at(place))

    def _store(self, place: str, content: bytes) -> None:
        if len(content) <= _AT_ONCE:
            self.storage.write(place, content)
            return
        with tempfile.NamedTemporaryFile(prefix="dvkf-result-") as file:
            file.write(content)
            file.flush()
            self.storage.upload(place, Path(file.name))

    def _at(self, place: str) -> str:
        return f"remote '{self.storage.name}' ({self.storage.url}), {place}"


def place_of(key: str, folder: str = KEYS, suffix: str = ".json") -> str:
    """Return the place of what belongs to a key, below the root of the remote.

    Example:
        >>> place_of("a")[:22]
        'results-dvkf/keys/ca/9'
    """
    name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{folder}/{name[:2]}/{name[2:]}{suffix}"


def day_of(now: float) -> str:
    """Return the day of a time in seconds since 1970, as ``yyyy-mm-dd`` of UTC."""
    return datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d")


def _head_of(content: bytes) -> tuple[int, float | None]:
    """Return the length of a result's metadata, 0 without any, and its expiration in seconds since 1970."""
    found: tuple[int, Any] = (0, None)
    if content.startswith(_HEAD):
        try:
            # One character a byte, so that the end is an offset.
            metadata, end = json.JSONDecoder().raw_decode(
                content[: _ENTRY_LIMIT // 4].decode("latin-1"), len(_HEAD)
            )
            found = end, metadata.get("expiration")
            content[:end].decode()
        except (ValueError, AttributeError):
            found = (0, None)
    elif len(content) <= _INSIDE:
        # Metadata that a policy keeps apart from its result.
        with suppress(ValueError, AttributeError):
            found = 0, json.loads(content).get("expiration")
    end, expires = found
    try:
        return end, datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp() if expires else None
    except (ValueError, AttributeError, OverflowError):
        return end, None


def _as_text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
