"""Verified transfer of byte streams into a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import CorruptObjectError, DvkfError
from dvkf_prefect.files import raise_disk_full


def receive_stream(
    cache: Cache,
    chunks: Iterator[bytes],
    *,
    size: int | None = None,
    digest: str | None = None,
    note: Callable[[int], None] | None = None,
) -> tuple[str, int]:
    """Store a stream's bytes in a cache.

    Args:
        cache: The target cache.
        chunks: Chunks of the stream.
        size: Expected size in bytes, None if unknown.
        digest: Expected md5, None if unknown.
        note: Called with the bytes of each chunk.

    Returns:
        The md5 and the number of bytes.

    Raises:
        CorruptObjectError: Size or md5 differ from the expected ones; nothing was stored.
        DiskFullError: The disk is full; nothing was stored.
    """
    temporary = cache.temporary()
    md5 = hashlib.md5(usedforsecurity=False)
    count = 0
    try:
        with temporary.open("wb") as stream:
            for chunk in chunks:
                md5.update(chunk)
                stream.write(chunk)
                count += len(chunk)
                if note is not None:
                    note(len(chunk))
        found = md5.hexdigest()
        if size not in (None, count) or digest not in (None, found):
            raise CorruptObjectError(
                f"{count} bytes with md5 {found} arrived, expected {size} bytes with md5 "
                f"{digest or 'unknown'}: the source changed or is damaged; nothing was stored"
            )
        cache.adopt(temporary, found)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DvkfError):
            raise_disk_full(error, temporary)
        raise
    return found, count
