"""Streams taken into a cache, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.errors import CorruptObjectError, DvkfError
from dvkf_prefect.files import raise_disk_full


def receive_stream(
    cache: Cache, chunks: Iterator[bytes], *, size: int | None = None, digest: str | None = None
) -> tuple[str, int]:
    """Take a stream's bytes into a cache.

    Args:
        cache: Where to.
        chunks: The bytes.
        size: How many they must be, where that is known.
        digest: What they must hash to, where that is known.

    Returns:
        Their md5, and how many they were.

    Raises:
        CorruptObjectError: They are not what was expected; nothing was stored.
        DiskFullError: There is no room; nothing was stored.
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
        found = md5.hexdigest()
        if size not in (None, count) or digest not in (None, found):
            raise CorruptObjectError(
                f"{count} bytes with md5 {found} came where {size} bytes with md5 {digest or 'unknown'} were expected: "
                "it changed meanwhile, or is damaged; nothing was stored"
            )
        cache.adopt(temporary, found)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DvkfError):
            raise_disk_full(error, temporary)
        raise
    return found, count
